//! Three and more runs: how far each is from each other, and which one is the odd one out.

use std::collections::BTreeMap;

use serde::Serialize;

use super::target::{self, End};
use super::{Direct, Place, Side};
use crate::environment::{self, Changed};
use crate::record::{Pair, TargetRecord, Verdict};

/// One target in several runs, or the single targets of several runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Matrix {
    /// The target, or all of them.
    pub target: String,
    /// Indices of the runs that have it.
    pub entries: Vec<usize>,
    /// Whether verdicts differ, two are further apart than two correct implementations may be, or one lacks
    /// observations. The order of the runs plays no part.
    pub drifted: bool,
    /// Whether all distances are those of tensors; otherwise some are the least that the errors allow.
    pub exact: bool,
    /// How far two correct implementations may be apart, in units of the noise of their difference.
    pub k: f64,
    /// The largest distance of each two over all cases and observations, in units of noise; `null` on the
    /// diagonal, where nothing was compared, and where it is not finite (which [`Self::pairs`] tells).
    pub distances: Vec<Vec<Option<f64>>>,
    /// Each two, by the names of their runs: first with second, first with third, ...
    pub pairs: Vec<Pair>,
    /// Cases whose verdict is not the same everywhere.
    pub verdicts: Vec<VerdictSplit>,
    /// The one that is beyond noise while all others agree.
    pub odd: Option<OddOneOut>,
}

/// A case whose verdict is not the same everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerdictSplit {
    /// Suite and case.
    pub case: String,
    /// Its verdict in each entry; `null` where it was not run.
    pub verdicts: Vec<Option<Verdict>>,
}

/// The entry that differs from all others, which agree.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OddOneOut {
    /// Its place in [`Matrix::entries`].
    pub entry: usize,
    /// Median of its distances to the others; `null` where it is not finite.
    pub median: Option<f64>,
    /// The largest median of the others.
    pub others: f64,
    /// What of its environment none of the others has, while they agree: their value, its value.
    pub environment: Changed,
}

pub(super) fn compare(
    sides: &[Side<'_>],
    name: &str,
    group: &[(usize, &TargetRecord)],
    direct: &dyn Fn(Place<'_>, Place<'_>) -> Option<Direct>,
) -> Matrix {
    let count = group.len();
    let mut distances = vec![vec![f64::NAN; count]; count];
    let (mut pairs, mut exact, mut drifted) = (Vec::new(), true, false);
    let mut k = 0.0f64;
    for (row, (side_a, target_a)) in group.iter().enumerate() {
        for (column, (side_b, target_b)) in group.iter().enumerate().skip(row + 1) {
            let a = End::of(&sides[*side_a], *side_a, target_a);
            let b = End::of(&sides[*side_b], *side_b, target_b);
            let diff = target::compare(a, b, direct);
            let distance = match &diff.apart.furthest {
                None => f64::NAN,
                Some(furthest) => furthest.noise.unwrap_or(f64::INFINITY),
            };
            (distances[row][column], distances[column][row]) = (distance, distance);
            exact &= diff.exact;
            drifted |= diff.apart.within < diff.apart.compared;
            drifted |= !diff.vanished.is_empty() || !diff.appeared.is_empty();
            k = k.max(sides[*side_b].record.method.k);
            pairs.push(Pair {
                a: sides[*side_a].name.to_owned(),
                b: sides[*side_b].name.to_owned(),
                ..diff.apart
            });
        }
    }
    let odd = odd_one_out(&distances, k).map(|(entry, median, others)| OddOneOut {
        entry,
        median: median.is_finite().then_some(median),
        others,
        environment: only_there(sides, group, entry),
    });
    let verdicts = verdicts(sides, group);
    let finite = |value: &f64| value.is_finite().then_some(*value);
    Matrix {
        target: name.to_owned(),
        entries: group.iter().map(|(side, _)| *side).collect(),
        drifted: drifted || !verdicts.is_empty(),
        exact,
        k,
        distances: distances
            .iter()
            .map(|row| row.iter().map(finite).collect())
            .collect(),
        pairs,
        verdicts,
        odd,
    }
}

/// The entry whose median distance to the others is beyond `k` times noise while that of no other is,
/// with its median and the largest of the others. Of two others that agree and one that does not, each of
/// the two has one near neighbour: of an even number of distances, the smaller middle one counts.
fn odd_one_out(distances: &[Vec<f64>], k: f64) -> Option<(usize, f64, f64)> {
    let median = |row: &Vec<f64>| {
        let mut known: Vec<f64> = row.iter().copied().filter(|d| !d.is_nan()).collect();
        known.sort_by(f64::total_cmp);
        let middle = known.len().checked_sub(1)? / 2;
        Some(known[middle])
    };
    let mut medians: Vec<(usize, f64)> = distances
        .iter()
        .enumerate()
        .filter_map(|(entry, row)| Some((entry, median(row)?)))
        .collect();
    medians.sort_by(|one, other| other.1.total_cmp(&one.1));
    match medians[..] {
        [(entry, largest), (_, second), _, ..] if largest > k && second <= k => {
            Some((entry, largest, second))
        }
        _ => None,
    }
}

/// What all other entries have in common and this one has not.
fn only_there(sides: &[Side<'_>], group: &[(usize, &TargetRecord)], odd: usize) -> Changed {
    let environments: Vec<BTreeMap<String, String>> = group
        .iter()
        .map(|(side, target)| environment::of(sides[*side].record, target))
        .collect();
    let keys = environments.iter().flat_map(BTreeMap::keys);
    keys.filter_map(|key| {
        let own = environments[odd].get(key);
        let mut others = environments
            .iter()
            .enumerate()
            .filter(|(entry, _)| *entry != odd)
            .map(|(_, environment)| environment.get(key));
        let first = others.next()?;
        (first != own && others.all(|other| other == first))
            .then(|| (key.clone(), [first.cloned(), own.cloned()]))
    })
    .collect()
}

fn verdicts(sides: &[Side<'_>], group: &[(usize, &TargetRecord)]) -> Vec<VerdictSplit> {
    let mut all: BTreeMap<String, Vec<Option<Verdict>>> = BTreeMap::new();
    for (entry, (side, target)) in group.iter().enumerate() {
        let results = sides[*side].record.results.iter();
        for result in results.filter(|result| result.target == target.target) {
            let case = format!("{}/{}", result.suite, result.case);
            all.entry(case).or_insert_with(|| vec![None; group.len()])[entry] =
                Some(result.verdict);
        }
    }
    let is_split = |verdicts: &Vec<Option<Verdict>>| {
        let mut known = verdicts.iter().flatten();
        let first = known.next();
        known.any(|verdict| Some(verdict) != first)
    };
    all.into_iter()
        .filter(|(_, verdicts)| is_split(verdicts))
        .map(|(case, verdicts)| VerdictSplit { case, verdicts })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_odd_one_out_is_named_only_where_all_others_agree() {
        let nan = f64::NAN;
        for (distances, expected) in [
            (
                vec![
                    vec![nan, 0.0, 9.0],
                    vec![0.0, nan, 9.0],
                    vec![9.0, 9.0, nan],
                ],
                Some(2),
            ),
            (
                vec![
                    vec![nan, 9.0, 9.0],
                    vec![9.0, nan, 1.5],
                    vec![9.0, 1.5, nan],
                ],
                Some(0),
            ),
            // Within noise, nobody is odd.
            (
                vec![
                    vec![nan, 0.0, 1.5],
                    vec![0.0, nan, 1.5],
                    vec![1.5, 1.5, nan],
                ],
                None,
            ),
            // All differ.
            (
                vec![
                    vec![nan, 9.0, 9.0],
                    vec![9.0, nan, 9.0],
                    vec![9.0, 9.0, nan],
                ],
                None,
            ),
            // Two against two.
            (
                vec![
                    vec![nan, 0.0, 9.0, 9.0],
                    vec![0.0, nan, 9.0, 9.0],
                    vec![9.0, 9.0, nan, 0.0],
                    vec![9.0, 9.0, 0.0, nan],
                ],
                None,
            ),
            (
                vec![
                    vec![nan, f64::INFINITY, 0.0, 0.0],
                    vec![f64::INFINITY, nan, f64::INFINITY, f64::INFINITY],
                    vec![0.0, f64::INFINITY, nan, 1.0],
                    vec![0.0, f64::INFINITY, 1.0, nan],
                ],
                Some(1),
            ),
            // Nothing to compare with, and two only.
            (vec![vec![nan, nan], vec![nan, nan]], None),
            (vec![vec![nan, 9.0], vec![9.0, nan]], None),
        ] {
            let found = odd_one_out(&distances, 2.5).map(|(entry, ..)| entry);
            assert_eq!(found, expected, "{distances:?}");
        }
    }
}
