//! Implementations that the fake worker can pass itself off as: correct ones, and such as compute a
//! whole model a little differently. What they get wrong is wrong everywhere, unlike a
//! [fault](crate::fault).

use driftgauge::model::Model;
use driftgauge::oracle::{self, Noise, Sampled, Sequence, Shortcut, Truth};
use driftgauge_protocol::{Arithmetic, Dtype, Failure, HiddenAct};
use serde::Deserialize;
use serde::de::{IntoDeserializer, value};

/// An implementation, as a target names it in kebab-case: `as=tanh-gelu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Imitation {
    /// Rounds as a correct implementation does.
    Rounding,
    /// Rounds the operands of products to TF32.
    Tf32,
    /// Computes in f16 and says f32.
    F16,
    /// Computes in bf16 and says f32.
    Bf16,
    /// Has its weights in bf16.
    Bf16Weights,
    /// Adds up a noise that no format has: thirty times that of f32.
    Noisy,
    /// Has a layer norm with an epsilon of 1e-5, as is the default of most libraries.
    Eps,
    /// Has an epsilon that is so little off that the noise of f32 hides it.
    HiddenEps,
    /// Has the tanh approximation of GELU.
    TanhGelu,
}

impl Imitation {
    /// The imitation of a name.
    ///
    /// # Errors
    /// For an unknown name; the message lists the known ones.
    pub fn named(name: &str) -> Result<Self, Failure> {
        Self::deserialize(name.into_deserializer())
            .map_err(|error: value::Error| Failure::unsupported(error.to_string()))
    }

    /// Changes what the model computes, where the formula is another one.
    pub fn change(self, model: &mut Model) {
        match self {
            Imitation::Eps => model.config.layer_norm_eps = 1e-5,
            Imitation::HiddenEps => model.config.layer_norm_eps *= 10.0,
            Imitation::TanhGelu => model.config.hidden_act = HiddenAct::GeluTanh,
            _ => {}
        }
    }

    /// What this implementation makes of sequences in `dtype`, before it is rounded to that. In
    /// float64 it keeps its formula, and rounding is none of its business.
    pub fn run(self, model: &Model, sequences: &[Sequence], dtype: Dtype) -> Vec<Truth> {
        let (noise_dtype, shortcut, factor) = match self {
            _ if dtype == Dtype::F64 => return oracle::truths(model, sequences),
            Imitation::Rounding | Imitation::Eps | Imitation::HiddenEps | Imitation::TanhGelu => {
                (dtype, None, 1.0)
            }
            Imitation::Tf32 => (dtype, Some(Shortcut::Products(11)), 1.0),
            Imitation::F16 => (Dtype::F16, None, 1.0),
            Imitation::Bf16 => (Dtype::Bf16, None, 1.0),
            Imitation::Bf16Weights => (dtype, Some(Shortcut::Weights(Dtype::Bf16)), 1.0),
            Imitation::Noisy => (dtype, None, 30.0),
        };
        let noise = Noise {
            dtype: noise_dtype,
            arithmetic: Arithmetic::default(),
            shortcut,
            by_stage: false,
            samples: 1,
            // Not that of the predictions: an implementation does not know them.
            seed: 7,
        };
        let unit = factor * noise_dtype.unit_roundoff().unwrap_or_default();
        let sampled = oracle::sampled(model, sequences, &noise).into_iter();
        sampled.map(|sampled| with_errors(sampled, unit)).collect()
    }
}

/// The truth with the errors of its first sample, in units of `unit`.
fn with_errors(sampled: Sampled, unit: f64) -> Truth {
    let mut truth = sampled.truth;
    for (name, values) in &mut truth {
        if let Some(errors) = sampled.errors.first().and_then(|errors| errors.get(name)) {
            let parts = values.values_mut().iter_mut().zip(errors.values());
            parts.for_each(|(value, error)| *value += unit * f64::from(*error));
        }
    }
    truth
}
