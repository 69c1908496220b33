//! The real backends: candle, libtorch and ONNX Runtime against the oracle, through the program.

#![cfg(test)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/cli.rs"]
mod cli;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use checkpoint::Checkpoint;
use cli::{Finished, Folder, HOME};
use driftgauge_reports::RunRecord;
use driftgauge_reports::record::{Answer, ResultRecord, Verdict};
use safetensors::Dtype;

/// The targets of a run that names none.
const TARGETS: [&str; 3] = ["candle@cpu/f32", "libtorch@cpu/f32", "onnx@cpu/f32"];
/// The other implementation of the truth, which shares no code with the oracle.
const EXACT: &str = "libtorch@cpu/f64";
/// How far the two may be apart.
const MOST_RELATIVE_ERROR: f64 = 1e-12;
/// The suites of the repository, in the order in which they run, and their cases to a batch.
const SUITES: [(&str, i64); 5] = [
    ("seed", 1),
    ("features", 4),
    ("fill-mask", 1),
    ("selftest", 2),
    ("similarity", 4),
];

/// A batch of another size: what runs alone is put together, and the other way round.
fn other_batch(batch: i64) -> i64 {
    if batch == 1 { 8 } else { 1 }
}

/// What a user gets who types `driftgauge run`.
static DEFAULT: LazyLock<Finished> = LazyLock::new(|| Folder::new().run::<&str>(&[]));

fn suite(name: &str) -> toml::Table {
    let path = Path::new(HOME).join("cases").join(format!("{name}.toml"));
    std::fs::read_to_string(path).unwrap().parse().unwrap()
}

/// Suite, name and task of every case that there is, read apart from the program.
fn all_cases() -> Vec<[String; 3]> {
    let cases = |(name, _): (&'static str, i64)| {
        let cases = suite(name)["case"].as_array().unwrap().clone();
        cases.into_iter().map(move |case| {
            let text = |key: &str| case[key].as_str().unwrap().to_owned();
            [name.to_owned(), text("name"), text("task")]
        })
    };
    SUITES.into_iter().flat_map(cases).collect()
}

/// Checks that every case has a result on every target, in order.
#[track_caller]
fn check_complete(run: &Finished, record: &RunRecord, targets: &[&str]) {
    let expected = all_cases().into_iter().flat_map(|[suite, case, task]| {
        let result = move |target: &&str| {
            let (suite, case, task) = (suite.clone(), case.clone(), task.clone());
            (suite, case, task, (*target).to_owned())
        };
        targets.iter().map(result)
    });
    let found = record.results.iter().map(|result| {
        let ResultRecord {
            suite,
            case,
            task,
            target,
            ..
        } = result.clone();
        (suite, case, task, target)
    });
    run.expect(found.eq(expected), "the results should be complete");
}

#[track_caller]
fn check_verdicts(run: &Finished, results: &[ResultRecord], verdict: Verdict) {
    for result in results {
        let ResultRecord { case, target, .. } = result;
        let what = format_args!("`{case}` on {target} should be {verdict:?}: {result:#?}");
        run.expect(result.verdict == verdict, what);
    }
}

#[test]
fn the_default_run_conforms() {
    let record = DEFAULT.record(0);
    check_complete(&DEFAULT, &record, &TARGETS);
    check_verdicts(&DEFAULT, &record.results, Verdict::Pass);
    let findings: Vec<_> = record.targets.iter().flat_map(|t| &t.finding).collect();
    DEFAULT.expect(findings.is_empty(), format_args!("{findings:?}"));
}

/// Two runs differ in nothing but the fields for time, machine and places.
#[test]
fn the_record_is_deterministic() {
    let run = || {
        let suites = ["seed", "features"].map(|name| format!("{HOME}/cases/{name}.toml"));
        let [seed, features] = &suites;
        let arguments = ["--threads", "1", "--suite", seed, "--suite", features];
        let run = Folder::new().run(&arguments);
        run.record(0);
        let mut record: serde_json::Value = serde_json::from_str(&run.json).unwrap();
        let fields = record.as_object_mut().unwrap();
        for field in ["time", "host", "paths"] {
            assert!(fields.remove(field).is_some(), "no `{field}`\n{run}");
        }
        for target in fields["targets"].as_array_mut().unwrap() {
            assert!(target.as_object_mut().unwrap().remove("time").is_some());
        }
        serde_json::to_string_pretty(&record).unwrap()
    };
    let (first, second) = (run(), run());
    let lines = first.lines().zip(second.lines());
    let different: Vec<_> = lines.filter(|(a, b)| a != b).take(10).collect();
    assert!(first == second, "the runs differ: {different:#?}");
}

/// The largest relative error of each observation of the exact target, with its case.
fn largest_errors(record: &RunRecord) -> BTreeMap<&str, (f64, &str)> {
    let mut largest = BTreeMap::new();
    for result in record.results.iter().filter(|r| r.target == EXACT) {
        for (name, observation) in &result.observations {
            let error = observation.error_u.unwrap_or(f64::INFINITY) * 0.5f64.powi(53);
            let entry = largest.entry(name.as_str()).or_insert((0.0, ""));
            if error >= entry.0 {
                *entry = (error, result.case.as_str());
            }
        }
    }
    largest
}

#[track_caller]
fn check_exact(run: &Finished, record: &RunRecord) {
    let largest = largest_errors(record);
    run.expect(!largest.is_empty(), "something should be compared");
    for (name, (error, case)) in largest {
        println!("{name:12} {error:8.1e}  {case}");
        let what = format_args!("`{name}` of `{case}` differs by {error:e}");
        run.expect(error <= MOST_RELATIVE_ERROR, what);
    }
}

#[test]
fn the_oracle_agrees_with_libtorch_in_f64() {
    let run = Folder::new().run(&["--target", EXACT, "--format", "json"]);
    let record = run.record(0);
    run.expect(run.stdout == run.json, "the record should be printed");
    check_complete(&run, &record, &[EXACT]);
    for result in &record.results {
        let mut expected = vec!["cls", "embeddings"];
        expected.extend(["hidden.1", "hidden.2", "hidden.3", "hidden.4"]);
        if result.task == "fill-mask" {
            expected.push("logits");
        }
        assert!(result.observations.keys().eq(&expected), "{result:#?}");
    }
    check_exact(&run, &record);
}

/// The likeliest token at each mask.
fn best(result: &ResultRecord) -> Option<Vec<&str>> {
    match result.answer.as_ref()? {
        Answer::FillMask { masks } => {
            let best = masks.iter().map(|mask| mask.top[0].token.as_str());
            Some(best.collect())
        }
        _ => None,
    }
}

/// What ran alone runs in a padded batch, and the other way round.
#[test]
fn padding_changes_no_verdict() {
    let folder = Folder::new();
    let mut arguments = Vec::new();
    for (name, batch) in SUITES {
        let mut suite = suite(name);
        let table = suite["suite"].as_table_mut().unwrap();
        table.insert("batch".to_owned(), other_batch(batch).into());
        let path = folder.write(&format!("{name}.toml"), suite.to_string());
        arguments.extend([PathBuf::from("--suite"), path]);
    }
    let run = folder.run(&arguments);
    let (record, default) = (run.record(0), DEFAULT.record(0));
    check_complete(&run, &record, &TARGETS);
    for (suite, (name, batch)) in record.suites.iter().zip(SUITES) {
        assert_eq!(
            (suite.name.as_str(), suite.batch as i64),
            (name, other_batch(batch))
        );
    }
    for (result, other) in record.results.iter().zip(&default.results) {
        let same = (result.verdict, best(result)) == (other.verdict, best(other));
        run.expect(same, format_args!("{result:#?}\nwas {other:#?}"));
    }
}

/// Runs a small checkpoint on all targets, and in f64.
fn run_small(checkpoint: &Checkpoint) -> Finished {
    let targets = TARGETS.into_iter().chain([EXACT]);
    let targets = targets.flat_map(|target| ["--target", target]);
    let files = ["--model", "model", "--suite", "tiny.toml"];
    let arguments: Vec<&str> = files.into_iter().chain(targets).collect();
    Folder::with(checkpoint).run(&arguments)
}

/// The record of a small checkpoint that conforms on all targets.
#[track_caller]
fn conforms(checkpoint: &Checkpoint) -> RunRecord {
    let run = run_small(checkpoint);
    let record = run.record(0);
    run.expect(record.results.len() == 6 * 4, "nothing should be missing");
    check_verdicts(&run, &record.results, Verdict::Pass);
    check_exact(&run, &record);
    record
}

fn truth(record: &RunRecord) -> Vec<Option<Answer>> {
    let results = record.results.iter();
    results.map(|result| result.truth_answer.clone()).collect()
}

/// However a model is spelt and stored, it is the same model.
#[test]
fn every_spelling_is_the_same_model() {
    let plain = Checkpoint::new;
    let expected = conforms(&plain());
    assert!(truth(&expected).iter().all(Option::is_some));
    for (checkpoint, naming, dtype) in [
        (plain().gamma_beta(), "bert. gamma/beta tied", "f32"),
        (plain().without_prefix(), " weight/bias tied", "f32"),
        (
            plain().with_separate_decoder(),
            "bert. weight/bias separate",
            "f32",
        ),
        (
            plain().without_prefix().gamma_beta(),
            " gamma/beta tied",
            "f32",
        ),
        (
            plain().stored_as(Dtype::F16),
            "bert. weight/bias tied",
            "f16",
        ),
        (
            plain().stored_as(Dtype::BF16),
            "bert. weight/bias tied",
            "bf16",
        ),
        (
            plain().stored_as(Dtype::F64),
            "bert. weight/bias tied",
            "f64",
        ),
    ] {
        let record = conforms(&checkpoint);
        let keys = ["prefix", "layer_norm", "decoder"];
        let found = keys.map(|key| record.model.naming[key].as_str()).join(" ");
        assert_eq!(
            (found.as_str(), &record.model.weights_dtypes[..]),
            (naming, &[dtype.to_owned()][..])
        );
        assert_eq!(truth(&record), truth(&expected), "{naming} {dtype}");
    }
}

#[test]
fn without_a_head_masks_are_unsupported_and_vectors_are_not() {
    let run = run_small(&Checkpoint::new().without_head());
    let record = run.record(3);
    run.expect(record.results.len() == 6 * 4, "nothing should be missing");
    let (masks, vectors): (Vec<_>, Vec<_>) = record
        .results
        .into_iter()
        .partition(|result| result.task == "fill-mask");
    check_verdicts(&run, &vectors, Verdict::Pass);
    check_verdicts(&run, &masks, Verdict::Unsupported);
    for result in masks {
        let reason = "the checkpoint has no masked-language-model head";
        assert_eq!(result.findings[0].message, reason, "{run}");
    }
}

/// What `config.json` says is computed, or the target says that it cannot.
#[test]
fn activations_and_eps_are_honoured() {
    let mut truths = Vec::new();
    for (key, value, code) in [
        ("hidden_act", "gelu".into(), 0),
        ("hidden_act", "gelu_new".into(), 0),
        ("hidden_act", "relu".into(), 0),
        ("hidden_act", "silu".into(), 3),
        ("layer_norm_eps", serde_json::json!(1e-5), 0),
    ] {
        let run = run_small(&Checkpoint::new().with(key, value));
        let record = run.record(code);
        for result in &record.results {
            if code == 3 && result.target == "candle@cpu/f32" {
                check_verdicts(&run, std::slice::from_ref(result), Verdict::Unsupported);
                let reason = "candle's BERT has no activation `silu`";
                run.expect(result.findings[0].message.contains(reason), reason);
            } else {
                check_verdicts(&run, std::slice::from_ref(result), Verdict::Pass);
            }
        }
        check_exact(&run, &record);
        let truth = truth(&record);
        run.expect(!truths.contains(&truth), "the setting should matter");
        truths.push(truth);
    }
}
