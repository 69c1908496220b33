//! The whole worker, in conversation over bytes in memory; in modules of their own, what it computes.

mod bench;
mod faults;
mod masks;
mod probes;
mod stock;
mod structures;

use std::collections::BTreeMap;

use driftgauge_protocol::fault::{Change, Edit, Fault, StepEdit};
use driftgauge_protocol::frame::{read_frame, write_frame};
use driftgauge_protocol::serve::{Purpose, serve};
use driftgauge_protocol::{
    Batch, Dtype, FailureKind, LoadRequest, ProbeRequest, Reply, Request, RunRequest, Stage, Step,
    Tensor, decode_tensors, encode_tensors,
};

use crate::backend::Candle;
use crate::fixture::{Checkpoint, load_request, tiny};

fn batch(logit_rows: &[(usize, usize)]) -> Batch {
    Batch {
        sequences: 2,
        length: 4,
        input_ids: vec![2, 7, 9, 3, 2, 3, 0, 0],
        token_type_ids: vec![0, 0, 1, 1, 0, 0, 0, 0],
        attention_mask: vec![1, 1, 1, 1, 1, 1, 0, 0],
        logit_rows: logit_rows.to_vec(),
    }
}

/// Loads, runs each batch for the wanted observations, and returns every reply but the hello.
fn converse(
    load: LoadRequest,
    runs: &[(&Batch, &[&str])],
) -> Vec<(Reply, BTreeMap<String, Tensor>)> {
    let requests = runs.iter().map(|(batch, wanted)| {
        let request = Request::Run(RunRequest {
            number: 1,
            wanted: wanted.iter().map(ToString::to_string).collect(),
            logit_rows: batch.logit_rows.clone(),
        });
        (request, batch.to_tensors())
    });
    answers(Purpose::Conformance, load, requests.collect())
}

/// Loads, asks, and returns every reply but the hello.
fn answers(
    purpose: Purpose,
    load: LoadRequest,
    requests: Vec<(Request, BTreeMap<String, Tensor>)>,
) -> Vec<(Reply, BTreeMap<String, Tensor>)> {
    let mut input = Vec::new();
    write_frame(&mut input, &Request::Load(Box::new(load)), &[]).unwrap();
    for (request, tensors) in requests {
        write_frame(&mut input, &request, &encode_tensors(&tensors).unwrap()).unwrap();
    }
    let mut output = Vec::new();
    serve(&mut Candle, purpose, &mut &input[..], &mut output).unwrap();
    let mut output = &output[..];
    let mut replies = std::iter::from_fn(|| read_frame(&mut output).unwrap());
    assert!(matches!(replies.next(), Some((Reply::Hello(_), _))));
    replies
        .map(|(reply, payload)| (reply, decode_tensors(&payload).unwrap()))
        .collect()
}

fn message(reply: &Reply) -> &str {
    match reply {
        Reply::Failed(failure) if failure.kind == FailureKind::Error => &failure.message,
        other => panic!("not an error: {other:?}"),
    }
}

#[test]
fn a_padded_batch_gives_what_was_wanted_and_no_more() {
    let config = tiny();
    let checkpoint = Checkpoint::random(&config, Dtype::F32);
    let all = ["embeddings", "hidden.1", "hidden.2", "hidden.3", "logits"];
    let rows = batch(&[(1, 1), (0, 2), (1, 1)]);
    let every_row: Vec<_> = (0..8).map(|row| (row / 4, row % 4)).collect();
    let replies = converse(
        load_request(&checkpoint, Dtype::F32),
        &[
            (&rows, &all),
            (&rows, &["hidden.2"]),
            (&batch(&every_row), &["logits"]),
            (&batch(&[]), &["logits", "logits"]),
        ],
    );
    let Reply::Loaded(loaded) = &replies[0].0 else {
        panic!("{:?}", replies[0].0);
    };
    assert_eq!(
        (loaded.device.as_str(), loaded.dtype, loaded.threads),
        ("cpu", Dtype::F32, 2)
    );
    assert_eq!(loaded.observations, all);
    assert_eq!(loaded.properties["weights_dtype"], "f32");

    let observed = &replies[1].1;
    assert_eq!(observed.keys().collect::<Vec<_>>(), all.each_ref());
    for name in &all[..4] {
        assert_eq!(observed[*name].shape(), &[2, 4, config.hidden_size]);
    }
    assert_eq!(observed["logits"].dtype(), Dtype::F32);
    assert_eq!(observed["logits"].shape(), &[3, config.vocab_size]);
    assert_eq!(replies[2].1.len(), 1);
    assert_eq!(replies[2].1["hidden.2"], observed["hidden.2"]);

    let scores = observed["logits"].to_f32();
    let every = replies[3].1["logits"].to_f32();
    for (row, flat) in [5, 2, 5].into_iter().enumerate() {
        let of = |scores: &[f32], row: usize| {
            scores[row * config.vocab_size..][..config.vocab_size].to_vec()
        };
        assert_eq!(of(&scores, row), of(&every, flat));
    }
    assert_eq!(replies[4].1["logits"].shape(), &[0, config.vocab_size]);
}

#[test]
fn what_does_not_exist_is_named() {
    let checkpoint = Checkpoint::random(&tiny(), Dtype::F32);
    let headless = LoadRequest {
        mlm_head: false,
        ..load_request(&checkpoint, Dtype::F32)
    };
    let replies = converse(
        headless,
        &[
            (&batch(&[(0, 0)]), &["logits"]),
            (&batch(&[]), &["hidden.01"]),
        ],
    );
    let offered = "(offered: embeddings, hidden.1, hidden.2, hidden.3)";
    for ((reply, _), name) in replies[1..].iter().zip(["logits", "hidden.01"]) {
        let expected = format!("no observation `{name}` {offered}");
        assert_eq!(message(reply), expected);
    }
}

/// candle loads half precision and computes NaN (see `extended_attention_mask`): the worker
/// returns it as it is. Should a new version of candle return numbers, this test says so.
#[test]
fn half_precision_is_returned_as_candle_computes_it() {
    let checkpoint = Checkpoint::random(&tiny(), Dtype::F32);
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let replies = converse(
            load_request(&checkpoint, dtype),
            &[(&batch(&[(0, 1)]), &["embeddings", "hidden.1", "logits"])],
        );
        assert!(matches!(&replies[0].0, Reply::Loaded(loaded) if loaded.dtype == dtype));
        let observed = &replies[1].1;
        let nan = |name: &str| observed[name].to_f64().iter().all(|value| value.is_nan());
        assert!(observed.values().all(|tensor| tensor.dtype() == dtype));
        assert_eq!(
            ["embeddings", "hidden.1", "logits"].map(nan),
            [false, true, true]
        );
    }
}

/// A fault is taken in a self-test only, and a probe shows it.
#[test]
fn faults_and_probes_are_served() {
    let checkpoint = Checkpoint::random(&tiny(), Dtype::F32);
    let edit = StepEdit {
        stage: Stage::Layer(2),
        step: Step::Output,
        change: Change::Flush(f64::MAX),
    };
    let faulty = LoadRequest {
        fault: Some(Fault {
            name: "f".to_owned(),
            edits: vec![Edit::Step(edit)],
        }),
        ..load_request(&checkpoint, Dtype::F32)
    };
    let ask = |purpose| {
        let batch = batch(&[(1, 1)]);
        let probe = Request::Probe(ProbeRequest {
            number: 1,
            stage: Stage::Layer(2),
            logit_rows: vec![],
        });
        let hidden = tiny().hidden_size;
        let input = Tensor::from_f32(vec![2, 4, hidden], &vec![0.5; 8 * hidden]).unwrap();
        let mut tensors = batch.to_tensors();
        tensors.insert("input".to_owned(), input);
        answers(purpose, faulty.clone(), vec![(probe, tensors)])
    };
    let replies = ask(Purpose::Conformance);
    assert!(message(&replies[0].0).contains("outside of a self-test"));
    let replies = ask(Purpose::SelfTest);
    assert!(matches!(replies[1].0, Reply::Ran(_)), "{:?}", replies[1].0);
    let steps = &replies[1].1;
    assert_eq!(steps.len(), Stage::Layer(2).steps().len());
    assert!(steps["output"].to_f32().iter().all(|value| *value == 0.0));
    assert_eq!(steps["sum"], steps["attention-norm"]);
    assert!(steps["query"].to_f32().iter().any(|value| *value != 0.0));
}
