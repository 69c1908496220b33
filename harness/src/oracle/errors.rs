//! Errors that travel with the truth.
//!
//! Each sample is the error of one imagined implementation, in units of roundoff: at every operation
//! it is carried through by the operation's derivative at the truth, and the operation's own
//! [rounding](super::noise) is added as a random number. To first order in u that is the difference
//! between a pass that rounds and one that does not; and since u is only a factor, f32 suffices for it
//! whatever the dtype.
//!
//! A sequence's random numbers depend on its content alone, not on its company.

use std::ops::Range;

use driftgauge_protocol::{BertConfig, HiddenAct};
use rayon::prelude::*;

use super::activation::ActivationPoint;
use super::linalg::{Matrix, View, linear, mean_and_variance, multiplied, product, softmax_rows};
use super::noise::{Noise, Stream};
use super::{Sequence, State, heads};
use crate::model::{ModelWeights, WeightView};

/// Errors of one intermediate result: for each sample the rows of all sequences, in u.
#[derive(Debug, Clone)]
pub(super) struct Errors {
    samples: usize,
    /// The samples below each other.
    values: Matrix<f32>,
}

impl Errors {
    fn height(&self) -> usize {
        self.values.height() / self.samples
    }

    /// Starts again without an error.
    pub(super) fn clear(&mut self) {
        self.values.values_mut().fill(0.0);
    }

    /// Some rows of one sample.
    pub(super) fn of(&self, sample: usize, rows: Range<usize>) -> Matrix<f32> {
        let start = sample * self.height();
        self.values.rows(start + rows.start..start + rows.end)
    }

    /// The given rows of every sample.
    pub(super) fn rows(&self, rows: &[usize]) -> Self {
        let height = self.height();
        let selected = (0..self.samples)
            .flat_map(|sample| rows.iter().map(move |row| sample * height + row))
            .flat_map(|row| self.values.row(row))
            .copied();
        Self {
            samples: self.samples,
            values: Matrix::new(self.values.width(), selected.collect()),
        }
    }

    fn part(&self, sample: usize, rows: &Range<usize>, columns: &Range<usize>) -> View<'_, f32> {
        let start = sample * self.height();
        let rows = start + rows.start..start + rows.end;
        self.values.view(rows, columns.clone())
    }
}

/// Carries errors through a pass.
pub(super) struct Carrier<'a> {
    noise: &'a Noise,
    weights: &'a ModelWeights,
    /// What the random numbers of each sequence start from.
    keys: Vec<u64>,
    /// Operations that drew random numbers so far.
    stage: u64,
}

impl<'a> Carrier<'a> {
    pub(super) fn new(noise: &'a Noise, weights: &'a ModelWeights, sequences: &[Sequence]) -> Self {
        Self {
            noise,
            weights,
            keys: sequences
                .iter()
                .map(|sequence| noise.key(sequence))
                .collect(),
            stage: 0,
        }
    }

    pub(super) fn samples(&self) -> usize {
        self.noise.samples
    }

    /// Whether every stage starts without an error.
    pub(super) fn is_by_stage(&self) -> bool {
        self.noise.by_stage
    }

    /// Errors of the sum of the three embeddings.
    pub(super) fn embeddings(
        &mut self,
        sequences: &[Sequence],
        spans: &[Range<usize>],
        sums: &Matrix,
    ) -> Errors {
        let table = |name: &str| {
            let name = format!("bert.embeddings.{name}_embeddings.weight");
            self.weights.view(&name)
        };
        let (words, types, positions) = (table("word"), table("token_type"), table("position"));
        let (mut shifts, mut deviations) = (Vec::new(), Vec::new());
        for (sequence, span) in sequences.iter().zip(spans) {
            for (position, row) in span.clone().enumerate() {
                let (id, type_id) = (sequence.ids[position], sequence.type_ids[position]);
                let parts = [
                    (words, id as usize),
                    (types, type_id as usize),
                    (positions, position),
                ];
                let [word, token_type, _] =
                    parts.map(|(table, index)| table.rows_to_f64(index..index + 1));
                let first_sums = word.iter().zip(&token_type).map(|(w, t)| w + t);
                let sums = first_sums.zip(sums.row(row));
                deviations
                    .extend(sums.map(|(first, sum)| self.noise.embedding(first, *sum) as f32));
                let moved = parts.map(|(table, index)| self.rounding(table, index..index + 1));
                let [word, token_type, position] = moved;
                shifts.extend(
                    (0..word.len()).map(|column| {
                        (word[column] + token_type[column] + position[column]) as f32
                    }),
                );
            }
        }
        let mut errors = Errors {
            samples: self.noise.samples,
            values: Matrix::new(sums.width(), shifts.repeat(self.noise.samples)),
        };
        self.perturb(spans, &mut errors, &Matrix::new(sums.width(), deviations));
        errors
    }

    /// Errors of a dense layer's result `output`.
    pub(super) fn dense(
        &mut self,
        name: &str,
        spans: &[Range<usize>],
        input: &State,
        output: &Matrix,
    ) -> Errors {
        let weight = self.weights.view(&format!("{name}.weight"));
        let bias = self.weights.view(&format!("{name}.bias"));
        let (inputs, outputs) = (input.truth.width(), output.width());
        let none = vec![0.0; outputs];
        let narrow = |rows| {
            weight
                .rows_to_f64(rows)
                .into_iter()
                .map(|w| w as f32)
                .collect()
        };
        let Some(carried) = &input.errors else {
            unreachable!("errors are carried through a whole pass or not at all");
        };
        let mut errors = Errors {
            samples: carried.samples,
            values: linear(&carried.values, &narrow, &none),
        };
        if self.rounds(weight) || self.rounds(bias) {
            let moved = self.rounding(bias, 0..outputs);
            let shift = linear(&input.truth, &|rows| self.rounding(weight, rows), &moved);
            self.shift(&mut errors, &shift);
        }
        let squares = input.truth.all().map(|x| (x * x) as f32);
        let squared = |rows| {
            let row = weight.rows_to_f64(rows).into_iter();
            row.map(|w| (w * w) as f32).collect()
        };
        let squares = linear(&squares, &squared, &none);
        let biases = bias.to_f64();
        let deviations = squares.values().par_iter().zip(output.values()).enumerate();
        let deviations = deviations.map(|(index, (squares, y))| {
            let squares = f64::from(*squares);
            let sums = (biases[index % outputs], *y);
            self.noise.dense(inputs, squares, sums, weight.dtype) as f32
        });
        let deviations = Matrix::new(outputs, deviations.collect());
        self.perturb(spans, &mut errors, &deviations);
        errors
    }

    /// Errors of a layer norm of `input`.
    pub(super) fn normalise(
        &mut self,
        name: &str,
        spans: &[Range<usize>],
        eps: f64,
        input: &Matrix,
        errors: &mut Errors,
    ) {
        let scale_view = self.weights.view(&format!("{name}.weight"));
        let shift_view = self.weights.view(&format!("{name}.bias"));
        let (scale, shift) = (scale_view.to_f64(), shift_view.to_f64());
        let width = input.width();
        let moved_scale = self.rounding(scale_view, 0..width);
        let moved_shift = self.rounding(shift_view, 0..width);
        let rows: Vec<NormRow> = (0..input.height())
            .into_par_iter()
            .map(|row| {
                let (mean, variance) = mean_and_variance(input.row(row));
                let deviation = (variance + eps).sqrt();
                let normal: Vec<f64> = input
                    .row(row)
                    .iter()
                    .map(|x| (x - mean) / deviation)
                    .collect();
                let elements = (0..width).map(|column| {
                    let scaled = normal[column] * scale[column];
                    self.noise.norm_element(scaled, scaled + shift[column]) as f32
                });
                let statistics = self.noise.norm_statistics(width, mean, variance, eps);
                NormRow {
                    deviation: deviation as f32,
                    mean_error: statistics.mean as f32,
                    scale_error: statistics.scale as f32,
                    elements: elements.collect(),
                    normal: normal.into_iter().map(|x| x as f32).collect(),
                }
            })
            .collect();
        let scale: Vec<f32> = scale.iter().map(|value| *value as f32).collect();
        self.each_row(spans, errors, |row, values, stream| {
            let row = &rows[row];
            let count = width as f32;
            let mean = values.iter().sum::<f32>() / count + row.mean_error * stream.normal();
            let along = values
                .iter()
                .zip(&row.normal)
                .map(|(e, x)| e * x)
                .sum::<f32>()
                / count;
            // The reciprocal of the deviation: what the input's errors do to it, and its own.
            let stretch = row.scale_error * stream.normal() - along / row.deviation;
            for (column, value) in values.iter_mut().enumerate() {
                let normal = row.normal[column];
                let carried = (*value - mean) / row.deviation + normal * stretch;
                let rounded = normal * moved_scale[column] as f32 + moved_shift[column] as f32;
                *value = carried * scale[column] + rounded;
            }
            stream.perturb(values, &row.elements);
        });
    }

    /// Errors of an activation of `input`.
    pub(super) fn activate(
        &mut self,
        activation: HiddenAct,
        spans: &[Range<usize>],
        input: &Matrix,
        errors: &mut Errors,
    ) {
        let points = input.values().par_iter();
        let points = points.map(|x| {
            let (point, slope) = ActivationPoint::at(activation, *x);
            (
                slope as f32,
                self.noise.activation(activation, point) as f32,
            )
        });
        let (slopes, deviations): (Vec<f32>, Vec<f32>) = points.unzip();
        let width = input.width();
        self.each_row(spans, errors, |row, values, stream| {
            let columns = row * width..(row + 1) * width;
            let parts = values.iter_mut().zip(&slopes[columns.clone()]);
            parts.for_each(|(value, slope)| *value *= slope);
            stream.perturb(values, &deviations[columns]);
        });
    }

    /// Errors of a residual connection whose result is `sums`.
    pub(super) fn add(
        &mut self,
        spans: &[Range<usize>],
        sums: &Matrix,
        errors: &mut Errors,
        others: &Errors,
    ) {
        let parts = errors
            .values
            .values_mut()
            .iter_mut()
            .zip(others.values.values());
        parts.for_each(|(error, other)| *error += other);
        let deviations = sums.all().map(|sum| self.noise.element(sum) as f32);
        self.perturb(spans, errors, &deviations);
    }

    /// Errors of the attention of all heads.
    pub(super) fn attention(
        &mut self,
        config: &BertConfig,
        spans: &[Range<usize>],
        states: [&State; 3],
    ) -> Errors {
        let stage = self.next_stage();
        let [query, key, value] = states.map(|state| {
            let Some(errors) = &state.errors else {
                unreachable!("errors are carried through a whole pass or not at all");
            };
            errors
        });
        let samples = self.noise.samples;
        let sequences = spans.par_iter().zip(&self.keys);
        let contexts: Vec<Vec<Matrix<f32>>> = sequences
            .map(|(span, sequence_key)| {
                let mut streams: Vec<Stream> = (0..samples)
                    .map(|sample| Noise::stream(*sequence_key, sample, stage))
                    .collect();
                let mut contexts = vec![Matrix::zeros(span.len(), config.hidden_size); samples];
                for columns in heads(config) {
                    let truths = states.map(|s| s.truth.view(span.clone(), columns.clone()));
                    let head = Head::new(self.noise, truths);
                    for (sample, context) in contexts.iter_mut().enumerate() {
                        let errors = [query, key, value].map(|e| e.part(sample, span, &columns));
                        let carried = head.carry(errors, &mut streams[sample]);
                        for (row, values) in carried.values().chunks(columns.len()).enumerate() {
                            let start = row * config.hidden_size;
                            let place = start + columns.start..start + columns.end;
                            context.values_mut()[place].copy_from_slice(values);
                        }
                    }
                }
                contexts
            })
            .collect();
        let stacked = (0..samples).flat_map(|sample| contexts.iter().map(move |all| &all[sample]));
        let values = stacked.flat_map(|context| context.values()).copied();
        Errors {
            samples,
            values: Matrix::new(config.hidden_size, values.collect()),
        }
    }

    /// Whether a weight changes on its way into the computation.
    fn rounds(&self, weight: WeightView<'_>) -> bool {
        !self.noise.by_stage && self.noise.rounds(weight.dtype)
    }

    /// What rounding some rows of a weight to the dtype adds to them, in u; zeros where the dtype can
    /// hold them.
    fn rounding(&self, weight: WeightView<'_>, rows: Range<usize>) -> Vec<f64> {
        let exact = weight.rows_to_f64(rows);
        if !self.rounds(weight) {
            return vec![0.0; exact.len()];
        }
        let rounded = self.noise.round(exact.clone());
        let unit = self.noise.unit();
        rounded
            .iter()
            .zip(&exact)
            .map(|(r, e)| (r - e) / unit)
            .collect()
    }

    /// Adds the same to every sample.
    fn shift(&self, errors: &mut Errors, shift: &Matrix) {
        let numbers = shift.values().len().max(1);
        for sample in errors.values.values_mut().chunks_mut(numbers) {
            let parts = sample.iter_mut().zip(shift.values());
            parts.for_each(|(error, shift)| *error += *shift as f32);
        }
    }

    /// Adds random numbers of the given standard deviations to every sample.
    fn perturb(&mut self, spans: &[Range<usize>], errors: &mut Errors, deviations: &Matrix<f32>) {
        self.each_row(spans, errors, |row, values, stream| {
            stream.perturb(values, deviations.row(row));
        });
    }

    /// Calls `change` with every row of every sample, and with its sequence's random numbers.
    fn each_row(
        &mut self,
        spans: &[Range<usize>],
        errors: &mut Errors,
        change: impl Fn(usize, &mut [f32], &mut Stream) + Sync,
    ) {
        let stage = self.next_stage();
        let (height, width) = (errors.height(), errors.values.width());
        if height == 0 {
            return;
        }
        let mut parts = Vec::new();
        let samples = errors.values.values_mut().chunks_mut(height * width);
        for (sample, mut rest) in samples.enumerate() {
            for (span, key) in spans.iter().zip(&self.keys) {
                let (rows, others) = rest.split_at_mut(span.len() * width);
                rest = others;
                parts.push((sample, span.start, *key, rows));
            }
        }
        parts
            .into_par_iter()
            .for_each(|(sample, start, key, rows)| {
                let mut stream = Noise::stream(key, sample, stage);
                for (row, values) in rows.chunks_mut(width).enumerate() {
                    change(start + row, values, &mut stream);
                }
            });
    }

    fn next_stage(&mut self) -> u64 {
        self.stage += 1;
        self.stage
    }
}

/// What the errors of a layer norm need to know of a row.
struct NormRow {
    /// √(variance + eps)
    deviation: f32,
    mean_error: f32,
    scale_error: f32,
    /// Standard deviation of each element's own error.
    elements: Vec<f32>,
    /// (x − mean) / deviation
    normal: Vec<f32>,
}

/// One attention head of one sequence at the truth, and the size of its errors.
struct Head {
    query: Matrix<f32>,
    key: Matrix<f32>,
    value: Matrix<f32>,
    probabilities: Matrix<f32>,
    scale: f32,
    score_errors: Matrix<f32>,
    sum_errors: Vec<f32>,
    probability_errors: Option<Matrix<f32>>,
    context_errors: Matrix<f32>,
}

impl Head {
    fn new(noise: &Noise, [query, key, value]: [View<'_>; 3]) -> Self {
        let (length, size) = (query.height(), query.width());
        let scale = (size as f64).sqrt();
        let square = |view: View<'_>| view.map(|x| x * x);
        let mut scores = multiplied(query, key.transposed());
        let squares = multiplied(square(query).all(), square(key).all().transposed());
        let mut score_errors = Vec::with_capacity(length * length);
        for (row, squares) in scores
            .values()
            .chunks(length)
            .zip(squares.values().chunks(length))
        {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            score_errors.extend(row.iter().zip(squares).map(|(score, squares)| {
                let product = noise.product(size, *squares, *score, 2) / scale;
                noise.score(product, score / scale, (score - largest) / scale) as f32
            }));
        }
        scores
            .values_mut()
            .iter_mut()
            .for_each(|score| *score /= scale);
        softmax_rows(&mut scores);
        let probabilities = scores;
        let context = multiplied(probabilities.all(), value);
        let squares = multiplied(square(probabilities.all()).all(), square(value).all());
        let context_errors = context.values().iter().zip(squares.values());
        let context_errors = context_errors
            .map(|(value, squares)| noise.product(length, *squares, *value, 2) as f32);
        let rows = probabilities.values().chunks(length);
        let narrow = |view: View<'_>| view.map(|x| x as f32);
        Self {
            query: narrow(query),
            key: narrow(key),
            value: narrow(value),
            scale: scale as f32,
            score_errors: Matrix::new(length, score_errors),
            sum_errors: rows.map(|row| noise.softmax_sum(row) as f32).collect(),
            probability_errors: noise
                .returns_rounded()
                .then(|| probabilities.all().map(|p| noise.element(p) as f32)),
            context_errors: Matrix::new(size, context_errors.collect()),
            probabilities: narrow(probabilities.all()),
        }
    }

    /// Errors of the context, from those of query, key and value.
    fn carry(&self, [query, key, value]: [View<'_, f32>; 3], stream: &mut Stream) -> Matrix<f32> {
        let length = self.query.height();
        let mut scores = multiplied(query, self.key.all().transposed());
        let others = multiplied(self.query.all(), key.transposed());
        for (score, other) in scores.values_mut().iter_mut().zip(others.values()) {
            *score = (*score + other) / self.scale;
        }
        stream.perturb(scores.values_mut(), self.score_errors.values());
        // p · (δs − Σ p δs), and the error of the sum, which all of a row share.
        for (row, errors) in scores.values_mut().chunks_mut(length).enumerate() {
            let probabilities = self.probabilities.row(row);
            let mean: f32 = errors.iter().zip(probabilities).map(|(e, p)| e * p).sum();
            let common = mean + self.sum_errors[row] * stream.normal();
            let parts = errors.iter_mut().zip(probabilities);
            parts.for_each(|(error, probability)| *error = probability * (*error - common));
        }
        if let Some(deviations) = &self.probability_errors {
            stream.perturb(scores.values_mut(), deviations.values());
        }
        let mut context = multiplied(scores.all(), self.value.all());
        let mut others = Matrix::zeros(context.height(), context.width());
        let width = others.width();
        product(
            self.probabilities.all(),
            value,
            &mut others.view_mut(0..width),
        );
        for (value, other) in context.values_mut().iter_mut().zip(others.values()) {
            *value += other;
        }
        stream.perturb(context.values_mut(), self.context_errors.values());
        context
    }
}
