//! Changes of how a step is computed: each against a computation of its own, or against a model whose
//! configuration computes so.

use driftgauge_protocol::fault::{Activation, Change};
use driftgauge_protocol::{BertConfig, Dtype, HiddenAct, Stage, Step};

use super::bench::{Bench, clean_and_faulty, is_close, places, round};
use crate::fixture::{padded_batch, tiny};

/// Dense layers and layer norms in f64, from rounded inputs.
#[test]
fn inputs_are_rounded() {
    let bench = Bench::tiny();
    for to in [Dtype::F16, Dtype::Bf16] {
        let change = Change::RoundInput(to);
        for (stage, step) in places(&bench, change) {
            let [clean, faulty] = clean_and_faulty(&bench, stage, step, change);
            let mut input = bench.input(stage, step, &clean);
            input
                .iter_mut()
                .for_each(|value| *value = round(*value, to));
            let epsilon = bench.config.layer_norm_eps;
            let expected = exact(&bench, stage, step, &input, epsilon);
            let place = format!("{stage} {step} {to}");
            assert!(
                is_close(&faulty[step.name()].to_f32(), &expected),
                "{place}"
            );
            assert!(
                !is_close(&clean[step.name()].to_f32(), &expected),
                "{place}"
            );
        }
    }
}

/// The result of a dense layer or a layer norm.
fn exact(bench: &Bench, stage: Stage, step: Step, input: &[f32], epsilon: f64) -> Vec<f64> {
    let (weight, bias) = bench.weights(stage, step);
    let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let (input, weight, bias) = (wide(input), wide(&weight), wide(&bias));
    let is_norm = weight.len() == bias.len();
    let width = if is_norm {
        bias.len()
    } else {
        weight.len() / bias.len()
    };
    let mean = |row: &[f64]| row.iter().sum::<f64>() / width as f64;
    let mut results = Vec::new();
    for row in input.chunks(width) {
        let centred: Vec<f64> = row.iter().map(|x| x - mean(row)).collect();
        let squares: Vec<f64> = centred.iter().map(|x| x * x).collect();
        let deviation = (mean(&squares) + epsilon).sqrt();
        results.extend((0..bias.len()).map(|output| {
            let value = match is_norm {
                true => centred[output] / deviation * weight[output],
                false => {
                    let weights = &weight[output * width..][..width];
                    row.iter().zip(weights).map(|(x, w)| x * w).sum()
                }
            };
            value + bias[output]
        }));
    }
    results
}

/// Sums as the change describes them, in a loop. Sums of one product have no order, so that these are
/// the same to the bit; of more, a sum that f32 rounds otherwise tips a later rounding now and then.
#[test]
fn sums_are_rounded_as_they_grow() {
    let bench = Bench::tiny();
    for (to, every) in [
        (Dtype::Bf16, 1),
        (Dtype::F16, 1),
        (Dtype::Bf16, 5),
        (Dtype::F32, 1),
    ] {
        let change = Change::Accumulate { to, every };
        for (stage, step) in places(&bench, change) {
            let [clean, faulty] = clean_and_faulty(&bench, stage, step, change);
            let input = bench.input(stage, step, &clean);
            let (weight, bias) = bench.weights(stage, step);
            let expected = accumulated(&input, &weight, &bias, to, every);
            let faulty = faulty[step.name()].to_f32();
            let pairs = faulty.iter().zip(&expected);
            let same = pairs.filter(|(one, other)| one == other).count();
            let least = if every == 1 { 1.0 } else { 0.98 };
            let place = format!("{stage} {step} {change:?}: {same} of {}", faulty.len());
            assert!(same as f64 >= least * faulty.len() as f64, "{place}");
            assert_ne!(faulty, clean[step.name()].to_f32(), "{place}");
        }
    }
}

fn accumulated(x: &[f32], weight: &[f32], bias: &[f32], to: Dtype, every: usize) -> Vec<f32> {
    let width = weight.len() / bias.len();
    let mut results = Vec::new();
    for row in x.chunks(width) {
        for (weights, bias) in weight.chunks(width).zip(bias) {
            let mut sum = None;
            for (row, weights) in row.chunks(every).zip(weights.chunks(every)) {
                let products = row.iter().zip(weights);
                let part: f64 = products.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                let part = round(part as f32, to);
                sum = Some(sum.map_or(part, |sum: f32| round(sum + part, to)));
            }
            results.push(sum.unwrap() + bias);
        }
    }
    results
}

/// One sum of everything that is not rounded is candle's own product.
#[test]
fn one_sum_of_all_inputs_is_the_product() {
    let bench = Bench::tiny();
    let change = Change::Accumulate {
        to: Dtype::F32,
        every: 100,
    };
    assert_eq!(bench.run(bench.everywhere(change)), bench.observed);
}

/// An activation in the place of another, everywhere, is that activation in the configuration.
#[test]
fn activations_are_those_of_the_configuration() {
    let with = |hidden_act| {
        let config = BertConfig {
            hidden_act,
            ..tiny()
        };
        Bench::new(config, Dtype::F32, padded_batch())
    };
    for (from, to) in [
        (HiddenAct::Gelu, HiddenAct::GeluTanh),
        (HiddenAct::GeluTanh, HiddenAct::Relu),
        (HiddenAct::Relu, HiddenAct::Gelu),
    ] {
        let (from, expected) = (with(from), with(to).observed);
        let faulty = from.run(from.everywhere(Change::Activate(to.into())));
        assert_eq!(faulty, expected, "{to:?}");
        assert_ne!(from.observed, expected, "{to:?}");
    }
}

#[test]
fn activations_are_their_formulas() {
    let bench = Bench::tiny();
    type Formula = fn(f64) -> f64;
    for (activation, formula) in [
        (
            Activation::GeluTanh,
            (|x| {
                let root = (2.0 / std::f64::consts::PI).sqrt();
                0.5 * x * (1.0 + (root * (x + 0.044715 * x.powi(3))).tanh())
            }) as Formula,
        ),
        (Activation::GeluQuick, |x| x / (1.0 + (-1.702 * x).exp())),
        (Activation::Relu, |x| x.max(0.0)),
        (Activation::Silu, |x| x / (1.0 + (-x).exp())),
        (Activation::Identity, |x| x),
    ] {
        let change = Change::Activate(activation);
        for (stage, step) in places(&bench, change) {
            let [clean, faulty] = clean_and_faulty(&bench, stage, step, change);
            let input = match stage {
                Stage::Head => Step::Transform,
                _ => Step::Intermediate,
            };
            let input = clean[input.name()].to_f32();
            let expected: Vec<f64> = input.iter().map(|x| formula(f64::from(*x))).collect();
            let place = format!("{stage} {activation:?}");
            assert!(
                is_close(&faulty[step.name()].to_f32(), &expected),
                "{place}"
            );
            assert!(
                !is_close(&clean[step.name()].to_f32(), &expected),
                "{place}"
            );
        }
    }
}

#[test]
fn epsilons() {
    let bench = Bench::tiny();
    let epsilon = 0.03;
    let change = Change::Epsilon(epsilon);
    for (stage, step) in places(&bench, change) {
        let [clean, faulty] = clean_and_faulty(&bench, stage, step, change);
        let input = bench.input(stage, step, &clean);
        let expected = exact(&bench, stage, step, &input, epsilon);
        assert!(is_close(&faulty[step.name()].to_f32(), &expected));
        assert!(!is_close(&clean[step.name()].to_f32(), &expected));
    }
    let config = BertConfig {
        layer_norm_eps: epsilon,
        ..tiny()
    };
    let expected = Bench::new(config, Dtype::F32, padded_batch()).observed;
    assert_eq!(bench.run(bench.everywhere(change)), expected);
    assert_ne!(bench.observed, expected);
}

#[test]
fn a_dropped_residual_leaves_the_branch() {
    let bench = Bench::tiny();
    for (stage, step) in places(&bench, Change::DropResidual) {
        let [clean, faulty] = clean_and_faulty(&bench, stage, step, Change::DropResidual);
        let branch = match step {
            Step::Sum => Step::Output,
            _ => Step::AttentionOutput,
        };
        assert_eq!(faulty[step.name()], clean[branch.name()]);
        assert_ne!(faulty[step.name()], clean[step.name()]);
    }
}
