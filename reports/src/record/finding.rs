//! What is wrong with a result, a target or the truth.

use serde::{Deserialize, Serialize};

/// One violation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// What kind of violation.
    pub kind: FindingKind,
    /// In which way the numbers are wrong, where they are.
    pub class: Option<Class>,
    /// The observation it is about; `null` where it is about the whole target.
    pub observation: Option<String>,
    /// Error in units of roundoff.
    pub measured_u: Option<f64>,
    /// Largest error that passes.
    pub allowed_u: Option<f64>,
    /// Error that a correct implementation is predicted to have.
    pub predicted_u: Option<f64>,
    /// What happened, in a sentence.
    pub message: String,
    /// What speaks for its class and cause, a sentence each.
    pub evidence: Vec<String>,
    /// Next step for the user.
    pub hint: Option<String>,
    /// Last lines that the worker wrote to stderr, where it broke.
    pub stderr: Vec<String>,
}

impl Finding {
    /// A finding that says no more than what happened.
    pub fn new(kind: FindingKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            class: None,
            observation: None,
            measured_u: None,
            allowed_u: None,
            predicted_u: None,
            message: message.into(),
            evidence: Vec::new(),
            hint: None,
            stderr: Vec::new(),
        }
    }
}

/// The ways in which numbers can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// The right formula at a lower precision than declared.
    Precision,
    /// A different formula, or different weights.
    Semantic,
    /// Not finite, of another shape, zeroed, permuted.
    Damage,
}

impl Class {
    /// The word for it in reports.
    pub fn name(self) -> &'static str {
        match self {
            Class::Precision => "precision",
            Class::Semantic => "semantic",
            Class::Damage => "damage",
        }
    }
}

/// Kinds of [`Finding`], the mildest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingKind {
    /// The target cannot do it.
    Unsupported,
    /// A known deviation that has expired: it is drift again.
    Expired,
    /// The error, or the truth, has moved from what was accepted further than noise moves it.
    Moved,
    /// Tokens or similarities have changed places although noise does not reach that far.
    Order,
    /// The verdict is another one when the case is run again.
    Flaky,
    /// The error is larger than the budget.
    Numeric,
    /// Not finite, of another shape or dtype than asked for, or missing.
    Damage,
    /// The target crashed, hung, answered garbage, or failed.
    Broken,
}
