//! Trends of small histories: when something got worse, what changed then, and how it looks.
#![cfg(test)]

#[macro_use]
mod support;

use std::collections::BTreeMap;

use driftgauge_reports::history::{
    HistoryCase, HistoryError, HistoryRun, HistoryTarget, Trend, render, render_json, trends,
};
use driftgauge_reports::record::Verdict;
use driftgauge_reports::{Style, text};

/// A run of one target with two cases: the error of each in noise, its verdict, the library's version.
fn run(day: usize, noise: [f64; 2], verdict: Verdict, version: &str) -> HistoryRun {
    let case = |noise: f64| HistoryCase {
        tokens: "t".to_owned(),
        verdict,
        errors: BTreeMap::from([(
            "logits".to_owned(),
            HistoryError(
                Some(noise).filter(|noise| noise.is_finite()),
                Some(22.0 - noise.log2()).filter(|bits| bits.is_finite()),
            ),
        )]),
    };
    HistoryRun {
        digest: format!("{day:064}"),
        started: day as u64 * 86_400,
        day: format!("2026-11-{day:02}"),
        driftgauge: "0.1.0".to_owned(),
        model: "zh-mini".to_owned(),
        model_files: "m".to_owned(),
        exit_code: 0,
        move_limit: 1.0,
        targets: vec![HistoryTarget {
            target: "onnx@cpu/f32".to_owned(),
            environment: BTreeMap::from([("library_version".to_owned(), version.to_owned())]),
            forward: 0.5 + day as f64 / 100.0,
            cases: ["seed/capital", "seed/moon"]
                .into_iter()
                .zip(noise)
                .map(|(name, noise)| (name.to_owned(), case(noise)))
                .collect(),
        }],
    }
}

/// Six runs, of which the fourth drifts with a new library and the sixth is well again.
fn fixture() -> Vec<HistoryRun> {
    let (good, bad) = ("1.23.2", "1.31.1");
    vec![
        run(1, [1.0, 1.1], Verdict::Pass, good),
        run(2, [1.2, 0.9], Verdict::Pass, good),
        run(3, [0.9, 1.0], Verdict::Pass, good),
        run(4, [9.0, 1.1], Verdict::Drift, bad),
        run(5, [9.2, 1.0], Verdict::Drift, bad),
        run(6, [1.0, 1.0], Verdict::Pass, good),
    ]
}

fn only(runs: &[HistoryRun]) -> Trend {
    let mut trends = trends(runs);
    assert_eq!(trends.len(), 1);
    trends.remove(0)
}

#[test]
fn a_drift_begins_where_errors_grow_beyond_noise() {
    let trend = only(&fixture());
    let found: Vec<_> = trend.changes.iter().map(|c| (c.point, c.worse)).collect();
    assert_eq!(found, [(3, true), (5, false)]);
    let drift = &trend.changes[0];
    assert_eq!((drift.verdicts.len(), drift.errors), (2, 1));
    let furthest = drift.furthest.as_ref().unwrap();
    assert_eq!(furthest.case, "seed/capital");
    assert_eq!(
        drift.environment["library_version"],
        [Some("1.23.2".to_owned()), Some("1.31.1".to_owned())]
    );
    assert_eq!(trend.since, None);
    let still = only(&fixture()[..5]);
    assert_eq!(still.since, Some(3));
    // The order in which runs are told does not matter.
    let mut reversed = fixture();
    reversed.reverse();
    assert_eq!(only(&reversed), trend);
}

/// No step is beyond noise, and all of them together are.
#[test]
fn a_slow_creep_is_noticed() {
    let creep: Vec<HistoryRun> = (1..=6)
        .map(|day| run(day, [1.0 + 0.3 * day as f64, 1.0], Verdict::Pass, "1"))
        .collect();
    let trend = only(&creep);
    let found: Vec<_> = trend.changes.iter().map(|c| (c.point, c.worse)).collect();
    assert_eq!(found, [(4, true)], "{:?}", trend.changes);
    assert!(trend.changes[0].environment.is_empty());
}

#[test]
fn what_is_not_finite_is_worse_and_has_no_bits() {
    let runs = [
        run(1, [1.0, 1.0], Verdict::Pass, "1"),
        run(2, [f64::INFINITY, 1.0], Verdict::Drift, "1"),
    ];
    let trend = only(&runs);
    assert_eq!(trend.points[1].bits, None);
    assert!(trend.changes[0].worse);
    assert_eq!(trend.changes[0].furthest.as_ref().unwrap().noise, None);
}

/// Other tokens are another question, and other files another model.
#[test]
fn what_cannot_be_compared_is_not() {
    let mut runs = vec![
        run(1, [1.0, 1.0], Verdict::Pass, "1"),
        run(2, [5.0, 5.0], Verdict::Pass, "1"),
    ];
    for case in runs[1].targets[0].cases.values_mut() {
        case.tokens = "other".to_owned();
    }
    assert!(only(&runs).changes.is_empty());
    runs[1].model_files = "other".to_owned();
    assert_eq!(trends(&runs).len(), 2);
    assert!(trends(&[]).is_empty());
}

fn table(runs: &[HistoryRun], width: usize) -> String {
    let style = Style {
        width,
        colour: false,
    };
    render(&trends(runs), style)
}

#[test]
fn history_at_80_columns() {
    assert_snapshot!("history-80", table(&fixture(), 80));
}

#[test]
fn history_json() {
    assert_snapshot!(
        "history-json",
        render_json(&trends(&fixture()[..4])).unwrap()
    );
}

/// One run has no line; a hundred have the last ten listed.
#[test]
fn no_line_is_wider_than_the_terminal_and_no_text_breaks_out() {
    let many: Vec<HistoryRun> = (1..100)
        .map(|day| {
            run(
                day,
                [1.0 + (day % 7) as f64, 1.0],
                Verdict::Pass,
                "\u{1b}[2J\u{202e}",
            )
        })
        .collect();
    for width in [60, 80, 160] {
        for runs in [&many[..1], &many[..2], &many[..]] {
            let table = table(runs, width);
            for line in table.lines() {
                assert!(text::width(line) <= width, "{width}: {line}");
            }
            let is_bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!table.contains(is_bad), "{table}");
        }
    }
}
