//! Attention under a fault: masks and the axis of the softmax.

use driftgauge_protocol::fault::{Change, Edit, MaskChange};
use driftgauge_protocol::{Dtype, Stage, Step};

use super::bench::{Bench, Tensors, bits, edit, is_close};
use crate::fixture::tiny;

const LAYER: Stage = Stage::Layer(2);

fn masks(changes: &[MaskChange]) -> Vec<Edit> {
    let edits = changes.iter();
    edits
        .map(|change| edit(LAYER, Step::Scores, Change::Mask(*change)))
        .collect()
}

/// The same model and input, with another mask in the batch.
fn with_mask(bench: &Bench, mask: Vec<i64>) -> Tensors {
    let mut batch = bench.batch.clone();
    batch.attention_mask = mask;
    let mut model = bench.model(vec![]);
    model.probe(LAYER, &batch, bench.before(LAYER)).unwrap()
}

/// Scores or probabilities, each with whether its key is attended to.
fn with_keys<'a>(bench: &'a Bench, values: &'a [f32]) -> impl Iterator<Item = (f32, bool)> + 'a {
    let length = bench.batch.length;
    let per_sequence = values.len() / bench.batch.sequences;
    values.iter().enumerate().map(move |(index, value)| {
        let place = index / per_sequence * length + index % length;
        (*value, bench.batch.attention_mask[place] == 1)
    })
}

/// A mask with other zeros and ones is that mask, to the bit, in all that follows.
#[test]
fn other_masks_are_those_of_a_batch_that_has_them() {
    let bench = Bench::tiny();
    let rows = |rows: [[i64; 7]; 4]| rows.concat();
    for (change, mask) in [
        (MaskChange::Ignored, vec![1; 28]),
        (
            MaskChange::Inverted,
            rows([[0; 7], [0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1], [1; 7]]),
        ),
        (
            MaskChange::Longer,
            rows([
                [1; 7],
                [1, 1, 1, 1, 1, 0, 0],
                [1, 1, 1, 0, 0, 0, 0],
                [1, 0, 0, 0, 0, 0, 0],
            ]),
        ),
        (
            MaskChange::Shorter,
            rows([
                [1, 1, 1, 1, 1, 1, 0],
                [1, 1, 1, 0, 0, 0, 0],
                [1, 0, 0, 0, 0, 0, 0],
                [0; 7],
            ]),
        ),
        (MaskChange::LastOf33, bench.batch.attention_mask.clone()),
    ] {
        let faulty = bench.probe(LAYER, masks(&[change]));
        assert!(faulty == with_mask(&bench, mask), "{change:?}");
    }
    let everywhere = bench.everywhere(Change::Mask(MaskChange::Ignored));
    let mut all = Bench::tiny().batch;
    all.attention_mask.fill(1);
    let ignored = Bench::new(tiny(), Dtype::F32, all);
    assert_eq!(bench.run(everywhere), ignored.observed);
    assert_ne!(bench.observed, ignored.observed);
}

#[test]
fn with_every_key_masked_attention_is_uniform() {
    let bench = Bench::tiny();
    let probabilities = &bench.probe(LAYER, masks(&[MaskChange::Inverted]))["probabilities"];
    let first_sequence = &probabilities.to_f32()[..4 * 7 * 7];
    assert!(first_sequence.iter().all(|value| *value == 1.0 / 7.0));
}

#[test]
fn a_fill_is_added_to_the_scores_of_padding() {
    let bench = Bench::tiny();
    let plain = with_mask(&bench, vec![1; 28])["scores"].to_f32();
    let faulty = bench.probe(LAYER, masks(&[MaskChange::Fill(-0.75)]));
    let scores = faulty["scores"].to_f32();
    for ((value, attended), plain) in with_keys(&bench, &scores).zip(&plain) {
        assert_eq!(value, if attended { *plain } else { plain - 0.75 });
    }
    // Together with another mask it is that mask's positions that are filled.
    let both = bench.probe(
        LAYER,
        masks(&[MaskChange::Fill(-0.75), MaskChange::Ignored]),
    );
    assert_eq!(both["scores"].to_f32(), plain);
}

#[test]
fn a_mask_after_the_softmax_is_multiplied_with_the_probabilities() {
    let bench = Bench::tiny();
    let plain = with_mask(&bench, vec![1; 28]);
    let faulty = bench.probe(LAYER, masks(&[MaskChange::AfterSoftmax]));
    assert_eq!(faulty["scores"].to_f32(), plain["scores"].to_f32());
    let expected = plain["probabilities"].to_f32();
    let expected = with_keys(&bench, &expected);
    let expected: Vec<f32> = expected.map(|(p, on)| if on { p } else { 0.0 }).collect();
    assert_eq!(bits(&faulty["probabilities"].to_f32()), bits(&expected));
}

#[test]
fn softmax_over_the_queries() {
    let bench = Bench::tiny();
    let edits = vec![edit(LAYER, Step::Probabilities, Change::SoftmaxOverQueries)];
    let faulty = bench.probe(LAYER, edits);
    let clean = bench.probe(LAYER, vec![]);
    assert_eq!(faulty["scores"], clean["scores"]);
    let mut expected = vec![0.0; 4 * 4 * 7 * 7];
    let scores = clean["scores"].to_f32();
    for (matrix, scores) in expected.chunks_mut(49).zip(scores.chunks(49)) {
        for key in 0..7 {
            let column = |query: usize| f64::from(scores[query * 7 + key]);
            let most = (0..7).map(column).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..7).map(|query| (column(query) - most).exp()).sum();
            for query in 0..7 {
                matrix[query * 7 + key] = (column(query) - most).exp() / sum;
            }
        }
    }
    assert!(is_close(&faulty["probabilities"].to_f32(), &expected));
    assert_ne!(faulty["probabilities"], clean["probabilities"]);
}
