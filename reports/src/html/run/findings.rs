//! Findings as cards: what, where it starts, why, how bad, and what to do.

use super::Badge;
use crate::command;
use crate::conclusion::place;
use crate::findings::{Group, grouped};
use crate::phrases::{Phrases, fill};
use crate::record::{FindingKind, RunRecord};
use crate::words::{NAME, TEXT, bare, hidden, in_u, shown};

/// Findings that are shown.
const SHOWN: usize = 30;
/// Findings that are open when the page opens.
const OPEN: usize = 3;

/// The findings of a run.
pub(crate) struct Findings {
    pub cards: Vec<Card>,
    pub hidden: Option<String>,
}

/// One kind of finding of one target.
pub(crate) struct Card {
    pub badge: Badge,
    pub is_open: bool,
    pub kind: &'static str,
    pub target: String,
    pub case: String,
    pub more: Option<String>,
    pub text: String,
    pub message: String,
    /// Name and value of what is known about it.
    pub facts: Vec<(&'static str, Vec<String>)>,
    pub command: String,
    pub evidence: Vec<String>,
    pub stderr: Vec<String>,
}

pub(crate) fn of(record: &RunRecord, t: &'static Phrases) -> Findings {
    let groups = grouped(record);
    let cards = groups.iter().take(SHOWN).enumerate();
    let cards = cards.map(|(index, group)| card(record, group, index < OPEN, t));
    Findings {
        cards: cards.collect(),
        hidden: hidden(groups.len().saturating_sub(SHOWN), t),
    }
}

fn card(record: &RunRecord, group: &Group<'_>, is_open: bool, t: &'static Phrases) -> Card {
    let (finding, result) = (group.finding, group.result);
    let texts = result.texts.iter().map(|text| shown(text, TEXT, t));
    let sentences = |all: &[String]| all.iter().map(|one| shown(one, TEXT * 2, t)).collect();
    Card {
        badge: Badge::new(result.verdict, t),
        is_open,
        kind: t.kind(finding.kind),
        target: shown(&result.target, NAME, t),
        case: shown(&format!("{}/{}", result.suite, result.case), NAME, t),
        more: match group.cases {
            1 => None,
            cases => Some(fill(t.more_cases, &[("n", &(cases - 1).to_string())])),
        },
        text: texts.collect::<Vec<_>>().join(" | "),
        message: shown(&finding.message, TEXT * 2, t),
        facts: facts(record, group, t),
        command: shown(&command::reproducing(record, result), TEXT * 4, t),
        evidence: sentences(&finding.evidence),
        stderr: sentences(&finding.stderr),
    }
}

fn facts(
    record: &RunRecord,
    group: &Group<'_>,
    t: &'static Phrases,
) -> Vec<(&'static str, Vec<String>)> {
    let (finding, result) = (group.finding, group.result);
    let mut facts = Vec::new();
    let numeric = matches!(finding.kind, FindingKind::Numeric | FindingKind::Damage);
    let mut targets = record.targets.iter();
    let target = targets.find(|target| target.target == result.target);
    let location = target
        .and_then(|target| target.location.as_ref())
        .filter(|_| numeric);
    let mut advice = Vec::new();
    let mut causes = Vec::new();
    let mut starts = Vec::new();
    for origin in location.iter().flat_map(|location| &location.origins) {
        let noise = origin.noise.map_or(String::new(), |noise| {
            format!(" ({})", fill(t.times_noise, &[("n", &bare(noise, t))]))
        });
        starts.push(shown(&format!("{}{noise}", place(origin, t)), TEXT, t));
        if origin.causes.is_empty() {
            causes.push(t.unknown_cause.to_owned());
        }
        for cause in &origin.causes {
            let share = fill(
                t.explains,
                &[("share", &format!("{:.1}", 100.0 * cause.explained))],
            );
            causes.push(shown(
                &format!("{}{}{share}", cause.sentence(), t.comma),
                TEXT * 2,
                t,
            ));
            advice.push(shown(&cause.advice, TEXT * 2, t));
        }
    }
    if starts.is_empty() && numeric {
        let observation = finding.observation.iter();
        starts.extend(observation.map(|name| shown(name, NAME, t)));
    }
    if let (Some(last), true) = (starts.last_mut(), group.followed > 0) {
        let followed = fill(t.followed, &[("n", &group.followed.to_string())]);
        last.push_str(&format!("{}{followed}", t.comma));
    }
    if let Some(class) = finding.class {
        causes.insert(0, t.class(class).to_owned());
    }
    advice.extend(finding.hint.iter().map(|hint| shown(hint, TEXT * 2, t)));
    advice.dedup();
    let measured = Vec::from_iter(measured(group, t));
    for (name, values) in [
        (t.starts_in, starts),
        (t.probable_cause, causes),
        (t.measured, measured),
        (t.next_step, advice),
    ] {
        if !values.is_empty() {
            facts.push((name, values));
        }
    }
    facts
}

/// Measured against allowed, and how much rounding explains.
fn measured(group: &Group<'_>, t: &Phrases) -> Option<String> {
    let finding = group.finding;
    let allowed = finding.allowed_u?;
    let mut text = format!(
        "{}{}{} {}",
        in_u(finding.measured_u, t),
        t.comma,
        t.allowed,
        in_u(Some(allowed), t)
    );
    if let Some(predicted) = finding.predicted_u {
        let explained = fill(t.expected, &[("predicted", &in_u(Some(predicted), t))]);
        text.push_str(&format!("{}{explained}", t.comma));
    }
    if let Some(measured) = finding.measured_u.filter(|_| allowed > 0.0) {
        let times = fill(t.times_allowed, &[("times", &bare(measured / allowed, t))]);
        text.push_str(&format!("{}{times}", t.comma));
    }
    Some(text)
}
