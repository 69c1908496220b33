//! Known deviations, and what became of them.

use super::Badge;
use crate::known::KnownEntry;
use crate::phrases::{Phrases, fill};
use crate::record::{RunRecord, Verdict};
use crate::words::{NAME, TEXT, hidden, shown};

/// Entries that are shown.
const SHOWN: usize = 50;

/// The known deviations that a run has to do with.
pub(crate) struct Known {
    pub rows: Vec<Row>,
    pub hidden: Option<String>,
}

/// One entry.
pub(crate) struct Row {
    pub badge: Badge,
    pub place: String,
    pub what: String,
    pub expects: String,
    pub reason: String,
    pub until: String,
    pub outcome: String,
}

pub(crate) fn of(record: &RunRecord, t: &'static Phrases) -> Known {
    let entries = record.known.entries.iter();
    let entries: Vec<&KnownEntry> = entries
        .filter(|entry| entry.unmatched().is_none())
        .collect();
    Known {
        rows: entries
            .iter()
            .take(SHOWN)
            .map(|entry| row(entry, t))
            .collect(),
        hidden: hidden(entries.len().saturating_sub(SHOWN), t),
    }
}

fn row(entry: &KnownEntry, t: &'static Phrases) -> Row {
    let verdict = match entry {
        _ if entry.expired || entry.beyond > 0 => Verdict::Drift,
        _ if entry.fixed > 0 && !entry.sometimes => Verdict::Fixed,
        _ => Verdict::Known,
    };
    let fixed = if entry.sometimes { 0 } else { entry.fixed };
    let parts = [
        (entry.deviating, t.known_happens),
        (entry.beyond, t.known_beyond),
        (fixed, t.known_gone),
    ];
    let parts = parts.into_iter().filter(|(count, _)| *count > 0);
    let mut parts: Vec<String> = parts
        .map(|(count, phrase)| fill(phrase, &[("n", &count.to_string())]))
        .collect();
    if parts.is_empty() {
        parts.push(t.known_idle.to_owned());
    }
    if entry.expired {
        parts.push(t.known_expired.to_owned());
    }
    Row {
        badge: Badge::new(verdict, t),
        place: shown(&entry.place(), NAME, t),
        what: shown(&format!("{} {}", entry.target, entry.case), NAME, t),
        expects: shown(&entry.findings.join("; "), TEXT, t),
        reason: shown(&entry.reason, TEXT, t),
        until: shown(&entry.expires, NAME, t),
        outcome: parts.join(t.comma),
    }
}
