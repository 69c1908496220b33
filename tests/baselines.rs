//! What was accepted, and what becomes of a run that differs from it.
//!
//! The target of the fake worker is the same one whatever its option `lib` says: that option stands
//! for the place of a library, and what is found there may differ (`tests/fake-worker`).

#![cfg(test)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/cli.rs"]
mod cli;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use checkpoint::{Checkpoint, SUITE};
use cli::{DRIFTGAUGE, Finished, Folder};
use driftgauge::baseline::truth;
use driftgauge_reports::record::{BaselineRecord, FindingKind, Verdict};

const FAKE: &str = "fake@cpu/f32";
/// Observations of the suite `tiny` on the small checkpoint: of three cases with logits, and of three
/// without.
const OBSERVATIONS: usize = 3 * 6 + 3 * 5;

fn arguments<'a>(target: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let files = ["--model", "model", "--suite", "tiny.toml", "--threads", "1"];
    // What is a little off in f32 is a wrong formula in f64.
    let files = [&files[..], &["--no-float64"]].concat();
    [&files[..], &["--target", target], more].concat()
}

/// A folder with a model, in which errors may move by one noise.
fn folder() -> Folder {
    let folder = Folder::with(&Checkpoint::new());
    folder.calibrate("k = 2.5\nmove_limit = 1.0\nevidence = 'for tests'\n");
    folder
}

fn run(folder: &Folder, target: &str) -> Finished {
    folder.run(&arguments(target, &[]))
}

fn accept_with(folder: &Folder, variables: &[(&str, &OsStr)], more: &[&str]) -> Finished {
    let fixed = ["accept", "out/record.json", "--baselines", "baselines"];
    folder.call(
        Path::new(DRIFTGAUGE),
        variables,
        &[&fixed[..], more].concat(),
    )
}

#[track_caller]
fn accept(folder: &Folder, more: &[&str]) -> Finished {
    let accepted = accept_with(folder, &[], &[&["--all"], more].concat());
    accepted.expect(accepted.code == Some(0), "should accept");
    accepted
}

/// Checks that nothing is accepted, for a reason, and that nothing is written.
#[track_caller]
fn refuses(folder: &Folder, variables: &[(&str, &OsStr)], more: &[&str], code: i32, why: &[&str]) {
    let before = files(folder);
    let refused = accept_with(folder, variables, more);
    refused.expect(
        refused.code == Some(code),
        format_args!("should exit {code}"),
    );
    for why in why.iter().chain(&["error: "]) {
        refused.expect(
            refused.stderr.contains(why),
            format_args!("should say {why:?}"),
        );
    }
    refused.expect(files(folder) == before, "nothing should be written");
}

/// A folder in which the healthy fake worker was accepted.
fn accepted() -> Folder {
    let folder = folder();
    run(&folder, FAKE).record(0);
    accept(&folder, &[]);
    folder
}

/// Every file among the baselines, with its content.
fn files(folder: &Folder) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![folder.path("baselines")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.clone(), std::fs::read(path).unwrap());
            }
        }
    }
    files
}

/// The one file of a kind among the baselines.
fn only(folder: &Folder, extension: &str) -> PathBuf {
    let paths = files(folder).into_keys();
    let mut paths = paths.filter(|path| path.extension().is_some_and(|e| e == extension));
    let path = paths.next().unwrap();
    assert_eq!(paths.next(), None);
    path
}

#[track_caller]
fn baseline(run: &Finished, code: i32) -> BaselineRecord {
    let baseline = run.record(code).targets[0].baseline.clone();
    run.expect(baseline.is_some(), "there should be a baseline");
    baseline.unwrap()
}

fn counts(baseline: &BaselineRecord) -> [usize; 5] {
    let BaselineRecord {
        bitwise,
        within,
        drifted,
        improved,
        unknown,
        ..
    } = baseline;
    [*bitwise, *within, *drifted, *improved, *unknown]
}

#[test]
fn what_was_accepted_is_equal_to_the_bit_and_accepting_it_again_writes_nothing() {
    let folder = folder();
    let targets = arguments("candle", &["--target", FAKE]);
    let first = folder.run(&targets);
    let record = first.record(0);
    first.expect(
        record
            .targets
            .iter()
            .all(|target| target.baseline.is_none()),
        "none yet",
    );
    first.expect(
        first.stdout.contains("baselines: none accepted yet"),
        "should say so",
    );
    let says = accept(&folder, &[]).stdout;
    assert!(
        says.contains("3 files written under `baselines`, commit them"),
        "{says}"
    );

    let before = files(&folder);
    assert_eq!(before.len(), 3, "the truth, and one for each target");
    let again = folder.run(&targets);
    let record = again.record(0);
    for target in &record.targets {
        let baseline = target.baseline.as_ref().unwrap();
        again.expect(
            counts(baseline) == [OBSERVATIONS, 0, 0, 0, 0],
            "all should be equal",
        );
        again.expect(baseline.changed.is_empty(), "nothing changed");
    }
    again.expect(
        again.stdout.contains("baseline: 33 bitwise equal\n"),
        "the table",
    );
    let truth = &record.truth;
    again.expect(
        truth.compared == 6 && truth.difference == Some(0.0),
        "the truth is the same",
    );
    let says = accept(&folder, &["--reason", "for fun"]).stdout;
    assert!(says.contains("nothing written; unchanged: 2"), "{says}");
    assert!(files(&folder) == before);
}

#[test]
fn another_number_of_threads_is_another_environment() {
    let folder = folder();
    run(&folder, "candle").record(0);
    accept(&folder, &[]);
    let mut more = arguments("candle", &[]);
    more[5] = "2";
    let run = folder.run(&more);
    let changed = baseline(&run, 0).changed;
    run.expect(
        changed["threads"] == ["1", "2"].map(|n| Some(n.to_owned())),
        "threads",
    );
    run.expect(run.stdout.contains("(changed: threads 1 -> 2"), "the table");
    accept(&folder, &[]);
    assert_eq!(files(&folder).len(), 3, "it has a baseline of its own");
}

#[test]
fn within_noise() {
    let folder = accepted();
    let run = run(&folder, "fake@cpu/f32?lib=slightly-off");
    let baseline = baseline(&run, 0);
    run.expect(
        counts(&baseline) == [OBSERVATIONS - 6, 6, 0, 0, 0],
        "the embeddings moved",
    );
    run.expect(
        run.stdout.contains("27 bitwise equal, 6 within noise\n"),
        "the table",
    );
    let observation = &run.record(0).results[0].observations["embeddings"];
    let moved = observation.moved.as_ref().unwrap();
    run.expect(
        moved.within && !moved.bitwise && moved.noise > Some(0.1),
        "as measured",
    );
}

/// Everything is within its budget, and all the same it is not what it was.
#[test]
fn beyond_noise_though_within_the_budget() {
    let folder = accepted();
    for (library, cause) in [
        ("off", "; nothing in the environment changed"),
        (
            "off-in-new-version",
            "; changed: library_version 0.1.0 -> 9.9.9",
        ),
    ] {
        let run = run(&folder, &format!("{FAKE}?lib={library}"));
        let record = run.record(1);
        run.expect(baseline(&run, 1).drifted == 6, "the embeddings moved");
        for result in &record.results {
            run.expect(
                result.observations.values().all(|one| one.within),
                "within budget",
            );
            let finding = &result.findings[0];
            run.expect(
                (result.verdict, finding.kind) == (Verdict::Drift, FindingKind::Moved),
                "each case should drift",
            );
            for part in [
                "`embeddings` has moved from 0.",
                "within its budget of",
                cause,
            ] {
                run.expect(
                    finding.message.contains(part),
                    format_args!("should say {part:?}"),
                );
            }
        }
        run.expect(run.stdout.contains("and 5 more cases"), "one group");
        run.expect(run.stdout.contains("DRIFT: "), "the conclusion");
    }
}

#[test]
fn another_version_that_computes_the_same_is_named_and_conforms() {
    let folder = accepted();
    let run = run(&folder, "fake@cpu/f32?lib=new-version");
    let baseline = baseline(&run, 0);
    run.expect(
        counts(&baseline) == [OBSERVATIONS, 0, 0, 0, 0],
        "all should be equal",
    );
    let line = "33 bitwise equal (changed: library_version 0.1.0 -> 9.9.9)";
    run.expect(run.stdout.contains(line), "the table");
}

#[test]
fn to_move_a_baseline_takes_a_reason_which_is_kept() {
    let folder = accepted();
    for target in [
        "fake@cpu/f32?lib=off",
        "fake@cpu/f32?lib=off-in-new-version",
    ] {
        run(&folder, target).record(1);
        let why = [
            "this takes a reason, nothing is written",
            "moved beyond noise: 6 of the errors",
        ];
        refuses(&folder, &[], &["--all"], 2, &why);
        refuses(
            &folder,
            &[],
            &["--all", "--reason", " "],
            2,
            &["the reason is empty"],
        );
    }
    run(&folder, "fake@cpu/f32?lib=off").record(1);
    let says = accept(&folder, &["--reason", "换了新的库"]).stdout;
    assert!(
        says.contains("largest move: ") && says.contains("times the noise"),
        "{says}"
    );
    assert!(
        says.contains("1 file written"),
        "the truth is what it was: {says}"
    );
    let text = std::fs::read_to_string(only(&folder, "json")).unwrap();
    assert!(text.contains("\"reason\":\"换了新的库\""), "{text}");

    let moved = run(&folder, "fake@cpu/f32?lib=off");
    let now = baseline(&moved, 0);
    assert_eq!(counts(&now), [OBSERVATIONS, 0, 0, 0, 0]);
    assert_eq!(now.reason.as_deref(), Some("换了新的库"));
    // Back again: that is no drift.
    let back = run(&folder, FAKE);
    assert_eq!(counts(&baseline(&back, 0)), [OBSERVATIONS - 6, 0, 0, 6, 0]);
    back.expect(
        back.stdout
            .contains("6 nearer the truth by more than noise"),
        "the table",
    );
}

#[test]
fn what_a_run_calls_wrong_takes_a_reason() {
    let folder = folder();
    for (options, code, why) in [
        ("fault=nan", 1, "6 of 6 cases are drift"),
        ("fault=fail&at=2", 3, "3 of 6 cases are broken"),
    ] {
        run(&folder, &format!("{FAKE}?{options}")).record(code);
        refuses(&folder, &[], &["--all"], 2, &[why]);
    }
    folder.run(&arguments(FAKE, &["--k", "100"])).record(0);
    refuses(
        &folder,
        &[],
        &["--all"],
        2,
        &["budgets were set by hand (--k 100)"],
    );
}

/// The same target from two places: one baseline where the numbers are the same, none where not.
#[test]
fn two_targets_that_are_one() {
    let folder = folder();
    let two = |library| format!("{FAKE}?lib={library}");
    let (slightly, other) = (two("slightly-off"), two("off"));
    folder
        .run(&arguments(FAKE, &["--target", &slightly]))
        .record(0);
    let why = "`fake@cpu/f32` and `fake@cpu/f32?lib=slightly-off` are the same target in the same";
    refuses(&folder, &[], &["--all"], 2, &[why, "--target"]);
    folder
        .run(&arguments(
            &other,
            &["--target", &two("off-in-new-version")],
        ))
        .record(0);
    accept(&folder, &[]);
    assert_eq!(
        files(&folder).len(),
        3,
        "another version is another environment"
    );
}

/// A run of a few cases is compared with those, and leaves the others as they were accepted.
#[test]
fn cases_that_were_not_run_stay_accepted() {
    let folder = accepted();
    let before = files(&folder);
    folder.run(&arguments(FAKE, &["--case", "empty"])).record(0);
    accept(&folder, &[]);
    assert!(files(&folder) == before);

    let folder = self::folder();
    folder.run(&arguments(FAKE, &["--case", "empty"])).record(0);
    accept(&folder, &[]);
    let all = run(&folder, FAKE);
    assert_eq!(counts(&baseline(&all, 0)), [5, 0, 0, 0, OBSERVATIONS - 5]);
    all.expect(all.stdout.contains("28 not in the baseline"), "the table");
    accept(&folder, &[]);
    assert_eq!(
        counts(&baseline(&run(&folder, FAKE), 0)),
        [OBSERVATIONS, 0, 0, 0, 0]
    );
}

#[test]
fn a_truth_that_is_not_the_accepted_one_is_drift() {
    let folder = accepted();
    let path = only(&folder, "safetensors");
    let (mut sketch, made_for) = truth::decode(&path, &std::fs::read(&path).unwrap()).unwrap();
    sketch
        .get_mut("capital")
        .unwrap()
        .top
        .as_mut()
        .unwrap()
        .1
        .values[0] *= 1.0 + 1e-8;
    std::fs::write(&path, truth::encode(&sketch, made_for.as_ref()).unwrap()).unwrap();
    let run = run(&folder, FAKE);
    let finding = run.record(1).truth.finding;
    let message = finding.map(|finding| finding.message).unwrap_or_default();
    let expected = "the truth of 1 of 6 cases is not the accepted one: `tiny/capital` differs by";
    run.expect(message.starts_with(expected), &message);
    run.expect(run.stdout.contains("DRIFT: the truth"), "the conclusion");
    let why = "the accepted truth changes in 1 of 6 cases";
    refuses(&folder, &[], &["--all"], 2, &[why]);
    accept(&folder, &["--reason", "it is right now"]);
    assert_eq!(
        counts(&baseline(&self::run(&folder, FAKE), 0)),
        [OBSERVATIONS, 0, 0, 0, 0]
    );
}

/// Damages the baselines of a folder, and checks that a run is refused by the file's name.
#[track_caller]
fn refuses_run(target: &str, damage: impl FnOnce(&Folder) -> PathBuf, problem: &str) {
    let folder = accepted();
    let path = damage(&folder);
    folder.forget();
    let name = path.file_name().unwrap().to_str().unwrap();
    folder.refuses(
        &arguments(target, &[]),
        2,
        &[name, problem, "\n  hint: ", "--no-baselines"],
    );
    // What is refused is refused by name, and the way around it is open.
    if !problem.contains("target") {
        let run = folder.run(&arguments(target, &["--no-baselines"]));
        run.record(0);
        run.expect(
            run.stdout
                .contains("baselines: not compared (--no-baselines)"),
            "says so",
        );
    }
}

#[track_caller]
fn refuses_json(change: impl FnOnce(String) -> String, problem: &str) {
    let damage = |folder: &Folder| {
        let path = only(folder, "json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, change(text)).unwrap();
        path
    };
    refuses_run(FAKE, damage, problem);
}

#[test]
fn damaged_baselines_are_refused() {
    refuses_json(
        |_| "not json".to_owned(),
        "not a baseline, or only a part of one",
    );
    refuses_json(
        |text| text[..text.len() / 2].to_owned(),
        "not a baseline, or only a part of one",
    );
    refuses_json(
        |text| text.replacen("[0.", "[1.", 1),
        "was changed after it was accepted",
    );
    let newer = |text: String| text.replacen("\"version\": 1", "\"version\": 2", 1);
    refuses_json(newer, "a newer driftgauge wrote it");
}

#[test]
fn damaged_truths_are_refused() {
    let path = |folder: &Folder| only(folder, "safetensors");
    let cut = |folder: &Folder| {
        let bytes = std::fs::read(path(folder)).unwrap();
        std::fs::write(path(folder), &bytes[..bytes.len() / 2]).unwrap();
        path(folder)
    };
    refuses_run(FAKE, cut, "not an accepted truth, or only a part of one");
    let tampered = |folder: &Folder| {
        let mut bytes = std::fs::read(path(folder)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(path(folder), bytes).unwrap();
        path(folder)
    };
    refuses_run(FAKE, tampered, "was changed after it was accepted");
    let gone = |folder: &Folder| {
        let path = path(folder);
        std::fs::remove_file(&path).unwrap();
        path
    };
    refuses_run(FAKE, gone, "cannot read");
}

#[test]
fn baselines_that_were_made_for_something_else_are_refused() {
    let other_suite = |folder: &Folder| {
        folder.write("tiny.toml", format!("{SUITE}# changed\n"));
        only(folder, "json")
    };
    refuses_run(
        FAKE,
        other_suite,
        "was made for another version of suite `tiny` (SHA-256 ",
    );
    let other_model = |folder: &Folder| {
        let changed = Checkpoint::new().with("layer_norm_eps", 1e-5);
        changed.write(&folder.path("model"));
        only(folder, "json")
    };
    refuses_run(
        FAKE,
        other_model,
        "was made for model `model` whose `config.json` has SHA-256 ",
    );
    let other_dtype = |folder: &Folder| {
        let path = only(folder, "json");
        let name = path
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .replace("f32", "f64");
        let copy = path.with_file_name(name);
        std::fs::copy(path, &copy).unwrap();
        copy
    };
    let problem = "was made for target `fake@cpu/f32` in f32, this run has `fake@cpu/f64` in f64";
    refuses_run("fake@cpu/f64", other_dtype, problem);
    let folder = accepted();
    folder.forget();
    let missing = arguments(FAKE, &["--baselines", "nowhere"]);
    folder.refuses(
        &missing,
        2,
        &[
            "cannot read the folder of baselines `nowhere`",
            "hint: make it",
        ],
    );
}

/// What was refused can be accepted anew; where it is the same input, its errors are compared.
#[test]
fn another_version_of_a_suite_is_accepted_anew() {
    let folder = accepted();
    folder.write("tiny.toml", format!("{SUITE}# changed\n"));
    let off = "fake@cpu/f32?lib=off";
    folder.run(&arguments(off, &["--no-baselines"])).record(0);
    refuses(
        &folder,
        &[],
        &["--all"],
        2,
        &["moved beyond noise: 6 of the errors"],
    );
    folder.run(&arguments(FAKE, &["--no-baselines"])).record(0);
    accept(&folder, &[]);
    assert_eq!(
        counts(&baseline(&run(&folder, FAKE), 0)),
        [OBSERVATIONS, 0, 0, 0, 0]
    );
}

#[test]
fn only_a_person_accepts() {
    let folder = folder();
    let ci: [(&str, &OsStr); 1] = [("CI", "true".as_ref())];
    let all = ["--all"];
    refuses(
        &folder,
        &[],
        &all,
        2,
        &["record `out/record.json`", "not a driftgauge record"],
    );
    folder
        .run_as(Path::new(DRIFTGAUGE), &ci, &arguments(FAKE, &[]))
        .record(0);
    assert!(files(&folder).is_empty(), "a run writes no baseline");
    refuses(&folder, &ci, &all, 2, &["accepting is a person's step"]);
    refuses(
        &folder,
        &ci,
        &["--all", "--reason", "x"],
        2,
        &["accepting is a person's step"],
    );
    refuses(&folder, &[], &[], 2, &["this is no terminal", "--all"]);
    refuses(
        &folder,
        &[],
        &["--all", "--target", "onnx*"],
        4,
        &["matches"],
    );
    refuses(
        &folder,
        &[],
        &["--all", "--suite", "[x"],
        2,
        &["`[x` is not a pattern"],
    );
    let truth = std::fs::read(folder.path("out/truth.safetensors")).unwrap();
    folder.write("out/truth.safetensors", &truth[..truth.len() - 1]);
    refuses(
        &folder,
        &[],
        &all,
        2,
        &["`out/truth.safetensors` has SHA-256", "run again"],
    );
    folder.remove("out/truth.safetensors");
    refuses(
        &folder,
        &[],
        &all,
        2,
        &["cannot read `out/truth.safetensors`"],
    );
    folder.remove("out/record.json");
    refuses(&folder, &[], &all, 2, &["cannot read `out/record.json`"]);
}
