//! Messages, as they stand in a frame's JSON header.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{BertConfig, Dtype, WeightsFile};

/// Both sides must have the same number. Raise it whenever a message or the frame changes.
pub const PROTOCOL_VERSION: u32 = 1;

/// Facts that a worker states about itself, sorted by name, for the record: build flags, CPU
/// capability, execution provider, and the like.
pub type Properties = BTreeMap<String, String>;

/// What the harness asks of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    /// Load a model; asked once, first.
    Load(Box<LoadRequest>),
    /// Run one padded batch; its tensors are in the payload, see [`crate::Batch`].
    Run(RunRequest),
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

/// What a worker answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum Reply {
    /// Sent unasked, when the worker has started and its library is ready.
    Hello(Hello),
    /// The model is loaded.
    Loaded(Loaded),
    /// The batch was run; the observations are the payload.
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
    /// Settings in force: optimisation level, execution provider, math mode, and the like.
    pub properties: Properties,
    /// Time that loading took, in seconds.
    pub seconds: f64,
}

/// A worker's answer to [`Request::Run`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ran {
    /// [`RunRequest::number`] of the request that this answers.
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
