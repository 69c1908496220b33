//! Faults that change the result of a step: rounding, limits, noise.

mod fixture;

use driftgauge_protocol::fault::{Change, Special};
use driftgauge_protocol::{Dtype, HiddenAct, Stage, Step};
use fixture::faulty::{LEVELS, Probed, model, observe, request};
use fixture::{Checkpoint, batch, config, error, fault, observe_open, open, probe, under};
use half::{bf16, f16};

const LAYER: Stage = Stage::Layer(2);

/// What a change of the result makes of every number; the others of the stage follow from it.
fn check_each(stage: Stage, step: Step, change: Change, expected: impl Fn(f32) -> f32) {
    for level in LEVELS {
        let probed = Probed::new(level, stage, &[(step, change)]);
        probed.check_place(step);
        let clean = probed.clean[step.name()].to_f32();
        let faulty = probed.faulty[step.name()].to_f32();
        for (clean, faulty) in clean.into_iter().zip(faulty) {
            let expected = expected(clean);
            let same =
                expected.to_bits() == faulty.to_bits() || expected.is_nan() && faulty.is_nan();
            assert!(
                same,
                "{change:?} of {step} of {stage} at {level}: {clean} became {faulty}"
            );
        }
    }
}

/// At every level: no optimiser takes out a `Cast` there and back.
#[test]
fn results_are_rounded() {
    for step in LAYER.steps() {
        check_each(LAYER, *step, Change::Round(Dtype::F16), |x| {
            f16::from_f32(x).to_f32()
        });
    }
    let to_bf16 = |x| bf16::from_f32(x).to_f32();
    check_each(
        Stage::Embeddings,
        Step::Norm,
        Change::Round(Dtype::Bf16),
        to_bf16,
    );
    for step in Stage::Head.steps() {
        check_each(Stage::Head, *step, Change::Round(Dtype::Bf16), to_bf16);
    }
}

/// Also where a number becomes infinite or subnormal, and where it is NaN.
#[test]
fn rounding_is_to_nearest_even_in_the_whole_range() {
    let numbers: [f32; 12] = [
        1.0 + 2f32.powi(-11),
        1.0 + 3.0 * 2f32.powi(-11),
        1.0 + 2f32.powi(-8),
        1.0 + 3.0 * 2f32.powi(-8),
        65519.0,
        65520.0,
        -1e30,
        2f32.powi(-24),
        2f32.powi(-25),
        3e-6,
        -0.0,
        f32::NAN,
    ];
    // The sum of the embeddings is one row of one table.
    let mut model = model();
    for (name, (_, values)) in &mut model.tensors {
        match name.as_str() {
            "bert.embeddings.word_embeddings.weight" => {
                let row = values.chunks_exact_mut(12).nth(36).expect("a row");
                row.copy_from_slice(&numbers.map(f64::from));
            }
            name if name.contains("_embeddings") => values.fill(0.0),
            _ => {}
        }
    }
    let stored = model.write(Dtype::F32, str::to_owned);
    let at = |to| fault(&[(Stage::Embeddings, Step::Sum, Change::Round(to))]);
    for level in LEVELS {
        let request = stored.load(Dtype::F32, &[("opt", level)]);
        for to in [Dtype::F16, Dtype::Bf16] {
            let mut opened = open(&under(&request, at(to)));
            let steps = opened.probe(Stage::Embeddings, &batch(), None);
            let sum = &steps.expect("a probe")["sum"];
            for (number, found) in numbers.iter().zip(&sum.to_f32()[12..24]) {
                let expected = match to {
                    Dtype::F16 => f16::from_f32(*number).to_f32(),
                    _ => bf16::from_f32(*number).to_f32(),
                };
                let same = expected == *found || expected.is_nan() && found.is_nan();
                assert!(same, "{number} to {to} at {level}: {found}, not {expected}");
            }
        }
    }
}

/// In a graph of another dtype too, each way of rounding that loses something there.
#[test]
fn rounding_in_other_dtypes() {
    let (stored, _) = request("all");
    let relu = Checkpoint::new(config(HiddenAct::Relu));
    let relu = relu.write(Dtype::F32, str::to_owned);
    for (dtype, to) in [
        (Dtype::F64, Dtype::F32),
        (Dtype::F64, Dtype::Bf16),
        (Dtype::F16, Dtype::Bf16),
    ] {
        // ONNX Runtime has no `Erf` in f64.
        let file = if dtype == Dtype::F64 { &relu } else { &stored };
        let request = file.load(dtype, &[("opt", "basic")]);
        let rounded = |x: &f64| match to {
            Dtype::F32 => f64::from(*x as f32),
            _ => bf16::from_f32(*x as f32).to_f64(),
        };
        for (change, expected) in [(Change::Round(to), true), (Change::Round(dtype), false)] {
            let changed = fault(&[(Stage::Layer(3), Step::Norm, change)]);
            let found = observe(&under(&request, changed))["hidden.3"].to_f64();
            assert_eq!(
                found.iter().all(|x| rounded(x) == *x),
                expected,
                "{change:?} in {dtype}"
            );
        }
    }
}

#[test]
fn numbers_beyond_a_limit_become_special() {
    for (becomes, special) in [(Special::Nan, f32::NAN), (Special::Infinity, f32::INFINITY)] {
        let change = Change::Beyond {
            limit: 0.75,
            becomes,
        };
        for step in [Step::Query, Step::Activation, Step::Norm] {
            let expected = |x: f32| if x.abs() > 0.75 { special } else { x };
            check_each(LAYER, step, change, expected);
        }
    }
}

#[test]
fn small_numbers_become_zero() {
    for (stage, step) in [
        (LAYER, Step::Probabilities),
        (LAYER, Step::Output),
        (Stage::Head, Step::Logits),
    ] {
        check_each(stage, step, Change::Flush(0.21), |x| {
            if x.abs() < 0.21 { 0.0 } else { x }
        });
    }
}

/// Changes of one result are made one after the other: a number that is rounded up to the limit is not
/// flushed afterwards, but before.
#[test]
fn results_change_in_order() {
    let clean = Probed::new("all", LAYER, &[(Step::Norm, Change::Flush(0.1))]).clean;
    let rounded = |x: f32| bf16::from_f32(x).to_f32();
    let numbers = clean["norm"].to_f32().into_iter();
    let up = numbers.clone().map(f32::abs).find(|x| rounded(*x) > *x);
    let limit = rounded(up.expect("a number that is rounded up"));
    let flushed = |x: f32| if x.abs() < limit { 0.0 } else { x };
    let (round, flush) = (Change::Round(Dtype::Bf16), Change::Flush(limit.into()));
    let faulty = |changes: [Change; 2]| {
        let edits = changes.map(|change| (Step::Norm, change));
        Probed::new("all", LAYER, &edits).faulty["norm"].to_f32()
    };
    let [first, second] = [faulty([round, flush]), faulty([flush, round])];
    assert_eq!(
        first,
        numbers
            .clone()
            .map(|x| flushed(rounded(x)))
            .collect::<Vec<_>>()
    );
    assert_eq!(
        second,
        numbers.map(|x| rounded(flushed(x))).collect::<Vec<_>>()
    );
    assert_ne!(first, second);
}

/// New numbers in every run of a session, and of the stated size. Scores of masked keys stay what they
/// are, and do not count.
#[test]
fn noise_is_new_in_every_run() {
    let (_file, request) = request("all");
    let clean_run = observe(&request);
    let clean_steps = probe(&mut *open(&request), LAYER, &batch(), &clean_run);
    let relative = 0.25;
    for step in [Step::Scores, Step::Intermediate, Step::Norm] {
        let noisy = under(&request, fault(&[(LAYER, step, Change::Noise(relative))]));
        let clean = clean_steps[step.name()].to_f64();
        let mut opened = open(&noisy);
        let mut draw = || {
            let steps = probe(&mut *opened, LAYER, &batch(), &clean_run);
            let pairs = steps[step.name()].to_f64().into_iter().zip(&clean);
            let pairs = pairs.filter(|(_, clean)| clean.abs() < 1e30);
            pairs
                .map(|(noisy, clean)| noisy - clean)
                .collect::<Vec<f64>>()
        };
        let (first, second) = (draw(), draw());
        assert!(first.iter().zip(&second).all(|(a, b)| a != b), "{step}");
        let rms = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
        let draws: Vec<f64> = (0..50).flat_map(|_| draw()).collect();
        let numbers: Vec<f64> = clean.iter().copied().filter(|x| x.abs() < 1e30).collect();
        // The fewest are 4000 draws, whose deviation is known to 1.1 %.
        let ratio = rms(&draws) / rms(&numbers) / relative;
        assert!((0.92..1.08).contains(&ratio), "{step}: {ratio}");
        let mean = draws.iter().sum::<f64>() / draws.len() as f64 / rms(&draws);
        assert!(mean.abs() < 0.11, "{step}: {mean}");
        let [one, other] = [(); 2].map(|()| observe_open(&mut *opened, &batch()));
        assert!(one["hidden.2"] != other["hidden.2"], "{step}");
        assert!(one["hidden.1"] == clean_run["hidden.1"], "{step}");
        assert!(
            one["logits"].to_f64().iter().all(|x| x.is_finite()),
            "{step}"
        );
    }
}

/// A graph in `f16` draws and measures in `f32`, where squares do not overflow.
#[test]
fn noise_in_f16() {
    let (stored, _) = request("all");
    let request = stored.load(Dtype::F16, &[]);
    let clean = observe(&request)["hidden.3"].to_f64();
    let noisy = fault(&[(Stage::Layer(3), Step::Norm, Change::Noise(0.25))]);
    let noisy = observe(&under(&request, noisy))["hidden.3"].to_f64();
    let found = error(&noisy, &clean) / 0.25;
    assert!((0.75..1.25).contains(&found), "{found}");
}
