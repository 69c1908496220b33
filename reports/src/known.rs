//! Known deviations: what the record says of them, and their section of the table.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::Style;
use crate::layout::{paint, write_wrapped};
use crate::record::{RunRecord, Verdict};
use crate::text::plain;

/// Entries that are shown.
const SHOWN: usize = 8;

/// The known deviations of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownDeviations {
    /// Whether results were compared with known deviations.
    pub applied: bool,
    /// Whether all suites, all cases and the usual targets were run, so that an entry that matches
    /// nothing is out of date.
    pub full: bool,
    /// The entries, by file and place in it.
    pub entries: Vec<KnownEntry>,
}

/// An entry of a file of known deviations, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownEntry {
    /// The file.
    pub file: String,
    /// Line of the file where the entry begins, from 1 on.
    pub line: usize,
    /// Pattern of its targets.
    pub target: String,
    /// Pattern of its cases, or of `suite/case`.
    pub case: String,
    /// Pattern of the versions of the library that it is about; `null` where it is about all.
    pub library_version: Option<String>,
    /// The findings that it expects, in words.
    pub findings: Vec<String>,
    /// Why it is known and not mended.
    pub reason: String,
    /// Last day on which it counts, as in `2026-11-24`.
    pub expires: String,
    /// Whether results without the deviation are a pass, and not [`Verdict::Fixed`].
    pub sometimes: bool,
    /// Whether it has expired, so that results that deviate are [`Verdict::Drift`].
    pub expired: bool,
    /// Targets of the run that it matches.
    pub targets: usize,
    /// Cases of the run that it matches.
    pub cases: usize,
    /// Results that deviate as it says and in no other way.
    pub deviating: usize,
    /// Results that do not deviate at all.
    pub fixed: usize,
    /// Results that deviate in another way, or further.
    pub beyond: usize,
}

impl KnownEntry {
    /// The place of the entry: `cases/known/candle.toml:3`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    /// Why no result of the run was compared with it; nothing where there was one.
    pub fn unmatched(&self) -> Option<String> {
        let version = match &self.library_version {
            Some(version) => format!(" with library version `{version}`"),
            None => String::new(),
        };
        match (self.targets, self.cases) {
            (0, _) => Some(format!("no target matches `{}`{version}", self.target)),
            (_, 0) => Some(format!("no case matches `{}`", self.case)),
            _ => None,
        }
    }
}

/// The entry that decides about a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownRecord {
    /// The file of the entry.
    pub file: String,
    /// Line of the file where the entry begins, from 1 on.
    pub line: usize,
    /// Why it is known and not mended.
    pub reason: String,
    /// Last day on which it counts, as in `2026-11-24`.
    pub expires: String,
    /// The findings that it expects, in words.
    pub finding: String,
}

/// What became of each entry; nothing where no entry had to do with the run.
pub(crate) fn section(record: &RunRecord, style: Style) -> String {
    let known = &record.known;
    let matching = known.entries.iter();
    let matching: Vec<&KnownEntry> = matching
        .filter(|entry| entry.unmatched().is_none())
        .collect();
    let mut text = String::new();
    for entry in matching.iter().take(SHOWN) {
        let (verdict, sentence) = outcome(entry);
        let _ = writeln!(text, "  {}", plain(&entry.place()));
        let mut say = |sentence: &str| write_wrapped(&mut text, sentence, style.width);
        say(&format!(
            "{} on {}: {}",
            plain(&entry.case),
            plain(&entry.target),
            plain(&entry.findings.join("; "))
        ));
        say(&format!("reason: {}", plain(&entry.reason)));
        let mut lines = String::new();
        write_wrapped(&mut lines, &sentence, style.width);
        for line in lines.lines() {
            let _ = writeln!(text, "{}", paint(line, verdict, style));
        }
    }
    if matching.len() > SHOWN {
        let more = matching.len() - SHOWN;
        let _ = writeln!(text, "  ... and {more} more, all in the record");
    }
    if known.full {
        let idle = known.entries.iter();
        for (entry, why) in idle.filter_map(|entry| Some((entry, entry.unmatched()?))) {
            let sentence = format!("{} matches nothing: {why}", entry.place());
            write_wrapped(&mut text, &plain(&sentence), style.width);
        }
    }
    if text.is_empty() {
        return text;
    }
    format!("known deviations\n{text}")
}

/// What became of an entry, in a sentence.
fn outcome(entry: &KnownEntry) -> (Verdict, String) {
    let expires = plain(&entry.expires);
    let results = |count: usize| match count {
        1 => "1 result".to_owned(),
        _ => format!("{count} results"),
    };
    let mut parts = Vec::new();
    if entry.deviating > 0 {
        parts.push(format!("{} as it says", results(entry.deviating)));
    }
    if entry.beyond > 0 {
        parts.push(format!(
            "{} beyond it, which is drift",
            results(entry.beyond)
        ));
    }
    if entry.fixed > 0 && !entry.sometimes {
        parts.push(format!(
            "{} FIXED: narrow or remove the entry",
            results(entry.fixed)
        ));
    }
    if parts.is_empty() {
        parts.push("did not happen in this run".to_owned());
    }
    let parts = parts.join(", ");
    if entry.expired {
        let sentence = format!("EXPIRED on {expires}, so it counts as drift: {parts}");
        return (Verdict::Drift, sentence);
    }
    let verdict = match entry {
        _ if entry.beyond > 0 => Verdict::Drift,
        _ if entry.deviating == 0 => Verdict::Fixed,
        _ => Verdict::Known,
    };
    (verdict, format!("until {expires}: {parts}"))
}
