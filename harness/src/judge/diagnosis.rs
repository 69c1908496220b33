//! In which way the numbers of a target are wrong: another formula, or a lower precision.
//!
//! Three questions, the surest first, about all cases in which a target is beyond its budget:
//!
//! 1. Does its library in float64 differ from the truth? Then the formula is another one.
//! 2. Do its errors have, at every observation, the size that a certain lower precision predicts?
//!    Rounding to bf16, f16, TF32 and so on is imitated by the oracle, on the same cases.
//! 3. Is the residual systematic? Rounding errors average out over tokens; another formula or other
//!    weights push each channel in its own direction, whatever the token, or make all tokens larger
//!    or smaller.
//!
//! What is systematic and looks like no precision is `semantic`; anything else is `precision`.

use std::collections::BTreeMap;

use driftgauge_protocol::{Dtype, Loaded};
use driftgauge_reports::record::{Class, Observation, SemanticCheck};

use super::Bench;
use crate::measure::root_mean_square;
use crate::oracle::{Noise, Shortcut};
use crate::plan::PlannedCase;
use crate::predict::{SAMPLES, SEED, predict};

/// Failing cases whose errors are compared with those of imitated precisions.
const COMPARED_CASES: usize = 4;
/// Largest root mean square of ln(measured / imitated) that is a likeness: a factor of 1.35.
const LIKENESS: f64 = 0.3;
/// Share of a residual's square that is systematic beyond what chance gives, from which on a residual
/// is called so.
const SYSTEMATIC: f64 = 0.1;

/// A case that is beyond its budget.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failing<'a> {
    /// The case.
    pub(crate) case: &'a PlannedCase,
    /// Its comparisons.
    pub(crate) observations: &'a BTreeMap<String, Observation>,
    /// What is left of its first bad observation.
    pub(crate) residual: &'a Residual,
}

/// Difference of an observation to the truth.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Residual {
    /// Name of the observation.
    pub(crate) name: String,
    /// The differences, row by row.
    pub(crate) values: Vec<f64>,
    /// The truth.
    pub(crate) truth: Vec<f64>,
    /// Numbers in a row.
    pub(crate) width: usize,
}

/// What is wrong with a target.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Diagnosis {
    /// In which way.
    pub(crate) class: Class,
    /// What speaks for it, a sentence each.
    pub(crate) evidence: Vec<String>,
}

/// Diagnoses a target from the cases in which it is beyond its budget, of which there is at least one.
pub(crate) fn diagnose(
    bench: Bench<'_>,
    loaded: &Loaded,
    failing: &[Failing<'_>],
    semantic: Option<&SemanticCheck>,
) -> Diagnosis {
    let mut evidence = Vec::new();
    if let Some(check) = semantic {
        evidence.push(sentence(check));
        if !check.within {
            return Diagnosis {
                class: Class::Semantic,
                evidence,
            };
        }
    }
    let share = systematic_share(failing);
    let is_systematic = share > SYSTEMATIC;
    let lowered = likest(bench, loaded, failing);
    let bits = effective_bits(failing);
    let (class, sentence) = match lowered {
        Some(imitation) if imitation.is_systematic || !is_systematic => (
            Class::Precision,
            format!(
                "every observation has the error of {}, to a factor of {:.2}; about {bits:.0} bits are right",
                imitation.name,
                imitation.distance.exp()
            ),
        ),
        _ if is_systematic => (
            Class::Semantic,
            format!(
                "{:.0} % of the residual is alike in all tokens: no rounding does that",
                100.0 * share
            ),
        ),
        _ => (
            Class::Precision,
            format!(
                "the residual averages out over tokens as rounding does, but has the size of no \
                 format that we know; about {bits:.0} bits are right"
            ),
        ),
    };
    evidence.push(sentence);
    Diagnosis { class, evidence }
}

/// What a float64 check says.
pub(crate) fn sentence(check: &SemanticCheck) -> String {
    let error = match check.error {
        None => "not finite".to_owned(),
        Some(0.0) => "no difference".to_owned(),
        Some(error) => format!("{error:.1e}"),
    };
    let verb = if check.within {
        "agrees with"
    } else {
        "differs from"
    };
    format!(
        "`{}` {verb} the truth: {error} at {}, rounding stays below {:.0e}",
        check.target, check.place, check.limit
    )
}

/// A lower precision that explains the errors.
struct Likeness {
    name: &'static str,
    /// Whether it also shifts what it computes, as rounded weights do.
    is_systematic: bool,
    /// Root mean square of ln(measured / imitated).
    distance: f64,
}

/// The imitated precision that is nearest to the measured errors, if one is near.
fn likest(bench: Bench<'_>, loaded: &Loaded, failing: &[Failing<'_>]) -> Option<Likeness> {
    let mut nearest: Vec<&Failing> = failing.iter().collect();
    nearest.sort_by_key(|failing| failing.residual.values.len());
    // From the middle on: the shortest cases scatter most, the longest cost most.
    let start = (nearest.len() / 2).saturating_sub(COMPARED_CASES / 2);
    let compared = &nearest[start..nearest.len().min(start + COMPARED_CASES)];
    let cases: Vec<&PlannedCase> = compared.iter().map(|failing| failing.case).collect();
    let declared = loaded.dtype.unit_roundoff()?;
    let stored = bench.model.weights.dtypes();
    let likenesses = imitations(loaded.dtype)
        .into_iter()
        // Weights that the coarser format holds as they are would be no imitation.
        .filter(|(_, _, shortcut)| match shortcut {
            Some(Shortcut::Weights(coarse)) => stored
                .iter()
                .any(|stored| stored.unit_roundoff() < coarse.unit_roundoff()),
            _ => true,
        })
        .map(|(name, dtype, shortcut)| {
            let noise = Noise {
                dtype,
                arithmetic: loaded.arithmetic,
                shortcut,
                by_stage: false,
                samples: SAMPLES,
                seed: SEED,
            };
            let factor = dtype.unit_roundoff().unwrap_or(f64::NAN) / declared;
            let predicted = predict(bench.model, bench.plan, &cases, &noise);
            let distances = compared
                .iter()
                .zip(&predicted)
                .flat_map(|(failing, prediction)| {
                    failing
                        .observations
                        .iter()
                        .filter_map(move |(name, observation)| {
                            let imitated = prediction.usual_u(name)? * factor;
                            Some((observation.error_u? / imitated).ln())
                        })
                });
            Likeness {
                name,
                is_systematic: matches!(shortcut, Some(Shortcut::Weights(_))),
                distance: root_mean_square(distances),
            }
        });
    likenesses
        .filter(|likeness| likeness.distance < LIKENESS)
        .min_by(|a, b| a.distance.total_cmp(&b.distance))
}

/// Precisions below that of `declared`.
fn imitations(declared: Dtype) -> Vec<(&'static str, Dtype, Option<Shortcut>)> {
    let bits = |dtype: Dtype| dtype.unit_roundoff().map_or(0.0, |unit| -unit.log2());
    let throughout = [
        ("f32 throughout", Dtype::F32),
        ("f16 throughout", Dtype::F16),
        ("bf16 throughout", Dtype::Bf16),
    ];
    let weights = [
        ("weights stored in f32", Dtype::F32),
        ("weights stored in f16", Dtype::F16),
        ("weights stored in bf16", Dtype::Bf16),
    ];
    let products = [
        ("TF32: products of operands rounded to 11 bits", 11),
        ("products of operands rounded to bf16", 8),
    ];
    let is_lower = |dtype: Dtype| bits(dtype) < bits(declared);
    let mut all = Vec::new();
    for (name, dtype) in throughout.into_iter().filter(|(_, dtype)| is_lower(*dtype)) {
        all.push((name, dtype, None));
    }
    for (name, dtype) in weights.into_iter().filter(|(_, dtype)| is_lower(*dtype)) {
        all.push((name, declared, Some(Shortcut::Weights(dtype))));
    }
    for (name, kept) in products
        .into_iter()
        .filter(|(_, kept)| f64::from(*kept) < bits(declared))
    {
        all.push((name, declared, Some(Shortcut::Products(kept))));
    }
    all
}

/// The share of the residual's square that is alike in all rows, less what independent rows would
/// give by chance: the mean over rows, or a common factor of the truth, whichever is more. Looks at
/// all failing cases whose first bad observation is the same as that of most.
fn systematic_share(failing: &[Failing<'_>]) -> f64 {
    let mut groups: BTreeMap<&str, Vec<&Residual>> = BTreeMap::new();
    for one in failing {
        groups
            .entry(&one.residual.name)
            .or_default()
            .push(one.residual);
    }
    let Some(largest) = groups.into_values().max_by_key(Vec::len) else {
        return 0.0;
    };
    let width = largest[0].width;
    let (mut sums, mut rows) = (vec![0.0; width], 0.0);
    for row in largest
        .iter()
        .flat_map(|residual| residual.values.chunks(width))
    {
        sums.iter_mut()
            .zip(row)
            .for_each(|(sum, value)| *sum += value);
        rows += 1.0;
    }
    let (mut squares, mut truths, mut products) = (0.0, 0.0, 0.0);
    for residual in &largest {
        for (value, truth) in residual.values.iter().zip(&residual.truth) {
            squares += value * value;
            truths += truth * truth;
            products += value * truth;
        }
    }
    if squares == 0.0 || rows < 2.0 {
        return 0.0;
    }
    let of_mean = sums.iter().map(|sum| sum * sum).sum::<f64>() / rows / squares;
    let of_mean = (of_mean - 1.0 / rows) / (1.0 - 1.0 / rows);
    let of_scale = match truths > 0.0 {
        true => products * products / truths / squares - 1.0 / (rows * width as f64),
        false => 0.0,
    };
    of_mean.max(of_scale).max(0.0)
}

/// Mean of the leading bits that are right, over all observations beyond their budget.
fn effective_bits(failing: &[Failing<'_>]) -> f64 {
    let all = failing.iter().flat_map(|one| one.observations.values());
    let beyond = all.filter(|observation| !observation.within);
    let bits: Vec<f64> = beyond
        .filter_map(|observation| observation.effective_bits)
        .collect();
    bits.iter().sum::<f64>() / bits.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn residual(values: Vec<f64>) -> Residual {
        Residual {
            name: "hidden.1".to_owned(),
            truth: (0..values.len())
                .map(|index| (index as f64).cos())
                .collect(),
            values,
            width: 4,
        }
    }

    fn share(values: Vec<f64>) -> f64 {
        let case = PlannedCase {
            suite: "s".to_owned(),
            case: crate::suite::Case {
                name: "c".to_owned(),
                task: crate::suite::Task::Features {
                    text: String::new(),
                    text_pair: None,
                },
                note: None,
            },
            encoded: Vec::new(),
            sequences: 0..0,
        };
        let residual = residual(values);
        systematic_share(&[Failing {
            case: &case,
            observations: &BTreeMap::new(),
            residual: &residual,
        }])
    }

    #[test]
    fn what_is_the_same_in_every_row_is_systematic() {
        assert_eq!(share([1.0, -2.0, 0.5, 0.0].repeat(8)), 1.0);
        let alternating = [[1.0, -2.0, 0.5, 0.0], [-1.0, 2.0, -0.5, 0.0]].concat();
        assert_eq!(share(alternating.repeat(4)), 0.0);
        assert_eq!(share(vec![1.0; 4]), 0.0, "one row says nothing");
        let scaled = (0..32).map(|index| 0.01 * f64::from(index).cos());
        assert!(share(scaled.collect()) > 0.9);
    }

    #[test]
    fn only_lower_precisions_are_imitated() {
        let count = |dtype| imitations(dtype).len();
        assert_eq!((count(Dtype::F64), count(Dtype::F32)), (8, 6));
        assert_eq!((count(Dtype::F16), count(Dtype::Bf16)), (3, 0));
    }
}
