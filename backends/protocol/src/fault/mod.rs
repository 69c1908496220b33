//! Faults: deliberate deviations from the model, injected into a worker to see whether they are found.
//!
//! A fault is a list of [`Edit`]s. What weights become (`weights.rs`) and what is fed and answered
//! (`batch.rs`) is worked out here, once, for every backend and for the oracle; only
//! changes of a step of the computation ([`Change`]) are a backend's own affair. A worker takes a fault only
//! when it was started for a self-test ([`SELFTEST`]).

mod batch;
mod weights;

use serde::{Deserialize, Serialize};

use crate::{Dtype, HiddenAct, Stage, Step};

pub use batch::{Answered, AttentionMask, Fed};
pub use weights::{Values, WeightChange, WeightEdit, changed, rounded};

/// The argument with which a worker must be started to take a fault.
pub const SELFTEST: &str = "--selftest";

/// A deliberate deviation from the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Its name, for messages.
    pub name: String,
    /// What is changed, in this order.
    pub edits: Vec<Edit>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Edit {
    /// A tensor of the checkpoint is another.
    Weights(WeightEdit),
    /// A step of the computation is another.
    Step(StepEdit),
    /// Another batch is fed than was asked for.
    Input(InputChange),
    /// Other observations are answered than were computed.
    Output(OutputChange),
}

/// A changed step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepEdit {
    /// The stage.
    pub stage: Stage,
    /// The step of that stage.
    pub step: Step,
    /// What is different.
    pub change: Change,
}

/// What is different in a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Change {
    /// [`Step::Activation`]: another function.
    Activate(Activation),
    /// [`Step::Norm`], [`Step::AttentionNorm`]: another epsilon than the configuration's.
    Epsilon(f64),
    /// [`Step::Sum`] and [`Step::AttentionSum`] of a layer: the residual is not added.
    DropResidual,
    /// [`Step::Scores`]: another attention mask.
    Mask(MaskChange),
    /// [`Step::Probabilities`]: softmax over the queries instead of the keys.
    SoftmaxOverQueries,
    /// The input of a dense step or of a layer norm is rounded to a narrower format and back.
    RoundInput(Dtype),
    /// Any step: the result is rounded to a narrower format and back.
    Round(Dtype),
    /// A dense step: products of so many inputs each are summed, each partial sum, and the sum after
    /// every addition of one, rounded to a narrower format; then the bias is added.
    Accumulate {
        /// The format.
        to: Dtype,
        /// Inputs of a partial sum; the last one may have fewer.
        every: usize,
    },
    /// Any step: results of a magnitude beyond the limit become something else.
    Beyond {
        /// Largest magnitude that stays.
        limit: f64,
        /// What the others become.
        becomes: Special,
    },
    /// Any step: results of a smaller magnitude than this become 0.
    Flush(f64),
    /// Any step: normally distributed numbers are added, anew in every run. Their standard deviation is this
    /// fraction of the root mean square of the result; masked scores and what is not finite do not count.
    Noise(f64),
}

/// Activation functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// As [`HiddenAct::Gelu`].
    Gelu,
    /// As [`HiddenAct::GeluTanh`].
    GeluTanh,
    /// x · sigmoid(1.702 x) (Hendrycks and Gimpel, arXiv:1606.08415, section 2).
    GeluQuick,
    /// As [`HiddenAct::Relu`].
    Relu,
    /// As [`HiddenAct::Silu`].
    Silu,
    /// x
    Identity,
}

impl From<HiddenAct> for Activation {
    fn from(activation: HiddenAct) -> Self {
        match activation {
            HiddenAct::Gelu => Self::Gelu,
            HiddenAct::GeluTanh => Self::GeluTanh,
            HiddenAct::Relu => Self::Relu,
            HiddenAct::Silu => Self::Silu,
        }
    }
}

/// Other attention masks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskChange {
    /// Padding is attended to as well.
    Ignored,
    /// Padding is attended to, tokens are not.
    Inverted,
    /// The first token of padding is attended to.
    Longer,
    /// The last token is not attended to.
    Shorter,
    /// Where the length of the batch is one more than a multiple of 32, its last position is not attended to.
    LastOf33,
    /// This number is added to the scores of padding, instead of the lowest there is.
    Fill(f64),
    /// No mask is added to the scores; the probabilities of padding are set to 0 and not normalised again.
    AfterSoftmax,
}

/// What a number becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Special {
    /// Not a number.
    Nan,
    /// +∞, also from negative numbers.
    Infinity,
}

impl Special {
    /// The number.
    pub fn value(self) -> f64 {
        match self {
            Self::Nan => f64::NAN,
            Self::Infinity => f64::INFINITY,
        }
    }
}

/// Another batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputChange {
    /// Attention mask and token types in each other's place.
    MaskAndTypesSwapped,
    /// Padding on the left, positions counted from the first padding.
    LeftPadding,
}

/// Other observations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputChange {
    /// Every sequence of a batch gets the hidden states of the next one, the last those of the first.
    NextSequence,
    /// Every position gets the hidden state of the next one, the last that of the first.
    NextToken,
    /// Logits are those of the next position; those of the last stay.
    NextPosition,
    /// `hidden.N` is `hidden.N-1`, `hidden.1` the embeddings.
    PreviousLayer,
    /// Logits less the logarithm of the sum of their exponentials.
    LogSoftmax,
    /// Logits are rounded to bf16 and back.
    RoundedLogits,
}

impl Fault {
    /// The changes of a step, in order.
    pub fn changes(&self, stage: Stage, step: Step) -> impl Iterator<Item = Change> {
        self.step_edits()
            .filter(move |edit| (edit.stage, edit.step) == (stage, step))
            .map(|edit| edit.change)
    }

    /// All changed steps.
    pub fn step_edits(&self) -> impl Iterator<Item = &StepEdit> {
        self.edits.iter().filter_map(|edit| match edit {
            Edit::Step(edit) => Some(edit),
            _ => None,
        })
    }

    /// All changed tensors.
    pub fn weight_edits(&self) -> impl Iterator<Item = &WeightEdit> {
        self.edits.iter().filter_map(|edit| match edit {
            Edit::Weights(edit) => Some(edit),
            _ => None,
        })
    }

    /// Whether two runs of the same batch differ.
    pub fn is_random(&self) -> bool {
        self.step_edits()
            .any(|edit| matches!(edit.change, Change::Noise(_)))
    }
}

impl Change {
    /// Whether a step can be changed so.
    pub fn fits(self, stage: Stage, step: Step) -> bool {
        let is_dense = matches!(
            step,
            Step::Query
                | Step::Key
                | Step::Value
                | Step::AttentionOutput
                | Step::Intermediate
                | Step::Output
                | Step::Transform
                | Step::Logits
        );
        let is_norm = matches!(step, Step::Norm | Step::AttentionNorm);
        stage.steps().contains(&step)
            && match self {
                Self::Activate(_) => step == Step::Activation,
                Self::Epsilon(_) => is_norm,
                Self::DropResidual => {
                    matches!(step, Step::AttentionSum | Step::Sum)
                        && matches!(stage, Stage::Layer(_))
                }
                Self::Mask(_) => step == Step::Scores,
                Self::SoftmaxOverQueries => step == Step::Probabilities,
                Self::RoundInput(_) => is_dense || is_norm,
                Self::Accumulate { .. } => is_dense,
                Self::Round(_) | Self::Beyond { .. } | Self::Flush(_) | Self::Noise(_) => true,
            }
    }
}
