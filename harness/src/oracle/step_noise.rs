//! What rounding adds to one step whose inputs are exact: the formulas of [`Noise`](super::noise),
//! without anything carried from before.

use driftgauge_protocol::{HiddenAct, Stage, Step};

use super::activation::ActivationPoint;
use super::linalg::{Matrix, linear, mean_and_variance};
use super::stage::{Steps, Stepwise};

impl Stepwise<'_> {
    /// Standard deviation, in u, of the rounding error of every element of a step's true `result`.
    ///
    /// # Panics
    /// Where a step that this one needs is not in `done`.
    pub fn step_noise(
        &self,
        stage: Stage,
        step: Step,
        input: Option<&Matrix>,
        done: &Steps,
        result: &Matrix,
    ) -> Matrix {
        let before = || input.expect("only the embedding stage has no input");
        let noise = &self.noise;
        match (stage, step) {
            (Stage::Embeddings, Step::Sum) => each(result, |sum| noise.embedding(sum, sum)),
            (_, Step::AttentionSum | Step::Sum) => each(result, |sum| noise.element(sum)),
            (Stage::Head, Step::Transform) => {
                self.dense_noise(stage, step, &self.wanted_rows(before()), result)
            }
            (Stage::Head, Step::Activation) => self.activation_noise(&done[&Step::Transform]),
            (Stage::Head, Step::Norm) => self.norm_noise(stage, step, &done[&Step::Activation]),
            (_, Step::Query | Step::Key | Step::Value) => {
                self.dense_noise(stage, step, before(), result)
            }
            (_, Step::Scores) => self.score_noise(done, result),
            (_, Step::Probabilities) => self.softmax_noise(result),
            (_, Step::Context) => self.context_noise(done, result),
            (_, Step::AttentionOutput) => {
                self.dense_noise(stage, step, &done[&Step::Context], result)
            }
            (_, Step::AttentionNorm) => self.norm_noise(stage, step, &done[&Step::AttentionSum]),
            (_, Step::Intermediate) => {
                self.dense_noise(stage, step, &done[&Step::AttentionNorm], result)
            }
            (_, Step::Activation) => self.activation_noise(&done[&Step::Intermediate]),
            (_, Step::Output) => self.dense_noise(stage, step, &done[&Step::Activation], result),
            (_, Step::Norm) => self.norm_noise(stage, step, &done[&Step::Sum]),
            (_, Step::Logits) => self.dense_noise(stage, step, &done[&Step::Norm], result),
            (stage, step) => unreachable!("`{stage}` has no step `{step}`"),
        }
    }

    fn dense_noise(&self, stage: Stage, step: Step, input: &Matrix, result: &Matrix) -> Matrix {
        let module = step.module(stage).expect("a dense step has weights");
        let weight = self.tensor(&format!("{module}.weight"));
        let bias = self.tensor(&format!("{module}.bias")).all();
        // Of a size, f32 says enough.
        let squares = linear(
            &input.all().map(|x| (x * x) as f32),
            &|rows| {
                let row = weight.rows(rows).into_iter();
                row.map(|w| (w * w) as f32).collect()
            },
            &vec![0.0; bias.len()],
        );
        let stored = self.model.weights.view(&format!("{module}.weight")).dtype;
        let parts = squares.values().iter().zip(result.values()).enumerate();
        let deviations = parts.map(|(index, (squares, result))| {
            let sums = (bias[index % bias.len()], *result);
            self.noise
                .dense(input.width(), f64::from(*squares), sums, stored)
        });
        Matrix::new(bias.len(), deviations.collect())
    }

    fn norm_noise(&self, stage: Stage, step: Step, input: &Matrix) -> Matrix {
        let module = step.module(stage).expect("a layer norm has weights");
        let scale = self.tensor(&format!("{module}.weight")).all();
        let shift = self.tensor(&format!("{module}.bias")).all();
        let (eps, width) = (self.model.config.layer_norm_eps, input.width());
        let rows = (0..input.height()).flat_map(|row| {
            let (mean, variance) = mean_and_variance(input.row(row));
            let deviation = (variance + eps).sqrt();
            let statistics = self.noise.norm_statistics(width, mean, variance, eps);
            let elements = input.row(row).iter().zip(scale.iter().zip(&shift));
            let elements = elements.map(move |(x, (scale, shift))| {
                let scaled = (x - mean) / deviation * scale;
                let parts = [
                    statistics.scale * scaled,
                    statistics.mean / deviation * scale,
                    self.noise.norm_element(scaled, scaled + shift),
                ];
                parts.iter().map(|part| part * part).sum::<f64>().sqrt()
            });
            elements.collect::<Vec<f64>>()
        });
        Matrix::new(width, rows.collect())
    }

    fn activation_noise(&self, input: &Matrix) -> Matrix {
        let activation: HiddenAct = self.model.config.hidden_act;
        each(input, |x| {
            let (point, _) = ActivationPoint::at(activation, x);
            self.noise.activation(activation, point)
        })
    }

    /// Of Q Kᵀ / √d; what masks are added is exact where it is not seen.
    fn score_noise(&self, done: &Steps, result: &Matrix) -> Matrix {
        let [query, key] = [Step::Query, Step::Key].map(|step| done[&step].all().map(|x| x * x));
        let size = self.model.config.head_size();
        let length = self.batch.length;
        let squares = self.each_head(length, |span, columns, head| {
            let [query, key] = [&query, &key].map(|m| m.view(span.clone(), columns.clone()));
            super::linalg::product(query, key.transposed(), &mut head.view_mut(0..length));
        });
        let scale = (size as f64).sqrt();
        let parts = squares.values().iter().zip(result.values());
        let deviations = parts.map(|(squares, scaled)| {
            let product = self.noise.product(size, *squares, scaled * scale, 2) / scale;
            (product.powi(2) + 2.0 * self.noise.element(*scaled).powi(2)).sqrt()
        });
        Matrix::new(length, deviations.collect())
    }

    /// Of a softmax whose scores are exact: the difference to the largest, the exponential, the sum and
    /// the division.
    fn softmax_noise(&self, result: &Matrix) -> Matrix {
        let rows = (0..result.height()).flat_map(|row| {
            let row = result.row(row);
            let largest = row.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
            let sum = self.noise.softmax_sum(row);
            let own = row.iter().map(move |p| {
                let shifted = (p.max(f64::MIN_POSITIVE) / largest).ln();
                p * (self.noise.score(0.0, 0.0, shifted).powi(2) + sum * sum).sqrt()
            });
            own.collect::<Vec<f64>>()
        });
        Matrix::new(result.width(), rows.collect())
    }

    fn context_noise(&self, done: &Steps, result: &Matrix) -> Matrix {
        let squared = |step| (step, done[&step].all().map(|x: f64| x * x));
        let squares = Steps::from([squared(Step::Probabilities), squared(Step::Value)]);
        let squares = self.context(&squares);
        let parts = squares.values().iter().zip(result.values());
        let deviations = parts
            .map(|(squares, result)| self.noise.product(self.batch.length, *squares, *result, 2));
        Matrix::new(result.width(), deviations.collect())
    }
}

fn each(matrix: &Matrix, deviation: impl Fn(f64) -> f64) -> Matrix {
    matrix.all().map(deviation)
}
