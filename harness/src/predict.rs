//! Predictions: the error that a correct implementation has, for each case and observation.
//!
//! They come from the errors that the [`oracle`] carries and depend on the model, the case, the
//! dtype and how a library adds numbers up, but not on any target's result. They are kept in the
//! [cache](crate::cache), so that only the first run of a case pays for them.

use std::collections::BTreeMap;

use driftgauge_protocol::{Arithmetic, Dtype, Loaded, observation};
use serde::{Deserialize, Serialize};

use crate::measure::{centre_rows, cosine, root_mean_square};
use crate::model::Model;
use crate::observed::{self, CLS};
use crate::oracle::{self, Noise, Sampled, Truth};
use crate::plan::{Plan, PlannedCase};
use crate::suite::Task;

/// Samples that a prediction is made from.
pub const SAMPLES: usize = 4;
/// Where the random numbers start.
pub const SEED: u64 = 20_261_124;
/// Tokens of each mask whose order is judged with margins.
const CANDIDATES: usize = 10;

/// Predictions for every kind of target of a run.
#[derive(Debug, Clone)]
pub struct Predictions {
    stores_f64: bool,
    kinds: Vec<(Kind, Vec<Prediction>)>,
}

/// What predictions depend on beside model and case.
type Kind = (Dtype, Arithmetic);

impl Predictions {
    /// Predictions for every dtype and arithmetic among `loaded`; `obtain` makes or finds those of
    /// one kind, for all cases of the plan.
    pub fn obtain<'a>(
        model: &Model,
        loaded: impl Iterator<Item = &'a Loaded>,
        mut obtain: impl FnMut(&Noise) -> Vec<Prediction>,
    ) -> Self {
        let mut predictions = Self {
            stores_f64: model.weights.dtypes().contains(&Dtype::F64),
            kinds: Vec::new(),
        };
        for loaded in loaded {
            let kind = predictions.kind(loaded);
            if predictions.kinds.iter().any(|(known, _)| *known == kind) {
                continue;
            }
            let (dtype, arithmetic) = kind;
            let noise = Noise {
                dtype,
                arithmetic,
                shortcut: None,
                by_stage: false,
                samples: SAMPLES,
                seed: SEED,
            };
            predictions.kinds.push((kind, obtain(&noise)));
        }
        predictions
    }

    /// The prediction of one case of the plan for a target that loaded the model as `loaded`.
    ///
    /// # Panics
    /// Where it was not obtained.
    pub fn of(&self, loaded: &Loaded, case: usize) -> &Prediction {
        let kind = self.kind(loaded);
        let known = self.kinds.iter().find(|(known, _)| *known == kind);
        &known
            .expect("predictions were obtained for every loaded target")
            .1[case]
    }

    /// In units of u, f64 errs as f32 does, as long as both can hold the weights.
    fn kind(&self, loaded: &Loaded) -> Kind {
        let dtype = match loaded.dtype {
            Dtype::F64 if !self.stores_f64 => Dtype::F32,
            dtype => dtype,
        };
        (dtype, loaded.arithmetic)
    }
}

/// What rounding does to one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prediction {
    /// Relative error of each sample, in u, by observation.
    pub errors: BTreeMap<String, Vec<f64>>,
    /// Rows that each observation is compared in.
    pub rows: BTreeMap<String, usize>,
    /// The best tokens of each mask.
    pub masks: Vec<MaskNoise>,
    /// What each sample adds to the cosine of a similarity case, in u.
    pub cosine: Vec<f64>,
}

/// What rounding does to the logits of one mask's best tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskNoise {
    /// The tokens that the truth thinks best, the best first.
    pub ids: Vec<u32>,
    /// For each sample what it adds to their logits, in u, centred over the vocabulary.
    pub errors: Vec<Vec<f64>>,
    /// Root mean square of what the samples add to any logit of the row, in u.
    pub any: f64,
}

impl Prediction {
    /// The predicted error of an observation in u, with what few rows [scatter] by.
    pub fn error_u(&self, name: &str) -> Option<f64> {
        let rows = self.rows.get(name)?;
        Some(self.usual_u(name)? * scatter(*rows))
    }

    /// The usual error of an observation in u: the root mean square over the samples.
    pub fn usual_u(&self, name: &str) -> Option<f64> {
        let errors = self.errors.get(name)?;
        Some(root_mean_square(errors.iter().copied()))
    }

    /// The predicted error of the cosine, absolute.
    pub fn cosine_error(&self, dtype: Dtype) -> f64 {
        root_mean_square(self.cosine.iter().copied()) * roundoff(dtype)
    }
}

impl MaskNoise {
    /// The predicted error of the difference of two tokens' logits, absolute. A few samples may be small
    /// by chance, so they are joined by as many independent errors of the row's usual size.
    pub fn difference(&self, one: u32, other: u32, dtype: Dtype) -> f64 {
        let place = |id| self.ids.iter().position(|known| *known == id);
        let usual = std::f64::consts::SQRT_2 * self.any;
        let in_u = match (place(one), place(other)) {
            (Some(one), Some(other)) => {
                let sampled = self.errors.iter().map(|errors| errors[one] - errors[other]);
                root_mean_square(sampled.chain(self.errors.iter().map(|_| usual)))
            }
            _ => usual,
        };
        in_u * roundoff(dtype)
    }
}

/// How much larger than usual the error of an observation of so many rows may well be: √(1 + 1/n).
///
/// Much of a row's error can come from a single number that the whole row shares, the reciprocal of a layer norm's
/// deviation. Its square then scatters by about its own size, as one of a normal variable does, and the
/// mean square of n rows by an n-th of that.
pub fn scatter(rows: usize) -> f64 {
    (1.0 + 1.0 / rows.max(1) as f64).sqrt()
}

fn roundoff(dtype: Dtype) -> f64 {
    dtype.unit_roundoff().unwrap_or(f64::NAN)
}

/// Predicts some cases of a plan, in order.
pub fn predict(
    model: &Model,
    plan: &Plan,
    cases: &[&PlannedCase],
    noise: &Noise,
) -> Vec<Prediction> {
    let sequences: Vec<_> = cases
        .iter()
        .flat_map(|case| &plan.sequences[case.sequences.clone()])
        .cloned()
        .collect();
    let sampled = oracle::sampled(model, &sequences, noise);
    let mut rest = &sampled[..];
    cases
        .iter()
        .map(|case| {
            let (own, others) = rest.split_at(case.sequences.len());
            rest = others;
            prediction(model, case, own)
        })
        .collect()
}

fn prediction(model: &Model, case: &PlannedCase, sampled: &[Sampled]) -> Prediction {
    let samples = sampled.first().map_or(0, |sequence| sequence.errors.len());
    let layers = model.config.num_hidden_layers;
    let truths: Vec<&Truth> = sampled.iter().map(|sequence| &sequence.truth).collect();
    let mut names: Vec<String> = truths
        .iter()
        .flat_map(|truth| truth.keys())
        .cloned()
        .collect();
    names.push(CLS.to_owned());
    names.sort_unstable();
    names.dedup();
    let width = |name: &str| match name {
        observation::LOGITS => model.config.vocab_size,
        _ => model.config.hidden_size,
    };
    let of = |name: String| {
        let truth = observed::truth(&truths, &name, layers);
        let relative = |sample: usize| {
            let errors: Vec<_> = sampled.iter().map(|one| &one.errors[sample]).collect();
            norm(&observed::errors(&errors, &name, layers)) / norm(&truth)
        };
        let errors = (0..samples).map(relative).collect();
        let rows = truth.len() / width(&name);
        ((name.clone(), errors), (name, rows))
    };
    let (errors, rows) = names.into_iter().map(of).unzip();
    let is_fill_mask = matches!(case.case.task, Task::FillMask { .. });
    let masked = sampled.iter().filter(|_| is_fill_mask);
    let is_similarity = matches!(case.case.task, Task::Similarity { .. });
    let cosine = (0..samples).filter(|_| is_similarity).map(|sample| {
        let last = observation::hidden(layers);
        let [a, b] = [0, 1].map(|text| truths[text][&last].row(0));
        let [da, db] = [0, 1].map(|text| sampled[text].errors[sample][&last].row(0));
        cosine_slope(a, b, da, db)
    });
    Prediction {
        errors,
        rows,
        masks: masked.flat_map(mask_noise).collect(),
        cosine: cosine.collect(),
    }
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// What errors `da` and `db` of two vectors add to the cosine between them, to first order.
fn cosine_slope(a: &[f64], b: &[f64], da: &[f32], db: &[f32]) -> f64 {
    let cosine = cosine(a, b);
    let dot =
        |x: &[f64], dx: &[f32]| -> f64 { x.iter().zip(dx).map(|(x, dx)| x * f64::from(*dx)).sum() };
    let (norm_a, norm_b) = (norm(a), norm(b));
    (dot(b, da) + dot(a, db)) / (norm_a * norm_b)
        - cosine * (dot(a, da) / (norm_a * norm_a) + dot(b, db) / (norm_b * norm_b))
}

fn mask_noise(sampled: &Sampled) -> Vec<MaskNoise> {
    let Some(logits) = sampled.truth.get(observation::LOGITS) else {
        return Vec::new();
    };
    let row_noise = |row: usize| {
        let ids = crate::answer::best(logits.row(row), CANDIDATES);
        let errors = sampled.errors.iter().map(|errors| {
            let errors = errors[observation::LOGITS].row(row);
            let mut errors: Vec<f64> = errors.iter().map(|error| f64::from(*error)).collect();
            let width = errors.len();
            centre_rows(&mut errors, width);
            errors
        });
        let errors: Vec<Vec<f64>> = errors.collect();
        let of_candidates = |errors: &Vec<f64>| ids.iter().map(|id| errors[*id as usize]).collect();
        MaskNoise {
            any: root_mean_square(errors.iter().flatten().copied()),
            errors: errors.iter().map(of_candidates).collect(),
            ids,
        }
    };
    (0..logits.height()).map(row_noise).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_of_a_cosine() {
        let (a, b, da, db) = (
            [1.0, 2.0, 0.5],
            [0.5, -1.0, 2.0],
            [0.1f32, 0.0, -0.3],
            [0.2f32, 0.1, 0.0],
        );
        let moved = |x: &[f64; 3], dx: &[f32; 3], step: f64| -> Vec<f64> {
            x.iter()
                .zip(dx)
                .map(|(x, dx)| x + step * f64::from(*dx))
                .collect()
        };
        let at = |step| cosine(&moved(&a, &da, step), &moved(&b, &db, step));
        let expected = (at(1e-6) - at(-1e-6)) / 2e-6;
        assert!((cosine_slope(&a, &b, &da, &db) - expected).abs() < 1e-8);
    }

    #[test]
    fn a_single_row_scatters_more_than_many() {
        let prediction = Prediction {
            errors: BTreeMap::from(
                ["cls", "hidden.1"].map(|name| (name.to_owned(), vec![3.0, -4.0])),
            ),
            rows: BTreeMap::from([("cls".to_owned(), 1), ("hidden.1".to_owned(), 8)]),
            masks: Vec::new(),
            cosine: Vec::new(),
        };
        let usual = 12.5f64.sqrt();
        assert_eq!(prediction.usual_u("cls"), Some(usual));
        assert_eq!(prediction.error_u("cls"), Some(usual * 2f64.sqrt()));
        assert_eq!(
            prediction.error_u("hidden.1"),
            Some(usual * 1.125f64.sqrt())
        );
        assert_eq!(prediction.error_u("hidden.2"), None);
    }

    #[test]
    fn noise_of_a_difference() {
        let mask = MaskNoise {
            ids: vec![7, 9],
            errors: vec![vec![3.0, 1.0], vec![-1.0, 1.0]],
            any: 5.0,
        };
        let unit = 2.0f64.powi(-24);
        // Two of size 2, joined by two of size √50.
        assert_eq!(mask.difference(7, 9, Dtype::F32), 27f64.sqrt() * unit);
        assert_eq!(mask.difference(7, 1, Dtype::F32), 50f64.sqrt() * unit);
    }
}
