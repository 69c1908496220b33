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

/// Options for a session that computes the same numbers every time and leaves the other threads of
/// the machine alone. Everything that is not named here is ONNX Runtime's default, as in production:
/// the memory arena, memory patterns, and packing the weights ahead.
///
/// # Errors
/// Where ONNX Runtime refuses an option.
pub fn options(runtime: &Runtime, level: Level, threads: usize) -> ort::Result<SessionBuilder> {
    Ok(Session::builder(&runtime.environment)?
        .with_optimization_level(level.into())?
        .with_intra_threads(threads)?
        .with_inter_threads(1)?
        .with_parallel_execution(false)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_deterministic_compute(true)?
        .with_log_level(LogLevel::Warning)?)
}

/// Creates the session of a model whose external data lie in `folder`.
///
/// # Errors
/// With ONNX Runtime's own words.
pub fn create(options: SessionBuilder, model: &ModelProto, folder: &Path) -> ort::Result<Session> {
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
        .commit_from_memory(&model.encode_to_vec())
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
