//! Tables, colours and broken lines for a terminal.

use std::fmt::Write;

use anstyle::{AnsiColor, Style as Ansi};
use tabled::builder::Builder;
use tabled::settings::object::Columns;
use tabled::settings::style::HorizontalLine;
use tabled::settings::{Alignment, Modify, Padding, Style as TableStyle};

use crate::Style;
use crate::record::Verdict;
use crate::text::width;

/// Lays a table out; columns from `numbers` on are aligned to the right.
pub(crate) fn layout(table: Builder, numbers: usize) -> String {
    let line = HorizontalLine::new('-');
    let mut table = table.build();
    table
        .with(TableStyle::empty().horizontals([(1, line)]))
        .with(Padding::new(1, 1, 0, 0))
        .with(Modify::new(Columns::new(numbers..)).with(Alignment::right()));
    table
        .to_string()
        .lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
}

pub(crate) fn paint(text: &str, verdict: Verdict, style: Style) -> String {
    if !style.colour {
        return text.to_owned();
    }
    let colour = match verdict {
        Verdict::Pass | Verdict::Fixed => AnsiColor::Green,
        Verdict::New | Verdict::Known | Verdict::Unsupported => AnsiColor::Yellow,
        Verdict::Drift | Verdict::Broken => AnsiColor::Red,
    };
    let ansi = Ansi::new().fg_color(Some(colour.into()));
    format!("{ansi}{text}{ansi:#}")
}

/// Columns of the widest line, escape sequences not counted.
pub(crate) fn visible_width(text: &str) -> usize {
    let without = |line: &str| {
        let mut plain = String::new();
        let mut parts = line.split('\u{1b}');
        plain.push_str(parts.next().unwrap_or_default());
        for part in parts {
            plain.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
        }
        width(&plain)
    };
    text.lines().map(without).max().unwrap_or(0)
}

/// Writes a sentence as indented lines; spaces at its beginning indent all of them further.
pub(crate) fn write_wrapped(text: &mut String, sentence: &str, columns: usize) {
    let words = sentence.trim_start_matches(' ');
    let indent = 4 + sentence.len() - words.len();
    for line in wrap(words, columns.saturating_sub(indent)) {
        let _ = writeln!(text, "{:indent$}{line}", "");
    }
}

/// Breaks a sentence at spaces into lines of at most `columns`; a longer word has a line of its own.
pub fn wrap(sentence: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in sentence.split(' ') {
        let last = lines.len() - 1;
        if lines[last].is_empty() {
            lines[last] = word.to_owned();
        } else if width(&lines[last]) + 1 + width(word) <= columns {
            let line = &mut lines[last];
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
