//! The targets of one run compared with each other: whether they agree to the bit, and whether they
//! are further apart than two correct implementations may be. No truth stands between them: it only
//! sets the scale.

use std::collections::{BTreeMap, BTreeSet};

use driftgauge_reports::apart::{Compared, compared, pair};
use driftgauge_reports::record::{Pair, ResultRecord};
use rayon::prelude::*;

use crate::extract;
use crate::judge::Bench;
use crate::measure::{apart, norm};
use crate::observed;
use crate::plan::{Job, PlannedCase};
use crate::run::TargetOutcome;

/// Compares every two targets of one dtype. `results` are those of the plan's cases in order, one for
/// each outcome.
pub fn pairs(bench: Bench<'_>, outcomes: &[TargetOutcome], results: &[ResultRecord]) -> Vec<Pair> {
    let dtype = |outcome: &TargetOutcome| outcome.loaded.as_ref().map(|loaded| loaded.dtype);
    let mut couples = Vec::new();
    for (a, one) in outcomes.iter().enumerate() {
        for (b, other) in outcomes.iter().enumerate().skip(a + 1) {
            if dtype(one).is_some() && dtype(one) == dtype(other) {
                couples.push((a, b));
            }
        }
    }
    let jobs = bench.plan.jobs.par_iter().enumerate();
    let of_cases: Vec<Vec<(usize, Compared)>> = jobs
        .flat_map_iter(|(index, job)| job.cases.clone().map(move |case| (index, job, case)))
        .map(|(index, job, case)| {
            let results = &results[case * outcomes.len()..(case + 1) * outcomes.len()];
            let case = Case {
                bench,
                job,
                index,
                case: &bench.plan.cases[case],
                outcomes,
                results,
            };
            case.compare(&couples)
        })
        .collect();
    let mut of_couples: Vec<Vec<Compared>> = couples.iter().map(|_| Vec::new()).collect();
    for (couple, compared) in of_cases.into_iter().flatten() {
        of_couples[couple].push(compared);
    }
    let names = couples
        .iter()
        .map(|(a, b)| [a, b].map(|index| outcomes[*index].target.to_string()));
    names
        .zip(of_couples)
        .map(|([a, b], compared)| pair(a, b, bench.k, compared))
        .collect()
}

/// The norm of the truth of every observation of the results, by `suite/case/observation`: with it,
/// tensors can be compared where there is no model.
pub fn norms(bench: Bench<'_>, results: &[ResultRecord]) -> BTreeMap<String, f64> {
    let targets = results.len() / bench.plan.cases.len().max(1);
    let cases = bench
        .plan
        .cases
        .par_iter()
        .zip(results.par_chunks(targets.max(1)));
    cases
        .flat_map_iter(|(case, results)| {
            names(results).into_iter().map(move |name| {
                let truth = truth(bench, case, name);
                (format!("{}/{name}", case.id()), norm(&truth))
            })
        })
        .filter(|(_, norm)| norm.is_finite())
        .collect()
}

fn names(results: &[ResultRecord]) -> BTreeSet<&str> {
    let names = results.iter().flat_map(|result| result.observations.keys());
    names.map(String::as_str).collect()
}

fn truth(bench: Bench<'_>, case: &PlannedCase, name: &str) -> Vec<f64> {
    let layers = bench.model.config.num_hidden_layers;
    observed::truth(&bench.truths_of(case), name, layers)
}

struct Case<'a> {
    bench: Bench<'a>,
    job: &'a Job,
    /// Index of the job.
    index: usize,
    case: &'a PlannedCase,
    outcomes: &'a [TargetOutcome],
    results: &'a [ResultRecord],
}

impl Case<'_> {
    /// The comparisons of all observations, with the index of the couple.
    fn compare(&self, couples: &[(usize, usize)]) -> Vec<(usize, Compared)> {
        let id = self.case.id();
        let mut all = Vec::new();
        for name in names(self.results) {
            let of = |target: usize| self.results[target].observations.get(name);
            let differ = couples.iter().any(|(a, b)| match (of(*a), of(*b)) {
                (Some(a), Some(b)) => a.digest != b.digest,
                _ => false,
            });
            // Equal bits need no arithmetic.
            let (norm, values) = if differ {
                let norm = norm(&truth(self.bench, self.case, name));
                let targets = 0..self.outcomes.len();
                (
                    norm,
                    targets.map(|target| self.values(target, name)).collect(),
                )
            } else {
                (0.0, vec![None; self.outcomes.len()])
            };
            for (couple, (a, b)) in couples.iter().enumerate() {
                let (Some(one), Some(other)) = (of(*a), of(*b)) else {
                    continue;
                };
                let distance = match (&values[*a], &values[*b]) {
                    _ if one.digest == other.digest => Some(0.0),
                    (Some(a), Some(b)) => Some(apart(a, b, norm)),
                    _ => None,
                };
                all.push((couple, compared(&id, name, one, other, distance)));
            }
        }
        all
    }

    /// The numbers of one target as they are compared.
    fn values(&self, target: usize, name: &str) -> Option<Vec<f64>> {
        let config = &self.bench.model.config;
        let dtype = self.outcomes[target].loaded.as_ref()?.dtype;
        let tensors = self.outcomes[target].jobs.get(self.index)?.as_ref().ok()?;
        extract::compared(name, tensors, self.job, self.case, dtype, config).ok()
    }
}
