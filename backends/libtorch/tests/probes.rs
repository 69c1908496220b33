//! What is seen inside a stage: every step, computed as a run computes it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use driftgauge_protocol::fault::{Activation, Change};
use driftgauge_protocol::{Batch, Dtype, Stage, Step};

use fixture::checkpoint::{HEADS, HIDDEN, LAYERS, PLAIN, VOCABULARY, checkpoint, config, numbers};
use fixture::reference::{self, module};
use fixture::{
    Stages, batch, converse, error, failure, input_of, load_request, observe, probe, probe_request,
    stages, step_edit, under,
};

/// A probe is the computation of a run, in every format, and under a fault too.
#[test]
fn the_last_step_of_a_stage_is_what_a_run_gives() {
    let mut checkpoint = checkpoint(config(), PLAIN);
    let batch = batch();
    let fault = [
        step_edit(Stage::Embeddings, Step::Norm, Change::Epsilon(1e-2)),
        step_edit(Stage::Layer(1), Step::Scores, Change::Round(Dtype::Bf16)),
        step_edit(Stage::Layer(2), Step::Sum, Change::DropResidual),
        step_edit(Stage::Head, Step::Activation, Change::Flush(0.2)),
    ];
    for dtype in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16] {
        checkpoint.request.dtype = dtype;
        let clean = observe(&checkpoint.request, &batch);
        for edits in [vec![], fault.to_vec()] {
            let request = under(&checkpoint.request, edits.clone());
            let observed = observe(&request, &batch);
            for stage in stages() {
                let name = stage.observation();
                let steps = probe(&request, &batch, stage, input_of(stage, &observed));
                let last = &steps[stage.last_step().name()];
                assert!(*last == observed[&name], "{dtype} {stage} {edits:?}");
                assert_eq!(*last == clean[&name], edits.is_empty(), "{dtype} {stage}");
            }
        }
    }
}

#[test]
fn every_step_has_its_name_shape_and_format() {
    let mut checkpoint = checkpoint(config(), PLAIN);
    checkpoint.request.dtype = Dtype::Bf16;
    let stages = Stages::new(checkpoint, batch());
    let (inner, rows) = (config().intermediate_size, 3);
    for (stage, steps) in &stages.clean {
        let mut names: Vec<&str> = stage.steps().iter().map(|step| step.name()).collect();
        names.sort();
        assert_eq!(steps.keys().collect::<Vec<_>>(), names);
        for step in stage.steps() {
            let shape = match (stage, step) {
                (Stage::Head, Step::Logits) => vec![rows, VOCABULARY],
                (Stage::Head, _) => vec![rows, HIDDEN],
                (_, Step::Scores | Step::Probabilities) => vec![3, HEADS, 7, 7],
                (_, Step::Intermediate | Step::Activation) => vec![3, 7, inner],
                _ => vec![3, 7, HIDDEN],
            };
            let tensor = &steps[step.name()];
            let found = (tensor.dtype(), tensor.shape());
            assert_eq!(found, (Dtype::Bf16, &shape[..]), "{stage} {step}");
        }
    }
}

/// No name stands for another step: each result is what the formula makes of those before it.
#[test]
fn every_step_follows_from_those_before_it() {
    let checkpoint = checkpoint(config(), PLAIN);
    let stages = Stages::new(checkpoint, batch());
    for (stage, steps) in &stages.clean {
        for step in stage.steps() {
            let expected = expected(&stages, *stage, *step);
            let found = finite(steps[step.name()].to_f64());
            let error = error(&found, &expected);
            assert!(error < 1e-13, "{stage} {step}: {error:e}");
        }
    }
}

fn expected(stages: &Stages, stage: Stage, step: Step) -> Vec<f64> {
    let batch = &stages.batch;
    let before = |step| stages.numbers(stage, step);
    let input = || stages.input(stage).unwrap().to_f64();
    let dense = |input: &[f64]| {
        let (inputs, outputs) = reference::extents(step, config().intermediate_size, VOCABULARY);
        reference::dense(input, &module(stage, step, inputs, outputs))
    };
    let norm = |input: &[f64]| {
        let module = module(stage, step, 1, HIDDEN);
        reference::layer_norm(input, &module, config().layer_norm_eps)
    };
    let activated = |input: Vec<f64>| {
        let activated = input
            .iter()
            .map(|x| reference::activate(Activation::Gelu, *x));
        activated.collect::<Vec<f64>>()
    };
    let added =
        |a: Vec<f64>, b: Vec<f64>| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f64>>();
    match (stage, step) {
        (Stage::Embeddings, Step::Sum) => embedded(batch),
        (Stage::Embeddings, _) => norm(&before(Step::Sum)),
        (Stage::Head, Step::Transform) => dense(&rows(batch, &input())),
        (Stage::Head, Step::Activation) => activated(before(Step::Transform)),
        (Stage::Head, Step::Norm) => norm(&before(Step::Activation)),
        (_, Step::Logits) => dense(&before(Step::Norm)),
        (_, Step::Query | Step::Key | Step::Value) => dense(&input()),
        (_, Step::Scores) => {
            let scores = reference::scores(batch, &before(Step::Query), &before(Step::Key));
            let lowest = reference::each_score(batch, |sequence, _, _, key| {
                match batch.attention_mask[sequence * batch.length + key] {
                    1 => 0.0,
                    _ => f64::MIN,
                }
            });
            finite(added(scores, lowest))
        }
        (_, Step::Probabilities) => reference::softmax(batch, &before(Step::Scores)),
        (_, Step::Context) => {
            reference::context(batch, &before(Step::Probabilities), &before(Step::Value))
        }
        (_, Step::AttentionOutput) => dense(&before(Step::Context)),
        (_, Step::AttentionSum) => added(before(Step::AttentionOutput), input()),
        (_, Step::AttentionNorm) => norm(&before(Step::AttentionSum)),
        (_, Step::Intermediate) => dense(&before(Step::AttentionNorm)),
        (_, Step::Activation) => activated(before(Step::Intermediate)),
        (_, Step::Output) => dense(&before(Step::Activation)),
        (_, Step::Sum) => added(before(Step::Output), before(Step::AttentionNorm)),
        (_, Step::Norm) => norm(&before(Step::Sum)),
        (_, Step::Transform) => panic!("a layer has no transform"),
    }
}

/// Without the scores of masked keys, whose norm would be infinite: see the test below.
fn finite(mut numbers: Vec<f64>) -> Vec<f64> {
    let lowest = numbers.iter_mut().filter(|x| **x == f64::MIN);
    lowest.for_each(|x| *x = 0.0);
    numbers
}

/// The sum of the three tables' rows.
fn embedded(batch: &Batch) -> Vec<f64> {
    let table = |name: &str, entries| {
        numbers(
            &format!("bert.embeddings.{name}_embeddings.weight"),
            entries * HIDDEN,
        )
    };
    let (word, position, segment) = (
        table("word", VOCABULARY),
        table("position", config().max_position_embeddings),
        table("token_type", 2),
    );
    let mut sums = Vec::new();
    for (index, (id, kind)) in batch
        .input_ids
        .iter()
        .zip(&batch.token_type_ids)
        .enumerate()
    {
        for d in 0..HIDDEN {
            let place = index % batch.length * HIDDEN + d;
            let (id, kind) = (*id as usize * HIDDEN + d, *kind as usize * HIDDEN + d);
            sums.push(word[id] + segment[kind] + position[place]);
        }
    }
    sums
}

fn rows(batch: &Batch, hidden: &[f64]) -> Vec<f64> {
    let rows = batch.logit_rows.iter();
    let row = rows.map(|(sequence, position)| sequence * batch.length + position);
    row.flat_map(|row| hidden[row * HIDDEN..(row + 1) * HIDDEN].to_vec())
        .collect()
}

/// Padding is not attended to, also from queries that are padding themselves.
#[test]
fn padding_has_the_lowest_scores_and_no_probability() {
    for (dtype, lowest) in [
        (Dtype::F32, f64::from(f32::MIN)),
        (Dtype::Bf16, half::bf16::MIN.to_f64()),
    ] {
        let mut checkpoint = checkpoint(config(), PLAIN);
        checkpoint.request.dtype = dtype;
        let stages = Stages::new(checkpoint, batch());
        let batch = &stages.batch;
        let scores = stages.numbers(Stage::Layer(2), Step::Scores);
        let probabilities = stages.numbers(Stage::Layer(2), Step::Probabilities);
        let mut index = 0;
        reference::each_score(batch, |sequence, _, _, key| {
            let attended = batch.attention_mask[sequence * batch.length + key] == 1;
            assert_eq!(scores[index] == lowest, !attended, "{dtype}");
            assert_eq!(probabilities[index] == 0.0, !attended, "{dtype}");
            index += 1;
            0.0
        });
        for row in probabilities.chunks(batch.length) {
            let sum = row.iter().sum::<f64>();
            assert!((sum - 1.0).abs() < 2e-2, "{sum}");
        }
    }
}

/// The head shows the wanted rows, in the order in which they are wanted.
#[test]
fn rows_of_the_head_are_the_wanted_ones() {
    let checkpoint = checkpoint(config(), PLAIN);
    let all: Vec<(usize, usize)> = (0..3).flat_map(|s| (0..7).map(move |p| (s, p))).collect();
    let whole = Batch {
        logit_rows: all.clone(),
        ..batch()
    };
    let whole = Stages::new(checkpoint, whole);
    let input = whole.input(Stage::Head);
    let request = &whole.checkpoint.request;
    let some = probe(request, &batch(), Stage::Head, input);
    for step in Stage::Head.steps() {
        let every = whole.numbers(Stage::Head, *step);
        let width = every.len() / all.len();
        let wanted = batch().logit_rows.into_iter().flat_map(|row| {
            let row = all.iter().position(|other| *other == row).unwrap();
            every[row * width..(row + 1) * width].to_vec()
        });
        let found = some[step.name()].to_f64();
        assert_eq!(found, wanted.collect::<Vec<_>>(), "{step}");
    }
    let none = Batch {
        logit_rows: vec![],
        ..batch()
    };
    let none = probe(request, &none, Stage::Head, input);
    assert_eq!(none["norm"].shape(), [0, HIDDEN]);
}

#[test]
fn a_stage_that_is_not_there_is_refused() {
    let mut checkpoint = checkpoint(config(), PLAIN);
    checkpoint.request.mlm_head = false;
    let batch = batch();
    let hidden = probe(&checkpoint.request, &batch, Stage::Embeddings, None);
    let hidden = Some(&hidden["norm"]);
    let mut replies = converse(&[
        load_request(&checkpoint.request),
        probe_request(&batch, Stage::Head, hidden),
        probe_request(&batch, Stage::Layer(LAYERS + 1), hidden),
    ]);
    let beyond = failure(replies.remove(2).0).message;
    assert_eq!(beyond, "there is no `layer.3`, the model has 2 layers");
    let head = failure(replies.remove(1).0).message;
    assert_eq!(head, "there is no `head`");
}
