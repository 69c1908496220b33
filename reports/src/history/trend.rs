//! How a target moved from run to run, when it got worse, and what changed around it then.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{HistoryCase, HistoryRun, HistoryTarget};
use crate::diff::is_worse;
use crate::environment::{self, Changed};
use crate::record::Verdict;

/// A target on one model, over time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trend {
    /// ID of the model.
    pub model: String,
    /// The target.
    pub target: String,
    /// Its runs, the earliest first.
    pub points: Vec<Point>,
    /// Where it got worse or better by more than noise explains.
    pub changes: Vec<Change>,
    /// The first run of those that have not conformed since, by its index; `null` where the last run
    /// conforms.
    pub since: Option<usize>,
}

/// One run of a target.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// SHA-256 of the record.
    pub digest: String,
    /// Day of the run, as in `2026-11-24`.
    pub day: String,
    /// Version of the library.
    pub library_version: Option<String>,
    /// Effective bits of the observation that has fewest; `null` where an error is not finite, or where
    /// there is none.
    pub bits: Option<f64>,
    /// Milliseconds of forward passes for each case; `null` where no case was run.
    pub milliseconds: Option<f64>,
    /// Number of results for each verdict that occurs.
    pub verdicts: BTreeMap<Verdict, usize>,
}

/// A run that differs from those before it by more than noise.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Index of the run among [`Trend::points`].
    pub point: usize,
    /// Whether it got worse; better otherwise.
    pub worse: bool,
    /// Cases whose verdict got worse, or better.
    pub verdicts: Vec<String>,
    /// Errors that grew, or shrank, by more than noise moves them.
    pub errors: usize,
    /// The one that moved furthest.
    pub furthest: Option<Grown>,
    /// What is different around it from the run before.
    pub environment: Changed,
}

/// An error that moved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Grown {
    /// Suite and case.
    pub case: String,
    /// The observation.
    pub observation: String,
    /// By how many times its noise; `null` where it is not finite.
    pub noise: Option<f64>,
}

/// The trends of all targets, in the order in which they first appear. Each run is compared with the
/// runs since the last change, so that a slow creep is noticed as well; how, is how two records are
/// [compared](mod@crate::diff).
pub fn trends(runs: &[HistoryRun]) -> Vec<Trend> {
    let mut ordered: Vec<&HistoryRun> = runs.iter().collect();
    ordered.sort_by_key(|run| (run.started, run.digest.clone()));
    let mut groups: Vec<((&str, &str), Vec<Own<'_>>)> = Vec::new();
    for run in ordered {
        for target in &run.targets {
            let key = (run.model_files.as_str(), target.target.as_str());
            match groups.iter_mut().find(|(known, _)| *known == key) {
                Some((_, group)) => group.push((run, target)),
                None => groups.push((key, vec![(run, target)])),
            }
        }
    }
    groups
        .into_iter()
        .map(|((_, target), group)| trend(target, &group))
        .collect()
}

/// A run and one of its targets.
type Own<'a> = (&'a HistoryRun, &'a HistoryTarget);

fn trend(target: &str, group: &[Own<'_>]) -> Trend {
    let points: Vec<Point> = group.iter().map(|(run, own)| point(run, own)).collect();
    let mut changes = Vec::new();
    // What each case was since the last change.
    let mut settled: BTreeMap<&str, &HistoryCase> = BTreeMap::new();
    for (index, (run, own)) in group.iter().enumerate() {
        let (worse, better) = moves(&settled, own, run.move_limit);
        let found = [(true, worse), (false, better)];
        let found = found.into_iter().find(|(_, moves)| !moves.is_empty());
        if let Some((is_worse, moves)) = found {
            let before = &group[index.saturating_sub(1)].1.environment;
            changes.push(Change {
                point: index,
                worse: is_worse,
                verdicts: moves.verdicts,
                errors: moves.errors,
                furthest: moves.furthest,
                environment: environment::changed(before, &own.environment),
            });
            settled.extend(own.cases.iter().map(|(name, case)| (name.as_str(), case)));
        }
        for (name, case) in &own.cases {
            settled.entry(name).or_insert(case);
        }
    }
    let conforms = |point: &Point| {
        let bad = [Verdict::Drift, Verdict::Broken, Verdict::Fixed];
        !bad.iter()
            .any(|verdict| point.verdicts.contains_key(verdict))
    };
    let last_good = points.iter().rposition(conforms);
    let since = last_good.map_or(0, |index| index + 1);
    Trend {
        model: group
            .first()
            .map_or_else(String::new, |(run, _)| run.model.clone()),
        target: target.to_owned(),
        since: (since < points.len()).then_some(since),
        points,
        changes,
    }
}

fn point(run: &HistoryRun, own: &HistoryTarget) -> Point {
    let mut verdicts = BTreeMap::new();
    for case in own.cases.values() {
        *verdicts.entry(case.verdict).or_insert(0) += 1;
    }
    let errors = own.cases.values().flat_map(|case| case.errors.values());
    let bits: Option<Vec<f64>> = errors.map(|error| error.1).collect();
    let fewest = bits.unwrap_or_default().into_iter().min_by(f64::total_cmp);
    let ran = own.cases.values().filter(|case| !case.errors.is_empty());
    let ran = ran.count();
    Point {
        digest: run.digest.clone(),
        day: run.day.clone(),
        library_version: own.environment.get("library_version").cloned(),
        bits: fewest,
        milliseconds: (ran > 0).then(|| own.forward * 1000.0 / ran as f64),
        verdicts,
    }
}

/// What moved in one direction.
#[derive(Default)]
struct Moves {
    verdicts: Vec<String>,
    errors: usize,
    furthest: Option<Grown>,
}

impl Moves {
    fn is_empty(&self) -> bool {
        self.verdicts.is_empty() && self.errors == 0
    }

    fn add(&mut self, case: &str, observation: &str, change: f64) {
        self.errors += 1;
        let size = |noise: Option<f64>| noise.map_or(f64::INFINITY, f64::abs);
        let noise = change.is_finite().then_some(change);
        let furthest = self.furthest.as_ref();
        if furthest.is_none_or(|known| size(noise) > size(known.noise)) {
            self.furthest = Some(Grown {
                case: case.to_owned(),
                observation: observation.to_owned(),
                noise,
            });
        }
    }
}

/// What got worse, and what got better.
fn moves(
    settled: &BTreeMap<&str, &HistoryCase>,
    own: &HistoryTarget,
    limit: f64,
) -> (Moves, Moves) {
    let (mut worse, mut better) = (Moves::default(), Moves::default());
    for (name, now) in &own.cases {
        let Some(before) = settled.get(name.as_str()) else {
            continue;
        };
        if is_worse(before.verdict, now.verdict) {
            worse.verdicts.push(name.clone());
        } else if is_worse(now.verdict, before.verdict) {
            better.verdicts.push(name.clone());
        }
        if before.tokens != now.tokens {
            continue;
        }
        for (observation, error) in &now.errors {
            let Some(known) = before.errors.get(observation) else {
                continue;
            };
            let in_noise = |noise: Option<f64>| noise.unwrap_or(f64::INFINITY);
            let (old, new) = (in_noise(known.0), in_noise(error.0));
            let change = if old == new { 0.0 } else { new - old };
            if change > limit {
                worse.add(name, observation, change);
            } else if change < -limit {
                better.add(name, observation, change);
            }
        }
    }
    (worse, better)
}
