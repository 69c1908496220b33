//! Every change of a step, against the same step computed here from what is before it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use driftgauge_protocol::fault::{Activation, Change, Special};
use driftgauge_protocol::{Dtype, Stage, Step, Tensor};
use half::{bf16, f16};

use fixture::checkpoint::{HIDDEN, PLAIN, VOCABULARY, checkpoint, config};
use fixture::reference::{self, module};
use fixture::{Stages, batch, error, input_of, probe, probes, step_edit, under};

/// To the narrow formats by way of f32, as libtorch and the protocol do it.
fn rounded(x: f64, to: Dtype) -> f64 {
    match to {
        Dtype::F16 => f16::from_f32(x as f32).to_f64(),
        Dtype::Bf16 => bf16::from_f32(x as f32).to_f64(),
        Dtype::F32 => f64::from(x as f32),
        _ => x,
    }
}

fn assert_same(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
        assert!(same, "{what} [{index}]: {found:e}, expected {expected:e}");
    }
}

fn in_format(dtype: Dtype) -> Stages {
    let mut checkpoint = checkpoint(config(), PLAIN);
    checkpoint.request.dtype = dtype;
    Stages::new(checkpoint, batch())
}

/// The middle one of the magnitudes.
fn median(numbers: &[f64]) -> f64 {
    let mut magnitudes: Vec<f64> = numbers.iter().map(|x| x.abs()).collect();
    magnitudes.sort_by(f64::total_cmp);
    magnitudes[magnitudes.len() / 2]
}

/// What a change makes of one number.
fn becomes(change: Change, x: f64, dtype: Dtype) -> f64 {
    match change {
        Change::Round(to) => rounded(rounded(x, to), dtype),
        Change::Beyond { limit, becomes } if x.abs() > limit => becomes.value(),
        Change::Flush(bound) if x.abs() < bound => 0.0,
        _ => x,
    }
}

/// Also bounds that the format cannot hold, and two changes in both orders.
#[test]
fn results_are_changed_number_by_number() {
    for dtype in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let stages = in_format(dtype);
        for (stage, step) in stages.fitting(Change::Flush(0.0)) {
            let numbers = stages.numbers(stage, step);
            let limit = median(&numbers);
            let (nan, infinity) = (Special::Nan, Special::Infinity);
            let beyond = |limit, becomes| Change::Beyond { limit, becomes };
            for changes in [
                vec![Change::Round(Dtype::F16)],
                vec![Change::Round(Dtype::Bf16)],
                vec![Change::Round(Dtype::F32)],
                vec![beyond(limit, nan)],
                vec![beyond(limit, infinity)],
                vec![beyond(1e39, nan)],
                vec![Change::Flush(limit)],
                vec![Change::Flush(1e39)],
                vec![Change::Round(Dtype::Bf16), Change::Flush(limit)],
                vec![Change::Flush(limit), Change::Round(Dtype::Bf16)],
            ] {
                let expected = numbers.iter().map(|x| {
                    let changes = changes.iter();
                    changes.fold(*x, |x, change| becomes(*change, x, dtype))
                });
                let expected: Vec<f64> = expected.collect();
                let found = stages.changed(stage, step, &changes)[step.name()].to_f64();
                let what = format!("{dtype} {stage} {step} {changes:?}");
                assert_same(&found, &expected, &what);
            }
        }
    }
}

/// Other numbers in every run, of the size that is asked for.
#[test]
fn noise_is_new_in_every_run_and_of_its_size() {
    let relative = 1e-3;
    for dtype in [Dtype::F64, Dtype::F32] {
        let stages = in_format(dtype);
        for (stage, step) in stages.fitting(Change::Noise(relative)) {
            let request = under(
                &stages.checkpoint.request,
                vec![step_edit(stage, step, Change::Noise(relative))],
            );
            let runs = probes(&request, &stages.batch, stage, stages.input(stage), 2);
            assert!(
                runs[0][step.name()] != runs[1][step.name()],
                "{stage} {step}"
            );
            let clean = stages.numbers(stage, step);
            for run in runs {
                // The scores of masked keys stay the lowest there are.
                let numbers = run[step.name()].to_f64();
                let pairs = numbers.iter().zip(&clean).filter(|(_, x)| **x > -1e38);
                let (noisy, clean): (Vec<f64>, Vec<f64>) = pairs.unzip();
                let ratio = error(&noisy, &clean) / relative;
                assert!(
                    (0.3..1.8).contains(&ratio),
                    "{dtype} {stage} {step}: {ratio}"
                );
            }
        }
    }
}

/// A step whose input is rounded gives what it gives where the step before it was rounded.
#[test]
fn rounding_an_input_is_rounding_the_step_before() {
    let stages = in_format(Dtype::F32);
    for to in [Dtype::F16, Dtype::Bf16] {
        let change = Change::RoundInput(to);
        for (stage, step) in stages.fitting(change) {
            let name = step.name();
            let expected = match before(stage, step) {
                Some(before) => stages.changed(stage, before, &[Change::Round(to)]),
                None => {
                    let input = stages.input(stage).unwrap();
                    let numbers = input.to_f32();
                    let rounded: Vec<f32> = numbers
                        .iter()
                        .map(|x| rounded(f64::from(*x), to) as f32)
                        .collect();
                    let input = Tensor::from_f32(input.shape().to_vec(), &rounded).unwrap();
                    probe(
                        &stages.checkpoint.request,
                        &stages.batch,
                        stage,
                        Some(&input),
                    )
                }
            };
            let found = stages.changed(stage, step, &[change]);
            assert!(found[name] == expected[name], "{stage} {step} {to}");
            // The sum of this checkpoint's embeddings is in f16 as it is.
            let is_exact = (stage, to) == (Stage::Embeddings, Dtype::F16);
            let is_clean = found[name] == stages.clean[&stage][name];
            assert_eq!(is_clean, is_exact, "{stage} {step} {to}");
            // Others that read the same input read it as it is.
            if step == Step::Query {
                assert!(found["key"] == stages.clean[&stage]["key"]);
            }
            if step == Step::AttentionNorm {
                assert!(found["attention-sum"] == stages.clean[&stage]["attention-sum"]);
            }
        }
    }
}

/// The step whose result another one starts from; none for the hidden state.
fn before(stage: Stage, step: Step) -> Option<Step> {
    Some(match step {
        Step::AttentionOutput => Step::Context,
        Step::AttentionNorm => Step::AttentionSum,
        Step::Intermediate => Step::AttentionNorm,
        Step::Output => Step::Activation,
        Step::Norm if stage == Stage::Head => Step::Activation,
        Step::Norm => Step::Sum,
        Step::Logits => Step::Norm,
        _ => return None,
    })
}

/// What a step starts from, as numbers.
fn input(stages: &Stages, stage: Stage, step: Step) -> Vec<f64> {
    match before(stage, step) {
        Some(before) => stages.numbers(stage, before),
        None if stage == Stage::Head => {
            let hidden = input_of(stage, &stages.observed).unwrap().to_f64();
            let rows = stages.batch.logit_rows.iter();
            let rows = rows.map(|(sequence, position)| sequence * stages.batch.length + position);
            rows.flat_map(|row| hidden[row * HIDDEN..(row + 1) * HIDDEN].to_vec())
                .collect()
        }
        None => input_of(stage, &stages.observed).unwrap().to_f64(),
    }
}

/// In f64, where the order of a partial sum does not change its rounding.
#[test]
fn sums_are_accumulated_in_parts() {
    let stages = in_format(Dtype::F64);
    for (to, every) in [
        (Dtype::F16, 1),
        (Dtype::F16, 5),
        (Dtype::Bf16, 4),
        (Dtype::F32, 12),
        (Dtype::Bf16, usize::MAX),
    ] {
        let change = Change::Accumulate { to, every };
        let fitting = stages.fitting(change);
        assert_eq!(fitting.len(), 2 * 6 + 2);
        for (stage, step) in fitting {
            let (inputs, outputs) =
                reference::extents(step, config().intermediate_size, VOCABULARY);
            let module = module(stage, step, inputs, outputs);
            let expected = reference::dense_by(&input(&stages, stage, step), &module, |products| {
                let parts = products.chunks(every);
                let parts = parts.map(|part| rounded(part.iter().sum(), to));
                parts.fold(0.0, |sum, part| rounded(sum + part, to))
            });
            let found = stages.changed(stage, step, &[change])[step.name()].to_f64();
            let error = error(&found, &expected);
            assert!(error < 1e-15, "{stage} {step} {change:?}: {error:e}");
        }
    }
}

#[test]
fn activations_are_the_named_ones() {
    let stages = in_format(Dtype::F64);
    for activation in [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::GeluQuick,
        Activation::Relu,
        Activation::Silu,
        Activation::Identity,
    ] {
        let change = Change::Activate(activation);
        for (stage, step) in stages.fitting(change) {
            let input = match stage {
                Stage::Head => stages.numbers(stage, Step::Transform),
                _ => stages.numbers(stage, Step::Intermediate),
            };
            let expected = input.iter().map(|x| reference::activate(activation, *x));
            let expected: Vec<f64> = expected.collect();
            let found = stages.changed(stage, step, &[change])[step.name()].to_f64();
            assert!(error(&found, &expected) < 1e-14, "{stage} {activation:?}");
            let same = found == stages.numbers(stage, step);
            assert_eq!(
                same,
                activation == Activation::Gelu,
                "{stage} {activation:?}"
            );
        }
    }
}

/// Of two the last one holds.
#[test]
fn norms_take_the_last_epsilon() {
    let stages = in_format(Dtype::F64);
    let changes = [Change::Epsilon(3.0), Change::Epsilon(0.5)];
    for (stage, step) in stages.fitting(changes[0]) {
        let module = module(stage, step, 1, HIDDEN);
        let expected = reference::layer_norm(&input(&stages, stage, step), &module, 0.5);
        let found = stages.changed(stage, step, &changes)[step.name()].to_f64();
        assert!(error(&found, &expected) < 1e-14, "{stage} {step}");
    }
}

#[test]
fn a_dropped_residual_leaves_the_dense_layer_alone() {
    let stages = in_format(Dtype::F32);
    let fitting = stages.fitting(Change::DropResidual);
    assert_eq!(fitting.len(), 4);
    for (stage, step) in fitting {
        let dense = match step {
            Step::Sum => Step::Output,
            _ => Step::AttentionOutput,
        };
        let found = stages.changed(stage, step, &[Change::DropResidual]);
        assert!(found[step.name()] == stages.clean[&stage][dense.name()]);
    }
}

#[test]
fn softmax_can_go_over_the_queries() {
    let stages = in_format(Dtype::F64);
    for (stage, step) in stages.fitting(Change::SoftmaxOverQueries) {
        let batch = &stages.batch;
        let scores = reference::transposed(batch, &stages.numbers(stage, Step::Scores));
        let expected = reference::transposed(batch, &reference::softmax(batch, &scores));
        let found = stages.changed(stage, step, &[Change::SoftmaxOverQueries]);
        let error = error(&found[step.name()].to_f64(), &expected);
        assert!(error < 1e-14, "{stage}: {error:e}");
    }
}
