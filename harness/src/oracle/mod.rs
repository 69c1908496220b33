//! The oracle: BERT in float64, in plain Rust, from which the truth of every observation comes.
//!
//! It shares no code with any backend, not even the matrix product (candle uses another crate).
//! All sequences of a chunk go through one layer before the next, so that a layer's weights are
//! widened to f64 once and memory stays at one layer plus the activations. Sequences are never
//! padded here: padding is the targets' problem. The result does not depend on the number of
//! threads: rows are split into blocks of a fixed size.

mod linalg;

use std::collections::BTreeMap;

use driftgauge_protocol::{BertConfig, HiddenAct, observation};
use rayon::prelude::*;

use crate::model::{Model, ModelWeights};

pub use linalg::Matrix;
use linalg::{add, layer_norm, linear, product, softmax_rows};

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

/// Most tokens that go through the layers together; bounds the memory of the activations.
const CHUNK_TOKENS: usize = 8192;

/// Computes the truth of every sequence, in order.
pub fn truths(model: &Model, sequences: &[Sequence]) -> Vec<Truth> {
    let mut truths = Vec::with_capacity(sequences.len());
    let mut rest = sequences;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fitting = rest.iter().take_while(|sequence| {
            tokens += sequence.ids.len();
            tokens <= CHUNK_TOKENS
        });
        let (chunk, others) = rest.split_at(fitting.count().max(1));
        truths.extend(forward(&model.config, &model.weights, chunk));
        rest = others;
    }
    truths
}

/// One pass over sequences that are stacked into one matrix of all their tokens.
fn forward(config: &BertConfig, weights: &ModelWeights, sequences: &[Sequence]) -> Vec<Truth> {
    let spans = spans(sequences);
    let mut truths = vec![Truth::new(); sequences.len()];
    let mut keep = |name: String, stacked: &Matrix| {
        for (truth, span) in truths.iter_mut().zip(&spans) {
            truth.insert(name.clone(), stacked.rows(span.clone()));
        }
    };
    let mut hidden = embeddings(config, weights, sequences);
    keep(observation::EMBEDDINGS.to_owned(), &hidden);
    for layer in 0..config.num_hidden_layers {
        hidden = encoder_layer(config, weights, layer, &hidden, &spans);
        keep(observation::hidden(layer + 1), &hidden);
    }
    if weights.has_head() {
        for (truth, logits) in truths
            .iter_mut()
            .zip(head(config, weights, &hidden, sequences, &spans))
        {
            truth.extend(logits.map(|logits| (observation::LOGITS.to_owned(), logits)));
        }
    }
    truths
}

/// The rows of each sequence in the stacked matrices.
fn spans(sequences: &[Sequence]) -> Vec<std::ops::Range<usize>> {
    let mut end = 0;
    sequences
        .iter()
        .map(|sequence| {
            let start = end;
            end += sequence.ids.len();
            start..end
        })
        .collect()
}

fn embeddings(config: &BertConfig, weights: &ModelWeights, sequences: &[Sequence]) -> Matrix {
    let words = weights.view("bert.embeddings.word_embeddings.weight");
    let positions = weights
        .view("bert.embeddings.position_embeddings.weight")
        .to_f64();
    let types = weights
        .view("bert.embeddings.token_type_embeddings.weight")
        .to_f64();
    let width = config.hidden_size;
    let mut rows = Vec::new();
    for sequence in sequences {
        for (position, (id, type_id)) in sequence.ids.iter().zip(&sequence.type_ids).enumerate() {
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
    let mut embeddings = Matrix::new(width, rows);
    normalise(
        weights,
        "bert.embeddings.LayerNorm",
        config.layer_norm_eps,
        &mut embeddings,
    );
    embeddings
}

fn encoder_layer(
    config: &BertConfig,
    weights: &ModelWeights,
    layer: usize,
    input: &Matrix,
    spans: &[std::ops::Range<usize>],
) -> Matrix {
    let layer = format!("bert.encoder.layer.{layer}");
    let project = |part: &str, input: &Matrix| dense(weights, &format!("{layer}.{part}"), input);
    let query = project("attention.self.query", input);
    let key = project("attention.self.key", input);
    let value = project("attention.self.value", input);
    let context = attention(config, &query, &key, &value, spans);

    let mut attended = project("attention.output.dense", &context);
    add(&mut attended, input);
    normalise(
        weights,
        &format!("{layer}.attention.output.LayerNorm"),
        config.layer_norm_eps,
        &mut attended,
    );

    let mut inner = project("intermediate.dense", &attended);
    activate(config.hidden_act, &mut inner);
    let mut output = project("output.dense", &inner);
    add(&mut output, &attended);
    normalise(
        weights,
        &format!("{layer}.output.LayerNorm"),
        config.layer_norm_eps,
        &mut output,
    );
    output
}

/// softmax(Q Kᵀ / √d) V for each sequence and head; there is no padding, hence no mask.
fn attention(
    config: &BertConfig,
    query: &Matrix,
    key: &Matrix,
    value: &Matrix,
    spans: &[std::ops::Range<usize>],
) -> Matrix {
    let size = config.head_size();
    let scale = (size as f64).sqrt();
    let contexts: Vec<Vec<f64>> = spans
        .par_iter()
        .map(|span| {
            let mut context = Matrix::zeros(span.len(), config.hidden_size);
            for head in 0..config.num_attention_heads {
                let columns = head * size..(head + 1) * size;
                let query = query.view(span.clone(), columns.clone());
                let key = key.view(span.clone(), columns.clone());
                let value = value.view(span.clone(), columns.clone());
                let mut scores = Matrix::zeros(span.len(), span.len());
                product(query, key.transposed(), &mut scores.view_mut(0..span.len()));
                scores
                    .values_mut()
                    .iter_mut()
                    .for_each(|score| *score /= scale);
                softmax_rows(&mut scores);
                let probabilities = scores.view(0..span.len(), 0..span.len());
                product(probabilities, value, &mut context.view_mut(columns));
            }
            context.into_values()
        })
        .collect();
    Matrix::new(config.hidden_size, contexts.concat())
}

/// Logits at the wanted positions of each sequence; `None` for a sequence that wants none.
fn head(
    config: &BertConfig,
    weights: &ModelWeights,
    hidden: &Matrix,
    sequences: &[Sequence],
    spans: &[std::ops::Range<usize>],
) -> Vec<Option<Matrix>> {
    let mut rows = Vec::new();
    for (sequence, span) in sequences.iter().zip(spans) {
        for position in &sequence.logit_positions {
            rows.extend_from_slice(hidden.row(span.start + position));
        }
    }
    let rows = Matrix::new(config.hidden_size, rows);
    let mut transformed = dense(weights, "cls.predictions.transform.dense", &rows);
    activate(config.hidden_act, &mut transformed);
    normalise(
        weights,
        "cls.predictions.transform.LayerNorm",
        config.layer_norm_eps,
        &mut transformed,
    );
    let logits = dense(weights, "cls.predictions.decoder", &transformed);

    let mut next = 0;
    sequences
        .iter()
        .map(|sequence| {
            let first = next;
            next += sequence.logit_positions.len();
            (next > first).then(|| logits.rows(first..next))
        })
        .collect()
}

fn dense(weights: &ModelWeights, name: &str, input: &Matrix) -> Matrix {
    let weight = weights.view(&format!("{name}.weight"));
    let bias = weights.view(&format!("{name}.bias")).to_f64();
    linear(input, &|rows| weight.rows_to_f64(rows), &bias)
}

fn normalise(weights: &ModelWeights, name: &str, eps: f64, matrix: &mut Matrix) {
    let scale = weights.view(&format!("{name}.weight")).to_f64();
    let shift = weights.view(&format!("{name}.bias")).to_f64();
    layer_norm(matrix, &scale, &shift, eps);
}

fn activate(activation: HiddenAct, matrix: &mut Matrix) {
    matrix.values_mut().par_chunks_mut(4096).for_each(|block| {
        for value in block {
            *value = activation_value(activation, *value);
        }
    });
}

/// The activation function at one point.
pub fn activation_value(activation: HiddenAct, x: f64) -> f64 {
    match activation {
        // x Φ(x), with erfc so that nothing cancels for negative x.
        HiddenAct::Gelu => 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
        // Hendrycks and Gimpel, arXiv:1606.08415, section 2.
        HiddenAct::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        HiddenAct::Relu => x.max(0.0),
        HiddenAct::Silu => x / (1.0 + (-x).exp()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of Φ from Abramowitz and Stegun, table 26.1.
    #[test]
    fn activations_at_known_points() {
        for (activation, x, expected, tolerance) in [
            (HiddenAct::Gelu, 1.0, 0.841_344_746_068_543, 1e-14),
            (
                HiddenAct::Gelu,
                -3.0,
                -3.0 * 0.001_349_898_031_630_094_6,
                1e-15,
            ),
            (HiddenAct::GeluTanh, 1.0, 0.841_191_990_608_276_9, 1e-9),
            (HiddenAct::Relu, -2.0, 0.0, 0.0),
            (HiddenAct::Silu, 1.0, 0.731_058_578_630_004_9, 1e-15),
        ] {
            let value = activation_value(activation, x);
            assert!(
                (value - expected).abs() <= tolerance,
                "{activation:?}({x}) = {value}"
            );
        }
    }
}
