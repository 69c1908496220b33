//! The computation, divided: stages, and the steps of each.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::observation;

/// A stage of the model: what lies between two hidden states. Written `embeddings`, `layer.3`, `head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Stage {
    /// From token IDs to the first hidden state.
    Embeddings,
    /// An encoder layer, counted from 1: its output is `hidden.N`.
    Layer(usize),
    /// From the last hidden state to the logits.
    Head,
}

impl Stage {
    /// All stages of a model, in the order of the computation.
    pub fn all(layers: usize, head: bool) -> Vec<Self> {
        let layers = (1..=layers).map(Self::Layer);
        let head = head.then_some(Self::Head);
        std::iter::once(Self::Embeddings)
            .chain(layers)
            .chain(head)
            .collect()
    }

    /// Its steps, in the order of the computation; the last is its result.
    pub fn steps(self) -> &'static [Step] {
        match self {
            Self::Embeddings => &[Step::Sum, Step::Norm],
            Self::Layer(_) => &[
                Step::Query,
                Step::Key,
                Step::Value,
                Step::Scores,
                Step::Probabilities,
                Step::Context,
                Step::AttentionOutput,
                Step::AttentionSum,
                Step::AttentionNorm,
                Step::Intermediate,
                Step::Activation,
                Step::Output,
                Step::Sum,
                Step::Norm,
            ],
            Self::Head => &[Step::Transform, Step::Activation, Step::Norm, Step::Logits],
        }
    }

    /// The step that is its result.
    pub fn last_step(self) -> Step {
        match self {
            Self::Head => Step::Logits,
            _ => Step::Norm,
        }
    }

    /// The stage before it in a model of so many layers; the embedding stage has none.
    pub fn before(self, layers: usize) -> Option<Self> {
        match self {
            Self::Embeddings => None,
            Self::Layer(1) => Some(Self::Embeddings),
            Self::Layer(layer) => Some(Self::Layer(layer - 1)),
            Self::Head => Some(Self::Layer(layers)),
        }
    }

    /// The observation that is its result.
    pub fn observation(self) -> String {
        match self {
            Self::Embeddings => observation::EMBEDDINGS.to_owned(),
            Self::Layer(layer) => observation::hidden(layer),
            Self::Head => observation::LOGITS.to_owned(),
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embeddings => formatter.write_str("embeddings"),
            Self::Layer(layer) => write!(formatter, "layer.{layer}"),
            Self::Head => formatter.write_str("head"),
        }
    }
}

impl FromStr for Stage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let layer = || text.strip_prefix("layer.")?.parse().ok();
        match text {
            "embeddings" => Ok(Self::Embeddings),
            "head" => Ok(Self::Head),
            _ => layer()
                .filter(|layer| *layer > 0)
                .map(Self::Layer)
                .ok_or_else(|| {
                    format!(
                        "`{text}` is no stage (there are `embeddings`, `layer.1` and so on, `head`)"
                    )
                }),
        }
    }
}

impl TryFrom<String> for Stage {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Stage> for String {
    fn from(stage: Stage) -> Self {
        stage.to_string()
    }
}

/// A step of a stage. `B` sequences of `S` tokens, `H` the width of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Dense layer of the queries, before the heads are split: `[B, S, H]`.
    Query,
    /// Dense layer of the keys: `[B, S, H]`.
    Key,
    /// Dense layer of the values: `[B, S, H]`.
    Value,
    /// Scaled scores with the mask added: `[B, heads, S, S]`.
    Scores,
    /// Softmax of the scores over the keys: `[B, heads, S, S]`.
    Probabilities,
    /// Weighted values, heads merged again: `[B, S, H]`.
    Context,
    /// Dense layer of the context: `[B, S, H]`.
    AttentionOutput,
    /// The same and the residual: `[B, S, H]`.
    AttentionSum,
    /// Layer norm of that: `[B, S, H]`.
    AttentionNorm,
    /// First dense layer of the feed-forward network: `[B, S, intermediate_size]`.
    Intermediate,
    /// The activation function: of the intermediate, or of the head's transform.
    Activation,
    /// Second dense layer of the feed-forward network: `[B, S, H]`.
    Output,
    /// The same and the residual; of the embeddings, the sum of the three tables: `[B, S, H]`.
    Sum,
    /// Layer norm of what is before it: `[B, S, H]`; of the head: `[rows, H]`.
    Norm,
    /// Dense layer of the head: `[rows, H]`.
    Transform,
    /// The head's result: `[rows, vocab_size]`.
    Logits,
}

impl Step {
    /// The name in messages and reports: `attention-output`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::Scores => "scores",
            Self::Probabilities => "probabilities",
            Self::Context => "context",
            Self::AttentionOutput => "attention-output",
            Self::AttentionSum => "attention-sum",
            Self::AttentionNorm => "attention-norm",
            Self::Intermediate => "intermediate",
            Self::Activation => "activation",
            Self::Output => "output",
            Self::Sum => "sum",
            Self::Norm => "norm",
            Self::Transform => "transform",
            Self::Logits => "logits",
        }
    }

    /// The module whose weights it uses, below that of the stage ([`Step::module`]).
    fn part(self, stage: Stage) -> Option<&'static str> {
        Some(match (stage, self) {
            (Stage::Embeddings, Self::Norm) => "bert.embeddings.LayerNorm",
            (Stage::Head, Self::Transform) => "cls.predictions.transform.dense",
            (Stage::Head, Self::Norm) => "cls.predictions.transform.LayerNorm",
            (Stage::Head, Self::Logits) => "cls.predictions.decoder",
            (Stage::Layer(_), Self::Query) => "attention.self.query",
            (Stage::Layer(_), Self::Key) => "attention.self.key",
            (Stage::Layer(_), Self::Value) => "attention.self.value",
            (Stage::Layer(_), Self::AttentionOutput) => "attention.output.dense",
            (Stage::Layer(_), Self::AttentionNorm) => "attention.output.LayerNorm",
            (Stage::Layer(_), Self::Intermediate) => "intermediate.dense",
            (Stage::Layer(_), Self::Output) => "output.dense",
            (Stage::Layer(_), Self::Norm) => "output.LayerNorm",
            _ => return None,
        })
    }

    /// Canonical name of the module whose `weight` and `bias` this step of a stage uses, if it has one.
    pub fn module(self, stage: Stage) -> Option<String> {
        let part = self.part(stage)?;
        Some(match stage {
            Stage::Layer(layer) => format!("bert.encoder.layer.{}.{part}", layer - 1),
            _ => part.to_owned(),
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_written_and_read() {
        for stage in Stage::all(3, true) {
            assert_eq!(stage.to_string().parse(), Ok(stage));
        }
        for wrong in ["", "layer", "layer.0", "layer.x", "hidden.1"] {
            assert!(wrong.parse::<Stage>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_those_of_serde_and_every_stage_ends_with_its_result() {
        for stage in Stage::all(1, true) {
            assert_eq!(stage.steps().last(), Some(&stage.last_step()));
            for step in stage.steps() {
                let name = serde_json::to_value(step).unwrap();
                assert_eq!(name, step.name());
            }
        }
    }

    #[test]
    fn modules_have_canonical_names() {
        assert_eq!(
            Step::AttentionNorm.module(Stage::Layer(3)).as_deref(),
            Some("bert.encoder.layer.2.attention.output.LayerNorm")
        );
        assert_eq!(Step::Scores.module(Stage::Layer(3)), None);
    }
}
