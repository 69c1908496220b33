//! Whatever stands in a record, reports are well formed, within the limits of what reads them, and valid under
//! the published schemas.
#![cfg(test)]

mod support;

use std::collections::HashSet;
use std::io::Write;
use std::process::{Command, Stdio};

use driftgauge_reports::selftest::{SelftestReport, render_html};
use driftgauge_reports::{Format, Language, RunRecord, Style};
use proptest::prelude::*;
use support::{HOSTILE, large, record};

const STYLE: Style = Style {
    width: 80,
    colour: false,
};

fn render(record: &RunRecord, format: Format) -> String {
    driftgauge_reports::render(record, format, STYLE, Language::English).unwrap()
}

/// The record with another text in every field of text.
fn with_text(record: &RunRecord, text: &str) -> RunRecord {
    let mut value = serde_json::to_value(record).unwrap();
    replace(&mut value, text, "");
    serde_json::from_value(value).unwrap()
}

/// Replaces text, but not the words of which there is a fixed list, and not the names by which parts of a
/// record find each other.
fn replace(value: &mut serde_json::Value, text: &str, key: &str) {
    const WORDS: [&str; 9] = [
        "format", "verdict", "kind", "class", "task", "target", "a", "b", "status",
    ];
    match value {
        serde_json::Value::String(old) if !WORDS.contains(&key) => *old = text.to_owned(),
        serde_json::Value::Array(all) => all.iter_mut().for_each(|one| replace(one, text, key)),
        serde_json::Value::Object(map) => {
            map.iter_mut()
                .for_each(|(key, one)| replace(one, text, key));
        }
        _ => {}
    }
}

/// Everything that can be said of a report of any record.
fn check(record: &RunRecord) {
    for format in Format::ALL {
        let report = render(record, format);
        let name = format.name();
        match format {
            Format::Json | Format::Gitlab | Format::Ctrf => {
                serde_json::from_str::<serde_json::Value>(&report)
                    .unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            Format::Html => check_html(&report),
            Format::Junit => check_junit(record, &report),
            Format::Github => check_github(&report),
            Format::Markdown => check_markdown(&report, 65_536),
            Format::GithubSummary => check_markdown(&report, 1 << 20),
            Format::Csv => {
                let mut reader = csv::Reader::from_reader(report.as_bytes());
                assert!(
                    reader
                        .records()
                        .all(|row| row.is_ok_and(|row| row.len() == 20))
                );
            }
            Format::Table => {}
        }
        if format != Format::Json {
            let is_hidden = |c: char| (c.is_control() && c != '\n' && c != '\r') || c == '\u{202e}';
            assert!(!report.contains(is_hidden), "{name}");
        }
    }
}

fn check_html(report: &str) {
    let page = scraper::Html::parse_document(report);
    assert_eq!(page.errors.len(), 0, "{:?}", page.errors);
    let count = |name: &str| {
        page.select(&scraper::Selector::parse(name).unwrap())
            .count()
    };
    assert_eq!(
        (count("script"), count("style"), count("h1"), count("main")),
        (1, 1, 1, 1)
    );
    assert_eq!(
        count("img, iframe, object, [style], [onload], [onerror]"),
        0
    );
    let mut ids = HashSet::new();
    for one in page.select(&scraper::Selector::parse("[id]").unwrap()) {
        assert!(ids.insert(one.value().id().unwrap_or_default().to_owned()));
    }
    for link in page.select(&scraper::Selector::parse("a").unwrap()) {
        let place = link.value().attr("href").unwrap();
        assert!(
            place.starts_with('#') && ids.contains(&place[1..]),
            "{place}"
        );
    }
}

fn check_junit(record: &RunRecord, report: &str) {
    let document = roxmltree::Document::parse(report).unwrap();
    let cases = document
        .descendants()
        .filter(|node| node.has_tag_name("testcase"));
    let identity = |case: roxmltree::Node| {
        (
            case.attribute("classname").unwrap().to_owned(),
            case.attribute("name").unwrap().to_owned(),
        )
    };
    let cases: Vec<_> = cases.map(identity).collect();
    assert!(cases.len() >= record.results.len().max(1));
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
    assert!(report.chars().all(allowed));
}

/// Every line is one of our commands, and there are no more than GitHub shows.
fn check_github(report: &str) {
    for kind in ["error", "warning", "notice"] {
        let begin = format!("::{kind} ");
        assert!(
            report
                .lines()
                .filter(|line| line.starts_with(&begin))
                .count()
                <= 10
        );
    }
    for line in report.lines() {
        assert!(
            line.starts_with("::error ") || line.starts_with("::notice "),
            "{line}"
        );
        assert!(!line.contains('\r') && line.len() < 65_536);
    }
}

fn check_markdown(report: &str, most: usize) {
    assert!(report.len() < most, "{}", report.len());
    if most == 65_536 {
        assert!(report.lines().count() < 60, "{report}");
    }
    assert!(!report.contains("<script") && !report.contains("![") && !report.contains("(http"));
    assert_eq!(
        report.matches("<details>").count(),
        report.matches("\n</details>").count()
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_text_in_any_field_gives_well_formed_reports(text in "(?s).{0,40}") {
        check(&with_text(&record(), &text));
    }

    #[test]
    fn any_text_gives_a_well_formed_page_of_a_selftest(text in "(?s).{0,40}") {
        let report = selftest_with_text(&text);
        for language in Language::ALL {
            check_html(&render_html(&report, language).unwrap());
        }
    }
}

fn selftest_with_text(text: &str) -> SelftestReport {
    let mut value = serde_json::to_value(support::selftest::fixture()).unwrap();
    replace(&mut value, text, "");
    serde_json::from_value(value).unwrap()
}

#[test]
fn hostile_and_long_text_in_every_field() {
    for text in [
        HOSTILE,
        "",
        "\u{fffe}\u{ffff}\u{0}\u{7f}\u{85}",
        &"\u{202e}\"".repeat(50_000),
    ] {
        check(&with_text(&record(), text));
    }
}

#[test]
fn a_record_without_results() {
    let mut empty = record();
    empty.results.clear();
    empty.targets.clear();
    empty.pairs.clear();
    check(&empty);
    assert!(render(&empty, Format::Html).contains("No verdict."));
    assert!(render(&empty, Format::Junit).contains("errors=\"1\""));
    assert!(render(&empty, Format::Github).starts_with("::error "));
}

/// A run that conforms: one notice, and an empty list.
#[test]
fn a_record_that_conforms() {
    let mut clean = large(3, 2);
    clean.results.retain(|result| result.findings.is_empty());
    for target in &mut clean.targets {
        target.location = None;
    }
    check(&clean);
    assert_eq!(render(&clean, Format::Gitlab), "[]\n");
    let annotations = render(&clean, Format::Github);
    assert!(annotations.starts_with("::notice ") && annotations.lines().count() == 1);
}

/// 1,000 results fit 2 MB, and so do 1,000 cases on 6 targets.
#[test]
fn a_large_record_is_a_page_of_two_megabytes_at_most() {
    for (cases, targets) in [(1000, 1), (167, 6), (1000, 6), (5000, 2)] {
        let large = large(cases, targets);
        let page = render(&large, Format::Html);
        assert!(
            page.len() <= 2_000_000,
            "{cases} × {targets}: {} bytes",
            page.len()
        );
        assert!(page.contains("are not shown"));
    }
    check(&large(1000, 6));
}

#[test]
fn long_text_in_a_large_record_stays_within_the_limits() {
    let hostile = with_text(&large(167, 6), &"\u{202e}\"<|".repeat(25_000));
    for (format, most) in [
        (Format::Html, 2_000_000),
        (Format::Markdown, 65_536),
        (Format::GithubSummary, 1 << 20),
    ] {
        let size = render(&hostile, format).len();
        assert!(size <= most, "{}: {size} bytes", format.name());
    }
}

#[test]
fn ctrf_is_valid_under_its_schema() {
    let path = format!(
        "{}/tests/schemas/ctrf-schema-0.0.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let schema = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for record in [record(), with_text(&record(), HOSTILE), large(5, 2)] {
        let report = serde_json::from_str(&render(&record, Format::Ctrf)).unwrap();
        let errors: Vec<String> = validator
            .iter_errors(&report)
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{errors:#?}");
    }
}

/// Code quality: an array; what has to be there; fingerprints that differ.
#[test]
fn gitlab_gets_what_it_requires() {
    let entries: Vec<serde_json::Value> =
        serde_json::from_str(&render(&record(), Format::Gitlab)).unwrap();
    let mut fingerprints = HashSet::new();
    for entry in &entries {
        let severity = entry["severity"].as_str().unwrap();
        assert!(["info", "minor", "major", "critical", "blocker"].contains(&severity));
        let path = entry["location"]["path"].as_str().unwrap();
        assert!(!path.starts_with(['/', '.']), "{path}");
        assert!(entry["location"]["lines"]["begin"].is_u64());
        assert!(fingerprints.insert(entry["fingerprint"].as_str().unwrap()));
    }
    assert_eq!(entries.len(), 7);
}

/// The schema that Jenkins publishes, and xmllint as an independent validator.
#[expect(
    clippy::disallowed_methods,
    reason = "the validator is a program of its own"
)]
#[test]
fn junit_is_valid_under_its_schema() {
    let schema = format!(
        "{}/tests/schemas/jenkins-junit.xsd",
        env!("CARGO_MANIFEST_DIR")
    );
    for record in [record(), with_text(&record(), HOSTILE), large(5, 2)] {
        let mut xmllint = Command::new("xmllint")
            .args(["--noout", "--nonet", "--schema", &schema, "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("xmllint is missing: run ci/setup, or install libxml2-utils");
        let report = render(&record, Format::Junit);
        xmllint
            .stdin
            .take()
            .unwrap()
            .write_all(report.as_bytes())
            .unwrap();
        let output = xmllint.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
