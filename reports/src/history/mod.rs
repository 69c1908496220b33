//! The history of runs: what became of each target over time.
//!
//! [`trends`] is a function of the runs alone. A database keeps them (the harness's `history`).

mod terminal;
mod trend;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use terminal::render;
pub use trend::{Change, Grown, Point, Trend, trends};

use crate::record::Verdict;

/// What is kept of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryRun {
    /// SHA-256 of its record, 64 hexadecimal digits.
    pub digest: String,
    /// Start, in seconds since 1970-01-01T00:00:00Z.
    pub started: u64,
    /// Day of the run, as in `2026-11-24`.
    pub day: String,
    /// Version of driftgauge.
    pub driftgauge: String,
    /// ID of the model.
    pub model: String,
    /// Digest of the model's files; runs of different files are never compared.
    pub model_files: String,
    /// Exit code of the run.
    pub exit_code: u8,
    /// How far an error may move, in predicted errors.
    pub move_limit: f64,
    /// Its targets, in the order of the record.
    pub targets: Vec<HistoryTarget>,
}

/// What is kept of a target of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryTarget {
    /// The target.
    pub target: String,
    /// Its [environment](crate::environment).
    pub environment: BTreeMap<String, String>,
    /// Seconds of all forward passes.
    pub forward: f64,
    /// What came out, by `suite/case`.
    pub cases: BTreeMap<String, HistoryCase>,
}

/// What is kept of a result.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryCase {
    /// Digest of the token IDs; results of different tokens are never compared.
    pub tokens: String,
    /// The verdict.
    pub verdict: Verdict,
    /// The errors, by observation.
    pub errors: BTreeMap<String, HistoryError>,
}

/// An error that was measured; in the database the array of its two fields.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HistoryError(
    /// In units of noise, to five digits; `null` where it is not finite.
    pub Option<f64>,
    /// In effective bits.
    pub Option<f64>,
);

/// Renders trends as JSON, with one key per line and a final newline.
///
/// # Errors
/// [`serde_json::Error`] where they hold what JSON cannot say.
pub fn render_json(trends: &[Trend]) -> Result<String, serde_json::Error> {
    let mut text = serde_json::to_string_pretty(trends)?;
    text.push('\n');
    Ok(text)
}
