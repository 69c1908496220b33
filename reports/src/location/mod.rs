//! Where a target starts to differ from the model, and what that looks like.

mod table;

use serde::{Deserialize, Serialize};

pub use table::render;

/// Raised when a field changes its meaning or disappears.
pub const LOCATE_VERSION: u32 = 1;
/// The `format` of every report of `driftgauge locate`.
pub const LOCATE_FORMAT: &str = "driftgauge-locate";

/// What `driftgauge locate` found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocateReport {
    /// [`LOCATE_FORMAT`].
    pub format: String,
    /// [`LOCATE_VERSION`] of the program that wrote it.
    pub version: u32,
    /// Version of driftgauge.
    pub driftgauge: String,
    /// ID of the model.
    pub model: String,
    /// Budgets are this many times the predicted error.
    pub k: f64,
    /// Each target.
    pub targets: Vec<TargetLocation>,
}

/// Where one target starts to differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetLocation {
    /// The target.
    pub target: String,
    /// Where it starts.
    pub location: Location,
}

/// Where a target starts to differ.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// Suite and case of what was looked at.
    pub cases: Vec<String>,
    /// Every stage, judged alone: from the hidden state that the target itself had before it.
    pub stages: Vec<StageRecord>,
    /// Where it starts; empty where every stage is within its noise.
    pub origins: Vec<Origin>,
    /// Observations that are beyond their budgets only because of an origin before them.
    pub followers: usize,
    /// What else was found out, a sentence each.
    pub notes: Vec<String>,
}

/// One stage of a target, judged alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecord {
    /// `embeddings`, `layer.3`, `head`.
    pub stage: String,
    /// Error in u; `null` where it is not finite, or where the stage was not reached.
    pub error_u: Option<f64>,
    /// Error that a correct stage is predicted to have, in u; `null` where the stage was not reached.
    pub predicted_u: Option<f64>,
    /// Whether what it starts from is finite.
    pub reached: bool,
    /// Whether it is within its budget.
    pub within: bool,
}

/// Where something starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The stages where it is, in order; empty for what is fed and answered.
    pub stages: Vec<String>,
    /// The first step that is wrong; `null` where the steps could not be seen.
    pub step: Option<String>,
    /// Further steps of the same stage that are wrong by themselves.
    pub more_steps: Vec<String>,
    /// Largest error of these stages in units of their noise; `null` where it is not finite.
    pub noise: Option<f64>,
    /// What it looks like, the likeliest first; empty where it looks like nothing that is known.
    pub causes: Vec<Cause>,
}

/// A known fault that explains a difference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cause {
    /// Its name in the catalogue.
    pub name: String,
    /// Its stage; `null` for what is fed or answered.
    pub stage: Option<String>,
    /// What it is.
    pub title: String,
    /// How much of it is there: 1 where it is exactly this.
    pub coefficient: f64,
    /// Standard deviation of that, as far as rounding goes.
    pub uncertainty: f64,
    /// Share of the difference, squared, that exactly this fault explains: 1 is all.
    pub explained: f64,
    /// What it usually means.
    pub means: String,
    /// Threads and sources that document it.
    pub evidence: Vec<String>,
    /// What to try.
    pub advice: String,
}

impl Origin {
    /// Numbers of its layers, from 1.
    pub fn layers(&self) -> Vec<usize> {
        let stages = self.stages.iter();
        let number = |stage: &String| stage.strip_prefix("layer.")?.parse().ok();
        stages.filter_map(number).collect()
    }

    /// The place in words: `layers 2 to 4, activation`.
    pub fn place(&self) -> String {
        let numbers = self.layers();
        let layers = match numbers[..] {
            [] => None,
            [layer] => Some(format!("layer {layer}")),
            [first, .., last] if last - first + 1 == numbers.len() => {
                Some(format!("layers {first} to {last}"))
            }
            _ => {
                let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
                Some(format!("layers {}", numbers.join(", ")))
            }
        };
        let others = |name: &str| {
            self.stages
                .iter()
                .any(|stage| stage == name)
                .then(|| name.to_owned())
        };
        let parts = [others("embeddings"), layers, others("head")];
        let stages = match self.stages.is_empty() {
            true => "what is fed or answered".to_owned(),
            false => parts
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(" and "),
        };
        match &self.step {
            Some(step) => format!("{stages}, {step}"),
            None => stages,
        }
    }
}

impl Location {
    /// Where it starts, in a sentence; nothing where every stage is within its noise.
    pub fn sentence(&self) -> Option<String> {
        let origin = self.origins.first()?;
        let mut sentence = format!("starts in {}", origin.place());
        if let Some(noise) = origin.noise {
            sentence.push_str(&format!(" (alone {noise:.0} times its noise)"));
        }
        match self.origins.len() - 1 {
            0 => {}
            1 => sentence.push_str(" and 1 more place"),
            more => sentence.push_str(&format!(" and {more} more places")),
        }
        match self.followers {
            0 => {}
            1 => sentence.push_str("; 1 later observation follows"),
            more => sentence.push_str(&format!("; {more} later observations follow")),
        }
        Some(sentence)
    }
}

impl Cause {
    /// The match in a few words: `gelu-tanh: GELU by its tanh approximation (coefficient 1.000 ± 0.001)`.
    pub fn sentence(&self) -> String {
        format!(
            "{}: {} (coefficient {:.3} ± {:.3})",
            self.name, self.title, self.coefficient, self.uncertainty
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named() {
        let place = |stages: &[&str], step: Option<&str>| {
            let origin = Origin {
                stages: stages.iter().map(|&stage| stage.to_owned()).collect(),
                step: step.map(str::to_owned),
                more_steps: Vec::new(),
                noise: None,
                causes: Vec::new(),
            };
            origin.place()
        };
        assert_eq!(
            place(&["layer.6"], Some("activation")),
            "layer 6, activation"
        );
        assert_eq!(
            place(&["layer.2", "layer.3", "layer.4"], None),
            "layers 2 to 4"
        );
        assert_eq!(place(&["layer.2", "layer.4"], None), "layers 2, 4");
        assert_eq!(place(&["embeddings"], Some("sum")), "embeddings, sum");
        assert_eq!(place(&["layer.1", "head"], None), "layer 1 and head");
        assert_eq!(place(&[], None), "what is fed or answered");
    }
}
