//! Every format renders the same record, which shows every verdict and every kind of finding, and text that
//! tries to break out of its place.
#![cfg(test)]

#[macro_use]
mod support;

use driftgauge_reports::record::{RECORD_VERSION, ReadError};
use driftgauge_reports::{Format, Language, RunRecord, Style, text};
use support::record;

fn render(format: Format) -> String {
    in_language(format, Language::English)
}

fn in_language(format: Format, language: Language) -> String {
    let style = Style {
        width: 80,
        colour: false,
    };
    driftgauge_reports::render(&record(), format, style, language).unwrap()
}

fn table(width: usize, colour: bool) -> String {
    let style = Style { width, colour };
    driftgauge_reports::render(&record(), Format::Table, style, Language::English).unwrap()
}

#[test]
fn table_at_80_columns() {
    assert_snapshot!("table-80", table(80, false));
}

#[test]
fn table_at_160_columns() {
    assert_snapshot!("table-160", table(160, false));
}

#[test]
fn every_other_format() {
    for format in Format::ALL
        .into_iter()
        .filter(|format| *format != Format::Table)
    {
        assert_snapshot!(format.name(), render(format));
    }
}

/// What people read is also written in Chinese.
#[test]
fn in_chinese() {
    for format in [Format::Html, Format::Markdown] {
        let name = format!("{}-zh", format.name());
        assert_snapshot!(name, in_language(format, Language::Chinese));
    }
    for format in Format::ALL {
        let depends = render(format) != in_language(format, Language::Chinese);
        let people_read_it = [Format::Html, Format::Markdown, Format::GithubSummary];
        assert_eq!(
            depends,
            people_read_it.contains(&format),
            "{}",
            format.name()
        );
    }
}

#[test]
fn no_line_is_wider_than_the_terminal() {
    for width in [80, 100, 200] {
        for line in table(width, false).lines() {
            assert!(
                text::width(line) <= width,
                "{} columns: {line}",
                text::width(line)
            );
        }
    }
}

/// Colour adds escape sequences of ours and lets none of the text's own through.
#[test]
fn text_cannot_break_out_of_the_table() {
    for report in [table(80, false), table(80, true)] {
        assert!(
            !report.contains("\u{1b}[2J") && !report.contains("\u{202e}"),
            "{report}"
        );
        let is_ours = |c: char| c == '\n' || c == '\u{1b}' || !c.is_control();
        assert!(report.chars().all(is_ours));
    }
}

#[test]
fn a_record_survives_json_and_other_records_are_refused() {
    let json = render(Format::Json);
    assert_eq!(RunRecord::from_json(&json).unwrap(), record());
    let other =
        |from: &str, to: &str| RunRecord::from_json(&json.replacen(from, to, 1)).unwrap_err();
    assert!(matches!(
        other("driftgauge-record", "junit"),
        ReadError::Format(_)
    ));
    let version = format!("\"version\": {RECORD_VERSION}");
    let newer = other(&version, "\"version\": 99");
    assert!(matches!(newer, ReadError::Newer(99, RECORD_VERSION)));
    let older = other(&version, "\"version\": 1");
    assert!(matches!(older, ReadError::Older(1, RECORD_VERSION)));
    let half = &json[..json.floor_char_boundary(json.len() / 2)];
    assert!(matches!(
        RunRecord::from_json(half),
        Err(ReadError::Json(_))
    ));
}

/// The list of formats in the READMEs is the one in the code.
#[test]
fn readmes_list_the_formats() {
    let wanted: Vec<&str> = Format::ALL.iter().map(|format| format.name()).collect();
    for readme in ["README.md", "README.zh-CN.md"] {
        let path = format!("{}/../{readme}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        let rows = text.lines().skip_while(|line| !line.contains("`--format`"));
        let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
        let listed: Vec<&str> = rows.filter_map(|row| row.split('`').nth(1)).collect();
        assert_eq!(listed, wanted, "{readme}");
    }
}
