//! The matched filter: what a difference looks like.
//!
//! For every fault of the catalogue the oracle knows the *signature* d: what that fault would leave as a
//! difference here, from what the target itself had before it. With the measured difference r and the standard
//! deviation σ of its numbers, the coefficient of a signature is
//!
//! ```text
//! c = Σ r d / σ²  /  Σ d² / σ²        with the standard deviation  1 / √(Σ d² / σ²)
//! ```
//!
//! A fault that is there has a coefficient of 1 and leaves nothing but noise. The likeliest is the one
//! that leaves least when it is taken off as it is; where none explains most of the difference, several
//! are fitted at once, and where that fails too, it is none of the known.

use driftgauge_protocol::fault::{Edit, Fault, InputChange};
use driftgauge_protocol::{Stage, Step};
use driftgauge_reports::location::Cause;

use super::seen::bounded;
use crate::catalogue::{Entry, Instance};

/// Share of a difference, squared, that its cause must explain.
const EXPLAINED: f64 = 0.9;
/// Causes that are named, where several explain a difference about as well.
const NAMED: usize = 3;
/// How much more than the best another cause may leave, in noise, to be named beside it.
const NEAR: f64 = 1.5;
/// Faults that are fitted together.
const TOGETHER: usize = 3;

/// The difference of some numbers from their truth, in units of their noise.
#[derive(Debug, Clone)]
pub struct Residual {
    values: Vec<f32>,
    truth: Vec<f64>,
    deviation: f64,
}

impl Residual {
    /// The difference of `got` from `truth`. Every number has the same standard deviation.
    ///
    /// # Panics
    /// Where the lengths differ.
    pub fn new(got: &[f64], truth: Vec<f64>, deviation: f64) -> Self {
        assert_eq!(got.len(), truth.len(), "numbers and their truth");
        let deviation = deviation.max(f64::MIN_POSITIVE);
        let truth: Vec<f64> = truth.into_iter().map(bounded).collect();
        let pairs = got.iter().zip(&truth);
        let values = pairs.map(|(got, truth)| ((bounded(*got) - truth) / deviation) as f32);
        Self {
            values: values.collect(),
            truth,
            deviation,
        }
    }

    /// Its size in noise: about 1 where there is nothing but noise.
    pub fn noise(&self) -> f64 {
        (dot(&self.values, &self.values) / self.values.len().max(1) as f64).sqrt()
    }

    /// Sum of the squares.
    pub fn squares(&self) -> f64 {
        dot(&self.values, &self.values)
    }

    /// Numbers.
    pub fn count(&self) -> usize {
        self.values.len()
    }

    /// What a variant would leave, in the same units.
    fn signature(&self, variant: Option<Vec<f64>>) -> Vec<f32> {
        let Some(variant) = variant else {
            return vec![0.0; self.truth.len()];
        };
        let pairs = variant.into_iter().zip(&self.truth);
        pairs
            .map(|(variant, truth)| ((bounded(variant) - truth) / self.deviation) as f32)
            .collect()
    }
}

/// The standard deviation of a fault's coefficient, as far as rounding goes.
pub type Uncertainty<'a> = &'a dyn Fn(&Instance) -> f64;

/// A known fault beside a difference.
#[derive(Debug, Clone)]
pub struct Known<'a> {
    instance: &'a Instance,
    residual: Vec<f32>,
    signature: Vec<f32>,
}

impl<'a> Known<'a> {
    /// Nothing compared yet.
    pub fn of(instance: &'a Instance) -> Self {
        Self {
            instance,
            residual: Vec::new(),
            signature: Vec::new(),
        }
    }

    /// Compares with one more difference; `variant` is what the fault would give, `None` where it changes
    /// nothing.
    pub fn add(&mut self, residual: &Residual, variant: Option<Vec<f64>>) {
        self.signature.extend(residual.signature(variant));
        self.residual.extend(&residual.values);
    }

    fn coefficient(&self) -> f64 {
        dot(&self.residual, &self.signature) / dot(&self.signature, &self.signature)
    }

    /// What it leaves when it is taken off so many times: a sum of squares.
    fn left(&self, times: f64) -> f64 {
        left(&self.residual, times, &self.signature)
    }

    /// Share of what is more than noise that it explains where it leaves so much.
    fn explained(&self, left: f64) -> f64 {
        let noise = self.residual.len() as f64;
        let all = (dot(&self.residual, &self.residual) - noise).max(f64::MIN_POSITIVE);
        1.0 - (left - noise).max(0.0) / all
    }

    fn cause(&self, coefficient: f64, uncertainty: Uncertainty<'_>, explained: f64) -> Cause {
        let Instance { entry, stage, .. } = self.instance;
        let uncertainty = uncertainty(self.instance);
        cause(entry, *stage, coefficient, uncertainty, explained)
    }
}

/// A cause for a report.
pub(super) fn cause(
    entry: &Entry,
    stage: Option<Stage>,
    coefficient: f64,
    uncertainty: f64,
    explained: f64,
) -> Cause {
    let text = |text: &&str| (*text).to_owned();
    Cause {
        name: entry.name.to_owned(),
        stage: stage.map(|stage| stage.to_string()),
        title: entry.title.to_owned(),
        coefficient,
        uncertainty,
        explained,
        means: entry.means.to_owned(),
        evidence: entry.evidence.iter().map(text).collect(),
        advice: entry.advice.to_owned(),
    }
}

/// The likeliest causes, the likeliest first; empty where nothing known explains the difference.
pub fn likeliest(known: Vec<Known<'_>>, uncertainty: Uncertainty<'_>) -> Vec<Cause> {
    let known = known
        .into_iter()
        .filter(|one| dot(&one.signature, &one.signature) > 1.0);
    let mut known: Vec<(f64, Known<'_>)> = known.map(|one| (one.left(1.0), one)).collect();
    known.sort_by(|a, b| a.0.total_cmp(&b.0));
    let Some((left, best)) = known.first() else {
        return Vec::new();
    };
    if best.explained(*left) >= EXPLAINED {
        // How far from noise the best is shows how far another may be from it.
        let limit = NEAR * left.max(best.residual.len() as f64);
        let near = known.iter().take_while(|(left, _)| *left <= limit);
        let near = near.map(|(left, one)| (one, one.explained(*left)));
        let near = near.filter(|(_, explained)| *explained >= EXPLAINED);
        return near
            .take(NAMED)
            .map(|(one, explained)| one.cause(one.coefficient(), uncertainty, explained))
            .collect();
    }
    let known: Vec<Known<'_>> = known.into_iter().map(|(_, one)| one).collect();
    together(&known, uncertainty)
}

/// The best one that fits with a coefficient other than 1, or a few that fit together.
fn together(known: &[Known<'_>], uncertainty: Uncertainty<'_>) -> Vec<Cause> {
    let Some(first) = known.first() else {
        return Vec::new();
    };
    let mut left: Vec<f32> = first.residual.clone();
    let noise = left.len() as f64;
    let all = (dot(&left, &left) - noise).max(f64::MIN_POSITIVE);
    let mut chosen: Vec<&Known<'_>> = Vec::new();
    while chosen.len() < TOGETHER {
        let gain = |one: &&Known<'_>| {
            dot(&left, &one.signature).powi(2) / dot(&one.signature, &one.signature)
        };
        let new = known
            .iter()
            .filter(|one| !chosen.iter().any(|known| std::ptr::eq(*known, *one)));
        let Some(next) = new.max_by(|a, b| gain(a).total_cmp(&gain(b))) else {
            return Vec::new();
        };
        chosen.push(next);
        let Some(coefficients) = least_squares(&chosen) else {
            return Vec::new();
        };
        left.clone_from(&first.residual);
        for (one, c) in chosen.iter().zip(&coefficients) {
            let pairs = left.iter_mut().zip(&one.signature);
            pairs.for_each(|(left, d)| *left -= (*c as f32) * d);
        }
        let explained = 1.0 - (dot(&left, &left) - noise).max(0.0) / all;
        if explained >= EXPLAINED {
            let pairs = chosen.iter().zip(&coefficients);
            return pairs
                .map(|(one, c)| one.cause(*c, uncertainty, explained))
                .collect();
        }
    }
    Vec::new()
}

/// Coefficients with which some signatures together leave least, by Gaussian elimination of the normal equations;
/// nothing where they depend on each other.
fn least_squares(chosen: &[&Known<'_>]) -> Option<Vec<f64>> {
    let n = chosen.len();
    let mut rows: Vec<Vec<f64>> = chosen
        .iter()
        .map(|one| {
            let products = chosen
                .iter()
                .map(|other| dot(&one.signature, &other.signature));
            products
                .chain([dot(&one.signature, &one.residual)])
                .collect()
        })
        .collect();
    for pivot in 0..n {
        let scale = rows[pivot][pivot];
        if scale <= 1e-9 * dot(&chosen[pivot].signature, &chosen[pivot].signature) {
            return None;
        }
        rows[pivot].iter_mut().for_each(|x| *x /= scale);
        let own = rows[pivot].clone();
        for (index, row) in rows.iter_mut().enumerate() {
            if index != pivot {
                let factor = row[pivot];
                row.iter_mut().zip(&own).for_each(|(x, p)| *x -= factor * p);
            }
        }
    }
    Some(rows.iter().map(|row| row[n]).collect())
}

/// The steps of a stage that a fault changes by itself.
pub fn affected(fault: &Fault, stage: Stage) -> Vec<Step> {
    let changes = |step: Step| {
        let module = step.module(stage);
        fault.edits.iter().any(|edit| match edit {
            Edit::Step(edit) => {
                // A mask after the softmax is left out before it.
                let masks = edit.step == Step::Scores && step == Step::Probabilities;
                edit.stage == stage && (edit.step == step || masks)
            }
            Edit::Weights(edit) => match (stage, step) {
                (Stage::Embeddings, Step::Sum) => edit.tensor.ends_with("_embeddings.weight"),
                _ => {
                    let in_module = |module: String| edit.tensor.starts_with(&format!("{module}."));
                    module.clone().is_some_and(in_module)
                }
            },
            Edit::Input(InputChange::MaskAndTypesSwapped) => {
                (stage, step) == (Stage::Embeddings, Step::Sum) || step == Step::Scores
            }
            Edit::Input(InputChange::LeftPadding) => {
                (stage, step) == (Stage::Embeddings, Step::Sum)
            }
            Edit::Output(_) => false,
        })
    };
    let steps = stage.steps().iter().copied();
    steps.filter(|step| changes(*step)).collect()
}

pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    in_lanes(a, b, |a, b| a * b)
}

/// Sum of the squares of a − times · b.
pub(super) fn left(a: &[f32], times: f64, b: &[f32]) -> f64 {
    in_lanes(a, b, |a, b| (a - times * b) * (a - times * b))
}

/// A sum in f64 over pairs, in lanes that a processor can take at once.
fn in_lanes(a: &[f32], b: &[f32], of: impl Fn(f64, f64) -> f64) -> f64 {
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += of(f64::from(*a), f64::from(*b));
        }
    }
    let rest = a_rest.iter().zip(b_rest);
    let rest: f64 = rest.map(|(a, b)| of(f64::from(*a), f64::from(*b))).sum();
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    fn instance(name: &str) -> Instance {
        Instance {
            entry: catalogue::all().find(|entry| entry.name == name).unwrap(),
            stage: None,
            step: None,
            fault: Fault {
                name: name.to_owned(),
                edits: Vec::new(),
            },
        }
    }

    fn named(known: Vec<Known<'_>>) -> Vec<Cause> {
        likeliest(known, &|instance| match instance.entry.name {
            "silu" => 0.25,
            _ => 0.5,
        })
    }

    /// A fault whose signature is given, beside a difference, both in noise.
    fn known<'a>(instance: &'a Instance, signature: &[f64], residual: &[f64]) -> Known<'a> {
        let residual = Residual::new(residual, vec![0.0; residual.len()], 1.0);
        let mut known = Known::of(instance);
        known.add(&residual, Some(signature.to_vec()));
        known
    }

    fn wave(frequency: f64, size: f64) -> Vec<f64> {
        (0..500)
            .map(|i| size * (frequency * f64::from(i)).sin())
            .collect()
    }

    fn sum(parts: &[&[f64]]) -> Vec<f64> {
        (0..parts[0].len())
            .map(|i| parts.iter().map(|part| part[i]).sum())
            .collect()
    }

    #[test]
    fn the_fault_that_is_there_has_a_coefficient_of_one() {
        let (one, other, noise) = (wave(0.3, 50.0), wave(0.7, 50.0), wave(2.1, 1.4));
        let residual = sum(&[&one, &noise]);
        let causes = named(vec![
            known(&instance("relu"), &other, &residual),
            known(&instance("silu"), &one, &residual),
        ]);
        assert_eq!(causes.len(), 1, "{causes:?}");
        assert_eq!(causes[0].name, "silu");
        assert!((causes[0].coefficient - 1.0).abs() < 0.01, "{causes:?}");
        assert!(causes[0].explained > 0.99 && causes[0].uncertainty == 0.25);
    }

    #[test]
    fn two_faults_at_once_are_both_named() {
        let (one, other) = (wave(0.3, 50.0), wave(0.7, 80.0));
        let residual = sum(&[&one, &other]);
        let causes = named(vec![
            known(&instance("relu"), &other, &residual),
            known(&instance("silu"), &one, &residual),
            known(&instance("gelu-tanh"), &wave(1.1, 40.0), &residual),
        ]);
        let mut names: Vec<&str> = causes.iter().map(|cause| cause.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["relu", "silu"]);
        assert!(
            causes
                .iter()
                .all(|cause| (cause.coefficient - 1.0).abs() < 0.05)
        );
    }

    #[test]
    fn what_is_not_known_has_no_name() {
        let residual = wave(0.9, 50.0);
        let causes = named(vec![known(&instance("relu"), &wave(0.3, 50.0), &residual)]);
        assert!(causes.is_empty(), "{causes:?}");
        let causes = named(vec![known(&instance("relu"), &vec![0.0; 500], &residual)]);
        assert!(
            causes.is_empty(),
            "a fault that changes nothing explains nothing"
        );
    }
}
