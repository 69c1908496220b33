//! One stage of the model, step by step, on a padded batch: from any hidden state, and under any fault.
//!
//! Where the [pass](super) computes whole sequences without padding, this computes what a target is
//! asked for, padding included, so that each stage of a target can be judged from the hidden state that
//! the target itself had before it, each step from the steps before it, and so that the signature of a
//! fault can be computed. A test holds the two against each other.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use driftgauge_protocol::fault::{
    self, Activation, AttentionMask, Change, Edit, Fault, InputChange,
};
use driftgauge_protocol::{Batch, Dtype, Stage, Step};
use rayon::prelude::*;

use super::activation::activation_value;
use super::linalg::{
    FEW_ROWS, Matrix, add, layer_norm, linear, linear_of_few, product, softmax_rows,
};
use super::{heads, noise::Noise};
use crate::model::{Model, WeightView};

/// The steps of a stage. A row for each position of the batch; of scores and probabilities a row for
/// each sequence, head and query; of the head one for each wanted position.
pub type Steps = BTreeMap<Step, Matrix>;

/// What is added to the score of a key that is masked: the lowest f32, as implementations add.
const LOWEST: f64 = f32::MIN as f64;

/// A model that computes one batch stage by stage.
pub struct Stepwise<'a> {
    pub(super) model: &'a Model,
    pub(super) batch: &'a Batch,
    /// What rounds weights to the dtype of a target, where it is coarser than the stored one.
    pub(super) noise: Noise,
    fault: Option<&'a Fault>,
    /// Tensors that the fault changes.
    changed: Arc<BTreeMap<String, Vec<f64>>>,
}

impl<'a> Stepwise<'a> {
    /// A model for one batch, with weights as a target that computes like `noise` has them.
    ///
    /// # Errors
    /// Where the fault does not fit the model.
    pub fn new(
        model: &'a Model,
        batch: &'a Batch,
        noise: &Noise,
        fault: Option<&'a Fault>,
    ) -> Result<Self, String> {
        let edits = || fault.iter().flat_map(|fault| fault.weight_edits());
        let stored = |name: &str| {
            let view = model.weights.find(name);
            let view = view.ok_or_else(|| format!("the model has no tensor `{name}`"))?;
            Ok(fault::Values {
                numbers: view.to_f64(),
                shape: view.shape.to_vec(),
            })
        };
        let mut changed = BTreeMap::new();
        for edit in edits() {
            if !changed.contains_key(&edit.tensor) {
                let values = fault::changed(edits(), &edit.tensor, stored)?;
                let numbers = values.map(|values| noise.round(values.numbers));
                changed.extend(numbers.map(|numbers| (edit.tensor.clone(), numbers)));
            }
        }
        Ok(Self {
            model,
            batch,
            noise: *noise,
            fault,
            changed: Arc::new(changed),
        })
    }

    /// The same model, with the same weights, for another batch.
    pub fn on<'b>(&self, batch: &'b Batch) -> Stepwise<'b>
    where
        'a: 'b,
    {
        Stepwise {
            model: self.model,
            batch,
            noise: self.noise,
            fault: self.fault,
            changed: Arc::clone(&self.changed),
        }
    }

    /// What it computes.
    pub fn batch(&self) -> &'a Batch {
        self.batch
    }

    /// Weight and bias of the decoder, a row of the weight for each token of the vocabulary.
    pub fn decoder(&self) -> (Vec<f64>, Vec<f64>) {
        let module = Step::Logits.module(Stage::Head);
        let module = module.expect("the decoder is a dense layer");
        let tensor = |part: &str| self.tensor(&format!("{module}.{part}")).all();
        (tensor("weight"), tensor("bias"))
    }

    /// All steps of a stage from the hidden state before it, which the embedding stage has not.
    pub fn stage(&self, stage: Stage, input: Option<&Matrix>) -> Steps {
        self.go_on(stage, input, Steps::new())
    }

    /// All steps of a stage of which the first ones are done.
    pub fn go_on(&self, stage: Stage, input: Option<&Matrix>, mut done: Steps) -> Steps {
        for step in stage.steps() {
            if !done.contains_key(step) {
                let result = self.step(stage, *step, input, &done);
                done.insert(*step, result);
            }
        }
        done
    }

    /// The result of a stage.
    pub fn output(&self, stage: Stage, input: Option<&Matrix>) -> Matrix {
        let mut steps = self.stage(stage, input);
        steps
            .remove(&stage.last_step())
            .expect("a stage ends with its last step")
    }

    /// One step, from the results of those before it.
    ///
    /// # Panics
    /// Where one that it needs is not in `done`.
    pub fn step(&self, stage: Stage, step: Step, input: Option<&Matrix>, done: &Steps) -> Matrix {
        let changes: Vec<Change> = self
            .fault
            .iter()
            .flat_map(|fault| fault.changes(stage, step))
            .collect();
        let at = At {
            stage,
            step,
            changes: &changes,
        };
        let mut result = self.computed(&at, input, done);
        for change in &changes {
            apply(*change, &mut result);
        }
        result
    }

    fn computed(&self, at: &At<'_>, input: Option<&Matrix>, done: &Steps) -> Matrix {
        let before = || input.expect("only the embedding stage has no input");
        match (at.stage, at.step) {
            (Stage::Embeddings, Step::Sum) => self.sum_of_embeddings(),
            (Stage::Head, Step::Transform) => self.dense(at, &self.wanted_rows(before())),
            (Stage::Head, Step::Activation) => {
                activated(self.activation(at), &done[&Step::Transform])
            }
            (Stage::Head, Step::Norm) => self.normalised(at, &done[&Step::Activation]),
            (_, Step::Query | Step::Key | Step::Value) => self.dense(at, before()),
            (Stage::Layer(layer), Step::Scores) => self.scores(layer, done),
            (Stage::Layer(layer), Step::Probabilities) => self.probabilities(at, layer, done),
            (_, Step::Context) => self.context(done),
            (_, Step::AttentionOutput) => self.dense(at, &done[&Step::Context]),
            (_, Step::AttentionSum) => at.sum(&done[&Step::AttentionOutput], before()),
            (_, Step::AttentionNorm) => self.normalised(at, &done[&Step::AttentionSum]),
            (_, Step::Intermediate) => self.dense(at, &done[&Step::AttentionNorm]),
            (_, Step::Activation) => activated(self.activation(at), &done[&Step::Intermediate]),
            (_, Step::Output) => self.dense(at, &done[&Step::Activation]),
            (_, Step::Sum) => at.sum(&done[&Step::Output], &done[&Step::AttentionNorm]),
            (_, Step::Norm) => self.normalised(at, &done[&Step::Sum]),
            (_, Step::Logits) => self.dense(at, &done[&Step::Norm]),
            (stage, step) => unreachable!("`{stage}` has no step `{step}`"),
        }
    }

    fn activation(&self, at: &At<'_>) -> Activation {
        let other = at.changes.iter().find_map(|change| match change {
            Change::Activate(activation) => Some(*activation),
            _ => None,
        });
        other.unwrap_or_else(|| self.model.config.hidden_act.into())
    }

    /// The rows of a hidden state whose logits are wanted.
    pub(super) fn wanted_rows(&self, hidden: &Matrix) -> Matrix {
        let rows = self.batch.logit_rows.iter();
        let rows = rows
            .flat_map(|(sequence, position)| hidden.row(sequence * self.batch.length + position));
        Matrix::new(hidden.width(), rows.copied().collect())
    }

    fn sum_of_embeddings(&self) -> Matrix {
        let batch = self.batch;
        let left = self.feeds(InputChange::LeftPadding);
        let types = match self.feeds(InputChange::MaskAndTypesSwapped) {
            true => &batch.attention_mask,
            false => &batch.token_type_ids,
        };
        let name = |table: &str| format!("bert.embeddings.{table}_embeddings.weight");
        let [words, positions, segments] =
            ["word", "position", "token_type"].map(|table| self.tensor(&name(table)));
        let mut rows = Vec::new();
        for sequence in 0..batch.sequences {
            let span = sequence * batch.length..(sequence + 1) * batch.length;
            let mask = &batch.attention_mask[span.clone()];
            let padding = mask.iter().filter(|attended| **attended == 0).count();
            for (index, place) in span.enumerate() {
                // A token is at the place where it was fed.
                let position = match left {
                    true => (index + padding) % batch.length,
                    false => index,
                };
                let word = words.row(batch.input_ids[place] as usize);
                let position = positions.row(position);
                let segment = segments.row(types[place] as usize);
                let parts = word.iter().zip(&segment).zip(&position);
                rows.extend(parts.map(|((w, t), p)| w + t + p));
            }
        }
        Matrix::new(self.model.config.hidden_size, rows)
    }

    fn dense(&self, at: &At<'_>, input: &Matrix) -> Matrix {
        let module = at.module();
        let weight = self.tensor(&format!("{module}.weight"));
        let bias = self.tensor(&format!("{module}.bias")).all();
        let rounded = at.round_input(input);
        let input = rounded.as_ref().unwrap_or(input);
        let accumulate = at.changes.iter().find_map(|change| match change {
            Change::Accumulate { to, every } => Some((*to, *every)),
            _ => None,
        });
        let Some((to, every)) = accumulate else {
            let rows = |rows| weight.rows(rows);
            return match input.height() <= FEW_ROWS {
                true => linear_of_few(input, &rows, &bias),
                false => linear(input, &rows, &bias),
            };
        };
        let none = vec![0.0; bias.len()];
        let mut sum = Matrix::zeros(input.height(), bias.len());
        for start in (0..input.width()).step_by(every.max(1)) {
            let part = start..(start + every.max(1)).min(input.width());
            let columns = input.view(0..input.height(), part.clone()).map(|x| x);
            let rows = |rows: Range<usize>| -> Vec<f64> {
                let weight = Matrix::new(input.width(), weight.rows(rows));
                weight
                    .view(0..weight.height(), part.clone())
                    .map(|x| x)
                    .into_values()
            };
            let mut partial = linear(&columns, &rows, &none);
            round(&mut partial, to);
            add(&mut sum, &partial);
            round(&mut sum, to);
        }
        let rows = sum.values_mut().chunks_mut(bias.len());
        rows.flat_map(|row| row.iter_mut().zip(&bias))
            .for_each(|(x, b)| *x += b);
        sum
    }

    fn normalised(&self, at: &At<'_>, input: &Matrix) -> Matrix {
        let module = at.module();
        let scale = self.tensor(&format!("{module}.weight")).all();
        let shift = self.tensor(&format!("{module}.bias")).all();
        let mut eps = self.model.config.layer_norm_eps;
        for change in at.changes {
            if let Change::Epsilon(other) = change {
                eps = *other;
            }
        }
        let mut result = at.round_input(input).unwrap_or_else(|| input.clone());
        layer_norm(&mut result, &scale, &shift, eps);
        result
    }

    /// The mask of a layer as it is fed.
    pub(super) fn mask(&self, layer: usize) -> AttentionMask {
        let mut fed = self.batch.clone();
        if self.feeds(InputChange::MaskAndTypesSwapped) {
            fed.attention_mask = fed.token_type_ids.clone();
        }
        let own = self.fault.and_then(|fault| fault.mask(layer, &fed));
        own.unwrap_or(AttentionMask {
            attended: fed.attention_mask,
            fill: None,
            after_softmax: false,
        })
    }

    fn feeds(&self, change: InputChange) -> bool {
        let mut edits = self.fault.iter().flat_map(|fault| &fault.edits);
        edits.any(|edit| *edit == Edit::Input(change))
    }

    /// Q Kᵀ / √d and the mask, for each sequence and head.
    fn scores(&self, layer: usize, done: &Steps) -> Matrix {
        let (query, key) = (&done[&Step::Query], &done[&Step::Key]);
        let mask = self.mask(layer);
        let scale = (self.model.config.head_size() as f64).sqrt();
        let length = self.batch.length;
        let lowest = mask.fill.unwrap_or(LOWEST);
        self.each_head(length, |span, columns, head| {
            let [query, key] = [query, key].map(|m| m.view(span.clone(), columns.clone()));
            product(query, key.transposed(), &mut head.view_mut(0..length));
            let attended = &mask.attended[span];
            for row in head.values_mut().chunks_mut(length) {
                for (score, attended) in row.iter_mut().zip(attended) {
                    *score /= scale;
                    if *attended == 0 && !mask.after_softmax {
                        *score += lowest;
                    }
                }
            }
        })
    }

    fn probabilities(&self, at: &At<'_>, layer: usize, done: &Steps) -> Matrix {
        let mut result = done[&Step::Scores].clone();
        let length = self.batch.length;
        if at.changes.contains(&Change::SoftmaxOverQueries) {
            for head in result.values_mut().chunks_mut(length * length) {
                let scores = Matrix::new(length, head.to_vec());
                let mut columns = scores.all().transposed().map(|x| x);
                softmax_rows(&mut columns);
                head.copy_from_slice(columns.all().transposed().map(|x| x).values());
            }
        } else {
            softmax_rows(&mut result);
        }
        let mask = self.mask(layer);
        if mask.after_softmax {
            let heads = self.model.config.num_attention_heads;
            let sequences = result.values_mut().chunks_mut(heads * length * length);
            for (sequence, attended) in sequences.zip(mask.attended.chunks(length)) {
                for row in sequence.chunks_mut(length) {
                    row.iter_mut()
                        .zip(attended)
                        .for_each(|(p, a)| *p *= *a as f64);
                }
            }
        }
        result
    }

    pub(super) fn context(&self, done: &Steps) -> Matrix {
        let (probabilities, value) = (&done[&Step::Probabilities], &done[&Step::Value]);
        let (config, length) = (&self.model.config, self.batch.length);
        let mut context = Matrix::zeros(value.height(), config.hidden_size);
        for sequence in 0..self.batch.sequences {
            let span = sequence * length..(sequence + 1) * length;
            for (head, columns) in heads(config).enumerate() {
                let start = (sequence * config.num_attention_heads + head) * length;
                let weights = probabilities.view(start..start + length, 0..length);
                let mut part = Matrix::zeros(length, columns.len());
                let values = value.view(span.clone(), columns.clone());
                product(weights, values, &mut part.view_mut(0..columns.len()));
                for (row, values) in span.clone().zip(part.values().chunks(columns.len())) {
                    let start = row * config.hidden_size;
                    context.values_mut()[start + columns.start..start + columns.end]
                        .copy_from_slice(values);
                }
            }
        }
        context
    }

    /// A matrix of the heads of all sequences below each other, each of the batch's length and this width.
    pub(super) fn each_head(
        &self,
        width: usize,
        fill: impl Fn(Range<usize>, Range<usize>, &mut Matrix) + Sync,
    ) -> Matrix {
        let (config, length) = (&self.model.config, self.batch.length);
        let sequences: Vec<Vec<f64>> = (0..self.batch.sequences)
            .into_par_iter()
            .map(|sequence| {
                let span = sequence * length..(sequence + 1) * length;
                let one = |columns| {
                    let mut head = Matrix::zeros(length, width);
                    fill(span.clone(), columns, &mut head);
                    head.into_values()
                };
                heads(config).map(one).collect::<Vec<_>>().concat()
            })
            .collect();
        Matrix::new(width, sequences.concat())
    }

    /// A tensor of the model as the computation has it.
    pub(super) fn tensor(&self, name: &str) -> Weight<'_> {
        match self.changed.get(name) {
            Some(values) => {
                let rows = self.model.weights.view(name).shape[0];
                Weight::Changed { values, rows }
            }
            None => Weight::Stored {
                view: self.model.weights.view(name),
                noise: &self.noise,
            },
        }
    }
}

/// A tensor, as it is stored or as a fault leaves it.
pub(super) enum Weight<'a> {
    Stored {
        view: WeightView<'a>,
        noise: &'a Noise,
    },
    Changed {
        values: &'a [f64],
        rows: usize,
    },
}

impl Weight<'_> {
    pub(super) fn rows(&self, rows: Range<usize>) -> Vec<f64> {
        match self {
            Self::Stored { view, noise } => {
                let values = view.rows_to_f64(rows);
                match noise.rounds(view.dtype) {
                    true => noise.round(values),
                    false => values,
                }
            }
            Self::Changed { values, rows: all } => {
                let width = values.len() / all;
                values[rows.start * width..rows.end * width].to_vec()
            }
        }
    }

    fn row(&self, row: usize) -> Vec<f64> {
        self.rows(row..row + 1)
    }

    pub(super) fn all(&self) -> Vec<f64> {
        let rows = match self {
            Self::Stored { view, .. } => view.shape[0],
            Self::Changed { rows, .. } => *rows,
        };
        self.rows(0..rows)
    }
}

/// A step and what is different in it.
struct At<'a> {
    stage: Stage,
    step: Step,
    changes: &'a [Change],
}

impl At<'_> {
    fn module(&self) -> String {
        let module = self.step.module(self.stage);
        module.expect("only a step with weights asks for its module")
    }

    fn round_input(&self, input: &Matrix) -> Option<Matrix> {
        let to = self.changes.iter().find_map(|change| match change {
            Change::RoundInput(to) => Some(*to),
            _ => None,
        })?;
        let mut input = input.clone();
        round(&mut input, to);
        Some(input)
    }

    /// A result and the residual.
    fn sum(&self, result: &Matrix, residual: &Matrix) -> Matrix {
        let mut sum = result.clone();
        if !self.changes.contains(&Change::DropResidual) {
            add(&mut sum, residual);
        }
        sum
    }
}

/// Changes the result of a step.
fn apply(change: Change, result: &mut Matrix) {
    match change {
        Change::Round(to) => round(result, to),
        Change::Beyond { limit, becomes } => {
            let beyond = result.values_mut().iter_mut().filter(|x| x.abs() > limit);
            beyond.for_each(|x| *x = becomes.value());
        }
        Change::Flush(below) => {
            let small = result.values_mut().iter_mut().filter(|x| x.abs() < below);
            small.for_each(|x| *x = 0.0);
        }
        // These say how the result is computed; random numbers have no expectation but 0.
        Change::Activate(_)
        | Change::Epsilon(_)
        | Change::DropResidual
        | Change::Mask(_)
        | Change::SoftmaxOverQueries
        | Change::RoundInput(_)
        | Change::Accumulate { .. }
        | Change::Noise(_) => {}
    }
}

fn round(matrix: &mut Matrix, to: Dtype) {
    let values = matrix.values_mut().iter_mut();
    values.for_each(|value| *value = fault::rounded(*value, to));
}

fn activated(activation: Activation, input: &Matrix) -> Matrix {
    let mut result = input.clone();
    result.values_mut().par_chunks_mut(4096).for_each(|block| {
        for value in block {
            *value = activation_value(activation, *value);
        }
    });
    result
}
