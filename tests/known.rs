//! `driftgauge run --known`: deviations that are known, fixed, expired, or not what was expected.

#![cfg(test)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/cli.rs"]
mod cli;

use std::path::Path;

use checkpoint::{Checkpoint, SUITE};
use cli::{DRIFTGAUGE, Finished, Folder, GOOD};
use driftgauge_reports::RunRecord;
use driftgauge_reports::record::{FindingKind, Verdict};

/// The logits of the fake are too large by a thousandth, which the three cases with masks show.
const DRIFTING: &str = "fake@cpu/f32?fault=drift";
/// The cases of [`SUITE`] that have masks.
const MASKED: &str = "tiny/{capital,weather,mask-first}";

/// An entry that is right about [`DRIFTING`], with some of its lines changed.
fn entry(changes: &[(&str, &str)]) -> String {
    let mut text = format!(
        "# Seen with the fake.\n[[known]]\ntarget = \"fake*drift\"\ncase = \"{MASKED}\"\n\
         reason = \"the fake scales its logits, see #12\"\nexpires = 2027-03-31\n\n\
         [[known.finding]]\nkind = \"numeric\"\nobservation = \"logits\"\n"
    );
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    text
}

/// Runs a target beside a healthy one, with one file of known deviations, on a day when it counts.
fn run(target: &str, known: &str, arguments: &[&str]) -> Finished {
    let folder = Folder::new();
    folder.write("tiny.toml", SUITE);
    folder.write("known/fake.toml", known);
    folder.write("known/README.md", "not a file of known deviations");
    let mut all = vec!["--quiet", "--no-float64", "--threads", "1"];
    all.extend(["--suite", "tiny.toml", "--known", "known"]);
    all.extend(["--target", target, "--target", "fake@cpu/f64?name=healthy"]);
    if !arguments.contains(&"--today") {
        all.extend(["--today", "2027-03-31"]);
    }
    all.extend(arguments);
    folder.run(&all)
}

fn count(record: &RunRecord, verdict: Verdict) -> usize {
    record.summary.verdicts.get(&verdict).copied().unwrap_or(0)
}

/// A line of the table may be broken anywhere.
fn words(run: &Finished) -> String {
    run.stdout.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn what_is_known_conforms_and_stays_visible() {
    let run = run(DRIFTING, &entry(&[]), &[]);
    let record = run.record(0);
    assert_eq!(count(&record, Verdict::Known), 3);
    assert_eq!(count(&record, Verdict::Pass), 9);
    assert_eq!(record.time.day, "2027-03-31");
    let results = record.results.iter();
    let known: Vec<_> = results.filter(|r| r.verdict == Verdict::Known).collect();
    for result in &known {
        let entry = result.known.as_ref().unwrap();
        assert_eq!(
            (entry.file.as_str(), entry.line, entry.expires.as_str()),
            ("known/fake.toml", 2, "2027-03-31")
        );
        assert_eq!(entry.finding, "numeric, in `logits`");
        assert!(!result.findings.is_empty(), "the findings stay");
    }
    let [entry] = &record.known.entries[..] else {
        panic!("{:?}", record.known);
    };
    assert_eq!(
        (entry.targets, entry.cases, entry.deviating, entry.fixed),
        (1, 3, 3, 0)
    );
    let words = words(&run);
    for expected in [
        "3 known",
        "known/fake.toml:2",
        "the fake scales its logits, see #12",
        "until 2027-03-31: 3 results as it says",
        "apart from 3 known deviations",
    ] {
        run.expect(words.contains(expected), expected);
    }
}

/// The day after the last one it is drift again, and says which entry that was.
#[test]
fn an_expired_entry_is_drift() {
    let run = run(DRIFTING, &entry(&[]), &["--today", "2027-04-01"]);
    let record = run.record(1);
    assert_eq!(count(&record, Verdict::Drift), 3);
    assert_eq!(count(&record, Verdict::Known), 0);
    for result in record
        .results
        .iter()
        .filter(|r| r.verdict == Verdict::Drift)
    {
        let finding = result.findings.last().unwrap();
        assert_eq!(finding.kind, FindingKind::Expired);
        let expected = "the known deviation `known/fake.toml:2` expired on 2027-03-31: the fake";
        assert!(finding.message.contains(expected), "{finding:?}");
        assert_eq!(result.known, None);
    }
    let said = words(&run);
    run.expect(said.contains("EXPIRED on 2027-03-31"), "the table says so");
}

/// What no longer happens, or happens in fewer cases than the entry says, must be noticed.
#[test]
fn what_no_longer_happens_is_fixed() {
    let healthy = entry(&[("fake*drift", "fake*healthy")]);
    let cured = run("fake@cpu/f32?name=cured", &healthy, &[]);
    assert_eq!(count(&cured.record(1), Verdict::Fixed), 3);
    let said = words(&cured);
    for expected in [
        "FIXED: fake@cpu/f64?name=healthy no longer deviates in 3 of 6 cases",
        "3 results FIXED: narrow or remove the entry",
    ] {
        cured.expect(said.contains(expected), expected);
    }
    let wide = run(DRIFTING, &entry(&[(MASKED, "*")]), &[]);
    let record = wide.record(1);
    assert_eq!(
        (
            count(&record, Verdict::Known),
            count(&record, Verdict::Fixed)
        ),
        (3, 3)
    );
    let sometimes = [(MASKED, "*"), ("expires", "sometimes = true\nexpires")];
    let record = run(DRIFTING, &entry(&sometimes), &[]).record(0);
    assert_eq!(
        (
            count(&record, Verdict::Known),
            count(&record, Verdict::Fixed)
        ),
        (3, 0)
    );
}

/// An entry explains what it says and nothing else.
#[test]
fn what_an_entry_does_not_say_is_drift() {
    for changes in [
        [("\"logits\"", "\"logits\"\nup_to_u = 1.5")],
        [("\"logits\"", "\"hidden.*\"")],
        [("\"logits\"", "\"logits\"\nclass = \"damage\"")],
        [(
            "kind = \"numeric\"\nobservation = \"logits\"",
            "kind = \"damage\"",
        )],
    ] {
        let run = run(DRIFTING, &entry(&changes), &[]);
        let record = run.record(1);
        assert_eq!(count(&record, Verdict::Drift), 3, "{changes:?}");
        assert_eq!(record.known.entries[0].beyond, 3);
        let said = words(&run);
        let expected = "the known deviation `known/fake.toml:2` does not explain all of it";
        run.expect(said.contains(expected), expected);
    }
    for changes in [
        [("fake*drift", "candle*")],
        [("expires", "library_version = \"9.*\"\nexpires")],
        [(MASKED, "tiny/nothing")],
    ] {
        let record = run(DRIFTING, &entry(&changes), &[]).record(1);
        assert_eq!(count(&record, Verdict::Drift), 3, "{changes:?}");
        assert!(record.known.entries[0].unmatched().is_some());
    }
}

#[test]
fn what_gave_no_result_is_never_hidden() {
    let all = [
        ("fake*drift", "fake*fault*"),
        ("\nobservation = \"logits\"", ""),
    ];
    for (fault, verdict) in [
        ("abort&at=1", Verdict::Broken),
        ("refuse&at=1", Verdict::Unsupported),
    ] {
        let target = format!("fake@cpu/f32?fault={fault}");
        let record = run(&target, &entry(&all), &[]).record(3);
        assert!(count(&record, verdict) > 0, "{fault}");
        assert_eq!(count(&record, Verdict::Known), 0);
    }
}

/// A verdict that differs from run to run is more than the deviation that is known.
#[test]
fn a_flaky_verdict_is_not_known() {
    let target = "fake@cpu/f32?fault=process&first=first";
    let all = [("fake*drift", "fake*process*"), (MASKED, "*")];
    let known = entry(&all).replace("\nobservation = \"logits\"", "");
    let record = run(target, &known, &["--repeat", "2"]).record(1);
    assert_eq!(count(&record, Verdict::Drift), 6);
}

#[test]
fn known_deviations_can_be_left_out() {
    let folder = Folder::new();
    folder.write("tiny.toml", SUITE);
    let arguments = ["--quiet", "--no-float64", "--suite", "tiny.toml"];
    let more = ["--target", DRIFTING, "--no-known"];
    let run = folder.run(&[&arguments[..], &more].concat());
    let record = run.record(1);
    assert!(!record.known.applied);
    run.expect(
        run.stdout
            .contains("known deviations: not applied (--no-known)"),
        "the table says so",
    );
}

/// The text of a reason comes from a file that anybody may have written.
#[test]
fn a_reason_cannot_break_out_of_the_table() {
    let hostile = entry(&[(
        "the fake scales",
        "\\u001b[2J\\u202e::error::the fake scales",
    )]);
    let run = run(DRIFTING, &hostile, &[]);
    let reason = &run.record(0).known.entries[0].reason;
    assert!(reason.contains('\u{1b}'), "the record holds what was said");
    let is_bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    run.expect(!run.stdout.contains(is_bad), "escaped");
}

/// A run of everything lists the entries that have nothing to do with anything.
#[test]
fn a_full_run_lists_what_matches_nothing() {
    let folder = Folder::new();
    let idle = entry(&[("fake*drift", "onnx@cuda:*"), (MASKED, "*")]);
    let gone = entry(&[("fake*drift", "onnx*"), (MASKED, "seed/gone")]);
    folder.write("known/a.toml", format!("{idle}\n{gone}"));
    let run = folder.run(&["--quiet", "--known", "known", "--no-locate", "--no-float64"]);
    let record = run.record(0);
    assert!(record.known.full);
    let said = words(&run);
    for expected in [
        "known/a.toml:2 matches nothing: no target matches `onnx@cuda:*`",
        "known/a.toml:13 matches nothing: no case matches `seed/gone`",
    ] {
        run.expect(said.contains(expected), expected);
    }
}

#[test]
fn bad_files_are_refused() {
    let folder = Folder::with(&Checkpoint::new());
    for (changes, problem, place) in [
        (
            ("kind", "kin"),
            "unknown field `kin`",
            "known/fake.toml:9:1",
        ),
        (
            ("2027-03-31", "2027-02-31"),
            "not understood",
            "known/fake.toml:6:",
        ),
        (
            ("the fake scales its logits, see #12", " "),
            "the reason is empty",
            "known/fake.toml:5:10",
        ),
        (
            ("\"numeric\"", "\"broken\""),
            "can never be known",
            "known/fake.toml:9:8",
        ),
        (
            ("[[known]]", "[[known"),
            "not understood",
            "known/fake.toml:2:",
        ),
    ] {
        folder.write("known/fake.toml", entry(&[changes]));
        let arguments = [&GOOD[..], &["--known", "known"]].concat();
        let hint = "hint: the format of known deviations is in cases/known/README.md";
        folder.refuses(&arguments, 2, &[problem, place, hint]);
    }
    folder.write("known/fake.toml", b"\xff");
    let arguments = [&GOOD[..], &["--known", "known"]].concat();
    folder.refuses(&arguments, 2, &["known/fake.toml", "UTF-8"]);
    let arguments = [&GOOD[..], &["--known", "nowhere"]].concat();
    folder.refuses(&arguments, 2, &["`nowhere`", "--known takes a folder"]);
    for (arguments, expected) in [
        (
            ["run", "--today", "tomorrow"],
            "expected a day, as in 2026-11-24",
        ),
        (["run", "--today", "2026-02-30"], "expected a day"),
    ] {
        let run = folder.call(Path::new(DRIFTGAUGE), &[], &arguments);
        run.has(2, &[expected]);
    }
}
