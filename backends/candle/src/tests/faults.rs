//! Changes of results: each against a computation of its own; how several add up, and how far they reach.

use driftgauge_protocol::fault::{
    Activation, Change, Edit, MaskChange, Special, WeightChange, WeightEdit,
};
use driftgauge_protocol::{Dtype, Stage, Step, observation};

use super::bench::{Bench, bits, clean_and_faulty, edit, places, round};
use crate::fixture::{padded_batch, tiny};

/// A change of the result of every step there is: the step is what `expected` makes of the clean one.
fn check_result(bench: &Bench, change: Change, expected: impl Fn(f32) -> f32) {
    for (stage, step) in places(bench, change) {
        let [clean, faulty] = clean_and_faulty(bench, stage, step, change);
        let values = clean[step.name()].to_f32().into_iter();
        let expected: Vec<f32> = values.map(&expected).collect();
        let faulty = faulty[step.name()].to_f32();
        assert_eq!(bits(&faulty), bits(&expected), "{stage} {step} {change:?}");
        assert_ne!(clean[step.name()].to_f32(), faulty, "{stage} {step}");
    }
}

#[test]
fn results_are_rounded() {
    let bench = Bench::tiny();
    for to in [Dtype::F16, Dtype::Bf16] {
        check_result(&bench, Change::Round(to), |value| round(value, to));
    }
}

/// The limit is the size of a number that is there: beyond it are only the larger ones.
#[test]
fn results_beyond_a_limit_become_something_else() {
    let bench = Bench::tiny();
    for becomes in [Special::Nan, Special::Infinity] {
        let change = |limit| Change::Beyond { limit, becomes };
        for (stage, step) in places(&bench, change(1.0)) {
            let clean = bench.probe(stage, vec![]);
            let limit = middle(&clean[step.name()].to_f32());
            let [clean, faulty] = clean_and_faulty(&bench, stage, step, change(limit.into()));
            let pairs = clean[step.name()].to_f32().into_iter();
            for (before, after) in pairs.zip(faulty[step.name()].to_f32()) {
                let expected = match before.abs() > limit {
                    true => becomes.value() as f32,
                    false => before,
                };
                let same = after == expected || after.is_nan() && expected.is_nan();
                assert!(same, "{stage} {step}: {before} became {after}");
            }
        }
    }
}

#[test]
fn small_results_are_flushed() {
    let bench = Bench::tiny();
    for (stage, step) in places(&bench, Change::Flush(0.0)) {
        let clean = bench.probe(stage, vec![]);
        let limit = middle(&clean[step.name()].to_f32());
        let change = Change::Flush(limit.into());
        let [clean, faulty] = clean_and_faulty(&bench, stage, step, change);
        let values = clean[step.name()].to_f32().into_iter();
        let expected: Vec<f32> = values
            .map(|value| if value.abs() < limit { 0.0 } else { value })
            .collect();
        let faulty = faulty[step.name()].to_f32();
        assert_eq!(bits(&faulty), bits(&expected), "{stage} {step}");
    }
}

/// A magnitude between the others: of unequal numbers some are larger and some are smaller.
fn middle(values: &[f32]) -> f32 {
    let mut sizes: Vec<f32> = values.iter().map(|value| value.abs()).collect();
    sizes.sort_by(f32::total_cmp);
    sizes[sizes.len() / 2]
}

#[test]
fn noise_is_of_its_size_and_new_in_every_run() {
    let bench = Bench::tiny();
    let (stage, step) = (Stage::Layer(2), Step::Intermediate);
    let [clean, faulty] = clean_and_faulty(&bench, stage, step, Change::Noise(0.1));
    let (clean, faulty) = (clean[step.name()].to_f32(), faulty[step.name()].to_f32());
    let power = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64;
    let clean: Vec<f64> = clean.into_iter().map(f64::from).collect();
    let pairs = clean.iter().zip(&faulty);
    let noise: Vec<f64> = pairs
        .map(|(before, after)| f64::from(*after) - before)
        .collect();
    // 1792 numbers: their deviation is within 12 % of 0.1 by 7 times its own.
    let size = (power(&noise) / power(&clean)).sqrt();
    assert!((0.088..0.112).contains(&size), "{size}");
    let mean = noise.iter().sum::<f64>() / noise.len() as f64;
    assert!(mean.abs() < 7.0 * (power(&noise) / noise.len() as f64).sqrt());

    let mut model = bench.model(vec![edit(stage, step, Change::Noise(1e-3))]);
    let [one, other] = [(); 2].map(|()| bench.run_model(&mut *model));
    for name in bench.stages().into_iter().map(Stage::observation) {
        let is_before = ["embeddings", "hidden.1"].contains(&name.as_str());
        assert_eq!(one[&name] == other[&name], is_before, "{name}");
        assert_eq!(one[&name] == bench.observed[&name], is_before, "{name}");
    }
}

/// The limit lies between a number and what bf16 makes of it, so that the order shows.
#[test]
fn changes_of_a_result_follow_the_order_of_the_edits() {
    let bench = Bench::tiny();
    let (stage, step) = (Stage::Layer(1), Step::Query);
    let clean = bench.probe(stage, vec![])[step.name()].to_f32();
    let rounds_down = |value: &f32| *value > 0.0 && round(*value, Dtype::Bf16) < *value;
    let place = clean.iter().position(rounds_down).unwrap();
    let value = clean[place];
    let (flush, narrow) = (Change::Flush(value.into()), Change::Round(Dtype::Bf16));
    let in_order = |changes: [Change; 2]| {
        let edits = changes.map(|change| edit(stage, step, change));
        bench.probe(stage, edits.to_vec())[step.name()].to_f32()[place]
    };
    assert_eq!(in_order([flush, narrow]), round(value, Dtype::Bf16));
    assert_eq!(in_order([narrow, flush]), 0.0);
    // Of two structures the later holds, and a structure comes before a result wherever it stands.
    let activations = |changes: &[Change]| {
        let edits = changes.iter();
        let edits = edits.map(|change| edit(stage, Step::Activation, *change));
        bench.probe(stage, edits.collect())["activation"].clone()
    };
    let [relu, silu] = [Activation::Relu, Activation::Silu].map(Change::Activate);
    assert_eq!(activations(&[relu, silu]), activations(&[silu]));
    assert_eq!(activations(&[narrow, relu]), activations(&[relu, narrow]));
    assert_ne!(activations(&[narrow, relu]), activations(&[relu]));
}

/// Whatever is before a changed stage has the bits of the model without a fault.
#[test]
fn a_fault_leaves_what_is_before_it() {
    let bench = Bench::tiny();
    for changed in bench.stages() {
        let change = Change::Round(Dtype::Bf16);
        let faulty = bench.run(vec![edit(changed, changed.steps()[0], change)]);
        for stage in bench.stages() {
            let name = stage.observation();
            let is_same = faulty[&name] == bench.observed[&name];
            assert_eq!(is_same, stage < changed, "{changed}: {name}");
        }
    }
}

/// A changed tensor is no longer the one that it was tied to, and probes show it.
#[test]
fn weights_are_changed() {
    let bench = Bench::tiny();
    let zero = |tensor: &str| {
        Edit::Weights(WeightEdit {
            tensor: tensor.to_owned(),
            change: WeightChange::Fill(0.0),
        })
    };
    let bias = bench.checkpoint.numbers("cls.predictions.decoder.bias");
    let faulty = bench.run(vec![zero("cls.predictions.decoder.weight")]);
    assert_eq!(faulty[observation::LOGITS].to_f32(), bias.repeat(28));
    let hidden = observation::hidden(3);
    assert_eq!(faulty[&hidden], bench.observed[&hidden]);

    let query = "bert.encoder.layer.1.attention.self.query";
    let steps = bench.probe(Stage::Layer(2), vec![zero(&format!("{query}.weight"))]);
    let bias = bench.checkpoint.numbers(&format!("{query}.bias"));
    assert_eq!(steps["query"].to_f32(), bias.repeat(28));
}

/// No change fails where candle computes in another dtype, NaN or not.
#[test]
fn every_change_is_carried_out_in_every_dtype() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let bench = Bench::new(tiny(), dtype, padded_batch());
        for change in [
            Change::Activate(Activation::GeluQuick),
            Change::Activate(Activation::Silu),
            Change::Epsilon(1e-5),
            Change::DropResidual,
            Change::Mask(MaskChange::Fill(-100.0)),
            Change::Mask(MaskChange::AfterSoftmax),
            Change::SoftmaxOverQueries,
            Change::RoundInput(Dtype::Bf16),
            Change::Round(Dtype::F16),
            Change::Accumulate {
                to: Dtype::F16,
                every: 7,
            },
            Change::Beyond {
                limit: 1.0,
                becomes: Special::Nan,
            },
            Change::Flush(0.1),
            Change::Noise(0.1),
        ] {
            let edits = bench.everywhere(change);
            assert!(!edits.is_empty());
            let observed = bench.run(edits);
            let mut dtypes = observed.values().map(|tensor| tensor.dtype());
            assert!(dtypes.all(|found| found == dtype), "{change:?}");
        }
    }
}
