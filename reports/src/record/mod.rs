//! The record: one run, complete.
//!
//! `record.json` is this type as JSON. Objects keep the order of the fields below, maps are sorted
//! by key, and numbers are written so that reading gives the same bits. The same cases and outcomes
//! give the same bytes, except for what stands under the keys [`RunRecord::time`],
//! [`RunRecord::host`], [`TargetRecord::time`] and [`RunRecord::paths`]: times, the machine, and
//! places on it.
//!
//! Infinite and undefined numbers are `null`; where a `null` can stand, the field says what it means.

mod finding;
mod result;

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use crate::known::{KnownDeviations, KnownEntry, KnownRecord};
use crate::location::Location;
pub use finding::{Class, Finding, FindingKind};
pub use result::{Answer, Candidate, Margin, MaskAnswer, Moved, Observation, ResultRecord, Tokens};

/// Raised when a field changes its meaning or disappears.
pub const RECORD_VERSION: u32 = 4;
/// The `format` of every record.
pub const RECORD_FORMAT: &str = "driftgauge-record";

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRecord {
    /// [`RECORD_FORMAT`].
    pub format: String,
    /// [`RECORD_VERSION`] of the program that wrote it.
    pub version: u32,
    /// Version of driftgauge.
    pub driftgauge: String,
    /// The outcome in numbers.
    pub summary: Summary,
    /// What errors are judged by.
    pub method: Method,
    /// What errors are measured from.
    pub truth: TruthRecord,
    /// The model that was run.
    pub model: ModelRecord,
    /// The suites that were selected.
    pub suites: Vec<SuiteRecord>,
    /// The targets, in the order of the command line.
    pub targets: Vec<TargetRecord>,
    /// One entry for each case and target: cases in suite order, then targets.
    pub results: Vec<ResultRecord>,
    /// Every two targets of one dtype, compared with each other.
    pub pairs: Vec<Pair>,
    /// The known deviations, and what became of them.
    pub known: KnownDeviations,
    /// The machine.
    pub host: BTreeMap<String, String>,
    /// Where things were on the machine.
    pub paths: BTreeMap<String, String>,
    /// When, and how long: seconds of each phase, under its name.
    pub time: RunTime,
}

/// The key under which [`RunRecord::paths`] has the file of a suite.
pub fn suite_key(suite: &str) -> String {
    format!("suite of {suite}")
}

/// What errors are judged by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// Budgets are this many times the predicted error.
    pub k: f64,
    /// Whether `k` was given on the command line, and is not that of the calibration.
    pub k_overridden: bool,
    /// How far an error may move from its accepted baseline, in predicted errors.
    pub move_limit: f64,
    /// Samples of the error that a prediction is made from.
    pub samples: usize,
    /// Where their random numbers start.
    pub seed: u64,
}

/// The truth of a run, and how it stands to the accepted one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TruthRecord {
    /// SHA-256 of `truth.safetensors`, which lies beside the record.
    pub sha256: String,
    /// Whether the run was compared with what was accepted, as far as something was.
    pub baselines: bool,
    /// Cases whose truth was accepted before.
    pub compared: usize,
    /// Largest relative difference from the accepted truth; `null` where it is not finite.
    pub difference: Option<f64>,
    /// Suite and case of that difference.
    pub place: String,
    /// Largest relative difference that is none.
    pub limit: f64,
    /// What is wrong with the truth.
    pub finding: Option<Finding>,
}

/// The outcome of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Exit code of the run: 0 conforms, 1 drift or a known deviation that is fixed, 3 a target broke.
    pub exit_code: u8,
    /// Number of cases.
    pub cases: usize,
    /// Number of targets.
    pub targets: usize,
    /// Number of results for each verdict that occurs.
    pub verdicts: BTreeMap<Verdict, usize>,
}

/// Verdict of a case on a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every observation is within its budget.
    Pass,
    /// Nothing was accepted yet that it could be compared with.
    New,
    /// An observation is beyond its budget, or damaged.
    Drift,
    /// It deviates as a known deviation says, and in no other way.
    Known,
    /// It conforms although a known deviation says that it does not.
    Fixed,
    /// The target cannot do what the case asks; the finding says why.
    Unsupported,
    /// The target crashed, hung, answered garbage, or failed.
    Broken,
}

impl Verdict {
    /// All verdicts.
    pub const ALL: [Verdict; 7] = [
        Verdict::Pass,
        Verdict::New,
        Verdict::Drift,
        Verdict::Known,
        Verdict::Fixed,
        Verdict::Unsupported,
        Verdict::Broken,
    ];

    /// The word for it in reports.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::New => "new",
            Verdict::Drift => "drift",
            Verdict::Known => "known",
            Verdict::Fixed => "fixed",
            Verdict::Unsupported => "unsupported",
            Verdict::Broken => "broken",
        }
    }

    /// A sign that goes with the word, so that no report depends on colour.
    pub fn sign(self) -> &'static str {
        match self {
            Verdict::Pass => "✓",
            Verdict::New => "+",
            Verdict::Drift => "✗",
            Verdict::Known => "≈",
            Verdict::Fixed => "★",
            Verdict::Unsupported => "–",
            Verdict::Broken => "‼",
        }
    }

    /// How much it matters: the larger, the more.
    pub fn severity(self) -> u8 {
        match self {
            Verdict::Pass => 0,
            Verdict::New => 1,
            Verdict::Known => 2,
            Verdict::Fixed => 3,
            Verdict::Unsupported => 4,
            Verdict::Drift => 5,
            Verdict::Broken => 6,
        }
    }
}

/// The model that was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    /// ID of the manifest that the files were held to, or the name of the directory.
    pub id: String,
    /// Whether the files are those of a manifest.
    pub verified: bool,
    /// Revision that the manifest pins.
    pub revision: Option<String>,
    /// Licence that the manifest states.
    pub licence: Option<String>,
    /// Architecture, by the keys of `config.json`.
    pub architecture: BTreeMap<String, serde_json::Value>,
    /// Number of parameters; a tied decoder counts once.
    pub parameters: usize,
    /// Number formats of the stored weights.
    pub weights_dtypes: Vec<String>,
    /// How the checkpoint spells its tensor names.
    pub naming: BTreeMap<String, String>,
    /// Options of the reference tokenizer.
    pub tokenizer: BTreeMap<String, String>,
    /// The files that were loaded.
    pub files: Vec<FileRecord>,
}

/// A file that was loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Name inside the model directory.
    pub name: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256, 64 hexadecimal digits.
    pub sha256: String,
}

/// A suite that was selected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteRecord {
    /// Name of the suite.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Cases per padded batch.
    pub batch: usize,
    /// Cases that were selected.
    pub selected: usize,
    /// Cases in the file.
    pub cases: usize,
}

/// A target of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetRecord {
    /// The target, as in `candle@cpu/f32`.
    pub target: String,
    /// Library that computed; `null` where the worker never said.
    pub library: Option<String>,
    /// Exact version of the library.
    pub library_version: Option<String>,
    /// Device really used; `null` where no model was loaded.
    pub device: Option<String>,
    /// Number format really used.
    pub dtype: Option<String>,
    /// Threads that one operation really used.
    pub threads: Option<usize>,
    /// Observations that the target offers without changing what it computes.
    pub observations: Vec<String>,
    /// What the worker states about its library and its settings.
    pub properties: BTreeMap<String, String>,
    /// Why the target could not be used at all.
    pub finding: Option<Finding>,
    /// How often a worker had to be started again.
    pub restarts: usize,
    /// The same formula in float64, compared with the truth; `null` where the target itself is
    /// float64, where its library has none, or where it was not asked for.
    pub semantic: Option<SemanticCheck>,
    /// Why there is none, where it was asked for.
    pub semantic_missing: Option<Finding>,
    /// Where it starts to differ from the model, stage by stage; `null` where that was not looked for.
    pub location: Option<Location>,
    /// What was accepted for this target; `null` where nothing was.
    pub baseline: Option<BaselineRecord>,
    /// What further runs of the same cases gave; `null` where there was one run.
    pub repeats: Option<Repeats>,
    /// Times.
    pub time: TargetTime,
}

/// A target's library in float64 against the truth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SemanticCheck {
    /// The float64 target that was run.
    pub target: String,
    /// Cases that it ran.
    pub cases: usize,
    /// Its largest relative error; `null` where it is not finite.
    pub error: Option<f64>,
    /// Suite, case and observation of that error.
    pub place: String,
    /// Largest relative error that a different rounding can make.
    pub limit: f64,
    /// Whether the formula is that of the truth.
    pub within: bool,
}

/// How a target stands to its accepted baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselineRecord {
    /// Name of the baseline among the accepted ones.
    pub name: String,
    /// Keys of the environment that differ: accepted value, value of this run.
    pub changed: BTreeMap<String, [Option<String>; 2]>,
    /// Observations that are the accepted ones to the bit.
    pub bitwise: usize,
    /// Observations whose error moved no further than noise moves it.
    pub within: usize,
    /// Observations whose error grew by more.
    pub drifted: usize,
    /// Observations whose error shrank by more.
    pub improved: usize,
    /// Observations that the baseline does not know.
    pub unknown: usize,
    /// Reason that was given when the baseline was last moved beyond its noise.
    pub reason: Option<String>,
}

/// Further runs of the same cases on one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repeats {
    /// Runs, the first one included.
    pub runs: usize,
    /// Verdicts of further runs that were compared with the first run's.
    pub verdicts: usize,
    /// Those that differ.
    pub differing: usize,
    /// Upper end of the 95 % confidence interval of the rate of differing verdicts
    /// (Clopper and Pearson, 1934, one-sided).
    pub rate_below: f64,
    /// Observations of further runs that are not those of the first run to the bit.
    pub not_bitwise: usize,
    /// Observations of further runs that were compared.
    pub observations: usize,
}

/// Times of a target, in seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetTime {
    /// From starting the process to its first message.
    pub start: f64,
    /// Loading the model, by the worker's clock.
    pub load: f64,
    /// All forward passes, by the worker's clock.
    pub forward: f64,
    /// From starting the process to the last answer, by the harness's clock.
    pub total: f64,
}

/// Times of the run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunTime {
    /// Day of the run in UTC, as in `2026-11-24`; known deviations expire by it.
    pub day: String,
    /// Start, in seconds since 1970-01-01T00:00:00Z.
    pub started: u64,
    /// Seconds of each phase, by the phase's name, and `total`.
    pub seconds: BTreeMap<String, f64>,
}

/// Two targets of one dtype, compared with each other over all cases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// One target.
    pub a: String,
    /// The other target.
    pub b: String,
    /// Observations of cases that both produced.
    pub compared: usize,
    /// Those that are the same to the bit.
    pub bitwise: usize,
    /// Those that are no further apart than two correct implementations may be.
    pub within: usize,
    /// The two that are furthest apart, in units of noise; `null` where nothing was compared.
    pub furthest: Option<Furthest>,
}

/// Where two targets are furthest apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Furthest {
    /// Suite and case.
    pub case: String,
    /// The observation.
    pub observation: String,
    /// Their distance in units of roundoff; `null` where it is not finite.
    pub distance_u: Option<f64>,
    /// The same in units of the noise of the difference of two correct implementations; `null`
    /// where it is not finite.
    pub noise: Option<f64>,
}

impl RunRecord {
    /// Reads a record.
    ///
    /// # Errors
    /// [`ReadError`] for anything that is not a record of this version.
    pub fn from_json(text: &str) -> Result<Self, ReadError> {
        read(text, RECORD_FORMAT, RECORD_VERSION)
    }
}

/// Reads a record of a format and a version.
pub(crate) fn read<T: DeserializeOwned>(
    text: &str,
    format: &'static str,
    version: u32,
) -> Result<T, ReadError> {
    /// What every version has.
    #[derive(Deserialize)]
    struct Head {
        format: String,
        version: u32,
    }
    let head: Head = serde_json::from_str(text)?;
    if head.format != format {
        return Err(ReadError::Format(head.format));
    }
    if head.version > version {
        return Err(ReadError::Newer(head.version, version));
    }
    if head.version < version {
        return Err(ReadError::Older(head.version, version));
    }
    Ok(serde_json::from_str(text)?)
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not JSON, or not the fields of a record.
    #[error("not a driftgauge record")]
    Json(#[from] serde_json::Error),
    /// Some other format.
    #[error("the format is `{0}`, expected `{RECORD_FORMAT}`")]
    Format(String),
    /// A version that a newer driftgauge wrote.
    #[error("the record is of the newer version {0}, this driftgauge reads version {1}")]
    Newer(u32, u32),
    /// A version that an older driftgauge wrote.
    #[error("the record is of the old version {0}, this driftgauge reads version {1}")]
    Older(u32, u32),
}
