//! The noise of single steps against real f32 arithmetic.

use driftgauge_protocol::{Arithmetic, Bias, Stage, Step, Variance};

use super::stage_tests::{batch, model, noise, pass};
use super::{Matrix, Noise, Steps, Stepwise};
use crate::model::Model;

const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// One number after the other, the bias last, two passes: as the loops below compute.
fn sequential() -> Noise {
    Noise {
        arithmetic: Arithmetic {
            product_run: usize::MAX,
            reduction_lanes: 1,
            bias: Bias::Last,
            variance: Variance::TwoPass,
        },
        ..noise()
    }
}

fn rms(values: impl Iterator<Item = f64>) -> f64 {
    let (mut squares, mut count) = (0.0, 0.0);
    for value in values {
        squares += value * value;
        count += 1.0;
    }
    (squares / count).sqrt()
}

/// A weight or bias in f32, which holds what zh-mini stores.
fn tensor(model: &Model, stage: Stage, step: Step, part: &str) -> Vec<f32> {
    let module = step.module(stage).unwrap();
    let values = model.weights.view(&format!("{module}.{part}")).to_f64();
    values.iter().map(|value| *value as f32).collect()
}

/// The steps of a stage, the input of the one under test such as f32 holds it.
fn steps_from(model: &Model, stage: Stage, rounded: Step) -> (Matrix, Steps) {
    let batch = batch(model);
    let mut stages = pass(model, &batch, None);
    let input = stages[&Stage::Layer(1)][&Step::Norm].clone();
    let mut steps = stages.remove(&stage).unwrap();
    for value in steps.get_mut(&rounded).unwrap().values_mut() {
        *value = f64::from(*value as f32);
    }
    (input, steps)
}

/// Error of f32 in a step in units of what is predicted.
fn ratio(
    model: &Model,
    stage: Stage,
    step: Step,
    (input, steps): &(Matrix, Steps),
    compute: impl Fn(&[f32]) -> Vec<f32>,
    from: Step,
) -> f64 {
    let batch = batch(model);
    let noise = sequential();
    let stepwise = Stepwise::new(model, &batch, &noise, None).unwrap();
    let truth = stepwise.step(stage, step, Some(input), steps);
    let predicted = stepwise.step_noise(stage, step, Some(input), steps, &truth);
    assert_eq!(predicted.values().len(), truth.values().len());
    let before = &steps[&from];
    let got = (0..before.height()).flat_map(|row| {
        let row: Vec<f32> = before.row(row).iter().map(|x| *x as f32).collect();
        compute(&row)
    });
    let errors = got
        .zip(truth.values())
        .map(|(got, truth)| (f64::from(got) - truth) / UNIT);
    rms(errors) / rms(predicted.values().iter().copied())
}

#[test]
fn of_a_dense_step() {
    let model = model();
    let stage = Stage::Layer(2);
    for (step, from) in [
        (Step::Intermediate, Step::AttentionNorm),
        (Step::Output, Step::Activation),
        (Step::AttentionOutput, Step::Context),
    ] {
        let weight = tensor(&model, stage, step, "weight");
        let bias = tensor(&model, stage, step, "bias");
        let dense = |row: &[f32]| {
            let rows = weight.chunks(row.len()).zip(&bias);
            let sums = rows.map(|(weights, bias)| {
                let pairs = weights.iter().zip(row);
                pairs.fold(0f32, |sum, (w, x)| w.mul_add(*x, sum)) + bias
            });
            sums.collect::<Vec<f32>>()
        };
        let (input, mut steps) = steps_from(&model, stage, from);
        let real = (input.clone(), steps.clone());
        let mut stream = Noise::stream(5, 0, 0);
        for value in steps.get_mut(&from).unwrap().values_mut() {
            *value = f64::from(stream.normal());
        }
        let ratio = |steps: &(Matrix, Steps)| ratio(&model, stage, step, steps, dense, from);
        let random = ratio(&(input, steps));
        assert!((0.7..1.4).contains(&random), "{step}: {random}");
        // The terms of a real dense layer are not independent: where they pull to one side, their
        // partial sums are larger than the formula has them. Limits of single steps leave room for that.
        let real = ratio(&real);
        assert!((0.5..2.0).contains(&real), "{step}: {real}");
    }
}

#[test]
fn of_a_layer_norm() {
    let model = model();
    let stage = Stage::Layer(2);
    for (step, from) in [
        (Step::AttentionNorm, Step::AttentionSum),
        (Step::Norm, Step::Sum),
    ] {
        let scale = tensor(&model, stage, step, "weight");
        let shift = tensor(&model, stage, step, "bias");
        let eps = model.config.layer_norm_eps as f32;
        let norm = |row: &[f32]| {
            let n = row.len() as f32;
            let mean = row.iter().sum::<f32>() / n;
            let squares = row.iter().map(|x| (x - mean) * (x - mean));
            let deviation = (squares.sum::<f32>() / n + eps).sqrt().recip();
            let elements = row.iter().zip(scale.iter().zip(&shift));
            let elements = elements.map(|(x, (w, b))| (x - mean) * deviation * w + b);
            elements.collect::<Vec<f32>>()
        };
        let steps = steps_from(&model, stage, from);
        let ratio = ratio(&model, stage, step, &steps, norm, from);
        assert!((0.7..1.4).contains(&ratio), "{step}: {ratio}");
    }
}

#[test]
fn of_a_residual() {
    let model = model();
    let stage = Stage::Layer(2);
    let (input, mut steps) = steps_from(&model, stage, Step::Output);
    for value in steps.get_mut(&Step::AttentionNorm).unwrap().values_mut() {
        *value = f64::from(*value as f32);
    }
    let batch = batch(&model);
    let noise = sequential();
    let stepwise = Stepwise::new(&model, &batch, &noise, None).unwrap();
    let truth = stepwise.step(stage, Step::Sum, Some(&input), &steps);
    let predicted = stepwise.step_noise(stage, Step::Sum, Some(&input), &steps, &truth);
    let errors = truth
        .values()
        .iter()
        .map(|x| (f64::from(*x as f32) - x) / UNIT);
    let ratio = rms(errors) / rms(predicted.values().iter().copied());
    assert!((0.9..1.1).contains(&ratio), "{ratio}");
}
