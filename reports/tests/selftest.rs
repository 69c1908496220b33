//! The self-test as tables and as JSON: every status, a false alarm, tokens, and text that tries to
//! break out of its place.
#![cfg(test)]

use driftgauge_reports::selftest::{
    BlindTrial, Control, SELFTEST_FORMAT, SELFTEST_VERSION, SelftestReport, Status, TargetTrials,
    TokenTrial, Trial, render,
};
use driftgauge_reports::{Style, text};

const HOSTILE: &str = "worker said \u{1b}[2J\u{202e}<script>::error::";

fn blind(detected: bool, cause_right: Option<bool>, signal: f64) -> Option<BlindTrial> {
    Some(BlindTrial {
        detected,
        cause_right,
        note: "gelu-tanh in layer.1 (1.01 ± 0.02)".to_owned(),
        signal,
    })
}

/// A trial that found everything.
fn trial(fault: &str, kind: &str, stage: &str, step: &str) -> Trial {
    Trial {
        fault: fault.to_owned(),
        title: "what it is".to_owned(),
        kind: kind.to_owned(),
        stage: Some(stage.to_owned()),
        step: Some(step.to_owned()),
        status: Status::Detected,
        note: format!("{stage}, {step}: {fault}"),
        signal: Some(1234.5),
        by_budget: true,
        by_stage: true,
        by_repeat: false,
        class_right: Some(true),
        stage_right: Some(true),
        step_right: Some(true),
        cause_right: Some(true),
        blind: blind(true, Some(true), 300.0),
        gates: vec![true, true, false],
    }
}

/// A trial in which nothing was found.
fn unfound(trial: Trial, status: Status, signal: Option<f64>, note: &str) -> Trial {
    Trial {
        status,
        signal,
        note: note.to_owned(),
        by_budget: false,
        by_stage: false,
        class_right: None,
        stage_right: None,
        step_right: None,
        cause_right: None,
        blind: None,
        gates: vec![false, false, false],
        ..trial
    }
}

/// A trial of every status.
fn trials() -> Vec<Trial> {
    let gelu = |stage: &str| trial("gelu-tanh", "semantic", stage, "activation");
    let hidden = trial("hidden-f16", "precision", "layer.1", "norm");
    let swapped = trial("sequences-exchanged", "semantic", "", "");
    vec![
        gelu("layer.1"),
        Trial {
            step_right: None,
            blind: blind(false, None, 2.0),
            ..gelu("layer.4")
        },
        Trial {
            class_right: Some(false),
            cause_right: Some(false),
            note: "head, activation: silu: SiLU in place of GELU (0.412 ± 0.001)".to_owned(),
            blind: blind(true, Some(false), 40.0),
            ..gelu("head")
        },
        unfound(hidden, Status::Missed, Some(17.0), ""),
        Trial {
            stage: None,
            step: None,
            signal: None,
            stage_right: None,
            step_right: None,
            ..swapped
        },
        unfound(
            trial("eps-1e-5", "semantic", "layer.1", "norm"),
            Status::BelowNoise,
            Some(0.034),
            "",
        ),
        unfound(
            trial("weights-f16", "precision", "layer.1", "query"),
            Status::Void,
            Some(0.0),
            "",
        ),
        unfound(
            trial("mask-length-33", "semantic", "layer.1", "scores"),
            Status::NotExercised,
            Some(0.0),
            "no batch is 33 tokens long",
        ),
        unfound(
            trial(
                "softmax-over-queries",
                "semantic",
                "layer.1",
                "probabilities",
            ),
            Status::Unsupported,
            Some(2e6),
            HOSTILE,
        ),
        unfound(
            trial("noise-1e-3", "unsteady", "layer.1", "norm"),
            Status::Broken,
            None,
            "worker `candle` was killed by signal 9 (SIGKILL)",
        ),
        Trial {
            note: "layer.1, key: none of the known".to_owned(),
            ..trial("no-key-bias", "benign", "layer.1", "key")
        },
    ]
}

fn token(fault: &str, status: Status, cases: usize, note: &str) -> TokenTrial {
    TokenTrial {
        fault: fault.to_owned(),
        title: "what it is".to_owned(),
        status,
        cases,
        note: note.to_owned(),
        cause_right: (cases > 0).then_some(status == Status::Detected),
    }
}

fn target(name: &str, library: &str, trials: Vec<Trial>, alarms: &[&str]) -> TargetTrials {
    TargetTrials {
        target: name.to_owned(),
        library: library.to_owned(),
        trials,
        control: Control {
            runs: 20,
            alarms: alarms.iter().map(|&alarm| alarm.to_owned()).collect(),
            gates: vec![3, 20, 0],
            largest: 1.31,
        },
    }
}

/// Every status, a false alarm, and tokens.
fn fixture() -> SelftestReport {
    let steady = vec![trial("gelu-tanh", "semantic", "layer.1", "activation")];
    SelftestReport {
        format: SELFTEST_FORMAT.to_owned(),
        version: SELFTEST_VERSION,
        driftgauge: "0.1.0".to_owned(),
        model: "zh-mini".to_owned(),
        layers: 4,
        cases: 7,
        k: 2.5,
        unknown: false,
        gates: ["allclose 1e-5", "torch default", "cosine 0.999"]
            .map(str::to_owned)
            .into(),
        targets: vec![
            target(
                "candle@cpu/f32",
                "candle-transformers 0.11.1",
                trials(),
                &["layer.2 is 3.1 times its noise"],
            ),
            target("onnx@cpu/f32?opt=all", "onnxruntime 1.31.1", steady, &[]),
        ],
        tokens: vec![
            token(
                "no-final-sep",
                Status::Detected,
                40,
                "`seed/capital`: token 11 of 12 is missing",
            ),
            token("accents", Status::Missed, 2, HOSTILE),
            token(
                "long-words",
                Status::NotExercised,
                0,
                "no case has a word of more than 100 characters",
            ),
        ],
        time: 84.4,
    }
}

fn table(report: &SelftestReport, all: bool, width: usize) -> String {
    let style = Style {
        width,
        colour: false,
    };
    render(report, all, style)
}

macro_rules! assert_report {
    ($name:literal, $report:expr) => {
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path("../../snapshots/reports");
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!($name, $report));
    };
}

#[test]
fn table_at_80_columns() {
    assert_report!("selftest-80", table(&fixture(), false, 80));
}

#[test]
fn table_at_160_columns() {
    assert_report!("selftest-160", table(&fixture(), false, 160));
}

#[test]
fn every_trial_at_160_columns() {
    assert_report!("selftest-all-160", table(&fixture(), true, 160));
}

/// Nothing was missed: no notes.
#[test]
fn table_without_a_miss() {
    let mut report = fixture();
    report.targets.remove(0);
    report.tokens.truncate(1);
    report.unknown = true;
    assert_report!("selftest-clean-80", table(&report, false, 80));
}

#[test]
fn json_keeps_everything() {
    let json = serde_json::to_string_pretty(&fixture()).unwrap();
    let read: SelftestReport = serde_json::from_str(&json).unwrap();
    assert_eq!(read, fixture());
    assert_report!("selftest-json", json);
}

#[test]
fn no_line_is_wider_than_the_terminal_and_no_text_breaks_out() {
    for (width, all) in [(80, false), (100, false), (200, true)] {
        let table = table(&fixture(), all, width);
        let is_control = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!table.contains(is_control), "{table}");
        for line in table.lines() {
            assert!(text::width(line) <= width, "{}: {line}", text::width(line));
        }
    }
}

/// What does not show at all counts neither as found nor as missed.
#[test]
fn totals_count_what_shows() {
    let totals = fixture().targets[0].totals();
    // Three of gelu-tanh, the exchanged sequences; hidden-f16 was missed.
    assert_eq!(totals.detected, (4, 5));
    assert_eq!(totals.class, (3, 4));
    assert_eq!(totals.stage, (3, 3));
    assert_eq!(totals.step, (2, 2));
    assert_eq!(totals.cause, (3, 4));
    assert_eq!(totals.blind_detected, (3, 4));
    assert_eq!(totals.blind_cause, (2, 3));
}

/// A report of one target with one trial and nothing else.
fn single(trial: Trial) -> SelftestReport {
    SelftestReport {
        targets: vec![target("candle@cpu/f32", "candle", vec![trial], &[])],
        tokens: Vec::new(),
        ..fixture()
    }
}

#[test]
fn exit_codes() {
    let found = || trial("gelu-tanh", "semantic", "layer.1", "activation");
    for (status, code) in [
        (Status::Detected, 0),
        // Nothing of these counts.
        (Status::BelowNoise, 4),
        (Status::Void, 4),
        (Status::NotExercised, 4),
        (Status::Missed, 1),
        // All there is.
        (Status::Unsupported, 3),
        (Status::Broken, 3),
    ] {
        let report = single(Trial { status, ..found() });
        assert_eq!(report.exit_code(), code, "{status:?}");
    }
    // Some of a target may be unsupported, nothing of it may break.
    let mut report = single(found());
    let mut other = |status| {
        report.targets[0].trials.truncate(1);
        report.targets[0].trials.push(Trial { status, ..found() });
        report.exit_code()
    };
    assert_eq!(other(Status::Unsupported), 0);
    assert_eq!(other(Status::Broken), 3);

    let benign = |status| Trial {
        status,
        ..trial("no-key-bias", "benign", "layer.1", "key")
    };
    assert_eq!(single(benign(Status::Void)).exit_code(), 4);
    assert_eq!(single(benign(Status::Detected)).exit_code(), 1);

    let mut alarm = single(found());
    alarm.targets[0].control.alarms.push("an alarm".to_owned());
    assert_eq!(alarm.exit_code(), 1);
    let mut tokens = single(found());
    tokens.tokens = vec![token("accents", Status::Missed, 2, "")];
    assert_eq!(tokens.exit_code(), 1);
    tokens.tokens = vec![token("accents", Status::NotExercised, 0, "")];
    assert_eq!(tokens.exit_code(), 0);
    // A break weighs more than a miss.
    assert_eq!(fixture().exit_code(), 3);
}
