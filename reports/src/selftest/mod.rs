//! The self-test: which of the known faults are found, where, and as what.

pub(crate) mod table;

use serde::{Deserialize, Serialize};

pub use table::render;

use crate::record::{self, ReadError};
use crate::{Language, RenderError, html};

/// Raised when a field changes its meaning or disappears.
pub const SELFTEST_VERSION: u32 = 1;
/// The `format` of every self-test.
pub const SELFTEST_FORMAT: &str = "driftgauge-selftest";

/// Renders a self-test as JSON.
///
/// # Errors
/// [`RenderError::Json`] where it holds what JSON cannot say.
pub fn render_json(report: &SelftestReport) -> Result<String, RenderError> {
    Ok(format!("{}\n", serde_json::to_string_pretty(report)?))
}

/// Renders a self-test as a page.
///
/// # Errors
/// [`RenderError`] where a template fails.
pub fn render_html(report: &SelftestReport, language: Language) -> Result<String, RenderError> {
    html::selftest::render(report, language)
}

/// One self-test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelftestReport {
    /// [`SELFTEST_FORMAT`].
    pub format: String,
    /// [`SELFTEST_VERSION`] of the program that wrote it.
    pub version: u32,
    /// Version of driftgauge.
    pub driftgauge: String,
    /// ID of the model.
    pub model: String,
    /// Encoder layers of the model.
    pub layers: usize,
    /// Cases that were run under every fault.
    pub cases: usize,
    /// Budgets are this many times the predicted error.
    pub k: f64,
    /// Whether each fault was looked for without knowing it, so that the right cause is none.
    pub unknown: bool,
    /// Names of the common gates, in the order of [`Trial::gates`].
    pub gates: Vec<String>,
    /// Each target.
    pub targets: Vec<TargetTrials>,
    /// Faults of the tokenizer, which no target computes.
    pub tokens: Vec<TokenTrial>,
    /// Seconds of the whole self-test.
    pub time: f64,
}

/// What was tried on one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetTrials {
    /// The target.
    pub target: String,
    /// Library and version.
    pub library: String,
    /// Every fault at every place where it was injected.
    pub trials: Vec<Trial>,
    /// Runs without a fault.
    pub control: Control,
}

/// Runs without a fault.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// How many.
    pub runs: usize,
    /// Those in which something was found, and what.
    pub alarms: Vec<String>,
    /// How often each common gate gave an alarm.
    pub gates: Vec<usize>,
    /// Largest error of a stage alone in units of its noise.
    pub largest: f64,
}

/// One fault at one place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// The fault's name in the catalogue.
    pub fault: String,
    /// What it is.
    pub title: String,
    /// `semantic`, `precision`, `damage`, `unsteady` or `benign`.
    pub kind: String,
    /// Its stage; `null` for the whole model.
    pub stage: Option<String>,
    /// Its step.
    pub step: Option<String>,
    /// What came of it.
    pub status: Status,
    /// Why it was not tried, or what it was taken for.
    pub note: String,
    /// What it leaves in the result of its own stage, in units of the noise there: what is above K exceeds a
    /// budget. `null` for what is fed or answered.
    pub signal: Option<f64>,
    /// Whether a budget of an observation was exceeded.
    pub by_budget: bool,
    /// Whether a stage alone was beyond its budget.
    pub by_stage: bool,
    /// Whether two runs differed.
    pub by_repeat: bool,
    /// Whether the class is right; `null` where nothing was found.
    pub class_right: Option<bool>,
    /// Whether the stage is right; `null` where nothing was found or the fault has none.
    pub stage_right: Option<bool>,
    /// Whether the step is right; `null` as before, or where steps could not be seen.
    pub step_right: Option<bool>,
    /// Whether the cause is right.
    pub cause_right: Option<bool>,
    /// The same from the logits alone.
    pub blind: Option<BlindTrial>,
    /// Whether each common gate noticed it.
    pub gates: Vec<bool>,
}

/// What the logits alone show of a fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlindTrial {
    /// Whether it was detected.
    pub detected: bool,
    /// Whether name and stage of the cause are right; `null` where it was not detected.
    pub cause_right: Option<bool>,
    /// What it was taken for.
    pub note: String,
    /// Size of what it leaves in the logits, in standard deviations of the noise along it.
    pub signal: f64,
}

/// What came of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It was found.
    Detected,
    /// It was not.
    Missed,
    /// It was not, and what it leaves is below what the dtype can show.
    BelowNoise,
    /// It changes nothing in this model.
    Void,
    /// It changes nothing with these cases.
    NotExercised,
    /// The target cannot be made to do it; the note says why.
    Unsupported,
    /// The target broke.
    Broken,
}

impl Status {
    /// The word for it in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Detected => "detected",
            Self::Missed => "missed",
            Self::BelowNoise => "below noise",
            Self::Void => "void",
            Self::NotExercised => "not exercised",
            Self::Unsupported => "unsupported",
            Self::Broken => "broken",
        }
    }
}

/// One fault of the tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenTrial {
    /// The fault's name in the catalogue.
    pub fault: String,
    /// What it is.
    pub title: String,
    /// What came of it.
    pub status: Status,
    /// Cases whose tokens it changes.
    pub cases: usize,
    /// The first difference.
    pub note: String,
    /// Whether it is the one fault that gives these tokens.
    pub cause_right: Option<bool>,
}

/// How many of how many.
pub type Share = (usize, usize);

/// What was right on one target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Trials that were detected, of those that show.
    pub detected: Share,
    /// Classes that are right.
    pub class: Share,
    /// Stages that are right, of faults that have one.
    pub stage: Share,
    /// Steps that are right, where steps could be seen.
    pub step: Share,
    /// Causes that are right.
    pub cause: Share,
    /// Detected from the logits alone.
    pub blind_detected: Share,
    /// Causes that are right from the logits alone, of those that were detected so.
    pub blind_cause: Share,
}

impl Trial {
    /// Whether it counts: it was tried, and shows at all.
    pub fn counts(&self) -> bool {
        self.kind != "benign" && matches!(self.status, Status::Detected | Status::Missed)
    }

    /// Whether something was found although the fault changes nothing that can be seen.
    pub fn is_benign_alarm(&self) -> bool {
        self.kind == "benign" && self.status == Status::Detected
    }

    /// What the logits show of it, if it leaves anything there at all.
    pub fn seen_in_logits(&self) -> Option<&BlindTrial> {
        self.blind.as_ref().filter(|blind| blind.signal > 0.0)
    }

    /// Its place in words.
    pub fn place(&self) -> String {
        match (&self.stage, &self.step) {
            (Some(stage), Some(step)) => format!("{stage} {step}"),
            _ => "everywhere".to_owned(),
        }
    }
}

impl TargetTrials {
    /// Number of trials with a status.
    pub fn count(&self, status: Status) -> usize {
        self.trials
            .iter()
            .filter(|trial| trial.status == status)
            .count()
    }

    /// What was right.
    pub fn totals(&self) -> Totals {
        let tried = || self.trials.iter().filter(|trial| trial.counts());
        let share = |of: &dyn Fn(&Trial) -> Option<bool>| -> Share {
            let known: Vec<bool> = tried().filter_map(of).collect();
            (known.iter().filter(|right| **right).count(), known.len())
        };
        Totals {
            detected: share(&|trial| Some(trial.status == Status::Detected)),
            class: share(&|trial| trial.class_right),
            stage: share(&|trial| trial.stage_right),
            step: share(&|trial| trial.step_right),
            cause: share(&|trial| trial.cause_right),
            blind_detected: share(&|trial| Some(trial.seen_in_logits()?.detected)),
            blind_cause: share(&|trial| trial.seen_in_logits()?.cause_right),
        }
    }
}

impl SelftestReport {
    /// Reads a self-test.
    ///
    /// # Errors
    /// [`ReadError`] for anything that is not a self-test of this version.
    pub fn from_json(text: &str) -> Result<Self, ReadError> {
        record::read(text, SELFTEST_FORMAT, SELFTEST_VERSION)
    }

    /// Faults of the tokenizer that were not found.
    pub fn tokens_missed(&self) -> usize {
        let missed = |trial: &&TokenTrial| trial.status == Status::Missed;
        self.tokens.iter().filter(missed).count()
    }

    /// Trials that count, of the model and of the tokenizer.
    pub fn counted(&self) -> usize {
        let trials = self.targets.iter().flat_map(|target| &target.trials);
        let shows = |trial: &&TokenTrial| matches!(trial.status, Status::Detected | Status::Missed);
        trials.filter(|trial| trial.counts()).count() + self.tokens.iter().filter(shows).count()
    }

    /// Trials whose cause is not the right one.
    pub fn wrong_causes(&self) -> usize {
        let trials = self.targets.iter().flat_map(|target| &target.trials);
        let is_wrong = |trial: &&Trial| trial.counts() && trial.cause_right == Some(false);
        trials.filter(is_wrong).count()
    }

    /// 0 where everything that shows was detected and nothing where nothing is, 1 otherwise, 3 where a target
    /// broke, 4 where no fault was tried that shows.
    pub fn exit_code(&self) -> u8 {
        let any = |of: &dyn Fn(&TargetTrials) -> bool| self.targets.iter().any(of);
        let none = |target: &TargetTrials| {
            !target.trials.is_empty() && target.count(Status::Unsupported) == target.trials.len()
        };
        if any(&|target| target.count(Status::Broken) > 0 || none(target)) {
            3
        } else if self.tokens_missed() > 0
            || any(&|target| target.count(Status::Missed) > 0)
            || any(&|target| !target.control.alarms.is_empty())
            || any(&|target| target.trials.iter().any(Trial::is_benign_alarm))
        {
            1
        } else if self.counted() == 0 {
            4
        } else {
            0
        }
    }
}
