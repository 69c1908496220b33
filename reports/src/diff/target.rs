//! One target before and after.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Direct, Place, Side};
use crate::apart::{compared, least_distance, pair};
use crate::environment::{self, Changed};
use crate::record::{Observation, Pair, ResultRecord, RunRecord, TargetRecord, Verdict};

/// One target before and after.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TargetDiff {
    /// The target before.
    pub before: String,
    /// The target after.
    pub after: String,
    /// Whether a verdict got worse, an error grew by more than noise from one run to another, the two are
    /// further apart than two correct implementations may be, or an observation vanished.
    pub drifted: bool,
    /// What changed in its environment, the machine included.
    pub environment: Changed,
    /// Verdicts that changed, in case order.
    pub verdicts: Vec<VerdictChange>,
    /// The errors of each observation, the one that moved furthest first.
    pub moves: Vec<Move>,
    /// Cases that have lost an observation, by observation.
    pub vanished: BTreeMap<String, usize>,
    /// Cases that have gained an observation, by observation.
    pub appeared: BTreeMap<String, usize>,
    /// How far the two are apart.
    pub apart: Pair,
    /// Whether tensors were compared; otherwise the distances are the least that the errors allow.
    pub exact: bool,
}

/// A verdict that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerdictChange {
    /// Suite and case.
    pub case: String,
    /// The verdict before.
    pub before: Verdict,
    /// The verdict after.
    pub after: Verdict,
    /// Whether it got worse.
    pub worse: bool,
    /// The origin of the verdict after.
    pub finding: Option<String>,
}

/// How the errors of one observation moved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Move {
    /// The observation.
    pub observation: String,
    /// Cases that were compared.
    pub cases: usize,
    /// Those whose error grew by more than the limit.
    pub grown: usize,
    /// Suite and case of the error that moved furthest.
    pub case: String,
    /// That error before, in units of roundoff; `null` where it is not finite.
    pub before_u: Option<f64>,
    /// That error after.
    pub after_u: Option<f64>,
    /// Its change in units of noise, positive where it grew; `null` where it is not finite.
    pub noise: Option<f64>,
}

/// A run and one of its targets.
#[derive(Clone, Copy)]
pub(super) struct End<'a> {
    /// Index of the side.
    pub side: usize,
    /// Index of its file.
    pub file: usize,
    pub record: &'a RunRecord,
    pub target: &'a TargetRecord,
}

impl<'a> End<'a> {
    pub(super) fn of(side: &Side<'a>, index: usize, target: &'a TargetRecord) -> Self {
        Self {
            side: index,
            file: side.file,
            record: side.record,
            target,
        }
    }

    fn results(self) -> BTreeMap<(&'a str, &'a str), &'a ResultRecord> {
        let results = self.record.results.iter();
        results
            .filter(|result| result.target == self.target.target)
            .map(|result| ((result.suite.as_str(), result.case.as_str()), result))
            .collect()
    }

    fn place(self) -> Place<'a> {
        (self.side, &self.target.target)
    }
}

/// Whether two results are of the same tokens, so that their numbers can be compared.
pub(super) fn same_tokens(before: &ResultRecord, after: &ResultRecord) -> bool {
    let ids = |result: &ResultRecord| -> Vec<Vec<u32>> {
        result
            .tokens
            .iter()
            .map(|tokens| tokens.ids.clone())
            .collect()
    };
    ids(before) == ids(after)
}

/// Compares what a target did in two runs, case by case.
pub(super) fn compare(
    before: End<'_>,
    after: End<'_>,
    direct: &dyn Fn(Place<'_>, Place<'_>) -> Option<Direct>,
) -> TargetDiff {
    let method = &after.record.method;
    let known = direct(before.place(), after.place());
    let exact = known.is_some();
    let (each, summary) = match known {
        Some(Direct::Each(each)) => (Some(each), None),
        Some(Direct::Summary(pair)) => (None, Some(pair)),
        None => (None, None),
    };
    let earlier = before.results();
    let mut verdicts = Vec::new();
    let mut moves = BTreeMap::new();
    let mut comparisons = Vec::new();
    let (mut vanished, mut appeared) = (BTreeMap::new(), BTreeMap::new());
    let results = after.record.results.iter();
    for new in results.filter(|result| result.target == after.target.target) {
        let Some(old) = earlier.get(&(new.suite.as_str(), new.case.as_str())) else {
            continue;
        };
        let case = format!("{}/{}", new.suite, new.case);
        verdicts.extend(verdict_change(&case, old, new));
        if !same_tokens(old, new) {
            continue;
        }
        let names = old.observations.keys().chain(new.observations.keys());
        for name in names.collect::<BTreeSet<_>>() {
            let (old, new) = match (old.observations.get(name), new.observations.get(name)) {
                (Some(old), Some(new)) => (old, new),
                (Some(_), None) => {
                    *vanished.entry(name.clone()).or_insert(0) += 1;
                    continue;
                }
                _ => {
                    *appeared.entry(name.clone()).or_insert(0) += 1;
                    continue;
                }
            };
            note_move(&mut moves, &case, name, (old, new), method.move_limit);
            let distance = match &each {
                Some(each) => each.get(&format!("{case}/{name}")).copied(),
                None => least_distance(old, new),
            };
            comparisons.push(compared(&case, name, old, new, distance));
        }
    }
    let (a, b) = (&before.target.target, &after.target.target);
    let apart = summary.unwrap_or_else(|| pair(a, b, method.k, comparisons));
    let mut moves: Vec<Move> = moves.into_values().collect();
    moves.sort_by(|one, other| size(other.noise).total_cmp(&size(one.noise)));
    let grown = before.file != after.file && moves.iter().any(|one| one.grown > 0);
    let beyond = exact && apart.within < apart.compared;
    let worse = verdicts.iter().any(|change: &VerdictChange| change.worse);
    TargetDiff {
        before: a.clone(),
        after: b.clone(),
        drifted: worse || grown || beyond || !vanished.is_empty(),
        environment: environment::changed(
            &environment::of(before.record, before.target),
            &environment::of(after.record, after.target),
        ),
        verdicts,
        moves,
        vanished,
        appeared,
        apart,
        exact,
    }
}

/// How far an error moved, whichever way.
pub(super) fn size(noise: Option<f64>) -> f64 {
    noise.map_or(f64::INFINITY, f64::abs)
}

/// How bad a verdict is.
fn rank(verdict: Verdict) -> usize {
    match verdict {
        Verdict::Pass | Verdict::New | Verdict::Fixed => 0,
        Verdict::Known => 1,
        Verdict::Unsupported => 2,
        Verdict::Drift => 3,
        Verdict::Broken => 4,
    }
}

/// Whether a verdict is worse than an earlier one.
pub fn is_worse(before: Verdict, after: Verdict) -> bool {
    rank(after) > rank(before)
}

fn verdict_change(case: &str, old: &ResultRecord, new: &ResultRecord) -> Option<VerdictChange> {
    (old.verdict != new.verdict).then(|| VerdictChange {
        case: case.to_owned(),
        before: old.verdict,
        after: new.verdict,
        worse: is_worse(old.verdict, new.verdict),
        finding: new.findings.first().map(|finding| finding.message.clone()),
    })
}

/// Adds the move of one case. Each error is taken in units of its own noise, so that another prediction
/// is no move.
fn note_move(
    moves: &mut BTreeMap<String, Move>,
    case: &str,
    name: &str,
    (old, new): (&Observation, &Observation),
    limit: f64,
) {
    let (before, after) = (old.in_noise(), new.in_noise());
    let change = if before == after { 0.0 } else { after - before };
    let noise = change.is_finite().then_some(change);
    let entry = moves.entry(name.to_owned()).or_insert_with(|| Move {
        observation: name.to_owned(),
        cases: 0,
        grown: 0,
        case: String::new(),
        before_u: None,
        after_u: None,
        noise: Some(0.0),
    });
    entry.cases += 1;
    entry.grown += usize::from(change > limit);
    if entry.cases == 1 || size(noise) > size(entry.noise) {
        entry.case = case.to_owned();
        entry.before_u = old.error_u;
        entry.after_u = new.error_u;
        entry.noise = noise;
    }
}
