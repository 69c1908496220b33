//! The page of one run.
//!
//! Sections appear only where the record has something for them. What would make the page too long is folded
//! or left out with a note; the record has all of it.

mod answers;
mod environment;
mod errors;
mod findings;
mod known;
mod provenance;
mod results;
mod similarity;
mod targets;

use askama::Template;

use super::Page;
use crate::conclusion::{self, Conclusion};
use crate::phrases::{Phrases, fill};
use crate::record::{Observation, RunRecord, Verdict};
use crate::words::{NAME, shown};
use crate::{Language, RenderError};

#[derive(Template)]
#[template(path = "run.html")]
struct RunPage {
    page: Page,
    t: &'static Phrases,
    conclusion: Conclusion,
    verdict: Badge,
    facts: Vec<String>,
    counts: Vec<(Badge, usize)>,
    targets: Vec<targets::Row>,
    environment: environment::Environment,
    findings: findings::Findings,
    known: known::Known,
    known_off: bool,
    heats: Vec<errors::Heat>,
    legend: Vec<errors::Step>,
    bits: Option<errors::Bits>,
    answers: answers::Answers,
    similarity: Option<similarity::Similarity>,
    pairs: Option<targets::Pairs>,
    latency: Vec<targets::Latency>,
    results: results::Results,
    provenance: provenance::Provenance,
    meanings: Vec<(Badge, &'static str)>,
}

/// Renders the page.
///
/// # Errors
/// [`RenderError`] where a template or a chart fails.
pub(crate) fn render(record: &RunRecord, language: Language) -> Result<String, RenderError> {
    let t = Phrases::of(language);
    let model = shown(&record.model.id, NAME, t);
    let title = fill(t.title, &[("model", &model)]);
    let conclusion = conclusion::of(record, language);
    let mut run = RunPage {
        page: Page::new(title, &record.driftgauge, language),
        t,
        verdict: Badge::new(conclusion.verdict, t),
        conclusion,
        facts: facts(record, t),
        counts: counts(record, t),
        targets: targets::rows(record, t),
        environment: environment::of(record, t),
        findings: findings::of(record, t),
        known: known::of(record, t),
        known_off: !record.known.applied,
        heats: errors::heats(record, t),
        legend: errors::legend(t),
        bits: errors::bits(record, t)?,
        answers: answers::of(record, t),
        similarity: similarity::of(record, t),
        pairs: targets::pairs(record, t),
        latency: targets::latency(record, t)?,
        results: results::of(record, t),
        provenance: provenance::of(record, t),
        meanings: meanings(t),
    };
    run.page.sections = run.sections();
    Ok(run.render()?)
}

impl RunPage {
    /// ID and heading of the sections that there are.
    fn sections(&self) -> Vec<(&'static str, &'static str)> {
        let t = self.t;
        let all = [
            (true, "findings", t.findings),
            (!self.known.rows.is_empty(), "known", t.known_deviations),
            (true, "environment", t.environment),
            (!self.targets.is_empty(), "targets", t.targets),
            (!self.heats.is_empty(), "heat", t.heat),
            (self.bits.is_some(), "bits", t.bits),
            (!self.answers.is_empty(), "answers", t.answers),
            (self.similarity.is_some(), "similarity", t.similarity),
            (self.pairs.is_some(), "pairs", t.pairs),
            (!self.latency.is_empty(), "latency", t.latency),
            (!self.results.rows.is_empty(), "results", t.results),
            (true, "provenance", t.provenance),
            (true, "reading", t.how_to_read),
        ];
        let there = all.into_iter().filter(|(is_there, ..)| *is_there);
        there.map(|(_, id, heading)| (id, heading)).collect()
    }
}

/// A verdict as it is shown: never by colour alone.
pub(crate) struct Badge {
    /// Its class in the style.
    pub class: &'static str,
    /// Its sign.
    pub sign: &'static str,
    /// Its word.
    pub word: &'static str,
}

impl Badge {
    pub fn new(verdict: Verdict, t: &'static Phrases) -> Self {
        Self {
            class: verdict.name(),
            sign: verdict.sign(),
            word: t.verdict(verdict),
        }
    }
}

/// What was run, in a few words each.
fn facts(record: &RunRecord, t: &'static Phrases) -> Vec<String> {
    let summary = &record.summary;
    let parameters = format!("{:.1}", record.model.parameters as f64 / 1e6);
    vec![
        shown(&record.model.id, NAME, t),
        fill(t.parameters, &[("n", &parameters)]),
        format!(
            "{} {} × {} {}",
            summary.cases, t.cases, summary.targets, t.target
        ),
        fill(t.exit_code, &[("code", &summary.exit_code.to_string())]),
    ]
}

/// Results of each verdict, the worst first.
fn counts(record: &RunRecord, t: &'static Phrases) -> Vec<(Badge, usize)> {
    let mut counts: Vec<(Verdict, usize)> = record.summary.verdicts.clone().into_iter().collect();
    counts.sort_by_key(|(verdict, _)| std::cmp::Reverse(verdict.severity()));
    counts
        .into_iter()
        .map(|(verdict, count)| (Badge::new(verdict, t), count))
        .collect()
}

fn meanings(t: &'static Phrases) -> Vec<(Badge, &'static str)> {
    Verdict::ALL
        .map(|verdict| (Badge::new(verdict, t), t.verdict_means(verdict)))
        .into()
}

/// The observation that is nearest its limit, or furthest beyond it.
fn nearest<'a>(
    observations: impl Iterator<Item = (&'a String, &'a Observation)>,
) -> Option<(&'a String, &'a Observation)> {
    observations.max_by(|a, b| a.1.in_noise().total_cmp(&b.1.in_noise()))
}
