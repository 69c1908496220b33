//! Faults that change how a step is computed, each against the reference or the same model configured so.

mod fixture;

use driftgauge_protocol::fault::{Activation, Change, Fault, MaskChange};
use driftgauge_protocol::{Batch, Dtype, HiddenAct, LoadRequest, Stage, Step};
use fixture::faulty::{LEVELS, Observed, Probed, model, observe, request, rows};
use fixture::reference::{self, Rows};
use fixture::{Checkpoint, batch, config, error, fault, observe_open, open, under};
use half::bf16;

const LAYER: Stage = Stage::Layer(2);

/// A change everywhere it fits.
fn everywhere(change: Change) -> Fault {
    let places = Stage::all(3, true).into_iter();
    let places = places.flat_map(|stage| stage.steps().iter().map(move |step| (stage, *step)));
    let fitting = places.filter(|(stage, step)| change.fits(*stage, *step));
    let edits: Vec<_> = fitting.map(|(stage, step)| (stage, step, change)).collect();
    fault(&edits)
}

/// The step of a faulty stage is what the reference makes of the step's own input.
fn check_step(probed: &Probed, step: Step, expected: &Rows, limit: f64) {
    let found = probed.faulty[step.name()].to_f64();
    let found = error(&found, &expected.concat());
    assert!(
        found < limit,
        "{step} of {}: error {found:.2e}",
        probed.stage
    );
    probed.check_place(step);
}

fn each(rows: &Rows, function: impl Fn(f64) -> f64) -> Rows {
    rows.iter()
        .map(|row| row.iter().map(|x| function(*x)).collect())
        .collect()
}

#[test]
fn another_activation_is_that_function() {
    use Activation::{GeluQuick, GeluTanh, Identity, Relu, Silu};
    for function in [GeluTanh, GeluQuick, Relu, Silu, Identity] {
        for (stage, input) in [(LAYER, "intermediate"), (Stage::Head, "transform")] {
            for level in LEVELS {
                let edits = [(Step::Activation, Change::Activate(function))];
                let probed = Probed::new(level, stage, &edits);
                let input = rows(&probed.faulty[input]);
                let expected = each(&input, |x| reference::activation(function, x));
                check_step(&probed, Step::Activation, &expected, 3e-7);
            }
        }
    }
}

/// The bits of a model with this activation in its configuration, also where two functions with a root
/// stand in one graph.
#[test]
fn another_activation_everywhere_is_another_configuration() {
    let pairs = [
        (HiddenAct::Gelu, HiddenAct::GeluTanh),
        (HiddenAct::GeluTanh, HiddenAct::Gelu),
        (HiddenAct::Relu, HiddenAct::Silu),
    ];
    for (before, after) in pairs {
        for level in LEVELS {
            let [plain, other] = [before, after]
                .map(|function| Checkpoint::new(config(function)).write(Dtype::F32, str::to_owned));
            let [plain, other] =
                [&plain, &other].map(|stored| stored.load(Dtype::F32, &[("opt", level)]));
            let changed = everywhere(Change::Activate(after.into()));
            let one_layer = Fault {
                edits: changed.edits[..1].to_vec(),
                ..changed.clone()
            };
            let expected = observe(&other);
            assert!(
                observe(&under(&plain, changed)) == expected,
                "{after:?} at {level}"
            );
            let found = observe(&under(&plain, one_layer));
            assert!(
                found["hidden.1"] == expected["hidden.1"],
                "{after:?} at {level}"
            );
            assert!(
                found["hidden.2"] != expected["hidden.2"],
                "{after:?} at {level}"
            );
        }
    }
}

#[test]
fn another_epsilon_is_another_configuration() {
    let other = Checkpoint::new(driftgauge_protocol::BertConfig {
        layer_norm_eps: 1e-2,
        ..config(HiddenAct::Gelu)
    });
    let other = other.write(Dtype::F32, str::to_owned);
    for level in LEVELS {
        let (_file, request) = request(level);
        let expected = observe(&other.load(Dtype::F32, &[("opt", level)]));
        let changed = everywhere(Change::Epsilon(1e-2));
        assert!(observe(&under(&request, changed)) == expected, "{level}");
    }
    let checkpoint = model();
    for (stage, step) in [
        (LAYER, Step::AttentionNorm),
        (LAYER, Step::Norm),
        (Stage::Head, Step::Norm),
    ] {
        let probed = Probed::new("all", stage, &[(step, Change::Epsilon(0.5))]);
        let input = probed.input(step);
        let expected = reference::layer_norm_with(&checkpoint, (stage, step), 0.5, &input);
        check_step(&probed, step, &expected, 1e-6);
    }
}

#[test]
fn a_dropped_residual_is_not_added() {
    for (step, dense) in [
        (Step::AttentionSum, "attention-output"),
        (Step::Sum, "output"),
    ] {
        for level in LEVELS {
            let probed = Probed::new(level, LAYER, &[(step, Change::DropResidual)]);
            probed.check_place(step);
            assert!(
                probed.faulty[step.name()] == probed.faulty[dense],
                "{step} at {level}"
            );
        }
    }
}

#[test]
fn softmax_over_queries_sums_to_one_over_them() {
    for level in LEVELS {
        let edits = [(Step::Probabilities, Change::SoftmaxOverQueries)];
        let probed = Probed::new(level, LAYER, &edits);
        probed.check_place(Step::Probabilities);
        let scores = probed.faulty["scores"].to_f64();
        let found = probed.faulty["probabilities"].to_f64();
        for (scores, found) in scores.chunks_exact(25).zip(found.chunks_exact(25)) {
            for key in 0..5 {
                let column = |values: &[f64]| (0..5).map(|row| values[row * 5 + key]).collect();
                let (scores, found): (Vec<f64>, Vec<f64>) = (column(scores), column(found));
                let found = error(&found, &reference::softmax(&scores));
                assert!(found < 1e-6, "key {key} at {level}: error {found:.2e}");
            }
        }
    }
}

/// Dense layers and layer norms, from inputs that are rounded for them alone.
#[test]
fn inputs_are_rounded() {
    let checkpoint = model();
    let rounded = |x: f64| bf16::from_f64(x).to_f64();
    let fitting = [Stage::Layer(2), Stage::Head].map(|stage| {
        let steps = stage.steps().iter().copied();
        let steps = steps.filter(move |step| Change::RoundInput(Dtype::Bf16).fits(stage, *step));
        steps.map(move |step| (stage, step)).collect::<Vec<_>>()
    });
    for (stage, step) in fitting.concat() {
        for level in LEVELS {
            let edits = [(step, Change::RoundInput(Dtype::Bf16))];
            let probed = Probed::new(level, stage, &edits);
            let input = each(&probed.input(step), rounded);
            let expected = match step {
                Step::Norm | Step::AttentionNorm => {
                    reference::layer_norm(&checkpoint, (stage, step), &input)
                }
                _ => reference::dense(&checkpoint, (stage, step), &input),
            };
            check_step(&probed, step, &expected, 1e-6);
        }
    }
}

/// Sums of the products of so many inputs, rounded, added up and rounded after every addition.
fn accumulated(model: &Checkpoint, at: (Stage, Step), input: &Rows, every: usize) -> Rows {
    let (weight, bias) = reference::parameters(model, at);
    let rounded = |x: f64| bf16::from_f32(x as f32).to_f64();
    let number = |row: &[f64], weight: &[f64]| {
        let parts = row.chunks(every).zip(weight.chunks(every));
        let parts = parts.map(|(row, weight)| row.iter().zip(weight).map(|(x, w)| x * w).sum());
        let total = parts
            .map(rounded)
            .reduce(|total, part| rounded(total + part));
        total.expect("an input")
    };
    let apply = |row: &Vec<f64>| {
        let weights = weight.chunks_exact(row.len()).zip(bias);
        weights
            .map(|(weight, bias)| number(row, weight) + bias)
            .collect()
    };
    input.iter().map(apply).collect()
}

/// The inputs are of few bits, so that `f32` adds their products up without an error of its own.
#[test]
fn partial_sums_are_rounded() {
    let checkpoint = model();
    let to = Dtype::Bf16;
    for (every, level) in [
        (1, "all"),
        (4, "disable"),
        (5, "basic"),
        (5, "all"),
        (100, "all"),
    ] {
        for (stage, step) in [
            (LAYER, Step::Query),
            (LAYER, Step::Output),
            (Stage::Head, Step::Logits),
        ] {
            let edits = [
                (step, Change::RoundInput(to)),
                (step, Change::Accumulate { to, every }),
            ];
            let probed = Probed::new(level, stage, &edits);
            let input = each(&probed.input(step), |x| bf16::from_f64(x).to_f64());
            let expected = accumulated(&checkpoint, (stage, step), &input, every);
            let found = probed.faulty[step.name()].to_f64();
            assert_eq!(found, expected.concat(), "{step} every {every} at {level}");
            probed.check_place(step);
        }
    }
}

/// What a run observes with another mask.
fn masked(request: &LoadRequest, mask: [i64; 10]) -> Observed {
    let other = Batch {
        attention_mask: mask.to_vec(),
        ..batch()
    };
    observe_open(&mut *open(request), &other)
}

/// The same bits as with another mask in the batch.
#[test]
fn another_mask_everywhere_is_another_batch() {
    for (change, mask) in [
        (MaskChange::Ignored, [1; 10]),
        (MaskChange::Inverted, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]),
        (MaskChange::Longer, [1, 1, 1, 1, 1, 1, 1, 1, 1, 0]),
        (MaskChange::Shorter, [1, 1, 1, 1, 0, 1, 1, 0, 0, 0]),
        (MaskChange::LastOf33, [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]),
    ] {
        for level in LEVELS {
            let (_file, request) = request(level);
            let changed = under(&request, everywhere(Change::Mask(change)));
            let expected = masked(&request, mask);
            assert!(observe(&changed) == expected, "{change:?} at {level}");
            assert!(expected["logits"].to_f64().iter().all(|x| x.is_finite()));
        }
    }
}

/// In a batch of 33 positions the last one is not attended to.
#[test]
fn the_last_of_33_is_masked() {
    let long = driftgauge_protocol::BertConfig {
        max_position_embeddings: 33,
        ..config(HiddenAct::Gelu)
    };
    let stored = Checkpoint::new(long).write(Dtype::F32, str::to_owned);
    let request = stored.load(Dtype::F32, &[]);
    let changed = under(&request, everywhere(Change::Mask(MaskChange::LastOf33)));
    let plain = Batch {
        sequences: 1,
        length: 33,
        input_ids: (1..34).collect(),
        token_type_ids: vec![0; 33],
        attention_mask: vec![1; 33],
        logit_rows: vec![(0, 32)],
    };
    let mut shorter = plain.clone();
    shorter.attention_mask[32] = 0;
    let run = |request, batch| observe_open(&mut *open(request), batch);
    assert!(run(&changed, &plain) == run(&request, &shorter));
    assert!(run(&changed, &plain) != run(&request, &plain));
}

/// A mask of one layer is that layer's alone.
#[test]
fn a_mask_of_one_layer_stays_there() {
    for level in LEVELS {
        for change in [
            MaskChange::Shorter,
            MaskChange::Inverted,
            MaskChange::Fill(-1.0),
        ] {
            let probed = Probed::new(level, LAYER, &[(Step::Scores, Change::Mask(change))]);
            probed.check_place(Step::Scores);
        }
    }
}

#[test]
fn a_fill_is_added_to_the_scores_of_padding() {
    for level in LEVELS {
        let changed = |change| {
            let edits = [(Step::Scores, Change::Mask(change))];
            Probed::new(level, LAYER, &edits).faulty["scores"].to_f32()
        };
        let unmasked = changed(MaskChange::Ignored);
        for (at, (found, plain)) in changed(MaskChange::Fill(-10.0))
            .iter()
            .zip(unmasked)
            .enumerate()
        {
            // Batch, head, query, key: the second sequence has three tokens.
            let padding = at >= 50 && at % 5 >= 3;
            let expected = if padding { plain - 10.0 } else { plain };
            assert_eq!(*found, expected, "number {at} at {level}");
        }
    }
}

#[test]
fn a_mask_after_the_softmax_takes_away_from_the_sum() {
    for level in LEVELS {
        let edits = [(Step::Scores, Change::Mask(MaskChange::AfterSoftmax))];
        let probed = Probed::new(level, LAYER, &edits);
        probed.check_place(Step::Scores);
        let unmasked = [(Step::Scores, Change::Mask(MaskChange::Ignored))];
        let unmasked = Probed::new(level, LAYER, &unmasked).faulty;
        assert!(probed.faulty["scores"] == unmasked["scores"], "{level}");
        let pairs = probed.faulty["probabilities"].to_f32().into_iter();
        for (at, (found, plain)) in pairs.zip(unmasked["probabilities"].to_f32()).enumerate() {
            let padding = at >= 50 && at % 5 >= 3;
            let expected = if padding { 0.0 } else { plain };
            assert_eq!(found, expected, "number {at} at {level}");
        }
    }
}
