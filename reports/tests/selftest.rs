//! The self-test as tables, as a page and as JSON: every status, a false alarm, tokens, and text that tries to
//! break out of its place.
#![cfg(test)]

#[macro_use]
mod support;

use driftgauge_reports::selftest::{
    SelftestReport, Status, Trial, render, render_html, render_json,
};
use driftgauge_reports::{Language, Style, text};
use support::selftest::{fixture, target, token, trial};

fn table(report: &SelftestReport, all: bool, width: usize) -> String {
    let style = Style {
        width,
        colour: false,
    };
    render(report, all, style)
}

#[test]
fn table_at_80_columns() {
    assert_snapshot!("selftest-80", table(&fixture(), false, 80));
}

#[test]
fn table_at_160_columns() {
    assert_snapshot!("selftest-160", table(&fixture(), false, 160));
}

#[test]
fn every_trial_at_160_columns() {
    assert_snapshot!("selftest-all-160", table(&fixture(), true, 160));
}

/// Nothing was missed: no notes.
#[test]
fn table_without_a_miss() {
    let mut report = fixture();
    report.targets.remove(0);
    report.tokens.truncate(1);
    report.unknown = true;
    assert_snapshot!("selftest-clean-80", table(&report, false, 80));
}

#[test]
fn json_keeps_everything() {
    let json = render_json(&fixture()).unwrap();
    assert_eq!(SelftestReport::from_json(&json).unwrap(), fixture());
    assert_snapshot!("selftest-json", json);
}

#[test]
fn pages() {
    for language in Language::ALL {
        let name = format!("selftest-html-{}", language.name());
        assert_snapshot!(name, render_html(&fixture(), language).unwrap());
    }
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
