//! What one case gave on one target.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Finding, KnownRecord, Verdict};

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
    /// The texts of the case, in order: one; two that are compared, each a sequence of its own
    /// (`similarity`); or a pair in one sequence, where `tokens` has one entry and `texts` two.
    pub texts: Vec<String>,
    /// Tokens that the target was fed: one entry for each sequence.
    pub tokens: Vec<Tokens>,
    /// What the target answers; `null` where it does not.
    pub answer: Option<Answer>,
    /// What the truth answers; `null` where no target can answer.
    pub truth_answer: Option<Answer>,
    /// What has changed places against the truth.
    pub margins: Vec<Margin>,
    /// The comparisons, by observation.
    pub observations: BTreeMap<String, Observation>,
    /// What is wrong, the origin first.
    pub findings: Vec<Finding>,
    /// The known deviation that makes it [`Verdict::Known`] or [`Verdict::Fixed`]; `null` with every
    /// other verdict.
    pub known: Option<KnownRecord>,
}

/// Two things that stand in another order than in the truth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Margin {
    /// Position of the mask whose tokens changed places; `null` for similarities.
    pub position: Option<usize>,
    /// What the truth puts first: a token, or this case.
    pub first: String,
    /// What the target puts first: a token, or another case.
    pub second: String,
    /// How far the truth has them apart: a difference of logits or of cosines.
    pub gap: f64,
    /// The gap in units of the predicted noise of that difference.
    pub noise: f64,
    /// Whether noise explains it.
    pub tie: bool,
}

/// Tokens of one sequence: of a text, or of a pair with its separators.
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
    /// The error that a correct implementation is predicted to have, in units of roundoff: the *noise*.
    pub predicted_u: f64,
    /// Largest `error_u` that passes: `k` times `predicted_u`.
    pub budget_u: f64,
    /// Whether it is within its budget.
    pub within: bool,
    /// First 32 hexadecimal digits of the SHA-256 of the numbers as the target delivered them,
    /// padding dropped.
    pub digest: String,
    /// Comparison with the accepted baseline; `null` where there is none.
    pub moved: Option<Moved>,
}

/// How an observation stands to its accepted baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moved {
    /// The accepted error in units of roundoff; `null` where it was not finite.
    pub accepted_u: Option<f64>,
    /// Whether the numbers are the accepted ones to the bit.
    pub bitwise: bool,
    /// Change of the error in units of noise, positive where it grew; `null` where either error is
    /// not finite.
    pub noise: Option<f64>,
    /// Whether the error has not grown by more than noise explains; one that shrank is within.
    pub within: bool,
}

impl Observation {
    /// The error in units of noise; infinite where it is not finite, 0 where there is none.
    pub fn in_noise(&self) -> f64 {
        match self.error_u {
            Some(0.0) => 0.0,
            Some(error) => error / self.predicted_u,
            None => f64::INFINITY,
        }
    }
}
