//! `driftgauge merge`: shards and matrix legs become one record, or are refused.

#![cfg(test)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/cli.rs"]
mod cli;

use std::path::Path;

use checkpoint::SUITE;
use cli::{DRIFTGAUGE, Finished, Folder};
use driftgauge_reports::RunRecord;
use driftgauge_reports::record::Verdict;

/// Runs targets in a folder and puts the record into `NAME/`.
#[track_caller]
fn run(folder: &Folder, name: &str, code: i32, arguments: &[&str]) -> RunRecord {
    folder.write("tiny.toml", SUITE);
    let mut all = vec!["--quiet", "--no-float64", "--threads", "1", "--no-locate"];
    all.extend(["--suite", "tiny.toml"]);
    all.extend(arguments);
    let record = folder.run(&all).record(code);
    std::fs::rename(folder.path("out"), folder.path(name)).unwrap();
    record
}

/// Merges records of folders into `out/`.
fn merge(folder: &Folder, names: &[&str], more: &[&str]) -> Finished {
    let records: Vec<String> = names.iter().map(|n| format!("{n}/record.json")).collect();
    let mut all = vec!["merge", "--out", "out"];
    all.extend(records.iter().map(String::as_str));
    all.extend(more);
    folder.call(Path::new(DRIFTGAUGE), &[], &all)
}

/// Everything of a record that must not depend on how it was put together.
fn content(record: &RunRecord) -> impl PartialEq + std::fmt::Debug {
    (
        record.summary.clone(),
        record.results.clone(),
        record.suites.clone(),
        record.host.clone(),
    )
}

const HEALTHY: [&str; 4] = ["--target", "fake", "--target", "fake@cpu/f64?name=b"];

#[test]
fn shards_are_what_one_run_would_have_been() {
    let folder = Folder::new();
    let whole = run(&folder, "whole", 0, &HEALTHY);
    // A batch of the suite is three cases.
    for (name, pattern) in [
        ("a", "tiny/{capital,weather,mask-first}"),
        ("b", "tiny/{pair,science,empty}"),
    ] {
        let arguments = [&HEALTHY[..], &["--case", pattern]].concat();
        run(&folder, name, 0, &arguments);
    }
    let merged = merge(&folder, &["a", "b"], &[]);
    let record = merged.record(0);
    assert_eq!(
        format!("{:?}", content(&record)),
        format!("{:?}", content(&whole))
    );
    assert_eq!(record.pairs, whole.pairs);
    merged.expect(merged.stdout.contains("record: out/record.json"), "where");
    // The truth beside it is that of the whole run, so that it can be accepted.
    let truth = |name: &str| std::fs::read(folder.path(name)).unwrap();
    assert_eq!(
        truth("out/truth.safetensors"),
        truth("whole/truth.safetensors")
    );
    assert_eq!(record.truth.sha256, whole.truth.sha256);
    let accepted = folder.call(
        Path::new(DRIFTGAUGE),
        &[],
        &[
            "accept",
            "out/record.json",
            "--all",
            "--baselines",
            "baselines",
        ],
    );
    accepted.has(0, &[]);
}

/// A matrix over versions of a library has one target twice.
#[test]
fn versions_of_a_library_stand_side_by_side() {
    let folder = Folder::new();
    let old = run(&folder, "old", 0, &["--target", "fake@cpu/f32"]);
    let new = copy_of(
        &folder,
        "old",
        "new",
        (
            "\"library_version\": \"0.1.0\"",
            "\"library_version\": \"9.9.9\"",
        ),
    );
    assert_ne!(
        old.targets[0].library_version,
        new.targets[0].library_version
    );
    let merged = merge(&folder, &["old", "new"], &[]);
    let record = merged.record(0);
    let names: Vec<&str> = record.targets.iter().map(|t| t.target.as_str()).collect();
    let version = |record: &RunRecord| record.targets[0].library_version.clone().unwrap();
    assert_eq!(
        names,
        [
            format!("fake@cpu/f32 ({})", version(&old)),
            format!("fake@cpu/f32 ({})", version(&new)),
        ]
    );
    assert_eq!(record.summary.verdicts[&Verdict::Pass], 12);
    assert_eq!(record.summary.targets, 2);
    let labels = ["--label", "before", "--label", "after"];
    let record = merge(&folder, &["old", "new"], &labels).record(0);
    assert_eq!(record.targets[1].target, "fake@cpu/f32 (after)");
}

/// A copy of a record, and of the truth beside it, that says something else: as from another machine.
fn copy_of(folder: &Folder, name: &str, copy: &str, (from, to): (&str, &str)) -> RunRecord {
    let read = |file: &str| std::fs::read(folder.path(name).join(file)).unwrap();
    let text = String::from_utf8(read("record.json")).unwrap();
    assert!(text.contains(from), "{from}");
    let text = text.replace(from, to);
    folder.write(&format!("{copy}/record.json"), &text);
    folder.write(
        &format!("{copy}/truth.safetensors"),
        read("truth.safetensors"),
    );
    RunRecord::from_json(&text).unwrap()
}

/// One leg that drifted makes the whole drift, and what broke breaks it.
#[test]
fn the_exit_code_is_that_of_all_results() {
    let folder = Folder::new();
    run(&folder, "good", 0, &["--target", "fake"]);
    run(&folder, "bad", 1, &["--target", "fake?fault=drift"]);
    run(&folder, "broken", 3, &["--target", "fake?fault=abort&at=1"]);
    let record = merge(&folder, &["good", "bad"], &[]).record(1);
    assert_eq!(record.summary.verdicts[&Verdict::Drift], 3);
    merge(&folder, &["good", "bad", "broken"], &[]).record(3);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let folder = Folder::new();
    run(&folder, "a", 0, &["--target", "fake"]);
    run(
        &folder,
        "part",
        0,
        &["--target", "fake?name=b", "--case", "capital"],
    );
    run(&folder, "k", 0, &["--target", "fake?name=c", "--k", "9"]);
    folder.write("nothing/record.json", "{");
    let check = |names: &[&str], more: &[&str], expected: &[&str]| {
        let run = merge(&folder, names, more);
        run.has(2, &[expected, &["error: ", "\n  hint: "]].concat());
        assert!(!folder.path("out").exists(), "nothing is written");
    };
    let same = ("zh-mini", "zh-mini");
    copy_of(&folder, "a", "copy", same);
    copy_of(&folder, "a", "slow", ("\"threads\": 1", "\"threads\": 2"));
    let again = "`copy/record.json` has results of `tiny/capital` on `fake@cpu/f32`";
    check(&["a", "copy"], &[], &[again, "--label"]);
    check(
        &["a", "part"],
        &[],
        &["`tiny/empty` has no result on `fake@cpu/f32?name=b`"],
    );
    let environment = "`slow/record.json` has `fake@cpu/f32 (0.1.0)` in another environment";
    check(
        &["a", "slow"],
        &[],
        &[environment, "threads 1 -> 2", "--label"],
    );
    check(&["a", "k"], &[], &["differ in the method", "a/record.json"]);
    check(&["a", "a"], &[], &["`a/record.json` is given twice"]);
    check(&["a", "nothing"], &[], &["nothing/record.json"]);
    check(&["a", "gone"], &[], &["cannot read `gone/record.json`"]);
    check(
        &["a", "part"],
        &["--label", "x"],
        &["1 labels for 2 records"],
    );
    std::fs::write(folder.path("part/truth.safetensors"), "x").unwrap();
    check(
        &["a", "part"],
        &[],
        &["part/truth.safetensors", "they are not of one run"],
    );
    let other = SUITE.replace("中国的首都是", "中国的都是");
    folder.write("other.toml", other);
    let arguments = [
        "--quiet",
        "--no-float64",
        "--suite",
        "other.toml",
        "--no-locate",
    ];
    folder
        .run(&[&arguments[..], &["--target", "fake?name=d"]].concat())
        .record(0);
    std::fs::rename(folder.path("out"), folder.path("other")).unwrap();
    check(&["a", "other"], &[], &["differ in a suite: tiny"]);
}
