//! The record: one run, complete.
//!
//! `record.json` is this type as JSON. Objects keep the order of the fields below, maps are sorted
//! by key, and numbers are written so that reading gives the same bits. The same cases and outcomes
//! give the same bytes, except for what stands under the keys [`RunRecord::time`],
//! [`RunRecord::host`], [`TargetRecord::time`] and [`RunRecord::paths`]: times, the machine, and
//! places on it.
//!
//! Infinite and undefined numbers are `null`; where a `null` can stand, the field says what it means.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Raised when a field changes its meaning or disappears.
pub const RECORD_VERSION: u32 = 1;
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
    /// The model that was run.
    pub model: ModelRecord,
    /// The suites that were selected.
    pub suites: Vec<SuiteRecord>,
    /// The targets, in the order of the command line.
    pub targets: Vec<TargetRecord>,
    /// One entry for each case and target: cases in suite order, then targets.
    pub results: Vec<ResultRecord>,
    /// The machine.
    pub host: BTreeMap<String, String>,
    /// Where things were on the machine.
    pub paths: BTreeMap<String, String>,
    /// When, and how long: seconds of each phase, under its name.
    pub time: RunTime,
}

/// The outcome of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Exit code of the run: 0 conforms, 1 drift, 3 a target broke.
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
    /// It deviates as a known deviation says.
    Known,
    /// A known deviation no longer happens.
    Fixed,
    /// The target cannot do what the case asks; the finding says why.
    Unsupported,
    /// The target crashed, hung, answered garbage, or failed.
    Broken,
}

impl Verdict {
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
    /// Times.
    pub time: TargetTime,
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
    /// Start, in seconds since 1970-01-01T00:00:00Z.
    pub started: u64,
    /// Seconds of each phase, by the phase's name, and `total`.
    pub seconds: BTreeMap<String, f64>,
}

/// Outcome of one case on one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResultRecord {
    /// Name of the suite.
    pub suite: String,
    /// Name of the case.
    pub case: String,
    /// `fill-mask`, `similarity` or `features`.
    pub task: String,
    /// The target.
    pub target: String,
    /// The verdict.
    pub verdict: Verdict,
    /// The texts of the case.
    pub texts: Vec<String>,
    /// Tokens that the target was fed: one list for each text.
    pub tokens: Vec<Tokens>,
    /// What the target answers; `null` where it does not.
    pub answer: Option<Answer>,
    /// What the truth answers; `null` where no target can answer.
    pub truth_answer: Option<Answer>,
    /// The comparisons, by observation.
    pub observations: BTreeMap<String, Observation>,
    /// What is wrong, the origin first.
    pub findings: Vec<Finding>,
}

/// Tokens of one text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// Token IDs.
    pub ids: Vec<u32>,
    /// Their texts, separated by spaces.
    pub text: String,
    /// Tokens that truncation cut off.
    pub truncated: usize,
}

/// What a user wants to see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "task", deny_unknown_fields)]
pub enum Answer {
    /// For each mask, the tokens that fit best.
    FillMask {
        /// The masks, in the order of the text.
        masks: Vec<MaskAnswer>,
    },
    /// How similar the two texts are.
    Similarity {
        /// Cosine of the CLS vectors of the last layer, −1 to 1.
        cosine: f64,
    },
    /// The vectors of the last layer.
    Features {
        /// Tokens × width.
        shape: [usize; 2],
        /// First values of the CLS vector.
        first: Vec<f64>,
    },
}

/// Answer for one mask.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskAnswer {
    /// Position of the mask among the tokens.
    pub position: usize,
    /// The best tokens, the likeliest first.
    pub top: Vec<Candidate>,
}

/// A token that fits a mask.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Text of the token.
    pub token: String,
    /// Its ID.
    pub id: u32,
    /// Softmax of its logit over the whole vocabulary.
    pub probability: f64,
}

/// Comparison of one observation with the truth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observation {
    /// Extents after padding was dropped and all texts of the case were stacked.
    pub shape: Vec<usize>,
    /// Number format that the target delivered.
    pub dtype: String,
    /// Largest |y − truth|; `null` where y is not finite.
    pub max_abs: Option<f64>,
    /// Largest |y − truth| / |truth| over elements whose truth is not zero.
    pub max_rel: Option<f64>,
    /// ‖y − truth‖₂ / ‖truth‖₂ in units of roundoff of the dtype.
    pub error_u: Option<f64>,
    /// −log₂ of the relative error; 53 where there is no difference at all.
    pub effective_bits: Option<f64>,
    /// Cosine of the angle between y and the truth, as one long vector each.
    pub cosine: Option<f64>,
    /// Largest `error_u` that passes.
    pub budget_u: f64,
    /// Whether it is within its budget.
    pub within: bool,
}

/// One violation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// What kind of violation.
    pub kind: FindingKind,
    /// The observation it is about; `null` where it is about the whole target.
    pub observation: Option<String>,
    /// Error in units of roundoff.
    pub measured_u: Option<f64>,
    /// Largest error that passes.
    pub allowed_u: Option<f64>,
    /// What happened, in a sentence.
    pub message: String,
    /// Next step for the user.
    pub hint: Option<String>,
    /// Last lines that the worker wrote to stderr, where it broke.
    pub stderr: Vec<String>,
}

/// Kinds of [`Finding`], the mildest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingKind {
    /// The target cannot do it.
    Unsupported,
    /// The error is larger than the budget.
    Numeric,
    /// Not finite, of another shape or dtype than asked for, or missing.
    Damage,
    /// The target crashed, hung, answered garbage, or failed.
    Broken,
}

impl RunRecord {
    /// Reads a record.
    ///
    /// # Errors
    /// [`ReadError`] for anything that is not a record of this version.
    pub fn from_json(text: &str) -> Result<Self, ReadError> {
        /// What every version has.
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let head: Head = serde_json::from_str(text)?;
        if head.format != RECORD_FORMAT {
            return Err(ReadError::Format(head.format));
        }
        if head.version != RECORD_VERSION {
            return Err(ReadError::Version(head.version));
        }
        Ok(serde_json::from_str(text)?)
    }
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
    /// Another version.
    #[error("the record is of version {0}, this driftgauge reads version {RECORD_VERSION}")]
    Version(u32),
}
