//! The stepwise oracle against the pass, and what faults change of it.

use std::collections::BTreeMap;
use std::path::Path;

use driftgauge_protocol::fault::{
    Activation, Change, Edit, Fault, MaskChange, StepEdit, WeightChange, WeightEdit,
};
use driftgauge_protocol::{Arithmetic, Batch, Dtype, Stage, Step};

use super::{Matrix, Noise, Sequence, Steps, Stepwise, truths};
use crate::model::Model;
use crate::plan::{longest, pad};

/// The noise of a target in f32, whose weights are those that are stored.
pub(super) fn noise() -> Noise {
    Noise {
        dtype: Dtype::F32,
        arithmetic: Arithmetic::default(),
        shortcut: None,
        by_stage: true,
        samples: 1,
        seed: 0,
    }
}

pub(super) fn model() -> Model {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/models/zh-mini");
    Model::open(&directory, &[]).unwrap()
}

/// Three texts of unequal lengths, one of them a pair.
fn sequences() -> Vec<Sequence> {
    let sequence = |ids: &[u32], first: usize, logit_positions: &[usize]| Sequence {
        ids: ids.to_vec(),
        type_ids: (0..ids.len())
            .map(|place| u32::from(place >= first))
            .collect(),
        logit_positions: logit_positions.to_vec(),
    };
    vec![
        sequence(&[101, 704, 103, 4638, 7674, 6963, 102], 7, &[2]),
        sequence(&[101, 1921, 102], 3, &[]),
        sequence(&[101, 103, 1921, 102, 2769, 103, 102], 4, &[1, 5]),
    ]
    .into_iter()
    .map(|mut one| {
        // zh-mini has a vocabulary of its own.
        one.ids.iter_mut().for_each(|id| *id %= 1000);
        one
    })
    .collect()
}

pub(super) fn batch(model: &Model) -> Batch {
    let sequences = sequences();
    pad(
        &sequences,
        longest(&sequences) + 2,
        model.config.pad_token_id,
    )
}

/// Every step of every stage of a pass.
pub(super) fn pass(model: &Model, batch: &Batch, fault: Option<&Fault>) -> BTreeMap<Stage, Steps> {
    let stepwise = Stepwise::new(model, batch, &noise(), fault).unwrap();
    let mut hidden: Option<Matrix> = None;
    let mut all = BTreeMap::new();
    for stage in Stage::all(model.config.num_hidden_layers, true) {
        let steps = stepwise.stage(stage, hidden.as_ref());
        assert!(steps.keys().len() == stage.steps().len(), "{stage}");
        hidden = Some(steps[&stage.last_step()].clone());
        all.insert(stage, steps);
    }
    all
}

/// Root of the summed squares of a difference, in units of the second's.
fn relative(one: &[f64], other: &[f64]) -> f64 {
    assert_eq!(one.len(), other.len());
    let squares = |pairs: &mut dyn Iterator<Item = f64>| pairs.map(|x| x * x).sum::<f64>();
    let difference = squares(&mut one.iter().zip(other).map(|(a, b)| a - b));
    (difference / squares(&mut other.iter().copied())).sqrt()
}

#[test]
fn stages_in_a_row_give_what_the_pass_gives() {
    let model = model();
    let batch = batch(&model);
    assert!(batch.attention_mask.contains(&0), "there should be padding");
    let stages = pass(&model, &batch, None);
    let sequences = sequences();
    let truths = truths(&model, &sequences);
    let mut row = 0;
    for (place, (sequence, truth)) in sequences.iter().zip(&truths).enumerate() {
        for (stage, steps) in &stages {
            let result = &steps[&stage.last_step()];
            let (first, count) = match stage {
                Stage::Head => (row, sequence.logit_positions.len()),
                _ => (place * batch.length, sequence.ids.len()),
            };
            if count == 0 {
                continue;
            }
            let rows = result.rows(first..first + count);
            let apart = relative(rows.values(), truth[&stage.observation()].values());
            assert!(apart < 1e-13, "{stage} of text {place}: {apart:e}");
        }
        row += sequence.logit_positions.len();
    }
}

fn fault(edit: Edit) -> Fault {
    Fault {
        name: "test".to_owned(),
        edits: vec![edit],
    }
}

fn step(stage: Stage, step: Step, change: Change) -> Fault {
    fault(Edit::Step(StepEdit {
        stage,
        step,
        change,
    }))
}

fn weights(tensor: &str, change: WeightChange) -> Fault {
    fault(Edit::Weights(WeightEdit {
        tensor: tensor.to_owned(),
        change,
    }))
}

/// The first stage and step that a fault changes.
fn first_changed(
    clean: &BTreeMap<Stage, Steps>,
    faulty: &BTreeMap<Stage, Steps>,
) -> Option<(Stage, Step)> {
    let mut steps = clean.iter().flat_map(|(stage, steps)| {
        let order = stage.steps().iter();
        order.map(move |step| (*stage, *step, &steps[step]))
    });
    let is_same = |one: &Matrix, other: &Matrix| {
        let bits =
            |matrix: &Matrix| -> Vec<u64> { matrix.values().iter().map(|x| x.to_bits()).collect() };
        bits(one) == bits(other)
    };
    let changed = steps.find(|(stage, step, matrix)| !is_same(matrix, &faulty[stage][step]));
    changed.map(|(stage, step, _)| (stage, step))
}

#[test]
fn a_fault_changes_its_step_and_nothing_before_it() {
    let model = model();
    let batch = batch(&model);
    let clean = pass(&model, &batch, None);
    let layer = Stage::Layer(2);
    let query = "bert.encoder.layer.1.attention.self.query.weight";
    let decoder = "cls.predictions.decoder.weight";
    let words = "bert.embeddings.word_embeddings.weight";
    for (fault, stage, step) in [
        (weights(query, WeightChange::Transpose), layer, Step::Query),
        // Tied tensors are changed one by one.
        (
            weights(decoder, WeightChange::NextRow),
            Stage::Head,
            Step::Logits,
        ),
        (
            weights(words, WeightChange::NextRow),
            Stage::Embeddings,
            Step::Sum,
        ),
        (
            step(layer, Step::Norm, Change::Epsilon(1e-3)),
            layer,
            Step::Norm,
        ),
        (
            step(Stage::Head, Step::Norm, Change::Epsilon(1e-3)),
            Stage::Head,
            Step::Norm,
        ),
        (
            step(
                layer,
                Step::Activation,
                Change::Activate(Activation::GeluTanh),
            ),
            layer,
            Step::Activation,
        ),
        (
            step(layer, Step::Scores, Change::Mask(MaskChange::Ignored)),
            layer,
            Step::Scores,
        ),
        (
            step(layer, Step::Scores, Change::Mask(MaskChange::Shorter)),
            layer,
            Step::Scores,
        ),
        (
            step(layer, Step::AttentionSum, Change::DropResidual),
            layer,
            Step::AttentionSum,
        ),
        (
            step(layer, Step::Probabilities, Change::SoftmaxOverQueries),
            layer,
            Step::Probabilities,
        ),
        (
            step(layer, Step::Output, Change::RoundInput(Dtype::Bf16)),
            layer,
            Step::Output,
        ),
        (
            step(
                layer,
                Step::Output,
                Change::Accumulate {
                    to: Dtype::F16,
                    every: 64,
                },
            ),
            layer,
            Step::Output,
        ),
        (
            step(layer, Step::Context, Change::Round(Dtype::F16)),
            layer,
            Step::Context,
        ),
    ] {
        let faulty = pass(&model, &batch, Some(&fault));
        let found = first_changed(&clean, &faulty);
        assert_eq!(found, Some((stage, step)), "{fault:?}");
    }
}

/// What the activation of another name gives is what a configuration of that name gives.
#[test]
fn another_activation_is_that_of_the_configuration() {
    let mut model = model();
    let batch = batch(&model);
    let layer = Stage::Layer(1);
    let fault = step(
        layer,
        Step::Activation,
        Change::Activate(Activation::GeluTanh),
    );
    let faulty = pass(&model, &batch, Some(&fault));
    model.config.hidden_act = driftgauge_protocol::HiddenAct::GeluTanh;
    let configured = pass(&model, &batch, None);
    assert_eq!(
        faulty[&layer][&Step::Activation],
        configured[&layer][&Step::Activation]
    );
}

/// exp(−10000) is 0: any score that is so low masks as well as the lowest.
#[test]
fn ten_thousand_masks_as_well_as_the_lowest_number() {
    let model = model();
    let batch = batch(&model);
    let clean = pass(&model, &batch, None);
    let layer = Stage::Layer(1);
    let change = Change::Mask(MaskChange::Fill(-10_000.0));
    let faulty = pass(&model, &batch, Some(&step(layer, Step::Scores, change)));
    assert_eq!(
        faulty[&layer][&Step::Probabilities],
        clean[&layer][&Step::Probabilities]
    );
    let rest = |stages: &BTreeMap<Stage, Steps>| stages[&Stage::Head][&Step::Logits].clone();
    assert_eq!(rest(&faulty), rest(&clean));
    // And -1 does not.
    let change = Change::Mask(MaskChange::Fill(-1.0));
    let faulty = pass(&model, &batch, Some(&step(layer, Step::Scores, change)));
    assert_ne!(rest(&faulty), rest(&clean));
}

/// Sum of a row of probabilities for each query of the shortest text.
fn sums(probabilities: &Matrix, model: &Model, batch: &Batch, sequence: usize) -> Vec<f64> {
    let rows = model.config.num_attention_heads * batch.length;
    let rows = sequence * rows..(sequence + 1) * rows;
    rows.map(|row| probabilities.row(row).iter().sum())
        .collect()
}

#[test]
fn a_mask_after_the_softmax_leaves_less_than_one() {
    let model = model();
    let batch = batch(&model);
    let layer = Stage::Layer(1);
    let change = Change::Mask(MaskChange::AfterSoftmax);
    let clean = pass(&model, &batch, None);
    let faulty = pass(&model, &batch, Some(&step(layer, Step::Scores, change)));
    for sequence in 0..batch.sequences {
        let sums = |steps: &BTreeMap<Stage, Steps>| {
            sums(
                &steps[&layer][&Step::Probabilities],
                &model,
                &batch,
                sequence,
            )
        };
        assert!(sums(&clean).iter().all(|sum| (sum - 1.0).abs() < 1e-12));
        let sums = sums(&faulty);
        assert!(sums.iter().all(|sum| *sum < 1.0), "{sequence}: {sums:?}");
        let mean = sums.iter().sum::<f64>() / sums.len() as f64;
        assert!(mean < 0.95, "{sequence}: {mean}");
    }
}

/// Columns of the probabilities, not rows, sum up to 1.
#[test]
fn a_softmax_over_queries_normalises_columns() {
    let model = model();
    let batch = batch(&model);
    let layer = Stage::Layer(1);
    let fault = step(layer, Step::Probabilities, Change::SoftmaxOverQueries);
    let faulty = pass(&model, &batch, Some(&fault));
    let length = batch.length;
    let head = faulty[&layer][&Step::Probabilities].rows(0..length);
    for key in (0..length).filter(|key| batch.attention_mask[*key] == 1) {
        let column: f64 = (0..length).map(|query| head.row(query)[key]).sum();
        assert!((column - 1.0).abs() < 1e-12, "{key}: {column}");
    }
    let row: f64 = head.row(0).iter().sum();
    assert!((row - 1.0).abs() > 1e-3, "{row}");
}

#[test]
fn a_fault_that_does_not_fit_is_refused() {
    let model = model();
    let batch = batch(&model);
    let refused = |fault: &Fault| match Stepwise::new(&model, &batch, &noise(), Some(fault)) {
        Ok(_) => panic!("{fault:?} should be refused"),
        Err(why) => why,
    };
    let missing = weights(
        "bert.encoder.layer.9.output.dense.bias",
        WeightChange::Fill(0.0),
    );
    assert!(refused(&missing).contains("no tensor `bert.encoder.layer.9"));
    let flat = weights(
        "bert.encoder.layer.0.intermediate.dense.weight",
        WeightChange::Transpose,
    );
    assert!(refused(&flat).contains("not square"));
}
