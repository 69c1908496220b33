//! The steps of a stage: their names and shapes, what they are, and that they are those of a run.

mod fixture;

use std::collections::BTreeMap;

use driftgauge_protocol::{Dtype, Failure, HiddenAct, LoadRequest, Reply, Stage, Step, Tensor};
use fixture::reference::{self, Rows, Steps};
use fixture::{
    Checkpoint, Stored, batch, config, converse, error, load, observe_open, open, probe,
    probe_request, unpadded,
};

const STAGES: [Stage; 5] = [
    Stage::Embeddings,
    Stage::Layer(1),
    Stage::Layer(2),
    Stage::Layer(3),
    Stage::Head,
];

fn stored() -> Stored {
    Checkpoint::new(config(HiddenAct::Gelu)).write(Dtype::F32, str::to_owned)
}

#[test]
fn every_step_has_its_name_and_shape() {
    let stored = stored();
    let request = stored.load(Dtype::F32, &[]);
    let observed = observe_open(&mut *open(&request), &batch());
    let mut requests = vec![load(request)];
    requests.push(probe_request(Stage::Embeddings, &batch(), None));
    let input = &observed["hidden.1"];
    requests.push(probe_request(Stage::Layer(2), &batch(), Some(input)));
    let input = &observed["hidden.3"];
    requests.push(probe_request(Stage::Head, &batch(), Some(input)));
    let replies = converse(&requests);
    for ((reply, steps), stage) in
        replies[2..]
            .iter()
            .zip([Stage::Embeddings, Stage::Layer(2), Stage::Head])
    {
        assert!(
            matches!(reply, Reply::Ran(ran) if ran.number == 2),
            "{reply:?}"
        );
        for step in stage.steps() {
            let expected: &[usize] = match (stage, step) {
                (Stage::Head, Step::Logits) => &[4, 37],
                (Stage::Head, _) => &[4, 12],
                (_, Step::Scores | Step::Probabilities) => &[2, 2, 5, 5],
                (_, Step::Intermediate | Step::Activation) => &[2, 5, 20],
                _ => &[2, 5, 12],
            };
            assert_eq!(steps[step.name()].shape(), expected, "{step} of {stage}");
        }
        assert_eq!(steps.len(), stage.steps().len());
    }
}

fn rows(tensor: &Tensor) -> Rows {
    let width = tensor.shape().last().copied().expect("an extent");
    let values = tensor.to_f64();
    values.chunks_exact(width).map(<[f64]>::to_vec).collect()
}

/// Each step is the one that its name says: the reference computes it from the same input.
#[test]
fn steps_are_what_their_names_say() {
    let model = Checkpoint::new(config(HiddenAct::Gelu));
    let stored = model.write(Dtype::F32, str::to_owned);
    let mut batch = unpadded();
    batch.logit_rows = vec![(0, 0), (0, 1), (0, 2)];
    for level in ["disable", "all"] {
        let mut opened = open(&stored.load(Dtype::F32, &[("opt", level)]));
        let observed = observe_open(&mut *opened, &batch);
        let mut check = |stage: Stage, expected: Steps| {
            let steps = probe(&mut *opened, stage, &batch, &observed);
            assert_eq!(expected.len(), stage.steps().len());
            for (step, expected) in expected {
                let found = steps[step.name()].to_f64();
                let found = error(&found, &expected.concat());
                assert!(
                    found < 1e-6,
                    "{step} of {stage} at {level}: error {found:.2e}"
                );
            }
        };
        check(
            Stage::Embeddings,
            reference::embed(&model, &[(1, 0), (4, 0), (2, 0)]),
        );
        let input = rows(&observed["hidden.1"]);
        check(Stage::Layer(2), reference::encode(&model, 2, &input));
        let input = rows(&observed["hidden.3"]);
        check(Stage::Head, reference::score(&model, &input));
    }
}

/// The last step of every stage, each stage fed with what the one before it gave, and the observations
/// of a run.
fn chain(request: &LoadRequest) -> Vec<(String, Tensor, Tensor)> {
    let mut opened = open(request);
    let observed = observe_open(&mut *opened, &batch());
    let mut found = BTreeMap::new();
    for stage in STAGES {
        let mut steps = probe(&mut *opened, stage, &batch(), &found);
        let last = steps
            .remove(stage.last_step().name())
            .expect("the last step");
        found.insert(stage.observation(), last);
    }
    let pairs = found.into_iter().map(|(name, last)| {
        let run = observed[&name].clone();
        (name, last, run)
    });
    pairs.collect()
}

/// Without fusions the same bits are computed, whatever can be fetched. In `f16` ONNX Runtime computes
/// in `f32` between casts, which stay only where nothing is optimised.
#[test]
fn without_fusions_a_chain_of_probes_is_a_run() {
    let stored = stored();
    for (dtype, level) in [
        (Dtype::F32, "disable"),
        (Dtype::F32, "basic"),
        (Dtype::F16, "disable"),
    ] {
        for (name, chained, run) in chain(&stored.load(dtype, &[("opt", level)])) {
            assert!(chained == run, "{name} of {dtype} at {level}");
            assert_eq!(chained.dtype(), dtype);
        }
    }
}

/// Values that can be fetched are not fused away, so a fused graph rounds elsewhere.
#[test]
fn optimised_a_chain_of_probes_rounds_like_a_run() {
    let stored = stored();
    for level in ["extended", "all"] {
        for (name, chained, run) in chain(&stored.load(Dtype::F32, &[("opt", level)])) {
            let found = error(&chained.to_f64(), &run.to_f64());
            let roundoff = 2f64.powi(-24);
            assert!(
                found < 8.0 * roundoff,
                "{name} at {level}: error {found:.2e}"
            );
        }
    }
}

#[test]
fn a_head_that_is_not_loaded_cannot_be_probed() {
    let stored = stored();
    let request = stored.load(Dtype::F32, &[]);
    let observed = observe_open(&mut *open(&request), &batch());
    let mut opened = open(&LoadRequest {
        mlm_head: false,
        ..request
    });
    let input = Some(&observed["hidden.3"]);
    let Err(Failure { message, .. }) = opened.probe(Stage::Head, &batch(), input) else {
        panic!("there is no head");
    };
    assert_eq!(
        message,
        "the head cannot be probed: the model was loaded without it"
    );
}
