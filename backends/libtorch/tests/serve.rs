//! The worker as the harness sees it: whole conversations over bytes, with a small random
//! checkpoint.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::collections::BTreeMap;

use driftgauge_protocol::{Batch, BertConfig, Dtype, FailureKind, HiddenAct, LoadRequest, Reply};

use fixture::checkpoint::{HIDDEN, PLAIN, Spelling, VOCABULARY, checkpoint, config};
use fixture::{batch, converse, error, everything, load_request, observe, refusal, run_request};

/// One sequence of a batch on its own, without its padding.
fn alone(batch: &Batch, sequence: usize) -> Batch {
    let row = sequence * batch.length..(sequence + 1) * batch.length;
    let length = batch.attention_mask[row.clone()].iter().sum::<i64>() as usize;
    let row = row.start..row.start + length;
    let rows = batch
        .logit_rows
        .iter()
        .filter(|wanted| wanted.0 == sequence);
    Batch {
        sequences: 1,
        length,
        input_ids: batch.input_ids[row.clone()].to_vec(),
        token_type_ids: batch.token_type_ids[row.clone()].to_vec(),
        attention_mask: batch.attention_mask[row].to_vec(),
        logit_rows: rows.map(|wanted| (0, wanted.1)).collect(),
    }
}

#[test]
fn a_conversation_offers_and_returns_what_is_wanted() {
    let checkpoint = checkpoint(config(), PLAIN);
    let batch = batch();
    let some = vec!["logits".to_owned(), "hidden.1".to_owned()];
    let replies = converse(&[
        load_request(&checkpoint.request),
        run_request(&batch, everything()),
        run_request(&batch, some),
        run_request(&batch, vec!["hidden.3".to_owned()]),
        run_request(
            &Batch {
                logit_rows: vec![],
                ..batch.clone()
            },
            vec!["logits".to_owned()],
        ),
    ]);
    let Reply::Loaded(loaded) = &replies[0].0 else {
        panic!("{:?}", replies[0].0)
    };
    assert_eq!(loaded.observations, everything());
    assert_eq!(
        (loaded.device.as_str(), loaded.dtype, loaded.threads),
        ("cpu", Dtype::F64, 1)
    );
    assert_eq!(loaded.properties["deterministic_algorithms"], "true");

    let all = &replies[1].1;
    assert_eq!(all.keys().cloned().collect::<Vec<_>>(), everything());
    for (name, tensor) in all {
        let shape = if name == "logits" {
            vec![3, VOCABULARY]
        } else {
            vec![3, 7, HIDDEN]
        };
        assert_eq!(
            (tensor.dtype(), tensor.shape()),
            (Dtype::F64, &shape[..]),
            "{name}"
        );
        assert!(
            tensor.to_f64().iter().all(|value| value.is_finite()),
            "{name}"
        );
    }
    let some = &replies[2].1;
    assert_eq!(some.len(), 2);
    assert!(some.iter().all(|(name, tensor)| *tensor == all[name]));

    let Reply::Failed(failure) = &replies[3].0 else {
        panic!("{:?}", replies[3].0)
    };
    assert_eq!(
        failure.message,
        "no observation `hidden.3` (offered: embeddings, hidden.1, hidden.2, logits)"
    );
    assert_eq!(replies[4].1["logits"].shape(), [0, VOCABULARY]);
}

#[test]
fn a_padded_sequence_equals_the_same_sequence_alone() {
    let checkpoint = checkpoint(config(), PLAIN);
    let batch = batch();
    let together = observe(&checkpoint.request, &batch);
    for sequence in 0..batch.sequences {
        let single = alone(&batch, sequence);
        let observed = observe(&checkpoint.request, &single);
        for name in ["embeddings", "hidden.1", "hidden.2"] {
            let start = sequence * batch.length * HIDDEN;
            let row = start..start + single.length * HIDDEN;
            let error = error(&together[name].to_f64()[row], &observed[name].to_f64());
            assert!(error < 1e-12, "{name} of sequence {sequence}: {error:e}");
        }
    }
    // The rows of the logits come in the order they were asked for in.
    let logits = together["logits"].to_f64();
    let second = observe(&checkpoint.request, &alone(&batch, 1))["logits"].to_f64();
    let mine = [&logits[..VOCABULARY], &logits[2 * VOCABULARY..]].concat();
    assert!(error(&mine, &second) < 1e-12);
}

/// Each dtype is the same model up to its own rounding.
#[test]
fn narrower_formats_are_near_the_truth() {
    for hidden_act in [
        HiddenAct::Gelu,
        HiddenAct::GeluTanh,
        HiddenAct::Relu,
        HiddenAct::Silu,
    ] {
        let mut checkpoint = checkpoint(
            BertConfig {
                hidden_act,
                ..config()
            },
            PLAIN,
        );
        let truth = observe(&checkpoint.request, &batch());
        for (dtype, allowed) in [(Dtype::F32, 1e-5), (Dtype::F16, 2e-2), (Dtype::Bf16, 1e-1)] {
            checkpoint.request.dtype = dtype;
            let observed = observe(&checkpoint.request, &batch());
            for (name, tensor) in &observed {
                assert_eq!(tensor.dtype(), dtype);
                let error = error(&tensor.to_f64(), &truth[name].to_f64());
                assert!(error < allowed, "{hidden_act:?} {dtype} {name}: {error:e}");
                assert!(error > 0.0, "{name} cannot have been computed in {dtype}");
            }
        }
    }
}

/// However a checkpoint is written, the same numbers come out, to the bit.
#[test]
fn the_spelling_of_a_checkpoint_does_not_matter() {
    let expected = observe(&checkpoint(config(), PLAIN).request, &batch());
    for spelling in [
        Spelling {
            gamma: true,
            ..PLAIN
        },
        Spelling {
            tied: false,
            ..PLAIN
        },
        Spelling {
            dtype: Dtype::F16,
            ..PLAIN
        },
    ] {
        let observed = observe(&checkpoint(config(), spelling).request, &batch());
        assert!(observed == expected);
    }
}

/// A head is neither offered nor read where the checkpoint has none.
#[test]
fn an_encoder_without_a_head_offers_no_logits() {
    let mut request = checkpoint(config(), PLAIN);
    request.request.mlm_head = false;
    request
        .request
        .weights
        .names
        .retain(|name, _| name.starts_with("bert."));
    let load = load_request(&request.request);
    let replies = converse(&[load, run_request(&batch(), vec!["logits".to_owned()])]);
    let Reply::Loaded(loaded) = &replies[0].0 else {
        panic!("{:?}", replies[0].0)
    };
    assert_eq!(loaded.observations, ["embeddings", "hidden.1", "hidden.2"]);
    assert!(matches!(&replies[1].0, Reply::Failed(_)));
}

/// What cannot be had is refused by name, never replaced.
#[test]
fn what_cannot_be_had_is_refused() {
    let checkpoint = checkpoint(config(), PLAIN);
    let good = || checkpoint.request.clone();
    let option = BTreeMap::from([("opt".to_owned(), "basic".to_owned())]);
    let mut missing = good();
    missing
        .weights
        .names
        .remove("bert.encoder.layer.1.output.dense.bias");
    let mut wide = good();
    wide.config.intermediate_size = 21;
    for (request, kind, expected) in [
        (
            LoadRequest {
                device: "cuda:0".to_owned(),
                ..good()
            },
            FailureKind::Unsupported,
            "CUDA",
        ),
        (
            LoadRequest {
                device: "mps".to_owned(),
                ..good()
            },
            FailureKind::Unsupported,
            "`mps`",
        ),
        (
            LoadRequest {
                dtype: Dtype::I64,
                ..good()
            },
            FailureKind::Unsupported,
            "i64",
        ),
        (
            LoadRequest {
                options: option,
                ..good()
            },
            FailureKind::Unsupported,
            "option `opt`",
        ),
        (
            LoadRequest {
                threads: 0,
                ..good()
            },
            FailureKind::Error,
            "0 is no number of threads",
        ),
        (
            missing,
            FailureKind::Error,
            "no tensor `bert.encoder.layer.1.output.dense.bias`",
        ),
        (
            wide,
            FailureKind::Error,
            "of shape [20, 12], expected floats of shape [21, 12]",
        ),
    ] {
        let failure = refusal(&request);
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(
            failure.message.contains(expected),
            "{failure} should contain {expected:?}"
        );
    }
}
