//! The architecture: which operation follows which.

use driftgauge_protocol::fault::{Change, Fault};
use driftgauge_protocol::{BertConfig, Dtype, Failure, Stage, Step, observation};

use super::attention::Mask;
use super::writer::{Dim, Writer};
use super::{INPUTS, mask_input, masked_layers};
use crate::proto::{AttributeProto, GraphProto};

const BATCH: Dim = Dim::Named("batch");
const SEQUENCE: Dim = Dim::Named("sequence");

/// A place in the computation.
pub(super) type At = (Stage, Step);

/// Reads top to bottom in the order of the computation. A value is named after the module that
/// makes it, an observation by its own name.
pub(super) struct Bert<'a> {
    pub(super) config: &'a BertConfig,
    pub(super) fault: Option<&'a Fault>,
    pub(super) writer: Writer<'a>,
    /// The value of every step that is written.
    pub(super) steps: Vec<(At, String)>,
}

impl<'a> Bert<'a> {
    pub(super) fn new(
        config: &'a BertConfig,
        fault: Option<&'a Fault>,
        writer: Writer<'a>,
    ) -> Self {
        Self {
            config,
            fault,
            writer,
            steps: Vec::new(),
        }
    }

    /// Writes the model, with the head where `logits` is among the outputs.
    pub(super) fn write(mut self, outputs: &[String]) -> Result<GraphProto, Failure> {
        for name in INPUTS {
            self.writer.input(name, Dtype::I64, &[BATCH, SEQUENCE]);
        }
        let layers = self.config.num_hidden_layers;
        let own = masked_layers(self.config, self.fault);
        for layer in &own {
            let name = mask_input(*layer);
            self.writer.input(&name, Dtype::I64, &[BATCH, SEQUENCE]);
        }
        self.writer
            .node("Shape", &["input_ids"], "shape", Vec::new());
        // Also where no layer uses it: what a fault makes of one layer changes nothing before that.
        let shared = self.shared_mask();
        let mut hidden = self.embeddings()?;
        for layer in 1..=layers {
            hidden = match own.contains(&layer) {
                true => {
                    let mask = self.own_mask(layer);
                    self.layer(layer, &hidden, &mask)?
                }
                false => self.layer(layer, &hidden, &shared)?,
            };
        }
        if outputs.iter().any(|name| name == observation::LOGITS) {
            self.head(&hidden)?;
        }
        for name in outputs {
            self.output(name);
        }
        Ok(self.writer.finish())
    }

    /// Writes the head alone: from the last hidden state to the logits.
    pub(super) fn write_head(mut self) -> Result<GraphProto, Failure> {
        let hidden = self.hidden_input(self.config.num_hidden_layers);
        self.head(&hidden)?;
        self.output(observation::LOGITS);
        Ok(self.writer.finish())
    }

    /// Writes one stage, from the hidden state before it, with the value of every step as an output.
    /// Returns the graph, and the name of the value of each step.
    pub(super) fn write_stage(
        mut self,
        stage: Stage,
    ) -> Result<(GraphProto, Vec<(Step, String)>), Failure> {
        match stage {
            Stage::Embeddings => {
                let [ids, types, _] = INPUTS;
                for name in [ids, types] {
                    self.writer.input(name, Dtype::I64, &[BATCH, SEQUENCE]);
                }
                self.embeddings()?;
            }
            Stage::Layer(layer) => {
                let own = masked_layers(self.config, self.fault).contains(&layer);
                let [_, _, shared] = INPUTS;
                let name = match own {
                    true => mask_input(layer),
                    false => shared.to_owned(),
                };
                self.writer.input(&name, Dtype::I64, &[BATCH, SEQUENCE]);
                let hidden = self.hidden_input(layer - 1);
                let mask = match own {
                    true => self.own_mask(layer),
                    false => self.shared_mask(),
                };
                self.layer(layer, &hidden, &mask)?;
            }
            Stage::Head => {
                let hidden = self.hidden_input(self.config.num_hidden_layers);
                self.head(&hidden)?;
            }
        }
        if stage != Stage::Head {
            self.output(&stage.observation());
        }
        let steps = std::mem::take(&mut self.steps);
        let steps = steps.into_iter().map(|((_, step), value)| (step, value));
        let steps: Vec<_> = steps.collect();
        steps
            .iter()
            .for_each(|(_, value)| self.writer.expose(value));
        Ok((self.writer.finish(), steps))
    }

    /// Declares the output of a layer, or of the embeddings, as an input.
    fn hidden_input(&mut self, layer: usize) -> String {
        let hidden = match layer {
            0 => observation::EMBEDDINGS.to_owned(),
            layer => observation::hidden(layer),
        };
        let width = Dim::Fixed(self.config.hidden_size);
        let dtype = self.writer.dtype();
        self.writer.input(&hidden, dtype, &[BATCH, SEQUENCE, width]);
        let rank = AttributeProto::int("end", 2);
        self.writer.node("Shape", &[&hidden], "shape", vec![rank]);
        hidden
    }

    /// Declares an observation as an output.
    fn output(&mut self, name: &str) {
        let width = match name {
            observation::LOGITS => self.config.vocab_size,
            _ => self.config.hidden_size,
        };
        self.writer
            .output(name, &[BATCH, SEQUENCE, Dim::Fixed(width)]);
    }

    fn embeddings(&mut self) -> Result<String, Failure> {
        let BertConfig {
            vocab_size,
            type_vocab_size,
            max_position_embeddings,
            hidden_size,
            ..
        } = *self.config;
        let words = self.weight(
            "bert.embeddings.word_embeddings.weight",
            &[vocab_size, hidden_size],
        )?;
        let types = self.weight(
            "bert.embeddings.token_type_embeddings.weight",
            &[type_vocab_size, hidden_size],
        )?;
        let positions = self.weight(
            "bert.embeddings.position_embeddings.weight",
            &[max_position_embeddings, hidden_size],
        )?;
        let words = self.node("Gather", &[&words, "input_ids"], "bert.embeddings.words");
        let types = self.node(
            "Gather",
            &[&types, "token_type_ids"],
            "bert.embeddings.token_types",
        );
        let sum = self.node("Add", &[&words, &types], "bert.embeddings.sum");
        let positions = self.first_positions(&positions);
        let stage = Stage::Embeddings;
        let sum = self.step((stage, Step::Sum), "bert.embeddings", |bert, output| {
            Ok(bert.node("Add", &[&sum, &positions], output))
        })?;
        self.layer_norm((stage, Step::Norm), &sum, observation::EMBEDDINGS)
    }

    /// The embeddings of positions 0 to the length of the batch.
    fn first_positions(&mut self, positions: &str) -> String {
        let start = AttributeProto::int("start", 1);
        let length = self
            .writer
            .node("Shape", &["input_ids"], "sequence", vec![start]);
        let zero = self.writer.integers("zero", &[0]);
        let value = "bert.embeddings.positions";
        self.node("Slice", &[positions, &zero, &length, &zero], value);
        let width = Dim::Fixed(self.config.hidden_size);
        self.writer.declare(value, &[SEQUENCE, width]);
        value.to_owned()
    }

    fn layer(&mut self, layer: usize, hidden: &str, mask: &Mask) -> Result<String, Failure> {
        let (width, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let stage = Stage::Layer(layer);
        let module = format!("bert.encoder.layer.{}", layer - 1);
        let context = self.attention(stage, &module, hidden, mask)?;
        let dense = self.dense((stage, Step::AttentionOutput), &context, width, width)?;
        let output = format!("{module}.attention.output");
        let sum = self.residual_sum((stage, Step::AttentionSum), &output, &dense, hidden)?;
        let norm = format!("{output}.LayerNorm");
        let attended = self.layer_norm((stage, Step::AttentionNorm), &sum, &norm)?;

        let rows = self.rows(&attended);
        let dense = self.dense((stage, Step::Intermediate), &rows, width, inner)?;
        let activated = self.activation(stage, &dense)?;
        let dense = self.dense((stage, Step::Output), &activated, inner, width)?;
        let output = format!("{module}.output");
        let sum = self.residual_sum((stage, Step::Sum), &output, &dense, &attended)?;
        self.layer_norm((stage, Step::Norm), &sum, &observation::hidden(layer))
    }

    /// `rows`, brought back to `[batch, sequence, width]`, and the residual.
    fn residual_sum(
        &mut self,
        at: At,
        output: &str,
        rows: &str,
        residual: &str,
    ) -> Result<String, Failure> {
        let width = self.config.hidden_size;
        let wide = self.sequences(rows, width, &format!("{rows}.wide"));
        self.writer
            .declare(&wide, &[BATCH, SEQUENCE, Dim::Fixed(width)]);
        let dropped = self
            .changes(at)
            .any(|change| matches!(change, Change::DropResidual));
        self.step(at, output, |bert, output| match dropped {
            true => Ok(wide),
            false => Ok(bert.node("Add", &[&wide, residual], output)),
        })
    }

    /// The masked-language-model head at every position.
    fn head(&mut self, hidden: &str) -> Result<(), Failure> {
        let BertConfig {
            hidden_size,
            vocab_size,
            ..
        } = *self.config;
        let stage = Stage::Head;
        let rows = self.rows(hidden);
        let dense = self.dense((stage, Step::Transform), &rows, hidden_size, hidden_size)?;
        let activated = self.activation(stage, &dense)?;
        let module = "cls.predictions.transform";
        let transformed = self.layer_norm((stage, Step::Norm), &activated, module)?;
        let scores = self.dense((stage, Step::Logits), &transformed, hidden_size, vocab_size)?;
        self.sequences(&scores, vocab_size, observation::LOGITS);
        Ok(())
    }
}
