//! What the graph computes, against a scalar `f64` implementation of the same model.

mod fixture;

use std::collections::BTreeMap;

use driftgauge_protocol::{Dtype, FailureKind, HiddenAct, Reply, Tensor, observation};
use fixture::reference::{self, Observed};
use fixture::{Checkpoint, batch, config, converse, error, load, observe, unpadded};

const ACTIVATIONS: [HiddenAct; 4] = [
    HiddenAct::Gelu,
    HiddenAct::GeluTanh,
    HiddenAct::Relu,
    HiddenAct::Silu,
];
const LEVELS: [&str; 4] = ["disable", "basic", "extended", "all"];

/// Both sequences of [`batch`] by the reference, the second without its padding.
fn expected(model: &Checkpoint) -> [Observed; 2] {
    let batch = batch();
    [(0, 5), (5, 3)].map(|(start, length)| {
        let tokens: Vec<(usize, usize)> = (start..start + length)
            .map(|at| {
                (
                    batch.input_ids[at] as usize,
                    batch.token_type_ids[at] as usize,
                )
            })
            .collect();
        reference::observe(model, &tokens)
    })
}

/// The largest error of all observations, padding left out.
fn largest_error(actual: &BTreeMap<String, Tensor>, expected: &[Observed; 2]) -> f64 {
    let batch = batch();
    let mut largest: f64 = 0.0;
    for layer in 0..expected[0].hidden.len() {
        let name = match layer {
            0 => observation::EMBEDDINGS.to_owned(),
            layer => observation::hidden(layer),
        };
        let values = actual[&name].to_f64();
        let rows: Vec<&[f64]> = values.chunks_exact(values.len() / 10).collect();
        for (sequence, first) in [(0, 0), (1, 5)] {
            let wanted = &expected[sequence].hidden[layer];
            let found = rows[first..first + wanted.len()].concat();
            largest = largest.max(error(&found, &wanted.concat()));
        }
    }
    let wanted: Vec<f64> = (batch.logit_rows.iter())
        .flat_map(|&(sequence, position)| expected[sequence].logits[position].clone())
        .collect();
    largest.max(error(&actual[observation::LOGITS].to_f64(), &wanted))
}

#[test]
fn f32_is_right_with_every_activation_and_level() {
    for activation in ACTIVATIONS {
        let model = Checkpoint::new(config(activation));
        let expected = expected(&model);
        let stored = model.write(Dtype::F32, str::to_owned);
        for level in LEVELS {
            let request = stored.load(Dtype::F32, &[("opt", level)]);
            let found = largest_error(&observe(request, &batch()), &expected);
            assert!(found < 1e-6, "{activation:?} at {level}: error {found:.2e}");
        }
    }
}

/// Where ONNX Runtime has the kernels, `f64` agrees with the reference to the last digits: no
/// constant is rounded to a narrower dtype. Where it has not, it says so itself.
#[test]
fn f64_is_exact_or_unsupported() {
    for activation in ACTIVATIONS {
        let model = Checkpoint::new(config(activation));
        let stored = model.write(Dtype::F32, str::to_owned);
        let request = stored.load(Dtype::F64, &[("opt", "basic")]);
        match &converse(&[load(request.clone())])[1].0 {
            Reply::Loaded(loaded) => {
                assert_eq!(loaded.dtype, Dtype::F64);
                let found = largest_error(&observe(request, &batch()), &expected(&model));
                assert!(found < 1e-14, "{activation:?}: error {found:.2e}");
            }
            Reply::Failed(failure) => {
                assert_eq!(failure.kind, FailureKind::Unsupported, "{failure}");
                let words = "Could not find an implementation for Erf";
                assert!(failure.message.contains(words), "{failure}");
                assert_eq!(activation, HiddenAct::Gelu);
            }
            other => panic!("unexpected reply {other:?}"),
        }
    }
}

/// From `extended` on, ONNX Runtime turns `Div` and `MatMul` into `FusedMatMul`, whose `alpha` is an
/// `f32` attribute: 1/sqrt(6) is rounded to `f32` in an `f64` graph. Nothing that a graph of ours
/// should hide; when a release mends it, this test says so.
#[test]
fn fusing_the_scale_rounds_it_to_f32() {
    let model = Checkpoint::new(config(HiddenAct::Relu));
    let stored = model.write(Dtype::F32, str::to_owned);
    for level in ["extended", "all"] {
        let request = stored.load(Dtype::F64, &[("opt", level)]);
        let found = largest_error(&observe(request, &batch()), &expected(&model));
        assert!((1e-10..1e-7).contains(&found), "{level}: error {found:.2e}");
    }
}

/// Narrower targets run in their own dtype or are refused in the library's words; nothing is run in
/// another dtype.
#[test]
fn narrow_dtypes_run_or_are_unsupported() {
    let model = Checkpoint::new(config(HiddenAct::Gelu));
    let stored = model.write(Dtype::F32, str::to_owned);
    for (dtype, limit) in [(Dtype::F16, 1e-2), (Dtype::Bf16, 1e-1)] {
        let request = stored.load(dtype, &[]);
        match &converse(&[load(request.clone())])[1].0 {
            Reply::Loaded(loaded) => {
                assert_eq!(loaded.dtype, dtype);
                let observed = observe(request, &batch());
                assert!(observed.values().all(|tensor| tensor.dtype() == dtype));
                let found = largest_error(&observed, &expected(&model));
                assert!(found < limit, "{dtype}: error {found:.2e}");
            }
            Reply::Failed(failure) => {
                assert_eq!(failure.kind, FailureKind::Unsupported, "{failure}");
            }
            other => panic!("unexpected reply {other:?}"),
        }
    }
}

/// Every dtype and naming that a file may have gives the same bits: the numbers are the same, and
/// widening them is exact.
#[test]
fn how_weights_are_stored_makes_no_difference() {
    let model = Checkpoint::new(config(HiddenAct::Gelu));
    let plain = model.write(Dtype::F32, str::to_owned);
    let expected = observe(plain.load(Dtype::F32, &[]), &batch());
    let gamma = |name: &str| {
        name.replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta")
    };
    for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F64] {
        let stored = model.write(dtype, gamma);
        let found = observe(stored.load(Dtype::F32, &[]), &batch());
        assert!(found == expected, "weights stored in {dtype}");
    }
}

/// A padded row differs from the same row alone by rounding only.
#[test]
fn padding_changes_rounding_at_most() {
    let model = Checkpoint::new(config(HiddenAct::Gelu));
    let stored = model.write(Dtype::F32, str::to_owned);
    let padded = observe(stored.load(Dtype::F32, &[]), &batch());
    let alone = observe(stored.load(Dtype::F32, &[]), &unpadded());
    for name in ["embeddings", "hidden.1", "hidden.2", "hidden.3"] {
        let width = model.config.hidden_size;
        let padded = &padded[name].to_f64()[5 * width..8 * width];
        let found = error(padded, &alone[name].to_f64());
        assert!(found < 1e-6, "{name}: error {found:.2e}");
    }
    let width = model.config.vocab_size;
    let padded = &padded["logits"].to_f64()[..width];
    assert!(error(padded, &alone["logits"].to_f64()) < 1e-6);
}
