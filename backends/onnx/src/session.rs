//! The options that a session is created with.
//!
//! What ONNX Runtime does with a dtype is its own affair, and part of what is measured: on a CPU it
//! refuses an `f64` or `bf16` operation without a kernel, but around an `f16` operation without one
//! it inserts casts and computes in `f32`.

use std::path::Path;

use driftgauge_protocol::{Dtype, Failure};
use ort::logging::LogLevel;
use ort::session::{
    Session,
    builder::{GraphOptimizationLevel, SessionBuilder},
};
use ort::{Error, ErrorCode};
use prost::Message;

use crate::proto::ModelProto;
use crate::runtime::Runtime;

/// Protocol buffers count their bytes in 31 bits.
const LARGEST_MODEL: usize = i32::MAX as usize;

/// How much ONNX Runtime may change the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// Nothing.
    Disable,
    /// Constant folding and redundant nodes.
    Basic,
    /// Fusions too.
    Extended,
    /// Everything, layouts included: ONNX Runtime's own default.
    #[default]
    All,
}

impl Level {
    /// Every level, from the least to the most.
    pub const ALL: [Self; 4] = [Self::Disable, Self::Basic, Self::Extended, Self::All];

    /// The name in a target: `basic`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Basic => "basic",
            Self::Extended => "extended",
            Self::All => "all",
        }
    }
}

impl From<Level> for GraphOptimizationLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Disable => Self::Disable,
            Level::Basic => Self::Level1,
            Level::Extended => Self::Level2,
            Level::All => Self::All,
        }
    }
}

/// What ONNX Runtime may make of a graph.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Optimisation {
    /// How much it may change.
    pub level: Level,
    /// Whether it may take the tanh form of GELU for the exact one. Never by default: it is another function.
    pub gelu_approximation: bool,
    /// Names of the [optimisers](crate::optimisers) that are switched off.
    pub without: Vec<String>,
}

/// How sessions are created.
#[derive(Clone)]
pub struct Settings {
    /// The library.
    pub runtime: Runtime,
    /// What it may make of the graph.
    pub optimisation: Optimisation,
    /// Threads that one operation may use.
    pub threads: usize,
}

/// Options for a session that computes the same numbers every time and leaves the other threads of
/// the machine alone. Everything that is not named here is ONNX Runtime's default, as in production:
/// the memory arena, memory patterns, and packing the weights ahead.
///
/// # Errors
/// Where ONNX Runtime refuses an option.
pub fn options(settings: &Settings) -> ort::Result<SessionBuilder> {
    let optimisation = &settings.optimisation;
    let mut options = Session::builder(&settings.runtime.environment)?
        .with_optimization_level(optimisation.level.into())?
        .with_intra_threads(settings.threads)?
        .with_inter_threads(1)?
        .with_parallel_execution(false)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_deterministic_compute(true)?
        .with_log_level(LogLevel::Warning)?;
    if optimisation.gelu_approximation {
        options = options.with_approximate_gelu()?;
    }
    if !optimisation.without.is_empty() {
        options = options.with_disabled_optimizers(optimisation.without.join(";"))?;
    }
    Ok(options)
}

/// Creates the session of a model whose external data lie in a weights file.
///
/// # Errors
/// With ONNX Runtime's own words.
pub fn create(settings: &Settings, model: &ModelProto, weights: &Path) -> ort::Result<Session> {
    commit(options(settings)?, model, weights)
}

/// As [`create`], with options of one's own.
///
/// # Errors
/// As [`create`], and for changed weights of so many bytes that no model can hold them.
pub fn commit(options: SessionBuilder, model: &ModelProto, weights: &Path) -> ort::Result<Session> {
    let size = model.encoded_len();
    if size > LARGEST_MODEL {
        return Err(Error::new(format!(
            "the model is {size} bytes with the changed weights inside, ONNX holds {LARGEST_MODEL}"
        )));
    }
    commit_bytes(options, &model.encode_to_vec(), weights)
}

/// Creates the session of a model that is encoded already, and whose external data lie beside a file.
///
/// # Errors
/// With ONNX Runtime's own words.
pub fn commit_bytes(options: SessionBuilder, model: &[u8], beside: &Path) -> ort::Result<Session> {
    // The parent of a bare file name is an empty path.
    let folder = beside.parent().filter(|folder| *folder != Path::new(""));
    let folder = folder.unwrap_or(Path::new("."));
    let folder = folder.to_str().ok_or_else(|| {
        let name = folder.display();
        Error::new(format!(
            "`{name}` cannot hold a model: its name is not UTF-8"
        ))
    })?;
    options
        .with_config_entry(
            "session.model_external_initializers_file_folder_path",
            folder,
        )?
        .commit_from_memory(model)
}

/// The failure for a session that could not be created. A kernel that does not exist is something
/// that ONNX Runtime cannot do; anything else should have worked.
pub fn failure(error: &Error, dtype: Dtype) -> Failure {
    let message = format!("cannot create a session in {dtype}: {error}");
    match error.code() {
        ErrorCode::NotImplemented => Failure::unsupported(message),
        _ => Failure::error(message),
    }
}
