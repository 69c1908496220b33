//! The record of `driftgauge consistency`: whether a target gives the same numbers however a case is
//! run.
//!
//! `consistency.json` is [`ConsistencyRecord`] as JSON, under the same rules as the record of a run
//! ([`crate::record`]). The table is in `consistency/table.rs`; both are functions of the record alone.

mod table;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use table::render;

use crate::record::{Finding, ModelRecord, RunTime};

/// Raised when a field changes its meaning or disappears.
pub const CONSISTENCY_VERSION: u32 = 1;
/// The `format` of every such record.
pub const CONSISTENCY_FORMAT: &str = "driftgauge-consistency";

/// One run of `driftgauge consistency`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsistencyRecord {
    /// [`CONSISTENCY_FORMAT`].
    pub format: String,
    /// [`CONSISTENCY_VERSION`] of the program that wrote it.
    pub version: u32,
    /// Version of driftgauge.
    pub driftgauge: String,
    /// The outcome in numbers.
    pub summary: ConsistencySummary,
    /// What differences are judged by.
    pub method: ConsistencyMethod,
    /// The model that was run.
    pub model: ModelRecord,
    /// The sequences that were run, the shortest first.
    pub sequences: Vec<SequenceRecord>,
    /// The targets, in the order of the command line.
    pub targets: Vec<TargetConsistency>,
    /// The machine.
    pub host: BTreeMap<String, String>,
    /// Where things were on the machine.
    pub paths: BTreeMap<String, String>,
    /// When, and how long.
    pub time: RunTime,
}

/// The outcome of all checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsistencySummary {
    /// Exit code: 0 where every check is bitwise or within its budget, 1 drift, 3 a target broke.
    pub exit_code: u8,
    /// Number of checks for each outcome that occurs, over all targets; a target that did not load
    /// counts as one.
    pub outcomes: BTreeMap<Outcome, usize>,
}

/// What differences are judged by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsistencyMethod {
    /// The budget of one result is this many times its noise.
    pub k: f64,
    /// How far apart two correct results may be, in the noise of one: √2 times `k`.
    pub limit: f64,
    /// Samples of the error that the noise is predicted from.
    pub samples: usize,
    /// Where their random numbers start.
    pub seed: u64,
}

/// A sequence that was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceRecord {
    /// Suite and case; of a case with two texts also which of them, as in `similarity/weather:b`.
    pub case: String,
    /// Its tokens.
    pub tokens: usize,
    /// Rows of logits that it is asked for.
    pub logits: usize,
}

/// The checks of one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetConsistency {
    /// The target, as in `candle@cpu/f32`.
    pub target: String,
    /// Library that computed; `null` where the worker never said.
    pub library: Option<String>,
    /// Exact version of the library.
    pub library_version: Option<String>,
    /// Threads that one operation used, except where a check asks for others.
    pub threads: Option<usize>,
    /// What the worker states about its library and its settings.
    pub properties: BTreeMap<String, String>,
    /// Why the target could not be used at all; then there are no checks.
    pub finding: Option<Finding>,
    /// How often a worker had to be started again.
    pub restarts: usize,
    /// One entry for each check, in the order of [`Check::ALL`].
    pub checks: Vec<CheckRecord>,
}

/// What may change from one way of running a case to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Check {
    /// The same process runs the same batch once more.
    Again,
    /// A fresh process.
    Process,
    /// Another number of threads.
    Threads,
    /// Alone, or first in a batch of sequences of the same length.
    Batch,
    /// Each place in that batch.
    Position,
    /// Padding on the right.
    Padding,
    /// Alone, or in a batch of all sequences, padded to the longest.
    Together,
    /// That batch in the opposite order.
    Order,
}

impl Check {
    /// All checks, in the order of reports.
    pub const ALL: [Check; 8] = [
        Check::Again,
        Check::Process,
        Check::Threads,
        Check::Batch,
        Check::Position,
        Check::Padding,
        Check::Together,
        Check::Order,
    ];

    /// The words for it in reports.
    pub fn name(self) -> &'static str {
        match self {
            Check::Again => "same process twice",
            Check::Process => "fresh process",
            Check::Threads => "1 and 2 threads",
            Check::Batch => "alone or batched",
            Check::Position => "place in the batch",
            Check::Padding => "right padding",
            Check::Together => "padded together",
            Check::Order => "order of the batch",
        }
    }
}

/// How a comparison ended, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing was compared; the reason is there.
    Skipped,
    /// Every number is the same to the bit.
    Bitwise,
    /// Numbers differ, but no further than two correct results may.
    Within,
    /// Numbers differ further, or are damaged.
    Drift,
    /// The target cannot do it.
    Unsupported,
    /// The target crashed, hung, answered garbage, or failed.
    Broken,
}

impl Outcome {
    /// The word for it in reports.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Skipped => "not run",
            Outcome::Bitwise => "bitwise",
            Outcome::Within => "within",
            Outcome::Drift => "drift",
            Outcome::Unsupported => "unsupported",
            Outcome::Broken => "broken",
        }
    }
}

/// One check of one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRecord {
    /// The check.
    pub check: Check,
    /// The worst outcome of its variants.
    pub outcome: Outcome,
    /// Numbers that were compared. `cls`, which is part of the last layer, is not counted again.
    pub elements: usize,
    /// Those that are not the same to the bit.
    pub differing: usize,
    /// The largest difference in units of noise; `null` where there is none, or no number for it.
    pub largest: Option<Difference>,
    /// The ways in which the cases were run.
    pub variants: Vec<VariantRecord>,
}

/// One way of running the cases, compared with another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariantRecord {
    /// What it is: `7 tokens of padding`.
    pub variant: String,
    /// What it is compared with: `alone`.
    pub against: String,
    /// The worst outcome of its sequences.
    pub outcome: Outcome,
    /// What is wrong, where more is wrong than a difference.
    pub finding: Option<Finding>,
    /// Sequences that were not run, with the reason.
    pub skipped: Vec<String>,
    /// The sequences that were compared.
    pub cases: Vec<CaseRecord>,
}

/// One sequence, compared between two ways of running it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseRecord {
    /// As in [`SequenceRecord::case`].
    pub case: String,
    /// How the comparison ended.
    pub outcome: Outcome,
    /// Numbers that were compared.
    pub elements: usize,
    /// Those that are not the same to the bit.
    pub differing: usize,
    /// The first observation, in the order of the computation, that differs.
    pub starts: Option<String>,
    /// The observation with the largest difference in units of noise; `null` where there is none.
    pub largest: Option<Difference>,
}

/// A difference between two results of one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// The way of running the case.
    pub variant: String,
    /// As in [`SequenceRecord::case`].
    pub case: String,
    /// The observation.
    pub observation: String,
    /// Largest difference of two numbers.
    pub max_abs: f64,
    /// ‖a − b‖₂ / ‖b‖₂ in units of roundoff of the dtype; `null` where it is not finite.
    pub distance_u: Option<f64>,
    /// The same in units of the noise of one result; `null` where it is not finite.
    pub noise: Option<f64>,
}

impl Difference {
    /// The difference in units of noise; infinite where it is not finite.
    pub fn in_noise(&self) -> f64 {
        self.noise.unwrap_or(f64::INFINITY)
    }
}

/// Renders the record as JSON.
///
/// # Errors
/// [`serde_json::Error`] where the record holds what JSON cannot say.
pub fn render_json(record: &ConsistencyRecord) -> Result<String, serde_json::Error> {
    Ok(format!("{}\n", serde_json::to_string_pretty(record)?))
}
