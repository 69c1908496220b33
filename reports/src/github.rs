//! Annotations of GitHub's workflow commands.
//!
//! GitHub shows ten of a kind for each step: where there are more, the last one counts the others. Everything
//! from the record is escaped, so that no text of it begins a command.

use std::fmt::Write;

use crate::findings::{Group, grouped};
use crate::phrases::Phrases;
use crate::record::{ResultRecord, RunRecord, Verdict, suite_key};
use crate::text::{plain, shorten};
use crate::words::{NAME, TEXT};
use crate::{Language, command, conclusion};

/// Annotations of a kind for each step that GitHub shows.
const OF_A_KIND: usize = 10;

/// Renders the record, one annotation on each line.
pub(crate) fn render(record: &RunRecord) -> String {
    let conclusion = conclusion::of(record, Language::English);
    let t = Phrases::of(Language::English);
    let said = format!("{} {}", conclusion.answer, conclusion.reason);
    let level = match conclusion.verdict {
        Verdict::Pass => "notice",
        _ => "error",
    };
    let mut text = annotation(level, None, "driftgauge", &said);
    // The first one has said the conclusion.
    let groups = grouped(record);
    let deviating = |verdict: Verdict| verdict.severity() >= Verdict::Unsupported.severity();
    let (errors, notices): (Vec<&Group<'_>>, Vec<&Group<'_>>) = groups
        .iter()
        .partition(|group| deviating(group.result.verdict));
    for (level, groups) in [("error", errors), ("notice", notices)] {
        // One may be taken by the conclusion, and one by the count.
        let shown = match groups.len() < OF_A_KIND {
            true => groups.len(),
            false => OF_A_KIND - 2,
        };
        for group in &groups[..shown] {
            let (finding, result) = (group.finding, group.result);
            let title = format!(
                "{}: {} in {}/{}",
                t.verdict(result.verdict),
                result.target,
                result.suite,
                result.case
            );
            let mut message = finding.message.clone();
            if group.cases > 1 {
                let _ = write!(message, " (and {} more cases)", group.cases - 1);
            }
            for evidence in finding.evidence.iter().take(3) {
                let _ = write!(message, "\nbecause {evidence}");
            }
            let _ = write!(
                message,
                "\nreproduce: {}",
                command::reproducing(record, result)
            );
            text.push_str(&annotation(level, file(record, result), &title, &message));
        }
        if shown < groups.len() {
            let more = format!("{} more findings, all in the record", groups.len() - shown);
            text.push_str(&annotation(level, None, "driftgauge", &more));
        }
    }
    text
}

/// The suite, if it is known where it lies in the repository.
fn file<'a>(record: &'a RunRecord, result: &ResultRecord) -> Option<&'a str> {
    let file = record.paths.get(&suite_key(&result.suite))?;
    (!file.starts_with('/')).then_some(file)
}

fn annotation(level: &str, file: Option<&str>, title: &str, message: &str) -> String {
    let lines = message
        .split('\n')
        .map(|line| shorten(&plain(line), 4 * TEXT));
    let message = escaped(&lines.collect::<Vec<_>>().join("\n"));
    let file = file.map_or(String::new(), |file| {
        format!("file={},", property(&shorten(&plain(file), 2 * TEXT)))
    });
    let title = property(&shorten(&plain(title), NAME));
    format!("::{level} {file}title={title}::{message}\n")
}

/// Text as the message of a command.
fn escaped(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// Text as a property of a command.
fn property(text: &str) -> String {
    escaped(text).replace(':', "%3A").replace(',', "%2C")
}
