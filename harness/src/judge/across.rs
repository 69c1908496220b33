//! What takes more than one case to judge: the order of similarities, the float64 check, and the
//! diagnosis of a target.
//!
//! Results stand as in the record: cases in the order of the plan, and for each all targets.

use std::collections::BTreeMap;

use driftgauge_protocol::{Dtype, Loaded};
use driftgauge_reports::record::{
    Answer, Class, Finding, FindingKind, Observation, ResultRecord, SemanticCheck, Verdict,
};

use super::diagnosis::{Diagnosis, Failing, Residual, diagnose};
use super::margins::{Similarity, of_similarity};
use super::{Bench, judge, order_finding};
use crate::predict::Predictions;
use crate::run::{Float64, TargetOutcome};

/// Largest relative error that rounding makes in float64, with orders of magnitude to spare. A wrong
/// LayerNorm epsilon in one layer is about 1e-7.
pub(crate) const FLOAT64_LIMIT: f64 = 1e-10;

/// Everything that is known when each case has been judged by itself.
#[derive(Clone, Copy)]
pub(crate) struct Across<'a> {
    pub(crate) bench: Bench<'a>,
    pub(crate) outcomes: &'a [TargetOutcome],
    pub(crate) predictions: &'a Predictions,
}

impl Across<'_> {
    /// Completes the results; `residuals` stands beside them. Returns the float64 check of each
    /// target.
    pub(crate) fn complete(
        self,
        results: &mut [ResultRecord],
        residuals: &[Option<Residual>],
    ) -> Vec<Option<SemanticCheck>> {
        let targets = self.outcomes.len();
        let mut checks = Vec::with_capacity(targets);
        for (target, outcome) in self.outcomes.iter().enumerate() {
            let loaded = outcome.loaded.as_ref();
            if let Some(loaded) = loaded {
                self.order_similarities(target, loaded, results);
            }
            let check = self.float64(target, results);
            if let Some(loaded) = loaded {
                self.diagnose(target, loaded, check.as_ref(), results, residuals);
            }
            checks.push(check);
        }
        checks
    }

    /// Results of one target, by case.
    fn of(self, target: usize) -> impl Iterator<Item = usize> {
        let targets = self.outcomes.len();
        (0..self.bench.plan.cases.len()).map(move |case| case * targets + target)
    }

    fn order_similarities(self, target: usize, loaded: &Loaded, results: &mut [ResultRecord]) {
        let mut suites: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for index in self.of(target) {
            if cosines(&results[index]).is_some() {
                suites
                    .entry(results[index].suite.clone())
                    .or_default()
                    .push(index);
            }
        }
        for indices in suites.into_values() {
            let similarity = |index: &usize| {
                let (cosine, truth) = cosines(&results[*index])?;
                let prediction = self.predictions.of(loaded, index / self.outcomes.len());
                let case = &results[*index].case;
                Some(Similarity::new(
                    case,
                    cosine,
                    truth,
                    prediction,
                    loaded.dtype,
                ))
            };
            let all: Vec<Similarity> = indices.iter().filter_map(similarity).collect();
            let margins: Vec<_> = (0..all.len())
                .map(|index| of_similarity(&all, index, self.bench.k))
                .collect();
            for (index, margins) in indices.into_iter().zip(margins) {
                let result = &mut results[index];
                if let Some(finding) = order_finding(&margins) {
                    result.findings.push(finding);
                    result.verdict = Verdict::Drift;
                }
                result.margins = margins;
            }
        }
    }

    /// Judges what a target's library made of some batches in float64.
    fn float64(self, target: usize, results: &mut [ResultRecord]) -> Option<SemanticCheck> {
        let Float64 {
            target: name,
            loaded,
            jobs,
        } = self.outcomes[target].float64.as_ref()?.as_ref().ok()?;
        // Its own noise is of no interest: the limit lies far beyond any.
        let judged_by = self.outcomes[target].loaded.as_ref()?;
        let unit = Dtype::F64.unit_roundoff()?;
        let mut check = SemanticCheck {
            target: name.to_string(),
            cases: 0,
            error: Some(0.0),
            place: String::new(),
            limit: FLOAT64_LIMIT,
            within: true,
        };
        for (index, tensors) in jobs {
            let job = &self.bench.plan.jobs[*index];
            for place in job.cases.clone() {
                let case = &self.bench.plan.cases[place];
                let prediction = self.predictions.of(judged_by, place);
                let judgement = judge(self.bench, job, case, loaded, prediction, Ok(tensors));
                check.cases += 1;
                // What is missing or damaged in f64 is not the truth either.
                let damage = judgement
                    .findings
                    .iter()
                    .find(|f| f.kind == FindingKind::Damage);
                if let Some(damage) = damage {
                    check.within = false;
                    check.error = None;
                    check.place = format!("{} ({})", case.id(), damage.message);
                    continue;
                }
                let error = |observation: &Observation| {
                    observation
                        .error_u
                        .map_or(f64::INFINITY, |error| error * unit)
                };
                let worst = judgement
                    .observations
                    .iter()
                    .max_by(|a, b| error(a.1).total_cmp(&error(b.1)));
                let Some((name, observation)) = worst else {
                    continue;
                };
                let worst = error(observation);
                if worst >= check.error.unwrap_or(f64::INFINITY) {
                    check.error = worst.is_finite().then_some(worst);
                    check.place = format!("{} {name}", case.id());
                }
                if worst > FLOAT64_LIMIT {
                    check.within = false;
                    let result = &mut results[place * self.outcomes.len() + target];
                    report_formula(result, &check.target, &judgement.observations, unit);
                }
            }
        }
        Some(check)
    }

    fn diagnose(
        self,
        target: usize,
        loaded: &Loaded,
        check: Option<&SemanticCheck>,
        results: &mut [ResultRecord],
        residuals: &[Option<Residual>],
    ) {
        let failing: Vec<Failing> = self
            .of(target)
            .filter_map(|index| {
                Some(Failing {
                    case: &self.bench.plan.cases[index / self.outcomes.len()],
                    observations: &results[index].observations,
                    residual: residuals[index].as_ref()?,
                })
            })
            .collect();
        if failing.is_empty() {
            return;
        }
        let Diagnosis { class, evidence } = diagnose(self.bench, loaded, &failing, check);
        for index in self.of(target).collect::<Vec<_>>() {
            let findings = results[index].findings.iter_mut();
            let numeric = findings
                .filter(|finding| finding.kind == FindingKind::Numeric && finding.class.is_none());
            for finding in numeric {
                finding.class = Some(class);
                finding.evidence.clone_from(&evidence);
            }
        }
    }
}

/// The target's and the truth's cosine of a similarity case.
fn cosines(result: &ResultRecord) -> Option<(f64, f64)> {
    match (&result.answer, &result.truth_answer) {
        (Some(Answer::Similarity { cosine }), Some(Answer::Similarity { cosine: truth })) => {
            Some((*cosine, *truth))
        }
        _ => None,
    }
}

/// Says in a result that passes that its library's formula is another one.
fn report_formula(
    result: &mut ResultRecord,
    target: &str,
    observations: &BTreeMap<String, Observation>,
    unit: f64,
) {
    if result.verdict != Verdict::Pass {
        return;
    }
    let mut names: Vec<String> = observations.keys().cloned().collect();
    crate::observed::sort(&mut names);
    let error = |name: &String| observations[name].error_u.unwrap_or(f64::INFINITY) * unit;
    let Some(first) = names.iter().find(|name| error(name) > FLOAT64_LIMIT) else {
        return;
    };
    let message = format!(
        "`{first}` of `{target}` is {:.1e} from the truth, rounding stays below {FLOAT64_LIMIT:.0e}: \
         another formula, which hides under the noise of this target",
        error(first)
    );
    result.verdict = Verdict::Drift;
    result.findings.push(Finding {
        class: Some(Class::Semantic),
        observation: Some(first.clone()),
        ..Finding::new(FindingKind::Numeric, message)
    });
}
