//! Lines of the table that say how a run stands to what was accepted.

use std::fmt::Write;

use crate::Style;
use crate::environment::in_words;
use crate::layout::{paint, wrap};
use crate::record::{BaselineRecord, RunRecord, TargetRecord, Verdict};
use crate::text::plain;

/// Changed keys of an environment that are named.
const SHOWN_KEYS: usize = 3;

/// How a target stands to its baseline; nothing where none was accepted for any target.
pub(crate) fn of_target(record: &RunRecord, target: &TargetRecord, style: Style) -> String {
    let (sentence, verdict) = match &target.baseline {
        Some(baseline) => {
            let verdict = match baseline.drifted {
                0 => Verdict::Pass,
                _ => Verdict::Drift,
            };
            (in_a_sentence(baseline), verdict)
        }
        // Of a target that could not be used at all the findings tell.
        None if target.finding.is_some() => return String::new(),
        None if record.targets.iter().any(|other| other.baseline.is_some()) => {
            ("none accepted for this target".to_owned(), Verdict::New)
        }
        None => return String::new(),
    };
    indented(&format!("baseline: {sentence}"), verdict, style)
}

/// What the whole run has to do with baselines, where it is not plain.
pub(crate) fn of_run(record: &RunRecord, style: Style) -> String {
    if !record.truth.baselines {
        let sentence = "baselines: not compared (--no-baselines)";
        return indented(sentence, Verdict::New, style);
    }
    if let Some(finding) = &record.truth.finding {
        return indented(&plain(&finding.message), Verdict::Drift, style);
    }
    if record
        .targets
        .iter()
        .all(|target| target.baseline.is_none())
    {
        let sentence = "baselines: none accepted yet (`driftgauge accept` makes them)";
        return indented(sentence, Verdict::Pass, style);
    }
    String::new()
}

fn in_a_sentence(baseline: &BaselineRecord) -> String {
    let parts = [
        (baseline.bitwise, "bitwise equal"),
        (baseline.within, "within noise"),
        (baseline.drifted, "moved beyond noise"),
        (baseline.improved, "nearer the truth by more than noise"),
        (baseline.unknown, "not in the baseline"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    let mut sentence = match parts.is_empty() {
        true => "nothing to compare".to_owned(),
        false => parts.join(", "),
    };
    if !baseline.changed.is_empty() {
        let changed = in_words(&baseline.changed, SHOWN_KEYS);
        let _ = write!(sentence, " (changed: {changed})");
    }
    sentence
}

fn indented(sentence: &str, verdict: Verdict, style: Style) -> String {
    let lines = wrap(sentence, style.width.saturating_sub(4));
    let lines = lines.iter().map(|line| match verdict {
        // What is well needs no colour.
        Verdict::Pass => format!("    {line}\n"),
        _ => format!("    {}\n", paint(line, verdict, style)),
    });
    lines.collect()
}
