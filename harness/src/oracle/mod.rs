//! The oracle: BERT in float64, in plain Rust, from which the truth of every observation comes.
//!
//! It shares no code with any backend, not even the matrix product (candle uses another crate).
//! All sequences of a chunk go through one layer before the next, so that a layer's weights are
//! widened to f64 once and memory stays at one layer plus the activations. Sequences are never
//! padded here: padding is the targets' problem. The result does not depend on the number of
//! threads: rows are split into blocks of a fixed size.
//!
//! Beside the truth it can carry errors (`errors.rs`): what rounding makes of it in a correct
//! implementation.

mod activation;
mod errors;
mod linalg;
mod noise;
mod stage;
#[cfg(test)]
mod stage_tests;
mod step_noise;
#[cfg(test)]
mod step_noise_tests;

use std::collections::BTreeMap;
use std::ops::Range;

use driftgauge_protocol::{Batch, BertConfig, observation};
use rayon::prelude::*;

use crate::model::{Model, ModelWeights};

use activation::activation_value;
use errors::{Carrier, Errors};
pub use linalg::{Element, Matrix, linear};
use linalg::{add, layer_norm, product, softmax_rows};
pub use noise::{Noise, ROUNDING_RMS, Shortcut};
pub use stage::{Steps, Stepwise};

/// One unpadded input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Token IDs.
    pub ids: Vec<u32>,
    /// Segment of each token.
    pub type_ids: Vec<u32>,
    /// Positions whose logits are wanted.
    pub logit_positions: Vec<usize>,
}

/// The observations of one sequence in f64, by name: `embeddings` and `hidden.N` have a row for
/// each token, `logits` one for each wanted position.
pub type Truth = BTreeMap<String, Matrix>;

impl Sequence {
    /// The sequences of a batch, without padding.
    pub fn of(batch: &Batch) -> Vec<Self> {
        let sequence = |sequence: usize| {
            let own = sequence * batch.length..(sequence + 1) * batch.length;
            let tokens = own.filter(|token| batch.attention_mask[*token] == 1);
            let tokens: Vec<usize> = tokens.collect();
            let rows = batch.logit_rows.iter().filter(|row| row.0 == sequence);
            Self {
                ids: tokens.iter().map(|t| batch.input_ids[*t] as u32).collect(),
                type_ids: tokens
                    .iter()
                    .map(|t| batch.token_type_ids[*t] as u32)
                    .collect(),
                logit_positions: rows.map(|row| row.1).collect(),
            }
        };
        (0..batch.sequences).map(sequence).collect()
    }
}

/// The truth of one sequence, and what rounding adds to it.
#[derive(Debug, Clone)]
pub struct Sampled {
    /// The truth.
    pub truth: Truth,
    /// The error of each sample, in u, by observation.
    pub errors: Vec<BTreeMap<String, Matrix<f32>>>,
}

/// Most tokens that go through the layers together, each sample's counted too; bounds the memory of
/// the activations.
const CHUNK_TOKENS: usize = 8192;

/// Computes the truth of every sequence, in order.
pub fn truths(model: &Model, sequences: &[Sequence]) -> Vec<Truth> {
    in_chunks(model, sequences, None)
        .into_iter()
        .map(|sampled| sampled.truth)
        .collect()
}

/// Computes the truth of every sequence, in order, and samples of what rounding adds to it.
pub fn sampled(model: &Model, sequences: &[Sequence], noise: &Noise) -> Vec<Sampled> {
    in_chunks(model, sequences, Some(noise))
}

/// The observations from layer `layer` on, of a pass that goes on from `hidden`, the output of that
/// layer (0 is the embedding stage).
pub fn truth_from(model: &Model, sequence: &Sequence, layer: usize, hidden: Matrix) -> Truth {
    let mut pass = Pass::new(model, std::slice::from_ref(sequence), None);
    let state = State {
        truth: hidden,
        errors: None,
    };
    let mut all = pass.go_on(layer, state);
    all.pop().map(|sampled| sampled.truth).unwrap_or_default()
}

fn in_chunks(model: &Model, sequences: &[Sequence], noise: Option<&Noise>) -> Vec<Sampled> {
    let copies = 1 + noise.map_or(0, |noise| noise.samples);
    let mut done = Vec::with_capacity(sequences.len());
    let mut rest = sequences;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fitting = rest.iter().take_while(|sequence| {
            tokens += sequence.ids.len() * copies;
            tokens <= CHUNK_TOKENS
        });
        let (chunk, others) = rest.split_at(fitting.count().max(1));
        let mut pass = Pass::new(model, chunk, noise);
        let embeddings = pass.embeddings();
        done.extend(pass.go_on(0, embeddings));
        rest = others;
    }
    done
}

/// An intermediate result of all sequences, stacked: one row for each of their tokens.
struct State {
    truth: Matrix,
    /// What rounding has added so far, where errors are carried.
    errors: Option<Errors>,
}

/// One pass over some sequences.
struct Pass<'a> {
    config: &'a BertConfig,
    weights: &'a ModelWeights,
    sequences: &'a [Sequence],
    /// Rows of each sequence.
    spans: Vec<Range<usize>>,
    carrier: Option<Carrier<'a>>,
}

impl<'a> Pass<'a> {
    fn new(model: &'a Model, sequences: &'a [Sequence], noise: Option<&'a Noise>) -> Self {
        Self {
            config: &model.config,
            weights: &model.weights,
            sequences,
            spans: spans(sequences, |sequence| sequence.ids.len()),
            carrier: noise.map(|noise| Carrier::new(noise, &model.weights, sequences)),
        }
    }

    /// Everything from the output of a layer on; layer 0 is the embedding stage.
    fn go_on(&mut self, layer: usize, mut hidden: State) -> Vec<Sampled> {
        let samples = self.carrier.as_ref().map_or(0, Carrier::samples);
        let empty = Sampled {
            truth: Truth::new(),
            errors: vec![BTreeMap::new(); samples],
        };
        let mut kept = vec![empty; self.sequences.len()];
        let name = match layer {
            0 => observation::EMBEDDINGS.to_owned(),
            layer => observation::hidden(layer),
        };
        keep(&mut kept, &name, &hidden, &self.spans);
        self.start_stage(&mut hidden);
        for layer in layer..self.config.num_hidden_layers {
            hidden = self.encoder_layer(layer, &hidden);
            keep(
                &mut kept,
                &observation::hidden(layer + 1),
                &hidden,
                &self.spans,
            );
            self.start_stage(&mut hidden);
        }
        if self.weights.has_head() {
            self.head(&mut kept, &hidden);
        }
        kept
    }

    fn start_stage(&self, hidden: &mut State) {
        let by_stage = self.carrier.as_ref().is_some_and(Carrier::is_by_stage);
        if let (true, Some(errors)) = (by_stage, &mut hidden.errors) {
            errors.clear();
        }
    }

    fn embeddings(&mut self) -> State {
        let table = |name: &str| {
            let name = format!("bert.embeddings.{name}_embeddings.weight");
            self.weights.view(&name)
        };
        let words = table("word");
        let (positions, types) = (table("position").to_f64(), table("token_type").to_f64());
        let width = self.config.hidden_size;
        let mut rows = Vec::new();
        for sequence in self.sequences {
            let tokens = sequence.ids.iter().zip(&sequence.type_ids);
            for (position, (id, type_id)) in tokens.enumerate() {
                let (id, type_id) = (*id as usize, *type_id as usize);
                let word = words.rows_to_f64(id..id + 1);
                let position = &positions[position * width..(position + 1) * width];
                let token_type = &types[type_id * width..(type_id + 1) * width];
                rows.extend(
                    word.iter()
                        .zip(token_type)
                        .zip(position)
                        .map(|((w, t), p)| w + t + p),
                );
            }
        }
        let truth = Matrix::new(width, rows);
        let errors = self
            .carrier
            .as_mut()
            .map(|carrier| carrier.embeddings(self.sequences, &self.spans, &truth));
        let spans = self.spans.clone();
        self.normalise("bert.embeddings.LayerNorm", &spans, State { truth, errors })
    }

    fn encoder_layer(&mut self, layer: usize, input: &State) -> State {
        let layer = format!("bert.encoder.layer.{layer}");
        let spans = &self.spans.clone();
        let mut project =
            |part: &str, input: &State| self.dense(&format!("{layer}.{part}"), spans, input);
        let query = project("attention.self.query", input);
        let key = project("attention.self.key", input);
        let value = project("attention.self.value", input);
        let context = self.attention(&query, &key, &value);

        let attended = self.dense(&format!("{layer}.attention.output.dense"), spans, &context);
        let attended = self.add(spans, attended, input);
        let norm = format!("{layer}.attention.output.LayerNorm");
        let attended = self.normalise(&norm, spans, attended);

        let inner = self.dense(&format!("{layer}.intermediate.dense"), spans, &attended);
        let inner = self.activate(spans, inner);
        let output = self.dense(&format!("{layer}.output.dense"), spans, &inner);
        let output = self.add(spans, output, &attended);
        self.normalise(&format!("{layer}.output.LayerNorm"), spans, output)
    }

    /// softmax(Q Kᵀ / √d) V for each sequence and head; there is no padding, hence no mask.
    fn attention(&mut self, query: &State, key: &State, value: &State) -> State {
        let (config, spans) = (self.config, &self.spans);
        let scale = (config.head_size() as f64).sqrt();
        let contexts: Vec<Vec<f64>> = spans
            .par_iter()
            .map(|span| {
                let mut context = Matrix::zeros(span.len(), config.hidden_size);
                for columns in heads(config) {
                    let [query, key, value] = [query, key, value]
                        .map(|state| state.truth.view(span.clone(), columns.clone()));
                    let mut scores = Matrix::zeros(span.len(), span.len());
                    product(query, key.transposed(), &mut scores.view_mut(0..span.len()));
                    scores
                        .values_mut()
                        .iter_mut()
                        .for_each(|score| *score /= scale);
                    softmax_rows(&mut scores);
                    product(scores.all(), value, &mut context.view_mut(columns));
                }
                context.into_values()
            })
            .collect();
        State {
            truth: Matrix::new(config.hidden_size, contexts.concat()),
            errors: self
                .carrier
                .as_mut()
                .map(|carrier| carrier.attention(config, spans, [query, key, value])),
        }
    }

    /// Keeps the logits at the wanted positions of each sequence that wants any.
    fn head(&mut self, kept: &mut [Sampled], hidden: &State) {
        let mut wanted = Vec::new();
        for (sequence, span) in self.sequences.iter().zip(&self.spans) {
            let positions = sequence.logit_positions.iter();
            wanted.extend(positions.map(|position| span.start + position));
        }
        let rows = wanted.iter().flat_map(|row| hidden.truth.row(*row));
        let rows = State {
            truth: Matrix::new(self.config.hidden_size, rows.copied().collect()),
            errors: hidden.errors.as_ref().map(|errors| errors.rows(&wanted)),
        };
        let spans = spans(self.sequences, |sequence| sequence.logit_positions.len());
        let transformed = self.dense("cls.predictions.transform.dense", &spans, &rows);
        let transformed = self.activate(&spans, transformed);
        let norm = "cls.predictions.transform.LayerNorm";
        let transformed = self.normalise(norm, &spans, transformed);
        let logits = self.dense("cls.predictions.decoder", &spans, &transformed);
        keep(kept, observation::LOGITS, &logits, &spans);
    }

    fn dense(&mut self, name: &str, spans: &[Range<usize>], input: &State) -> State {
        let weight = self.weights.view(&format!("{name}.weight"));
        let bias = self.weights.view(&format!("{name}.bias")).to_f64();
        let truth = linear(&input.truth, &|rows| weight.rows_to_f64(rows), &bias);
        let errors = self
            .carrier
            .as_mut()
            .map(|carrier| carrier.dense(name, spans, input, &truth));
        State { truth, errors }
    }

    fn normalise(&mut self, name: &str, spans: &[Range<usize>], mut state: State) -> State {
        let scale = self.weights.view(&format!("{name}.weight")).to_f64();
        let shift = self.weights.view(&format!("{name}.bias")).to_f64();
        let eps = self.config.layer_norm_eps;
        if let (Some(carrier), Some(errors)) = (&mut self.carrier, &mut state.errors) {
            carrier.normalise(name, spans, eps, &state.truth, errors);
        }
        layer_norm(&mut state.truth, &scale, &shift, eps);
        state
    }

    fn activate(&mut self, spans: &[Range<usize>], mut state: State) -> State {
        let activation = self.config.hidden_act;
        if let (Some(carrier), Some(errors)) = (&mut self.carrier, &mut state.errors) {
            carrier.activate(activation, spans, &state.truth, errors);
        }
        let blocks = state.truth.values_mut().par_chunks_mut(4096);
        blocks.for_each(|block| {
            for value in block {
                *value = activation_value(activation, *value);
            }
        });
        state
    }

    /// Adds the residual.
    fn add(&mut self, spans: &[Range<usize>], mut state: State, residual: &State) -> State {
        add(&mut state.truth, &residual.truth);
        if let (Some(carrier), Some(errors), Some(others)) =
            (&mut self.carrier, &mut state.errors, &residual.errors)
        {
            carrier.add(spans, &state.truth, errors, others);
        }
        state
    }
}

/// The rows of each sequence in a stack in which it has `rows` of them.
fn spans(sequences: &[Sequence], rows: impl Fn(&Sequence) -> usize) -> Vec<Range<usize>> {
    let mut end = 0;
    sequences
        .iter()
        .map(|sequence| {
            let start = end;
            end += rows(sequence);
            start..end
        })
        .collect()
}

/// The columns of each attention head.
fn heads(config: &BertConfig) -> impl Iterator<Item = Range<usize>> {
    let size = config.head_size();
    (0..config.num_attention_heads).map(move |head| head * size..(head + 1) * size)
}

/// Keeps an observation of every sequence that has rows of it.
fn keep(kept: &mut [Sampled], name: &str, stacked: &State, spans: &[Range<usize>]) {
    for (sampled, span) in kept.iter_mut().zip(spans).filter(|(_, s)| !s.is_empty()) {
        let rows = stacked.truth.rows(span.clone());
        sampled.truth.insert(name.to_owned(), rows);
        for (sample, errors) in sampled.errors.iter_mut().enumerate() {
            if let Some(stacked) = &stacked.errors {
                errors.insert(name.to_owned(), stacked.of(sample, span.clone()));
            }
        }
    }
}
