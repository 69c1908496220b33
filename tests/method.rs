//! The measuring method, through the program: what is a correct implementation, and in which way
//! another one is wrong.

#![cfg(test)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/cli.rs"]
mod cli;

use std::ffi::OsStr;
use std::path::Path;

use checkpoint::Checkpoint;
use cli::{DRIFTGAUGE, Finished, Folder, HOME};
use driftgauge_reports::calibration::CalibrationReport;
use driftgauge_reports::detection::DetectionReport;
use driftgauge_reports::record::{Class, Finding, FindingKind, RunRecord, Verdict};

/// Runs two suites on the embedded model with a fake worker that passes itself off as something.
fn run_as(imitation: &str, float64: bool) -> Finished {
    let suites = ["seed", "features"].map(|name| format!("{HOME}/cases/{name}.toml"));
    let available = if float64 { "yes" } else { "no" };
    let target = format!("fake@cpu/f32?as={imitation}&f64={available}");
    let [seed, features] = &suites;
    Folder::new().run(&["--target", &target, "--suite", seed, "--suite", features])
}

fn numeric(record: &RunRecord) -> Vec<&Finding> {
    let all = record.results.iter().flat_map(|result| &result.findings);
    all.filter(|finding| finding.kind == FindingKind::Numeric)
        .collect()
}

/// Another seed than the predictions' makes other errors of the same size.
#[test]
fn a_correct_implementation_passes() {
    let run = run_as("rounding", true);
    let record = run.record(0);
    let observations = record
        .results
        .iter()
        .flat_map(|result| result.observations.values());
    for observation in observations {
        let ratio = observation.in_noise();
        run.expect((0.3..2.5).contains(&ratio), format_args!("{observation:?}"));
    }
    let check = record.targets[0].semantic.as_ref().unwrap();
    run.expect(check.within && check.cases > 0, format_args!("{check:?}"));
}

/// Whether or not the library has float64: the class is right, and the evidence says why.
#[test]
fn what_is_wrong_is_classified() {
    for (imitation, class, evidence) in [
        ("tf32", Class::Precision, "the error of TF32"),
        ("f16", Class::Precision, "the error of f16 throughout"),
        ("bf16", Class::Precision, "the error of bf16 throughout"),
        (
            "bf16-weights",
            Class::Precision,
            "the error of weights stored in bf16",
        ),
        ("noisy", Class::Precision, "the size of no format"),
        ("eps", Class::Semantic, "alike in all tokens"),
        ("tanh-gelu", Class::Semantic, "alike in all tokens"),
    ] {
        for float64 in [false, true] {
            let run = run_as(imitation, float64);
            let record = run.record(1);
            let findings = numeric(&record);
            run.expect(!findings.is_empty(), "there should be a finding");
            let is_right = |finding: &&Finding| finding.class == Some(class);
            run.expect(
                findings.iter().all(is_right),
                format_args!("{imitation}: {findings:#?}"),
            );
            let said = findings[0].evidence.join("; ");
            let expected = match (class, float64) {
                (Class::Semantic, true) => "differs from the truth",
                _ => evidence,
            };
            run.expect(said.contains(expected), format_args!("{imitation}: {said}"));
            run.expect(run.stdout.contains("because "), "the table should say why");
        }
    }
}

/// The error of this formula is a fraction of the noise of f32, so that no budget sees it.
#[test]
fn a_wrong_formula_under_the_noise_is_found_in_float64() {
    let unseen = run_as("hidden-eps", false);
    unseen.record(0);
    let run = run_as("hidden-eps", true);
    let record = run.record(1);
    let within = record
        .results
        .iter()
        .flat_map(|result| result.observations.values());
    run.expect(
        within.into_iter().all(|o| o.within),
        "f32 should see nothing",
    );
    let findings = numeric(&record);
    let is_semantic = |finding: &&Finding| finding.class == Some(Class::Semantic);
    run.expect(
        !findings.is_empty() && findings.iter().all(is_semantic),
        "semantic",
    );
    let hides = "hides under the noise";
    run.expect(findings[0].message.contains(hides), &findings[0].message);
}

#[test]
fn another_k_is_visible() {
    let run = Folder::with(&Checkpoint::new()).run(&[
        "--model",
        "model",
        "--suite",
        "tiny.toml",
        "--target",
        "candle",
        "--k",
        "0.1",
    ]);
    let record = run.record(1);
    run.expect(
        record.method.k_overridden && record.method.k == 0.1,
        "in the record",
    );
    run.expect(
        run.stdout.contains("0.1 times the noise (from the"),
        "in the table",
    );
    for bad in ["0", "-1", "nan", "inf", "two"] {
        let refused = Folder::new().run(&["--k", bad]);
        refused.expect(
            refused.code == Some(2),
            format_args!("--k {bad} should be refused"),
        );
    }
}

/// A run with a cache of its own.
fn with_cache(folder: &Folder, cache: &Path) -> Finished {
    let arguments = [
        "--model",
        "model",
        "--suite",
        "tiny.toml",
        "--target",
        "candle",
    ];
    let variables = [("DRIFTGAUGE_CACHE", cache.as_os_str())];
    folder.run_as(Path::new(DRIFTGAUGE), &variables, &arguments)
}

/// Predictions are the same from the cache, from a damaged one, and from none; and what cannot be
/// kept is said and costs nothing but time.
#[test]
fn the_cache_changes_nothing() {
    let folder = Folder::with(&Checkpoint::new());
    let cache = folder.path("cache");
    let predicted = |run: &Finished| -> Vec<f64> {
        let record = run.record(0);
        let all = record
            .results
            .iter()
            .flat_map(|result| result.observations.values());
        all.map(|observation| observation.predicted_u).collect()
    };
    let expected = predicted(&with_cache(&folder, &cache));
    assert!(expected.iter().all(|noise| *noise > 0.0), "{expected:?}");
    let entries = std::fs::read_dir(&cache).unwrap();
    let files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    // Of whole runs, and of every stage alone.
    assert_eq!(files.len(), 2);
    let read = || -> Vec<Vec<u8>> {
        files
            .iter()
            .map(|file| std::fs::read(file).unwrap())
            .collect()
    };
    let kept = read();
    assert_eq!(predicted(&with_cache(&folder, &cache)), expected);
    assert_eq!(read(), kept, "nothing to add");
    for (file, own) in files.iter().zip(&kept) {
        // Somebody widened every budget: the first digit of every number is a nine.
        let text = String::from_utf8(own.clone()).unwrap();
        let widened = text
            .replace("[0.", "[9.")
            .replace(",0.", ",9.")
            .replace("[1.", "[9.");
        assert!(widened != text, "{text}");
        for damage in [
            &own[..own.len() / 2],
            b"{\"version\": 99, \"cases\": {}}",
            widened.as_bytes(),
        ] {
            std::fs::write(file, damage).unwrap();
            assert_eq!(predicted(&with_cache(&folder, &cache)), expected);
            assert_eq!(read(), kept, "mended");
        }
    }
    let no_folder = folder.write("file", "not a folder");
    let run = with_cache(&folder, &no_folder);
    assert_eq!(predicted(&run), expected);
    run.expect(
        run.stderr.contains("predictions are not kept"),
        "should be said",
    );
}

/// Without a calibration there is no budget, and a wrong one is never used.
#[test]
fn a_calibration_that_is_missing_or_wrong_is_refused() {
    let folder = Folder::with(&Checkpoint::new());
    std::fs::create_dir_all(folder.path("home/snapshots")).unwrap();
    std::os::unix::fs::symlink(Path::new(HOME).join("cases"), folder.path("home/cases")).unwrap();
    let home = folder.path("home");
    let variables: [(&str, &OsStr); 1] = [("DRIFTGAUGE_HOME", home.as_os_str())];
    for (content, problem) in [
        (None, "cannot read `"),
        (Some("k = 2.0\n"), "missing field `move_limit`"),
        (
            Some("k = -1.0\nmove_limit = 1.0\nevidence = \"\"\n"),
            "`k` is -1",
        ),
    ] {
        if let Some(content) = content {
            folder.write("home/snapshots/calibration.toml", content);
        }
        let run = folder.run_as(Path::new(DRIFTGAUGE), &variables, &["--target", "candle"]);
        run.expect(run.code == Some(2), "should exit 2");
        for expected in [
            "calibration.toml`",
            problem,
            "hint: `driftgauge calibrate --write`",
        ] {
            run.expect(
                run.stderr.contains(expected),
                format_args!("should say {expected:?}"),
            );
        }
    }
}

fn call(folder: &Folder, arguments: &[&str]) -> Finished {
    folder.call(Path::new(DRIFTGAUGE), &[], arguments)
}

/// What is proposed is written where all is clean, and only there.
#[test]
fn a_calibration_is_written_from_clean_runs_only() {
    let folder = Folder::with(&Checkpoint::new());
    folder.calibrate("k = 2.4\nmove_limit = 1.0\nevidence = 'old'\n");
    let file = || std::fs::read_to_string(folder.path("home/snapshots/calibration.toml")).unwrap();
    let old = file();
    let common = [
        "calibrate",
        "--model",
        "model",
        "--suite",
        "tiny.toml",
        "--write",
    ];
    let noisy = [&common[..], &["--target", "fake?as=noisy"]].concat();
    call(&folder, &noisy).has(1, &["not every run was clean", "hint: find out why"]);
    assert_eq!(file(), old);
    let some = [&common[..], &["--target", "fake", "--case", "empty"]].concat();
    call(&folder, &some).has(2, &["cannot be used with"]);
    assert_eq!(file(), old);
    let clean = [&common[..], &["--target", "fake?as=rounding"]].concat();
    call(&folder, &clean).has(0, &["written: home/snapshots/calibration.toml"]);
    assert!(
        file().contains("36 clean runs of a case on a target, suites tiny"),
        "{}",
        file()
    );
    // What was written is read.
    folder
        .run(&[
            "--model",
            "model",
            "--suite",
            "tiny.toml",
            "--target",
            "fake",
        ])
        .record(0);
}

/// Real backends: clean runs give no alarm, and a proposal that is not absurd. A target that is not
/// clean is an alarm, and nothing is written without being asked.
#[test]
fn calibration() {
    let folder = Folder::with(&Checkpoint::new());
    let common = [
        "calibrate",
        "--model",
        "model",
        "--suite",
        "tiny.toml",
        "--format",
        "json",
    ];
    let before = std::fs::read(Path::new(HOME).join("snapshots/calibration.toml")).unwrap();
    let run = call(
        &folder,
        &[&common[..], &["--target", "candle", "--target", "onnx"]].concat(),
    );
    run.expect(run.code == Some(0), "should be clean");
    let report: CalibrationReport = serde_json::from_str(&run.stdout).unwrap();
    let model = &report.models[0];
    run.expect(
        model.runs == 6 * 2 * 6 && model.alarms.is_empty(),
        "every run counts",
    );
    for ratio in &model.ratios {
        let is_sane = (0.1..2.5).contains(&ratio.smallest) && ratio.largest < 2.5;
        run.expect(is_sane, format_args!("{ratio:?}"));
    }
    run.expect(report.proposed_k <= 2.5 && report.proposed_k > 1.0, "K");

    let run = call(
        &folder,
        &[&common[..], &["--target", "fake?as=noisy"]].concat(),
    );
    run.expect(run.code == Some(1), "should be an alarm");
    let report: CalibrationReport = serde_json::from_str(&run.stdout).unwrap();
    run.expect(!report.models[0].alarms.is_empty(), "should be listed");
    let after = std::fs::read(Path::new(HOME).join("snapshots/calibration.toml")).unwrap();
    assert_eq!(before, after, "nothing is written unless asked");
}

/// Three times the noise is noticed, always; nothing is noticed where nothing changed; and common
/// gates need far more.
#[test]
fn detection() {
    let folder = Folder::new();
    let suite = format!("{HOME}/cases/seed.toml");
    let arguments = [
        "detection",
        "--suite",
        &suite,
        "--batches",
        "4",
        "--format",
        "json",
    ];
    let run = call(&folder, &arguments);
    run.expect(run.code == Some(0), "should reach the goal");
    let report: DetectionReport = serde_json::from_str(&run.stdout).unwrap();
    let [none, .., most] = &report.points[..] else {
        panic!("no points\n{run}");
    };
    run.expect(none.rates.iter().all(|rate| *rate == 0.0), "no false alarm");
    run.expect(
        most.rates[0] == 1.0 && most.rates[1] == 1.0,
        "large changes",
    );
    let [ours, tight, loose, _] = [0, 1, 2, 3].map(|gate| report.complete_from(gate));
    run.expect(
        ours.is_some_and(|noise| noise <= 3.0),
        "three times the noise",
    );
    run.expect(tight > ours && loose > tight, "what common gates need");
}

/// Two versions of ONNX Runtime in one run: never the same bits, always the same model.
#[test]
fn two_versions_of_onnx_runtime() {
    let older = Path::new(HOME).join(".runtimes/onnxruntime/1.23.2/libonnxruntime.so");
    let older = format!("onnx@cpu/f32?lib={}", older.display());
    let suite = format!("{HOME}/cases/features.toml");
    let run = Folder::new().run(&[
        "--target",
        "onnx@cpu/f32",
        "--target",
        &older,
        "--suite",
        &suite,
    ]);
    let record = run.record(0);
    let versions = record
        .targets
        .iter()
        .map(|target| target.library_version.as_deref());
    run.expect(
        versions.eq([Some("1.31.1"), Some("1.23.2")]),
        "both should run",
    );
    let passes = record
        .results
        .iter()
        .all(|result| result.verdict == Verdict::Pass);
    run.expect(passes, "both should conform");
    let pair = &record.pairs[0];
    run.expect(
        pair.compared > 0 && pair.bitwise == 0,
        format_args!("{pair:?}"),
    );
    run.expect(pair.within == pair.compared, format_args!("{pair:?}"));
    run.expect(run.stdout.contains("never"), "the table should say never");
    run.expect(run.stdout.contains("always"), "the table should say always");
}
