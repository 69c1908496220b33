//! `driftgauge report`: every format of a record and of a self-test, and files that are neither.
#![cfg(test)]

#[path = "../reports/tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use driftgauge_reports::record::RECORD_VERSION;
use driftgauge_reports::{Format, RunRecord, selftest};

#[expect(
    clippy::disallowed_methods,
    reason = "an end-to-end test starts the program under test"
)]
fn report(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_driftgauge"));
    command.arg("report").args(arguments);
    for name in ["LC_ALL", "LC_MESSAGES", "LANG", "GITHUB_ACTIONS"] {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied());
    command.output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A folder with `name` in it.
fn folder(name: &str, content: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = folder.path().join(name);
    std::fs::write(&file, content).unwrap();
    (folder, file.display().to_string())
}

fn json(record: &RunRecord) -> String {
    serde_json::to_string(record).unwrap()
}

#[test]
fn every_format_is_printed_and_written() {
    let (folder, file) = folder("record.json", &json(&support::record()));
    for format in Format::ALL {
        let printed = stdout(&report(&[&file, "--format", format.name()], &[]));
        let out = folder.path().join("deeper").join(format.name());
        let out = out.display().to_string();
        let silent = report(&[&file, "--format", format.name(), "--out", &out], &[]);
        assert_eq!(stdout(&silent), "");
        assert_eq!(
            std::fs::read_to_string(out).unwrap(),
            printed,
            "{}",
            format.name()
        );
    }
}

#[test]
fn help_lists_the_formats() {
    let help = stdout(&report(&["--help"], &[]));
    let list = Format::ALL.map(Format::name).join(", ");
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains(&list), "{help}");
}

#[test]
fn the_language_is_that_of_the_locale_unless_it_is_named() {
    let (_folder, file) = folder("record.json", &json(&support::record()));
    let chinese = "<html lang=\"zh\">";
    for (arguments, environment, is_chinese) in [
        (&[][..], &[][..], false),
        (&[], &[("LANG", "zh_CN.UTF-8")], true),
        (
            &[],
            &[("LANG", "zh_CN.UTF-8"), ("LC_ALL", "C.UTF-8")],
            false,
        ),
        (&[], &[("LANG", "C"), ("LC_MESSAGES", "zh_TW")], true),
        (&["--lang", "zh"], &[("LANG", "C")], true),
        (&["--lang", "en"], &[("LC_ALL", "zh_CN")], false),
    ] {
        let mut all = vec![file.as_str(), "--format", "html"];
        all.extend(arguments);
        let page = stdout(&report(&all, environment));
        assert_eq!(
            page.contains(chinese),
            is_chinese,
            "{arguments:?} {environment:?}"
        );
    }
    assert_eq!(report(&[&file, "--lang", "fr"], &[]).status.code(), Some(2));
}

/// What a text says on GitHub's runner stands inside of a fence.
#[test]
fn the_table_is_fenced_from_workflow_commands() {
    let (_folder, file) = folder("record.json", &json(&support::record()));
    let table = stdout(&report(&[&file], &[("GITHUB_ACTIONS", "true")]));
    let first = table.lines().next().unwrap();
    let word = first.strip_prefix("::stop-commands::").unwrap();
    assert_eq!(table.lines().next_back().unwrap(), format!("::{word}::"));
    assert_eq!(table.matches(word).count(), 2);
    let plain = stdout(&report(&[&file], &[]));
    assert!(!plain.contains("stop-commands"));
}

#[test]
fn a_selftest_is_a_table_a_page_or_json() {
    let written = selftest::render_json(&support::selftest::fixture()).unwrap();
    let (_folder, file) = folder("selftest.json", &written);
    assert_eq!(stdout(&report(&[&file, "--format", "json"], &[])), written);
    assert!(stdout(&report(&[&file], &[])).contains("gelu-tanh"));
    let page = stdout(&report(&[&file, "--format", "html"], &[]));
    assert!(page.starts_with("<!doctype html>") && page.contains("gelu-tanh"));
    let refused = report(&[&file, "--format", "junit"], &[]);
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("choose table, json or html"), "{said}");
}

#[test]
fn a_record_without_results_is_a_page_that_says_so() {
    let mut empty = support::record();
    empty.results.clear();
    let (_folder, file) = folder("record.json", &json(&empty));
    let page = stdout(&report(&[&file, "--format", "html"], &[]));
    assert!(page.contains("No verdict.") && page.contains("nothing was compared"));
}

#[test]
fn what_is_no_record_is_refused() {
    let whole = json(&support::record());
    let version = format!("\"version\":{RECORD_VERSION}");
    let trials = selftest::render_json(&support::selftest::fixture()).unwrap();
    let half = |text: &str| text[..text.floor_char_boundary(text.len() / 2)].to_owned();
    for (content, expected) in [
        (half(&whole), "not a driftgauge record"),
        (
            whole.replacen(&version, "\"version\":99", 1),
            "newer version 99",
        ),
        (
            whole.replacen(&version, "\"version\":1", 1),
            "old version 1",
        ),
        (
            trials.replacen("\"version\": 1", "\"version\": 99", 1),
            "newer version 99",
        ),
        (half(&trials), "not a driftgauge record"),
        (
            "{\"format\": \"other\", \"version\": 1}".to_owned(),
            "the format is `other`",
        ),
        (String::new(), "it is empty"),
        ("no JSON".to_owned(), "it is other text"),
    ] {
        let (_folder, file) = folder("record.json", &content);
        let output = report(&[&file, "--format", "html"], &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains(expected) && said.contains("hint: "),
            "{expected}: {said}"
        );
        assert!(said.contains(&file), "{said}");
    }
    let missing = report(&["no/such/record.json"], &[]);
    assert_eq!(missing.status.code(), Some(2));
}

#[test]
fn a_report_that_cannot_be_written_leaves_nothing() {
    let (folder, file) = folder("record.json", &json(&support::record()));
    let out = PathBuf::from(&file).join("report.html");
    let output = report(
        &[
            &file,
            "--format",
            "html",
            "--out",
            &out.display().to_string(),
        ],
        &[],
    );
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(names(folder.path()), ["record.json"]);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}
