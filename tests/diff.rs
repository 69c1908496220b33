//! `driftgauge diff` through the program: records and bundles of the fake worker and of real backends,
//! and files that are neither.

#![cfg(test)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/cli.rs"]
mod cli;

use std::path::Path;

use checkpoint::Checkpoint;
use cli::{DRIFTGAUGE, Finished, Folder};
use driftgauge_reports::record::RECORD_VERSION;
use serde_json::Value;

/// Runs `driftgauge diff` in a folder.
fn diff(folder: &Folder, arguments: &[&str]) -> Finished {
    folder.call(Path::new(DRIFTGAUGE), &[], &[&["diff"], arguments].concat())
}

/// A folder with a small model and its suite.
fn folder() -> Folder {
    let folder = Folder::with(&Checkpoint::new());
    folder.remove("out/record.json");
    folder
}

/// Runs the small model on some targets and keeps record and bundle under `name`.
#[track_caller]
fn run(folder: &Folder, name: &str, targets: &[&str], code: i32) {
    let bundle = format!("{name}.zip");
    let files = [
        "--model",
        "model",
        "--suite",
        "tiny.toml",
        "--threads",
        "1",
        "--bundle",
        &bundle,
    ];
    let targets = targets.iter().flat_map(|target| ["--target", target]);
    let arguments: Vec<&str> = files.into_iter().chain(targets).collect();
    let run = folder.run(&arguments);
    run.record(code);
    run.expect(
        run.stdout.contains(&format!("bundle: {bundle}")),
        "the bundle should be named",
    );
    folder.write(&format!("{name}.json"), &run.json);
}

#[test]
fn equal_runs_do_not_differ() {
    let folder = folder();
    run(&folder, "a", &["fake", "onnx"], 0);
    run(&folder, "b", &["fake", "onnx"], 0);
    let same = ["NO DIFFERENCE: all 66 observations of 6 cases are the same to the bit"];
    for files in [
        ["a.json", "b.json"],
        ["a.zip", "b.zip"],
        ["a.json", "b.zip"],
    ] {
        diff(&folder, &files).has(0, &same);
    }
    // What tells the two bundles apart is the time in the record.
    let entries = |name: &str| {
        let file = std::fs::File::open(folder.path(name)).unwrap();
        let mut archive = zip::ZipArchive::new(file).unwrap();
        let mut entry = archive.by_name("record.json").unwrap();
        let mut record = String::new();
        std::io::Read::read_to_string(&mut entry, &mut record).unwrap();
        record
    };
    assert_eq!(
        entries("a.zip"),
        std::fs::read_to_string(folder.path("a.json")).unwrap()
    );
}

#[test]
fn a_drifted_run_names_verdict_observation_and_move() {
    let folder = folder();
    run(&folder, "before", &["fake"], 0);
    run(&folder, "after", &["fake?fault=drift"], 1);
    let expected = [
        "pass -> drift  fake@cpu/f32?fault=drift on tiny/capital and 2 more cases",
        "`logits` is ",
        "3 of 3",
        "target: fake@cpu/f32 -> fake@cpu/f32?fault=drift",
        "DRIFT: fake@cpu/f32?fault=drift: 3 verdicts got worse, 3 errors grew",
    ];
    let plain = diff(&folder, &["before.json", "after.json"]);
    plain.has(1, &expected);
    plain.has(1, &["least distances", "triangle inequality", "3 beyond"]);
    let bundles = diff(&folder, &["before.zip", "after.zip"]);
    bundles.has(1, &expected);
    bundles.has(
        1,
        &[
            "tensors compared directly",
            "3 of 33 observations are further apart",
        ],
    );
    assert!(!bundles.stdout.contains("triangle"), "{}", bundles.stdout);
    // The way back is a difference of tensors, and no error that grew.
    diff(&folder, &["after.json", "before.json"]).has(0, &["drift -> pass", "NO DRIFT"]);
    diff(&folder, &["after.zip", "before.zip"]).has(1, &["drift -> pass", "no error grew"]);

    let json = diff(&folder, &["before.zip", "after.zip", "--format", "json"]);
    json.has(1, &["\"drifted\": true"]);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    let target = &json["comparison"]["two"]["targets"][0];
    assert_eq!(target["moves"][0]["observation"], "logits", "{target:#}");
    assert_eq!(target["verdicts"].as_array().unwrap().len(), 3);
}

/// A crash loses what the other run has.
#[test]
fn what_vanished_is_drift() {
    let folder = folder();
    run(&folder, "before", &["fake"], 0);
    run(&folder, "after", &["fake?fault=abort&at=2"], 3);
    let expected = ["pass -> broken", "killed by signal 6", "15 observations"];
    for files in [["before.json", "after.json"], ["before.zip", "after.zip"]] {
        diff(&folder, &files).has(1, &expected);
    }
}

#[test]
fn of_three_runs_the_odd_one_out_is_named() {
    let folder = folder();
    run(&folder, "a", &["fake"], 0);
    run(&folder, "b", &["fake?fault=drift"], 1);
    run(&folder, "c", &["onnx"], 0);
    let plain = diff(&folder, &["a.json", "b.json", "c.json"]);
    plain.has(
        1,
        &[
            "ODD ONE OUT: B (b.json) is at least",
            "tiny/capital: A pass, B drift, C pass",
        ],
    );
    let bundles = diff(&folder, &["a.zip", "b.zip", "c.zip"]);
    bundles.has(1, &["ODD ONE OUT: B (b.zip) is ", "beyond noise"]);
    diff(&folder, &["a.zip", "c.zip", "a.zip"]).has(0, &["NO DRIFT: 3 runs are within noise"]);
}

/// Real backends differ to the bit and agree within noise, in the run and across runs.
#[test]
fn targets_of_one_run_are_compared_with_each_other() {
    let folder = folder();
    let targets = ["candle", "onnx", "onnx?opt=disable", "libtorch/f64"];
    run(&folder, "all", &targets, 0);
    let record = std::fs::read_to_string(folder.path("all.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    // f64 has no partner.
    let pairs = record["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 3, "{pairs:#?}");
    for pair in pairs {
        assert_eq!(
            (&pair["compared"], &pair["within"]),
            (&33.into(), &33.into()),
            "{pair:#}"
        );
        assert!(
            pair["furthest"]["noise"].as_f64().unwrap() < 2.5,
            "{pair:#}"
        );
    }
    assert!(pairs[0]["bitwise"].as_u64() < Some(33), "{}", pairs[0]);
    let two = ["--target", "candle", "--target", "onnx@cpu/f32"];
    let both = |file| [&[file], &two[..]].concat();
    for file in ["all.json", "all.zip"] {
        let said = diff(&folder, &both(file));
        said.has(0, &["tensors compared directly", "always", "NO DRIFT"]);
    }
    // The distances that the run measured are those that the bundle gives.
    let said = |file| {
        let json = diff(&folder, &[&both(file)[..], &["--format", "json"]].concat());
        let json: Value = serde_json::from_str(&json.stdout).unwrap();
        json["comparison"]["two"]["targets"][0]["apart"].clone()
    };
    assert_eq!(said("all.json"), said("all.zip"));
    diff(&folder, &["all.zip"]).has(0, &["4 targets: distances", "NO DRIFT: 4 runs"]);
}

#[test]
fn other_cases_and_other_models_are_said() {
    let folder = folder();
    run(&folder, "a", &["fake"], 0);
    let mut other = Checkpoint::new();
    other.config["layer_norm_eps"] = 1e-5.into();
    other.write(&folder.path("model"));
    run(&folder, "b", &["fake"], 0);
    let expected = [
        "OTHER MODEL",
        "model file config.json",
        "model architecture.layer_norm_eps",
    ];
    diff(&folder, &["a.json", "b.json"]).has(0, &expected);
    // Their tensors differ, of course.
    diff(&folder, &["a.zip", "b.zip"]).has(1, &["OTHER MODEL", "further apart"]);

    let suite = checkpoint::SUITE.replacen("中国的首都是", "我们的首都是", 1);
    folder.write(
        "tiny.toml",
        suite.replacen("\"science\"", "\"sciences\"", 1),
    );
    run(&folder, "c", &["fake"], 0);
    let expected = [
        "1 with another text under the same name: tiny/capital",
        "1 only before: tiny/science",
        "1 only after: tiny/sciences",
        "suite tiny file",
        "of 4 cases",
    ];
    diff(&folder, &["b.json", "c.json"]).has(0, &expected);
}

#[test]
fn what_is_no_evidence_is_refused() {
    let folder = folder();
    run(&folder, "a", &["fake"], 0);
    run(&folder, "two", &["fake", "fake/f64"], 0);
    run(&folder, "onnx", &["onnx"], 0);
    let record = std::fs::read_to_string(folder.path("a.json")).unwrap();
    let bundle = std::fs::read(folder.path("a.zip")).unwrap();
    let version = format!("\"version\": {RECORD_VERSION}");
    let with_version = |version_of: &str| record.replacen(&version, version_of, 1);
    let damaged: Vec<u8> = {
        let mut bytes = bundle.clone();
        let place = bytes
            .windows(9)
            .position(|part| part == b"\"texts\": ")
            .unwrap();
        bytes[place + 1] ^= 1;
        bytes
    };
    let files: [(&str, Vec<u8>, &[&str]); 9] = [
        (
            "empty",
            Vec::new(),
            &["is neither a record nor a bundle: it is empty"],
        ),
        ("text", "学".into(), &["it is other text"]),
        ("binary", vec![0xff; 9], &["it is not text"]),
        (
            "cut.json",
            record[..record.len() / 2].into(),
            &["cannot be read", "not a driftgauge record"],
        ),
        (
            "junit.json",
            record.replacen("driftgauge-record", "junit", 1).into(),
            &["the format is `junit`"],
        ),
        (
            "newer.json",
            with_version("\"version\": 99").into(),
            &["newer version 99", "update this one"],
        ),
        (
            "older.json",
            with_version("\"version\": 1").into(),
            &["old version 1", "run the cases again"],
        ),
        (
            "cut.zip",
            bundle[..bundle.len() / 2].into(),
            &["is cut off, or not a ZIP archive"],
        ),
        ("damaged.zip", damaged, &["entry `record.json` has SHA-256"]),
    ];
    for (name, content, expected) in files {
        folder.write(name, content);
        let said = diff(&folder, &["a.json", name]);
        said.has(2, expected);
        said.has(2, &["error: ", &format!("`{name}`"), "\n  hint: "]);
        assert!(said.stdout.is_empty());
    }
    for (arguments, expected) in [
        (&["a.json", "gone.json"][..], "cannot read `gone.json`"),
        (&["a.json", "model"], "it is a folder"),
        (&["a.json"], "nothing to compare `fake@cpu/f32` with"),
        (&["two.json", "onnx.json"], "have no target in common"),
        (
            &["a.json", "two.json", "--target", "candle"],
            "no file has the target `candle@cpu/f32`",
        ),
        (
            &["a.json", "onnx.json", "--target", "fake"],
            "`onnx.json` has none of them",
        ),
    ] {
        diff(&folder, arguments).has(2, &[expected, "hint: "]);
    }
    diff(&folder, &[]).has(2, &["Usage: driftgauge diff"]);
}

/// A bundle that cannot be written is found out before anything is run.
#[test]
fn bundles_are_written_whole_or_not_at_all() {
    let folder = folder();
    folder.write("file", "x");
    let good = [
        "--model",
        "model",
        "--suite",
        "tiny.toml",
        "--target",
        "fake",
        "--bundle",
    ];
    for (bundle, expected) in [
        ("model", "it is a folder"),
        ("file/b.zip", "is not a folder"),
    ] {
        let run = folder.run(&[&good[..], &[bundle]].concat());
        run.expect(run.code == Some(2), "should exit 2");
        run.expect(run.stderr.contains(expected), expected);
        run.expect(
            run.stderr
                .contains("hint: choose another file with --bundle"),
            "hint",
        );
        run.expect(
            !folder.path("out/record.json").exists(),
            "nothing should be run",
        );
    }
    // A run that breaks leaves a bundle, too, and folders are made.
    let broken = ["--target", "fake?fault=abort", "--bundle", "deep/b.zip"];
    let run = folder.run(&[&good[..4], &broken[..]].concat());
    run.record(3);
    diff(&folder, &["deep/b.zip", "deep/b.zip"]).has(0, &["NO DIFFERENCE: all 0 observations"]);
}
