//! `driftgauge history`: records of real runs, one file, and files that are something else.

#![cfg(test)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/cli.rs"]
mod cli;

use std::path::Path;

use checkpoint::SUITE;
use cli::{DRIFTGAUGE, Finished, Folder};
use rusqlite::Connection;

/// Runs a target and keeps the record as `NAME.json`, as of a day of November 2026.
fn run(folder: &Folder, name: &str, code: i32, target: &str, day: u64) {
    folder.write("tiny.toml", SUITE);
    let arguments = ["--quiet", "--no-float64", "--threads", "1", "--no-locate"];
    let more = ["--suite", "tiny.toml", "--target", target];
    let mut record = folder.run(&[&arguments[..], &more].concat()).record(code);
    record.time.started = 1_793_491_200 + day * 86_400;
    // One target whose library is named by its place is one and the same over time.
    let own = target.to_owned();
    for target in &mut record.targets {
        target.target = target.target.replace(&own, "fake@cpu/f32");
    }
    for result in &mut record.results {
        result.target = "fake@cpu/f32".to_owned();
    }
    folder.write(
        &format!("{name}.json"),
        serde_json::to_string(&record).unwrap(),
    );
}

fn call(folder: &Folder, arguments: &[&str]) -> Finished {
    let all = [&["history"], arguments].concat();
    folder.call(Path::new(DRIFTGAUGE), &[("NO_COLOR", "1".as_ref())], &all)
}

const DB: [&str; 2] = ["--db", "deep/history.sqlite"];

fn with_db(arguments: &[&'static str]) -> Vec<&'static str> {
    [arguments, &DB].concat()
}

/// A drift that began with another version of the library, added twice and out of order.
#[test]
fn when_a_drift_began_and_what_changed() {
    let folder = Folder::new();
    run(&folder, "a", 0, "fake@cpu/f32", 1);
    run(&folder, "b", 0, "fake@cpu/f32", 2);
    run(&folder, "c", 1, "fake@cpu/f32?fault=drift", 3);
    let text = std::fs::read_to_string(folder.path("c.json")).unwrap();
    let version = "\"library_version\":\"0.1.0\"";
    assert!(text.contains(version));
    folder.write(
        "c.json",
        text.replace(version, "\"library_version\":\"9.9.9\""),
    );
    call(&folder, &with_db(&["add", "c.json", "a.json"])).has(0, &["added: c.json"]);
    let again = call(&folder, &with_db(&["add", "a.json", "b.json"]));
    again.has(
        0,
        &[
            "there already: a.json",
            "added: b.json",
            "history: deep/history.sqlite",
        ],
    );
    let shown = call(&folder, &with_db(&["show"]));
    let expected = [
        "fake@cpu/f32 on zh-mini: 3 runs, 2026-11-02 to 2026-11-04",
        "2026-11-04 (run 3): worse",
        "the verdict of tiny/capital and 2 more",
        "library_version 0.1.0 -> 9.9.9",
        "DRIFT since 2026-11-04 (run 3)",
    ];
    shown.has(1, &expected);
    shown.expect(!shown.stdout.contains('\u{1b}'), "no colour");
    let json = call(
        &folder,
        &with_db(&["show", "--format", "json", "--target", "fake*"]),
    );
    let trends: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(trends[0]["since"], 2);
    assert_eq!(trends[0]["points"].as_array().unwrap().len(), 3);
    call(&folder, &with_db(&["show", "--target", "onnx*"])).has(4, &["matches `onnx*`", "hint: "]);
}

#[test]
fn files_that_are_no_history_are_refused() {
    let folder = Folder::new();
    run(&folder, "a", 0, "fake@cpu/f32", 1);
    let refused = |db: &str, expected: &[&str]| {
        let before = std::fs::read(folder.path(db)).ok();
        for arguments in [
            ["show", "--db", db].as_slice(),
            &["add", "a.json", "--db", db],
        ] {
            call(&folder, arguments).has(2, &[expected, &["error: ", "hint: "]].concat());
        }
        assert_eq!(std::fs::read(folder.path(db)).ok(), before, "left alone");
    };
    call(&folder, &with_db(&["show"])).has(2, &["there is no history at `deep/history.sqlite`"]);
    folder.write(
        "text.sqlite",
        "not a database, whatever its name says ".repeat(30),
    );
    refused(
        "text.sqlite",
        &["`text.sqlite` is no history of driftgauge: it is no SQLite file"],
    );
    let foreign = Connection::open(folder.path("foreign.sqlite")).unwrap();
    foreign.execute_batch("CREATE TABLE t (x)").unwrap();
    refused("foreign.sqlite", &["it is a database of another program"]);
    std::fs::create_dir(folder.path("folder")).unwrap();
    refused(
        "folder",
        &["`folder` is no history of driftgauge: it is a folder"],
    );
    call(&folder, &["add", "a.json", "--db", "newer.sqlite"]).has(0, &[]);
    let newer = Connection::open(folder.path("newer.sqlite")).unwrap();
    newer.pragma_update(None, "user_version", 7).unwrap();
    refused(
        "newer.sqlite",
        &["newer version 7", "update this driftgauge"],
    );
    for (name, text) in [("half", "{\"format\": "), ("other", "{}"), ("empty", "")] {
        folder.write(name, text);
        call(&folder, &with_db(&["add", "a.json", name])).has(2, &[name, "hint: "]);
    }
    assert!(
        !folder.path("deep").exists(),
        "all are read before any is added"
    );
}

/// A history that somebody else writes to is waited for and then given up; what fails adds nothing.
#[test]
fn a_run_is_added_whole_or_not_at_all() {
    let folder = Folder::new();
    run(&folder, "a", 0, "fake@cpu/f32", 1);
    run(&folder, "b", 0, "fake@cpu/f32", 2);
    call(&folder, &with_db(&["add", "a.json"])).has(0, &[]);
    let other = Connection::open(folder.path("deep/history.sqlite")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let locked = call(&folder, &with_db(&["add", "b.json"]));
    locked.has(
        2,
        &[
            "`deep/history.sqlite` is locked by another process",
            "hint: ",
        ],
    );
    other.execute_batch("ROLLBACK").unwrap();
    other
        .execute_batch(
            "CREATE TRIGGER full BEFORE INSERT ON cases WHEN new.name = 'tiny/weather'
             BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
        )
        .unwrap();
    call(&folder, &with_db(&["add", "b.json"])).has(2, &["the disk is full"]);
    let count = |table: &str| -> i64 {
        let query = format!("SELECT count(*) FROM {table}");
        other.query_row(&query, [], |row| row.get(0)).unwrap()
    };
    assert_eq!((count("runs"), count("targets"), count("cases")), (1, 1, 6));
    other.execute_batch("DROP TRIGGER full").unwrap();
    call(&folder, &with_db(&["add", "b.json"])).has(0, &["added: b.json"]);
    assert_eq!((count("runs"), count("cases")), (2, 12));
    other
        .execute("UPDATE cases SET verdict = 'nonsense'", [])
        .unwrap();
    call(&folder, &with_db(&["show"])).has(2, &["is damaged", "nonsense", "hint: "]);
}
