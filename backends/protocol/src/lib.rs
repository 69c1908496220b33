//! What the harness and its workers say to each other.
//!
//! A *worker* is one process that runs one backend with one loaded model. It is started by the
//! harness and spoken to over its standard input and output in [frames](frame): a JSON header and
//! an optional safetensors payload. Both sides are built from the same commit, so
//! [`PROTOCOL_VERSION`] must be equal; there is no negotiation.
//!
//! The order of messages:
//!
//! ```text
//! worker  → Hello                      unasked, when the library is ready
//! harness → Load                       first; again to load another model in its place
//! worker  → Loaded | Failed
//! harness → Run   + input tensors      any number of times
//! worker  → Ran   + observations | Failed
//! harness → Probe + input tensors      any number of times
//! worker  → Ran   + steps | Failed
//! harness closes the pipe; the worker exits with status 0
//! ```
//!
//! A backend implements [`Backend`] and [`LoadedModel`] and calls [`serve::main`]; it never reads
//! suites, budgets or snapshots. This crate holds no inference and links no native library.

mod backend;
mod bert;
pub mod fault;
pub mod frame;
mod message;
pub mod serve;
mod stage;
mod tensor;
mod weights;

pub use backend::{Backend, Batch, LoadedModel};
pub use bert::{BertConfig, HiddenAct};
pub use message::{
    Arithmetic, Bias, Failure, FailureKind, Hello, LoadRequest, Loaded, PROTOCOL_VERSION,
    ProbeRequest, Properties, Ran, Reply, Request, RunRequest, Variance,
};
pub use stage::{Stage, Step};
pub use tensor::{Dtype, Tensor, TensorError, decode_tensors, encode_tensors, widen};
pub use weights::{FileIdentity, Location, Weights, WeightsError, WeightsFile};

/// Variables that the harness sets for a worker.
pub mod environment {
    /// The folder of native runtimes that `ci/setup` fills, one folder for each library.
    pub const RUNTIMES: &str = "DRIFTGAUGE_RUNTIMES";
    /// The one library that the worker must load, where the target's `lib` option names it.
    pub const LIBRARY: &str = "DRIFTGAUGE_LIBRARY";
}

/// Names of [`Properties`] that the harness knows; a backend may state any others.
pub mod property {
    /// File of the library that was loaded. A place on the machine: it stands apart in a record.
    pub const LIBRARY_PATH: &str = "library_path";
}

/// Names of observations: what a worker can be asked to produce for a batch of `B` sequences of
/// `S` tokens.
pub mod observation {
    /// Output of the embedding stage, after its layer norm: `[B, S, hidden_size]`.
    pub const EMBEDDINGS: &str = "embeddings";
    /// Scores of the masked-language-model head at the requested rows, before the softmax:
    /// `[rows, vocab_size]`.
    pub const LOGITS: &str = "logits";

    /// Output of encoder layer `layer`, counted from 1 as in the number of layers passed:
    /// `[B, S, hidden_size]`. `hidden.0` does not exist: that is [`EMBEDDINGS`].
    pub fn hidden(layer: usize) -> String {
        format!("hidden.{layer}")
    }

    /// The layer number of a `hidden.N` observation name.
    pub fn hidden_layer(name: &str) -> Option<usize> {
        name.strip_prefix("hidden.")?.parse().ok()
    }
}
