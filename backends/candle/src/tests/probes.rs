//! Opened stages: the same bits as a run, and every step in its shape.

use driftgauge_protocol::fault::Change;
use driftgauge_protocol::{Batch, BertConfig, Dtype, HiddenAct, Stage, Step};

use super::bench::{Bench, edit};
use crate::fixture::{padded_batch, tiny};

/// Large enough that candle splits its products among threads.
fn wide() -> BertConfig {
    BertConfig {
        hidden_size: 256,
        intermediate_size: 1024,
        vocab_size: 500,
        ..tiny()
    }
}

/// The stock stages of a run and the opened ones of a probe, from the same hidden states.
#[test]
fn every_stage_ends_bitwise_in_the_observation_of_a_run() {
    let with = |hidden_act| BertConfig {
        hidden_act,
        ..tiny()
    };
    for (config, dtype) in [
        (tiny(), Dtype::F32),
        (with(HiddenAct::GeluTanh), Dtype::F32),
        (with(HiddenAct::Relu), Dtype::F32),
        (wide(), Dtype::F32),
        (tiny(), Dtype::F16),
        (tiny(), Dtype::Bf16),
    ] {
        let bench = Bench::new(config, dtype, padded_batch());
        for stage in bench.stages() {
            let steps = bench.probe(stage, vec![]);
            let observed = &bench.observed[&stage.observation()];
            let last = &steps[stage.last_step().name()];
            assert!(last == observed, "{stage} of {dtype} {:?}", bench.config);
        }
    }
}

/// So they do under a fault, where a run opens the stages of the changed steps.
#[test]
fn a_probe_shows_what_a_run_under_a_fault_computes() {
    let mut bench = Bench::tiny();
    let edits: Vec<_> = bench
        .stages()
        .into_iter()
        .map(|stage| edit(stage, stage.steps()[0], Change::Round(Dtype::Bf16)))
        .collect();
    let clean = std::mem::take(&mut bench.observed);
    bench.observed = bench.run(edits.clone());
    for stage in bench.stages() {
        let steps = bench.probe(stage, edits.clone());
        let observed = &bench.observed[&stage.observation()];
        assert!(steps[stage.last_step().name()] == *observed, "{stage}");
        assert!(clean[&stage.observation()] != *observed, "{stage}");
    }
}

/// Opened stages without an effect: a run has the bits of the stock model.
#[test]
fn a_fault_without_effect_changes_no_bit() {
    let bench = Bench::tiny();
    assert_eq!(
        bench.run(bench.everywhere(Change::Round(Dtype::F32))),
        bench.observed
    );
}

#[test]
fn every_step_has_its_name_and_shape() {
    let rows = vec![(1, 3), (0, 6), (1, 3)];
    let all = Bench::tiny();
    let some = Bench::new(
        tiny(),
        Dtype::F32,
        Batch {
            logit_rows: rows.clone(),
            ..padded_batch()
        },
    );
    let (hidden, inner, heads) = (32, 64, 4);
    for stage in some.stages() {
        let steps = some.probe(stage, vec![]);
        assert_eq!(steps.len(), stage.steps().len(), "{stage}");
        for step in stage.steps() {
            let shape = match (stage, step) {
                (Stage::Head, Step::Logits) => vec![3, 50],
                (Stage::Head, _) => vec![3, hidden],
                (_, Step::Scores | Step::Probabilities) => vec![4, heads, 7, 7],
                (_, Step::Intermediate | Step::Activation) => vec![4, 7, inner],
                _ => vec![4, 7, hidden],
            };
            assert_eq!(steps[step.name()].shape(), shape, "{stage} {step}");
            assert_eq!(steps[step.name()].dtype(), Dtype::F32);
        }
    }
    let every = all.probe(Stage::Head, vec![]);
    for (name, picked) in some.probe(Stage::Head, vec![]) {
        let (every, picked) = (every[&name].to_f32(), picked.to_f32());
        let width = picked.len() / rows.len();
        for (row, (sequence, position)) in rows.iter().enumerate() {
            let place = sequence * 7 + position;
            assert_eq!(
                picked[row * width..][..width],
                every[place * width..][..width],
                "{name}"
            );
        }
    }
}

#[test]
fn what_cannot_be_probed_is_said() {
    let bench = Bench::tiny();
    let mut model = bench.model(vec![]);
    let state = bench.before(Stage::Head);
    for (stage, input, expected) in [
        (
            Stage::Layer(1),
            None,
            "`layer.1` starts from a hidden state",
        ),
        (Stage::Layer(4), state, "there is no layer 4"),
    ] {
        let failure = model.probe(stage, &bench.batch, input).unwrap_err();
        assert_eq!(failure.message, expected);
    }
}
