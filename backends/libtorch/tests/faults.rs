//! Runs under a fault: what differs, what must not, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::process::{Command, Stdio};

use driftgauge_protocol::fault::{
    Activation, Change, Edit, SELFTEST, Special, WeightChange, WeightEdit,
};
use driftgauge_protocol::{
    Batch, BertConfig, Dtype, FailureKind, HiddenAct, LoadRequest, Reply, Stage, Step,
    decode_tensors, frame,
};

use fixture::checkpoint::{PLAIN, Spelling, changed_checkpoint, checkpoint, config};
use fixture::{
    Named, batch, converse, differing, everything, everywhere, load_request, observe, refusal,
    run_request, stages, step_edit, under,
};

#[test]
fn a_fault_without_changes_changes_no_bit() {
    let mut checkpoint = checkpoint(config(), PLAIN);
    for dtype in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16] {
        checkpoint.request.dtype = dtype;
        let clean = observe(&checkpoint.request, &batch());
        let found = observe(&under(&checkpoint.request, vec![]), &batch());
        assert!(found == clean, "{dtype}");
    }
}

/// What is computed before a changed stage keeps every bit, and everything after it is another.
#[test]
fn a_changed_step_changes_its_stage_and_what_follows() {
    let mut checkpoint = checkpoint(config(), PLAIN);
    checkpoint.request.dtype = Dtype::F32;
    let clean = observe(&checkpoint.request, &batch());
    for (index, stage) in stages().into_iter().enumerate() {
        for step in stage.steps() {
            let edit = step_edit(stage, *step, Change::Round(Dtype::Bf16));
            let found = observe(&under(&checkpoint.request, vec![edit]), &batch());
            let names = differing(&found, &clean);
            assert_eq!(names, everything()[index..], "{stage} {step}");
        }
    }
}

/// A change in all places is the model that another configuration describes.
#[test]
fn changes_everywhere_are_another_configuration() {
    let changed = |change: Change, other: BertConfig| {
        let mut checkpoints = [config(), other].map(|config| checkpoint(config, PLAIN));
        for checkpoint in &mut checkpoints {
            checkpoint.request.dtype = Dtype::F32;
        }
        let [plain, other] = checkpoints;
        let clean = observe(&plain.request, &batch());
        let found = observe(&under(&plain.request, everywhere(change)), &batch());
        assert!(found == observe(&other.request, &batch()), "{change:?}");
        differing(&found, &clean)
    };
    for (activation, hidden_act) in [
        (Activation::GeluTanh, HiddenAct::GeluTanh),
        (Activation::Relu, HiddenAct::Relu),
        (Activation::Silu, HiddenAct::Silu),
    ] {
        let other = BertConfig {
            hidden_act,
            ..config()
        };
        let names = changed(Change::Activate(activation), other);
        assert_eq!(names, everything()[1..], "{activation:?}");
    }
    let other = BertConfig {
        layer_norm_eps: 1e-3,
        ..config()
    };
    assert_eq!(changed(Change::Epsilon(1e-3), other), everything());
}

/// The model is the one of a checkpoint that has these weights.
#[test]
fn changed_weights_are_another_checkpoint() {
    let untied = Spelling {
        tied: false,
        ..PLAIN
    };
    let plain = checkpoint(config(), PLAIN);
    let clean = observe(&plain.request, &batch());
    let all = everything();
    for (tensor, names) in [
        ("bert.encoder.layer.1.output.dense.weight", &all[2..]),
        ("bert.encoder.layer.0.attention.self.value.bias", &all[1..]),
        // Each of these shares its storage with the other, and only one of them changes.
        ("cls.predictions.decoder.weight", &all[3..]),
        ("bert.embeddings.word_embeddings.weight", &all[..]),
    ] {
        let scaled = changed_checkpoint(config(), untied, |name, numbers| {
            if name == tensor {
                numbers.iter_mut().for_each(|number| *number *= 1.5);
            }
        });
        let edit = Edit::Weights(WeightEdit {
            tensor: tensor.to_owned(),
            change: WeightChange::Scale(1.5),
        });
        let found = observe(&under(&plain.request, vec![edit]), &batch());
        assert!(found == observe(&scaled.request, &batch()), "{tensor}");
        assert_eq!(differing(&found, &clean), names, "{tensor}");
    }
}

#[test]
fn numbers_beyond_a_limit_become_special() {
    let mut checkpoint = checkpoint(config(), PLAIN);
    checkpoint.request.dtype = Dtype::F16;
    let clean = observe(&checkpoint.request, &batch());
    let observed = |stage, step, becomes, limit| {
        let change = Change::Beyond { limit, becomes };
        let request = under(&checkpoint.request, vec![step_edit(stage, step, change)]);
        observe(&request, &batch())
    };
    let layer = Stage::Layer(2);
    let nan = observed(layer, Step::Output, Special::Nan, 0.5);
    assert_eq!(differing(&nan, &clean), ["hidden.2", "logits"]);
    assert!(nan["hidden.2"].to_f64().iter().any(|x| x.is_nan()));
    assert!(nan["logits"].to_f64().iter().any(|x| x.is_nan()));

    let infinite = observed(Stage::Head, Step::Logits, Special::Infinity, 0.5);
    let infinite = infinite["logits"].to_f64();
    for (found, clean) in infinite.iter().zip(clean["logits"].to_f64()) {
        let beyond = clean.abs() > 0.5;
        assert_eq!(*found, if beyond { f64::INFINITY } else { clean });
    }
    assert!(observed(layer, Step::Output, Special::Nan, 1e6) == clean);
}

#[test]
fn noise_differs_between_runs_of_one_model() {
    let checkpoint = checkpoint(config(), PLAIN);
    let edit = step_edit(Stage::Layer(2), Step::Context, Change::Noise(1e-6));
    let twice = |request: &LoadRequest| {
        let run = || run_request(&batch(), everything());
        let mut replies = converse(&[load_request(request), run(), run()]);
        let second = replies.remove(2).1;
        differing(&second, &replies[1].1)
    };
    let noisy = under(&checkpoint.request, vec![edit]);
    assert_eq!(twice(&noisy), ["hidden.2", "logits"]);
    assert!(twice(&checkpoint.request).is_empty());
}

/// A process does not begin with the same random numbers as the one before it.
#[test]
fn noise_differs_between_processes() {
    let checkpoint = checkpoint(config(), PLAIN);
    let edit = step_edit(Stage::Embeddings, Step::Sum, Change::Noise(1e-6));
    let noisy = under(&checkpoint.request, vec![edit]);
    let observed = |request| in_its_own_process(request, &batch());
    let (first, second) = (observed(&noisy), observed(&noisy));
    assert_eq!(differing(&first, &second), everything());
    let clean = observe(&checkpoint.request, &batch());
    assert!(observed(&checkpoint.request) == clean);
}

#[expect(
    clippy::disallowed_methods,
    reason = "a worker like that of the harness"
)]
fn in_its_own_process(request: &LoadRequest, batch: &Batch) -> Named {
    let mut worker = Command::new(env!("CARGO_BIN_EXE_driftgauge-worker-libtorch"))
        .arg(SELFTEST)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = worker.stdin.take().unwrap();
    for (request, payload) in [load_request(request), run_request(batch, everything())] {
        frame::write_frame(&mut input, &request, &payload).unwrap();
    }
    drop(input);
    let output = worker.wait_with_output().unwrap().stdout;
    let mut output = &output[..];
    let mut read = || frame::read_frame::<Reply>(&mut output).unwrap().unwrap();
    assert!(matches!(read().0, Reply::Hello(_)));
    assert!(matches!(read().0, Reply::Loaded(_)));
    let (ran, payload) = read();
    assert!(matches!(ran, Reply::Ran(_)), "{ran:?}");
    decode_tensors(&payload).unwrap()
}

/// A fault that means nothing to the model would pass for one that is not found.
#[test]
fn faults_that_mean_nothing_are_refused() {
    let checkpoint = checkpoint(config(), PLAIN);
    let round = Change::Round(Dtype::F16);
    let accumulate = |to, every| Change::Accumulate { to, every };
    for (stage, step, change, expected) in [
        (
            Stage::Layer(3),
            Step::Query,
            round,
            "the model has no `layer.3`",
        ),
        (
            Stage::Layer(1),
            Step::Query,
            Change::Round(Dtype::I64),
            "i64 is no format to round to",
        ),
        (
            Stage::Layer(1),
            Step::Norm,
            Change::RoundInput(Dtype::I64),
            "i64 is no format to round to",
        ),
        (
            Stage::Head,
            Step::Logits,
            accumulate(Dtype::I64, 4),
            "i64 is no format to round to",
        ),
        (
            Stage::Head,
            Step::Logits,
            accumulate(Dtype::F16, 0),
            "partial sums need an input",
        ),
    ] {
        let edit = step_edit(stage, step, change);
        let failure = refusal(&under(&checkpoint.request, vec![edit]));
        assert_eq!(failure.message, format!("fault `test`: {expected}"));
        assert_eq!(failure.kind, FailureKind::Error);
    }
    let encoder = LoadRequest {
        mlm_head: false,
        ..checkpoint.request.clone()
    };
    let edit = step_edit(Stage::Head, Step::Norm, round);
    let failure = refusal(&under(&encoder, vec![edit]));
    assert_eq!(failure.message, "fault `test`: the model has no `head`");
}
