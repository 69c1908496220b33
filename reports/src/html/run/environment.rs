//! What changed around the targets since their baselines were accepted.

use std::collections::BTreeMap;

use crate::phrases::{Phrases, fill};
use crate::record::RunRecord;
use crate::words::{NAME, shown};

/// What changed, or why that is not known.
pub(crate) struct Environment {
    pub notes: Vec<String>,
    pub changes: Vec<Change>,
}

/// One key that differs.
pub(crate) struct Change {
    pub key: String,
    pub accepted: String,
    pub now: String,
    pub targets: String,
}

pub(crate) fn of(record: &RunRecord, t: &'static Phrases) -> Environment {
    type Values<'a> = (&'a String, &'a [Option<String>; 2]);
    let mut changed: BTreeMap<Values<'_>, Vec<&str>> = BTreeMap::new();
    let mut without = Vec::new();
    for target in &record.targets {
        let Some(baseline) = &target.baseline else {
            without.push(target.target.as_str());
            continue;
        };
        for change in &baseline.changed {
            changed.entry(change).or_default().push(&target.target);
        }
    }
    let value = |value: &Option<String>| {
        value
            .as_ref()
            .map_or(t.none.to_owned(), |value| shown(value, NAME, t))
    };
    let names = |targets: &[&str]| {
        let names = targets.iter().map(|target| shown(target, NAME, t));
        names.collect::<Vec<_>>().join(t.comma)
    };
    let changes = changed
        .iter()
        .map(|((key, [accepted, now]), targets)| Change {
            key: shown(key, NAME, t),
            accepted: value(accepted),
            now: value(now),
            targets: names(targets),
        });
    let changes: Vec<Change> = changes.collect();
    let mut notes = Vec::new();
    if !record.truth.baselines {
        notes.push(t.baselines_off.to_owned());
    } else if without.len() == record.targets.len() {
        notes.push(t.no_baseline.to_owned());
    } else {
        if !without.is_empty() {
            notes.push(fill(t.no_baseline_of, &[("targets", &names(&without))]));
        }
        if changes.is_empty() {
            notes.push(t.nothing_changed.to_owned());
        }
    }
    if let Some(finding) = &record.truth.finding {
        notes.push(shown(&finding.message, crate::words::TEXT, t));
    }
    Environment { notes, changes }
}
