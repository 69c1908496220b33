//! Messages, as they stand in a frame's JSON header.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::{BertConfig, Dtype, Stage, WeightsFile};

/// Both sides must have the same number. Raise it whenever a message or the frame changes.
pub const PROTOCOL_VERSION: u32 = 3;

/// Facts that a worker states about itself, sorted by name, for the record: build flags, CPU
/// capability, execution provider, and the like.
pub type Properties = BTreeMap<String, String>;

/// What the harness asks of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    /// Load a model; asked first. Asked again, it takes the place of the one before.
    Load(Box<LoadRequest>),
    /// Run one padded batch; its tensors are in the payload, see [`crate::Batch`].
    Run(RunRequest),
    /// Run one stage, and return the result of each of its steps. The payload is the batch, and beside it `input`,
    /// the hidden state that the stage starts from, `[sequences, length, hidden_size]` in the dtype of the
    /// model; the embedding stage has none.
    Probe(ProbeRequest),
}

/// Everything a worker needs to load a model onto a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadRequest {
    /// The architecture, already checked by the harness.
    pub config: BertConfig,
    /// The weights, already hashed by the harness.
    pub weights: WeightsFile,
    /// Whether the checkpoint has a masked-language-model head that will be asked for `logits`.
    pub mlm_head: bool,
    /// `cpu` or `cuda:N`. A worker that cannot use it must fail, never fall back.
    pub device: String,
    /// The number format that the model computes in.
    pub dtype: Dtype,
    /// Threads that one operation may use, at least 1.
    pub threads: usize,
    /// Options of the target (`?opt=basic` and the like). A worker must refuse one it does not know.
    pub options: BTreeMap<String, String>,
    /// How the model must deviate from the one above: only in a self-test, see [`crate::fault`].
    pub fault: Option<Fault>,
}

/// Which observations of a batch are wanted; the batch itself is the payload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// Returned with the answer, so that an answer too many cannot pass for the next one.
    pub number: u64,
    /// Names of observations, each one of those that [`Loaded::observations`] offers.
    pub wanted: Vec<String>,
    /// The rows of `logits`, as (sequence, position) pairs, in this order.
    pub logit_rows: Vec<(usize, usize)>,
}

/// Which stage is wanted; the batch and its input are the payload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRequest {
    /// Returned with the answer.
    pub number: u64,
    /// The stage.
    pub stage: Stage,
    /// The rows that the head is wanted for, as (sequence, position) pairs.
    pub logit_rows: Vec<(usize, usize)>,
}

/// What a worker answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum Reply {
    /// Sent unasked, when the worker has started and its library is ready.
    Hello(Hello),
    /// The model is loaded.
    Loaded(Loaded),
    /// The batch was run; the observations are the payload, or the [steps](crate::Step) of a stage by name.
    Ran(Ran),
    /// The request cannot be carried out; the worker is still alive.
    Failed(Failure),
}

/// A worker's first words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the worker's build.
    pub protocol: u32,
    /// Name of the backend, as in a target: `candle`.
    pub backend: String,
    /// Name of the library that computes: `candle-transformers`.
    pub library: String,
    /// Exact version of that library, as the loaded library itself states it where it can.
    pub version: String,
    /// Build flags, CPU capability, path of a runtime that was loaded, and the like.
    pub properties: Properties,
}

/// A worker's answer to [`Request::Load`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loaded {
    /// The device that is really used, in the words of [`LoadRequest::device`].
    pub device: String,
    /// The number format that is really used.
    pub dtype: Dtype,
    /// Threads that one operation really uses.
    pub threads: usize,
    /// Observations that this model offers without changing what is computed.
    pub observations: Vec<String>,
    /// How the library adds numbers up.
    pub arithmetic: Arithmetic,
    /// Options with which the library computes the same formula in float64 and rounds nothing to a
    /// narrower format on the way: those of the request, or what has to be changed in them.
    pub float64_options: BTreeMap<String, String>,
    /// Settings in force: optimisation level, execution provider, math mode, and the like.
    pub properties: Properties,
    /// Time that loading took, in seconds.
    pub seconds: f64,
}

/// How a library adds numbers up, as far as that changes how rounding errors grow. It is a property of
/// correct kernels, stated by the backend that knows them; the harness predicts errors from it. What
/// a backend does not know is left at the [default](Arithmetic::default).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arithmetic {
    /// Terms of a matrix product that are added one after the other before the partial sums are.
    pub product_run: usize,
    /// Partial sums that a sum over a row keeps side by side (layer norm, softmax): the width of a
    /// vector register times what is unrolled, or 1 for one number after the other.
    pub reduction_lanes: usize,
    /// When a dense layer's bias joins the sum.
    pub bias: Bias,
    /// How layer norm computes the variance.
    pub variance: Variance,
}

/// When a bias joins the sum of a matrix product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bias {
    /// Every sum starts from the bias, so that all partial sums are as large as that.
    First,
    /// It is added to the finished sum.
    Last,
}

/// Formulas of the variance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variance {
    /// The mean of (x − mean)².
    TwoPass,
    /// The mean of x² less the square of the mean, which cancels where the mean is large.
    OnePass,
}

impl Default for Arithmetic {
    /// What optimised kernels do on today's CPUs: products in blocks of 256, sums in 16 lanes.
    fn default() -> Self {
        Self {
            product_run: 256,
            reduction_lanes: 16,
            bias: Bias::Last,
            variance: Variance::TwoPass,
        }
    }
}

/// A worker's answer to [`Request::Run`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ran {
    /// [`RunRequest::number`] or [`ProbeRequest::number`] of the request that this answers.
    pub number: u64,
    /// Time that the forward pass took, in seconds.
    pub seconds: f64,
}

/// Why a worker could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure it is.
    pub kind: FailureKind,
    /// What happened, in the library's own words where it has any.
    pub message: String,
    /// The next step for the user, where there is one.
    pub hint: Option<String>,
}

/// Kinds of [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The library cannot do this (a dtype, a device, an activation): the verdict is `unsupported`.
    Unsupported,
    /// The library should be able to do this and failed: the verdict is `broken`.
    Error,
}

impl Failure {
    /// The library cannot do this.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Unsupported,
            message: message.into(),
            hint: None,
        }
    }

    /// The library failed; `message` should carry its own words.
    pub fn error(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Error,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds the next step for the user.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
