//! `driftgauge consistency`: each property that a target can lose is found, and no other one is
//! blamed; what is no target, no case or no answer is said.

#![cfg(test)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/cli.rs"]
mod cli;

use std::path::Path;

use cli::{DRIFTGAUGE, Finished, Folder};
use driftgauge_reports::consistency::{
    CONSISTENCY_FORMAT, CONSISTENCY_VERSION, Check, CheckRecord, ConsistencyRecord, Outcome,
};

/// Three sequences of different lengths, one of them with a mask, and one that says the same again.
const SUITE: &str = r#"
[suite]
name = "three"
description = "Three sequences."
[[case]]
name = "capital"
task = "fill-mask"
text = "中国的首都是[MASK]京。"
[[case]]
name = "weather"
task = "similarity"
a = "今天。"
b = "今天的天气真不错,我们去公园吧。"
[[case]]
name = "today"
task = "features"
text = "今天。"
"#;
/// Every check is bitwise.
const INTACT: &str = "= = = = = = = =";

/// The record of a command that ended with `code`.
#[track_caller]
fn record(folder: &Folder, run: &Finished, code: i32) -> ConsistencyRecord {
    run.expect(run.code == Some(code), format_args!("should exit {code}"));
    run.expect(run.stderr.is_empty(), "nothing should be on stderr");
    let json = std::fs::read(folder.path("out/consistency.json")).unwrap();
    let record: ConsistencyRecord = serde_json::from_slice(&json).unwrap();
    let head = (record.format.as_str(), record.version);
    assert_eq!(head, (CONSISTENCY_FORMAT, CONSISTENCY_VERSION));
    run.expect(
        i32::from(record.summary.exit_code) == code,
        "the record says otherwise",
    );
    record
}

/// Runs `driftgauge consistency` on the suite above with one thread.
fn consistency(folder: &Folder, arguments: &[&str]) -> Finished {
    folder.write("three.toml", SUITE);
    let common = ["consistency", "--quiet", "--out", "out", "--threads", "1"];
    let arguments = [&common, &["--suite", "three.toml"][..], arguments].concat();
    folder.call(Path::new(DRIFTGAUGE), &[], &arguments)
}

/// The outcomes of a target's checks, a sign for each.
fn signs(checks: &[CheckRecord]) -> String {
    assert!(checks.iter().map(|check| check.check).eq(Check::ALL));
    let sign = |check: &CheckRecord| match check.outcome {
        Outcome::Skipped => "-",
        Outcome::Bitwise => "=",
        Outcome::Within => "w",
        Outcome::Drift => "D",
        Outcome::Unsupported => "U",
        Outcome::Broken => "B",
    };
    checks.iter().map(sign).collect::<Vec<_>>().join(" ")
}

/// Runs a fake target beside a healthy one, which must not notice anything.
#[track_caller]
fn check(options: &str, code: i32, expected: &str) -> (Finished, ConsistencyRecord) {
    let (faulty, healthy) = (
        format!("fake@cpu/f32?{options}"),
        "fake@cpu/f64?name=healthy",
    );
    let folder = Folder::new();
    let finished = consistency(&folder, &["--target", &faulty, "--target", healthy]);
    let record = record(&folder, &finished, code);
    let found = signs(&record.targets[0].checks);
    finished.expect(
        found == expected,
        format_args!("should be {expected}, is {found}"),
    );
    let healthy = &record.targets[1];
    finished.expect(
        signs(&healthy.checks) == INTACT,
        "the other should be intact",
    );
    finished.expect(
        healthy.restarts == 0 && healthy.finding.is_none(),
        "it is healthy",
    );
    (finished, record)
}

#[test]
fn a_steady_target_is_bitwise_in_every_check() {
    let (finished, record) = check("name=steady", 0, INTACT);
    // The text that two cases share is run once; the three sequences become shorter and longer.
    let cases: Vec<(&str, usize, usize)> = record
        .sequences
        .iter()
        .map(|sequence| (sequence.case.as_str(), sequence.tokens, sequence.logits))
        .collect();
    assert_eq!(
        cases,
        [
            ("three/weather:a", 5, 0),
            ("three/capital", 11, 1),
            ("three/weather:b", 18, 0)
        ]
    );
    for check in &record.targets[0].checks {
        assert!(check.elements > 0 && check.differing == 0, "{check:#?}");
    }
    finished.expect(
        finished
            .stdout
            .contains("CONSISTENT: 16 of 16 checks are bitwise\n"),
        "the conclusion",
    );
}

/// Checks from the left: same process twice, fresh process, threads; alone and in a batch, place in
/// the batch, padding; padded together, order. The last two are made of what is before them.
#[test]
fn each_property_that_is_lost_is_found_and_no_other() {
    for (options, expected) in [
        // The fifth run is the second one of the sequence with the mask.
        ("fault=drift&at=5", "D = = = = = = ="),
        ("fault=process&first=first", "= D D = = = = ="),
        ("fault=threads", "= = D = = = = ="),
        ("fault=batch", "= = = D = = D ="),
        ("fault=position", "= = = = D = D D"),
        ("fault=padding", "= = = = = D D ="),
        ("fault=order", "= = = = = = = D"),
    ] {
        let (finished, record) = check(options, 1, expected);
        let what = "DRIFT: fake@cpu/f32?";
        finished.expect(finished.stdout.contains(what), what);
        for check in &record.targets[0].checks {
            let drifted = check.outcome == Outcome::Drift;
            assert_eq!(check.largest.is_some(), drifted, "{check:#?}");
            assert_eq!(check.differing > 0, drifted, "{check:#?}");
        }
    }
}

#[test]
fn a_difference_of_the_size_of_noise_is_within_the_budget() {
    let (finished, record) = check("fault=padding&by=1", 0, "= = = = = w w =");
    let padding = &record.targets[0].checks[5];
    let largest = padding.largest.as_ref().unwrap();
    assert!(largest.in_noise() <= record.method.limit && largest.in_noise() > 0.1);
    assert!(largest.max_abs > 0.0 && largest.distance_u.unwrap() > 0.1);
    assert!(padding.differing > 0);
    let starts = &padding.variants[0].cases[0].starts;
    assert_eq!(starts.as_deref(), Some("embeddings"));
    finished.expect(
        finished.stdout.contains("CONSISTENT: 14 of 16"),
        "the conclusion",
    );
}

#[test]
fn damage_is_drift_also_where_every_run_has_it() {
    let (finished, record) = check("fault=nan", 1, "D D D D D D D D");
    let finding = record.targets[0].checks[0].variants[0].finding.as_ref();
    let message = &finding.unwrap().message;
    assert!(
        message.contains("`hidden.1`") && message.contains("NaN"),
        "{message}"
    );
    finished.expect(finished.stdout.contains("drift, damaged"), "the table");
}

/// The fifth run is in the second check; a fresh worker does the rest.
#[test]
fn a_worker_that_dies_in_the_middle_loses_one_check() {
    let (finished, record) = check("fault=abort&at=5&once=once", 3, "B = = = = = = =");
    assert_eq!(record.targets[0].restarts, 1);
    let finding = record.targets[0].checks[0].variants[0]
        .finding
        .as_ref()
        .unwrap();
    let expected = "was killed by signal 6 (SIGABRT) (while running `three/capital`)";
    assert!(finding.message.contains(expected), "{finding:#?}");
    finished.expect(
        finished.stdout.contains("BROKEN: fake@cpu/f32?"),
        "the conclusion",
    );
}

#[test]
fn a_worker_that_always_dies_is_given_up() {
    let (_, record) = check("fault=abort", 3, "B B B B B B B B");
    assert_eq!(record.targets[0].restarts, 2);
}

/// Neither ends the command for the target beside it.
#[test]
fn targets_that_cannot_start_are_in_the_table() {
    let targets = [
        "fake@cpu/bf16",
        "fake?lib=exit",
        "fake?fault=abort&at=load",
        "fake",
    ];
    let arguments = targets.map(|target| ["--target", target]);
    let folder = Folder::new();
    let finished = consistency(&folder, arguments.as_flattened());
    let record = record(&folder, &finished, 3);
    for (target, expected) in record.targets[..3].iter().zip([
        "the fake worker has no cpu/bf16",
        "ended with exit status 7 (while starting)",
        "was killed by signal 6 (SIGABRT) (while loading the model)",
    ]) {
        let message = &target.finding.as_ref().unwrap().message;
        assert!(
            message.contains(expected) && target.checks.is_empty(),
            "{message}"
        );
    }
    assert_eq!(signs(&record.targets[3].checks), INTACT);
    let counts = [Outcome::Bitwise, Outcome::Unsupported, Outcome::Broken];
    assert_eq!(
        counts.map(|outcome| record.summary.outcomes[&outcome]),
        [8, 1, 2]
    );
    for line in finished.stdout.lines() {
        finished.expect(driftgauge_reports::text::width(line) <= 80, line);
    }
}

#[test]
fn what_one_sequence_cannot_show_is_not_run_and_said() {
    let arguments = ["--target", "fake", "--sequences", "1"];
    let folder = Folder::new();
    let finished = consistency(&folder, &arguments);
    let record = record(&folder, &finished, 0);
    assert_eq!(record.sequences[0].case, "three/capital");
    assert_eq!(signs(&record.targets[0].checks), "= = = = = = - -");
    for expected in [
        "there is only one sequence",
        "6 of 6 checks are bitwise; 2 were not run",
    ] {
        finished.expect(finished.stdout.contains(expected), expected);
    }
}

/// A model of 40 positions has no room for 100 tokens of padding.
#[test]
fn padding_beyond_the_positions_is_not_run_and_said() {
    let folder = Folder::new();
    checkpoint::Checkpoint::new().write(&folder.path("model"));
    let arguments = ["--target", "fake", "--model", "model"];
    let finished = consistency(&folder, &arguments);
    let record = record(&folder, &finished, 0);
    assert_eq!(signs(&record.targets[0].checks), INTACT);
    let padding = &record.targets[0].checks[5].variants;
    let skipped: Vec<usize> = padding
        .iter()
        .map(|variant| variant.skipped.len())
        .collect();
    assert_eq!(skipped, [0, 0, 3]);
    let expected = "100 tokens of padding: three/weather:a has 5 tokens, the model has 40";
    finished.expect(finished.stdout.contains(expected), expected);
}

#[test]
fn bad_input_ends_in_an_error() {
    let targets = ["--target", "fake"];
    for (arguments, code, expected) in [
        (
            &["--target", "onxx"][..],
            2,
            "unknown target `onxx@cpu/f32`",
        ),
        (&["--case", "gone"], 4, "no case is selected by --case gone"),
        (
            &["--suite", "gone.toml"],
            2,
            "cannot read suite `gone.toml`",
        ),
        (&["--model", "gone"], 2, "`gone`"),
        (&["--sequences", "0"], 2, "0 is not in 1..=64"),
        (&["--format", "html"], 2, "possible values: table, json"),
    ] {
        let folder = Folder::new();
        let finished = consistency(&folder, &[&targets[..], arguments].concat());
        finished.expect(
            finished.code == Some(code),
            format_args!("should exit {code}"),
        );
        finished.expect(finished.stderr.contains(expected), expected);
        finished.expect(
            finished.stdout.is_empty() && !folder.path("out/consistency.json").exists(),
            "no result",
        );
    }
}

#[test]
fn a_record_that_cannot_be_written_is_said_before_anything_is_run() {
    let folder = Folder::new();
    folder.write("out", "a file");
    let finished = consistency(&folder, &["--target", "fake"]);
    finished.expect(finished.code == Some(2), "should exit 2");
    let expected = "cannot write `out/consistency.json`";
    finished.expect(finished.stderr.contains(expected), expected);
}

/// What every machine must show; whether a backend is bitwise in a batch is for the table to say.
#[test]
fn the_real_backends_are_consistent() {
    let folder = Folder::new();
    let finished = consistency(&folder, &["--format", "json"]);
    let record = record(&folder, &finished, 0);
    finished.expect(
        finished.stdout == std::fs::read_to_string(folder.path("out/consistency.json")).unwrap(),
        "the record on stdout",
    );
    assert_eq!(record.targets.len(), 3);
    for target in &record.targets {
        println!("{} {}", signs(&target.checks), target.target);
        for check in &target.checks[..2] {
            assert_eq!(check.outcome, Outcome::Bitwise, "{check:#?}");
        }
    }
}
