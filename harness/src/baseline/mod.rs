//! Baselines: the errors that a person accepted for a target on a suite in one environment.
//!
//! [`compare()`] says how a run stands to them and is pure. [`mod@file`] and [`truth`] are the two formats,
//! [`folder`] finds what there is, [`accept`] plans what is to be written; nothing but
//! `driftgauge accept` writes.

pub mod accept;
pub mod compare;
pub mod file;
pub mod folder;
pub mod standing;
pub mod truth;

use std::collections::BTreeMap;

use driftgauge_reports::record::{Observation, TargetRecord, Tokens};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::target::Target;
pub use compare::compare;

/// Largest relative difference of two truths that is none: rounding in float64, summed in any order.
pub const TRUTH_LIMIT: f64 = 1e-10;

/// What was accepted for one target on one suite in one environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// Version of driftgauge that wrote it.
    pub driftgauge: String,
    /// Day of the last change, as in `2026-11-24`.
    pub accepted: String,
    /// The model that was run.
    pub model: ModelIdentity,
    /// The suite that was run.
    pub suite: SuiteIdentity,
    /// [`Target::identity`].
    pub target: String,
    /// Number format of the target.
    pub dtype: String,
    /// [`of`](driftgauge_reports::environment::of) the target.
    pub environment: BTreeMap<String, String>,
    /// Why it was moved, the latest reason last.
    pub history: Vec<Reason>,
    /// What was accepted, by case.
    pub cases: BTreeMap<String, AcceptedCase>,
}

/// A model, told from others by the digests of its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelIdentity {
    /// ID of the manifest, or name of the directory.
    pub id: String,
    /// SHA-256 of each file, by name.
    pub files: BTreeMap<String, String>,
}

/// A suite, told from other versions of it by the digest of its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteIdentity {
    /// Name of the suite.
    pub name: String,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// Why a baseline was moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// The day.
    pub date: String,
    /// What the person wrote.
    pub reason: String,
}

/// What was accepted for one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptedCase {
    /// [`input`] of the case.
    pub input: String,
    /// The errors, by observation.
    pub observations: BTreeMap<String, AcceptedError>,
}

/// An accepted error; in a file the array of its three fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AcceptedError(
    /// The error in units of roundoff, to five digits; `null` where it was not finite.
    pub Option<f64>,
    /// The same in effective bits.
    pub Option<f64>,
    /// [`Observation::digest`].
    pub String,
);

impl AcceptedError {
    /// What is accepted of a measured error.
    pub fn of(observation: &Observation) -> Self {
        // Five digits of an error say all there is to say, and keep the lines short.
        let short = |number: f64| format!("{number:.4e}").parse::<f64>().ok();
        Self(
            observation.error_u.and_then(short),
            observation.effective_bits.and_then(short),
            observation.digest.clone(),
        )
    }
}

/// Identifies what a case feeds to a target: its token IDs.
pub fn input(tokens: &[Tokens]) -> String {
    let mut hash = Sha256::new();
    for tokens in tokens {
        hash.update(format!("{:?}", tokens.ids));
    }
    hex::encode(&hash.finalize()[..8])
}

/// What a target is called in a baseline; nothing where it could not be used.
fn identity(target: &TargetRecord) -> Option<String> {
    let parsed: Target = target.target.parse().ok()?;
    target.finding.is_none().then(|| parsed.identity())
}
