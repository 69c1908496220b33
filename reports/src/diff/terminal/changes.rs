//! What is not on both sides, and what changed around the numbers: lists of lines.

use std::fmt::Write;

use crate::Style;
use crate::diff::two::TwoWay;
use crate::environment::Changed;
use crate::terminal::counted;
use crate::text::{plain, shorten, shorten_middle, width};

/// Changed of each kind that are shown.
const SHOWN_CHANGES: usize = 10;
/// Names of cases or targets that are shown.
const SHOWN_NAMES: usize = 3;
/// Columns that a value gets whatever happens.
const NARROWEST_VALUE: usize = 12;

/// Cases, targets and observations that are not on both sides.
pub(super) fn cases(two: &TwoWay, [before, after]: [&str; 2], style: Style) -> String {
    let mut lines = Vec::new();
    let mut say = |what: &str, names: &[String]| {
        if !names.is_empty() {
            let shown: Vec<String> = names.iter().take(SHOWN_NAMES).map(|n| plain(n)).collect();
            let dots = if names.len() > SHOWN_NAMES {
                ", ..."
            } else {
                ""
            };
            lines.push(format!(
                "{} {what}: {}{dots}",
                names.len(),
                shown.join(", ")
            ));
        }
    };
    say(
        "with other tokens for the same text",
        &two.cases.other_tokens,
    );
    say(
        "with another text under the same name",
        &two.cases.other_text,
    );
    say(&format!("only {before}"), &two.cases.only_before);
    say(&format!("only {after}"), &two.cases.only_after);
    say(&format!("targets only {before}"), &two.only_before);
    say(&format!("targets only {after}"), &two.only_after);
    for target in &two.targets {
        for (what, counts) in [("lost", &target.vanished), ("gained", &target.appeared)] {
            let counts = counts.iter().map(|(name, count)| (plain(name), count));
            let words: Vec<String> = counts
                .map(|(name, count)| format!("`{name}` in {}", counted(*count, "case")))
                .collect();
            if !words.is_empty() {
                lines.push(format!(
                    "{} {what} {}",
                    plain(&target.after),
                    words.join(", ")
                ));
            }
        }
    }
    section("what was not compared", &lines, style)
}

/// What changed around the numbers: the machine once, then each target.
pub(super) fn environment(two: &TwoWay, style: Style) -> String {
    let mut lines = Vec::new();
    for (what, changes) in [
        ("model", &two.model),
        ("suite", &two.suites),
        ("method", &two.method),
    ] {
        lines.extend(changed(changes, style, |key| Some(format!("{what} {key}"))));
    }
    let host = two.targets.first().map(|target| &target.environment);
    let host = host.into_iter();
    lines.extend(host.flat_map(|host| {
        changed(host, style, |key| {
            Some(format!("host {}", key.strip_prefix("host.")?))
        })
    }));
    let with_target = two.targets.len() > 1;
    for target in &two.targets {
        let own = |key: &str| {
            let key = (!key.starts_with("host.")).then(|| plain(key))?;
            Some(match with_target {
                true => format!("{} {key}", plain(&target.after)),
                false => key,
            })
        };
        if target.before != target.after {
            lines.push(arrow(
                "target",
                &plain(&target.before),
                &plain(&target.after),
                style,
            ));
        }
        lines.extend(changed(&target.environment, style, own));
    }
    section("what changed around the numbers", &lines, style)
}

/// Changed as lines; `name` says how to call a key, where it is to be shown.
pub(super) fn changed(
    changes: &Changed,
    style: Style,
    name: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let value = |value: &Option<String>| match value {
        None => "(none)".to_owned(),
        // Of a digest the start suffices.
        Some(value) if value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit()) => {
            value[..12].to_owned()
        }
        Some(value) => plain(value),
    };
    let lines = changes.iter().filter_map(|(key, [before, after])| {
        Some(arrow(&name(key)?, &value(before), &value(after), style))
    });
    lines.collect()
}

/// A value before and after, each cut in its middle where both do not fit.
fn arrow(name: &str, before: &str, after: &str, style: Style) -> String {
    let free = style.width.saturating_sub(width(name) + 8);
    if width(before) + width(after) <= free {
        return format!("{name}: {before} -> {after}");
    }
    let of_one = |other: &str| {
        free.saturating_sub(width(other))
            .max(free / 2)
            .max(NARROWEST_VALUE)
    };
    let (cut, rest) = (shorten_middle(before, of_one(after)), of_one(before));
    format!("{name}: {cut} -> {}", shorten_middle(after, rest))
}

pub(super) fn section(title: &str, lines: &[String], style: Style) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut text = format!("{title}\n");
    for line in lines.iter().take(SHOWN_CHANGES) {
        let _ = writeln!(
            text,
            "  {}",
            shorten(&plain(line), style.width.saturating_sub(2))
        );
    }
    more(&mut text, lines.len(), SHOWN_CHANGES, "lines");
    text
}

pub(super) fn more(text: &mut String, all: usize, shown: usize, what: &str) {
    if all > shown {
        let _ = writeln!(
            text,
            "  ... and {} more {what}: --format json shows all",
            all - shown
        );
    }
}
