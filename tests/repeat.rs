//! `driftgauge run --repeat`: a verdict that is another one when the cases run again is a finding.

#![cfg(test)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/cli.rs"]
mod cli;

use checkpoint::SUITE;
use cli::{Finished, Folder};
use driftgauge_reports::RunRecord;
use driftgauge_reports::record::{FindingKind, Repeats, Verdict};

/// Runs three times, a fake target beside a healthy one.
#[track_caller]
fn run(options: &str, code: i32) -> (Finished, RunRecord) {
    let folder = Folder::new();
    let suite = folder.write("tiny.toml", SUITE);
    let target = format!("fake@cpu/f32?{options}");
    let run = folder.run(&[
        "--quiet",
        // Its worker would be the first process, or one more.
        "--no-float64",
        "--threads",
        "1",
        "--repeat",
        "3",
        "--suite",
        suite.to_str().unwrap(),
        "--target",
        &target,
        "--target",
        "fake@cpu/f64?name=healthy",
    ]);
    let record = run.record(code);
    let healthy = repeats(&record, 1);
    run.expect(
        (healthy.differing, healthy.not_bitwise) == (0, 0),
        "the other target should be steady",
    );
    (run, record)
}

fn repeats(record: &RunRecord, target: usize) -> Repeats {
    record.targets[target].repeats.clone().unwrap()
}

#[test]
fn a_steady_target() {
    let (run, record) = run("name=steady", 0);
    let cases = record.summary.cases;
    let found = repeats(&record, 0);
    assert_eq!(
        (found.runs, found.verdicts, found.differing),
        (3, 2 * cases, 0)
    );
    assert!(
        found.observations > 2 * 5 * cases && found.not_bitwise == 0,
        "{found:?}"
    );
    let expected = 1.0 - 0.05f64.powf(1.0 / (2.0 * cases as f64));
    assert!((found.rate_below - expected).abs() < 1e-6, "{found:?}");
    let line = format!(
        "repeats: 0 of {} verdicts differ (below {:.1} % at 95 %), all bitwise equal",
        2 * cases,
        100.0 * expected
    );
    run.expect(run.stdout.matches(&line).count() == 2, line);
}

/// The first process is right, every later one is not.
#[test]
fn another_verdict_in_a_fresh_process() {
    let (run, record) = run("fault=process&first=first", 1);
    let cases = record.summary.cases;
    let found = repeats(&record, 0);
    assert_eq!((found.differing, found.verdicts), (2 * cases, 2 * cases));
    assert_eq!(found.rate_below, 1.0);
    assert_eq!(found.not_bitwise, found.observations);
    assert_eq!(record.summary.verdicts[&Verdict::Drift], cases);
    for result in record.results.iter().step_by(2) {
        let finding = result.findings.last().unwrap();
        assert_eq!(finding.kind, FindingKind::Flaky);
        assert_eq!(
            finding.message,
            "verdict differs between runs: pass, then drift"
        );
        assert_eq!(finding.evidence.len(), 2, "{finding:#?}");
    }
    let line = "verdict differs between runs: pass, then drift";
    run.expect(run.stdout.contains(line), line);
}

/// Other bits are no other verdict.
#[test]
fn other_bits_in_a_fresh_process() {
    let (run, record) = run("fault=process&first=first&by=1", 0);
    let found = repeats(&record, 0);
    assert_eq!(found.differing, 0);
    assert!(found.not_bitwise > 0, "{found:?}");
    let line = format!(
        "{} of {} observations not bitwise",
        found.not_bitwise, found.observations
    );
    // The line is broken where the terminal ends.
    let stdout = run.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    run.expect(stdout.contains(&line), line);
}

/// Every later process of the target dies while it loads; nothing is run again to hide that.
#[test]
fn a_worker_that_dies_in_a_further_run() {
    let (_, record) = run("fault=process&by=0&once=once&then=abort", 1);
    let found = repeats(&record, 0);
    assert_eq!(found.differing, found.verdicts);
    let lost = &record.results[0];
    assert_eq!(lost.verdict, Verdict::Drift);
    let message = &lost.findings[0].message;
    assert_eq!(message, "verdict differs between runs: pass, then broken");
    assert!(
        lost.findings[0].evidence[0].contains("signal 6"),
        "{lost:#?}"
    );
}

#[test]
fn without_repeats_nothing_is_said_of_them() {
    let folder = Folder::new();
    let suite = folder.write("tiny.toml", SUITE);
    let run = folder.run(&[
        "--quiet",
        "--suite",
        suite.to_str().unwrap(),
        "--target",
        "fake",
    ]);
    assert_eq!(run.record(0).targets[0].repeats, None);
    run.expect(!run.stdout.contains("repeats"), "no line");
}

#[test]
fn no_runs_at_all_are_refused() {
    let run = Folder::new().run(&["--repeat", "0"]);
    run.expect(
        run.code == Some(2) && run.stderr.contains("0 is not in 1..=1000"),
        "refused",
    );
}
