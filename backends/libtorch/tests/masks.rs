//! Other attention masks than the batch's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use driftgauge_protocol::fault::{Change, MaskChange};
use driftgauge_protocol::{Batch, Dtype, Step};

use fixture::checkpoint::{PLAIN, checkpoint, config};
use fixture::{Stages, batch, differing, error, everything, everywhere, observe, reference, under};

/// Padding that is attended to is the same batch with a mask of ones.
#[test]
fn an_ignored_mask_is_a_mask_of_ones() {
    let mut checkpoint = checkpoint(config(), PLAIN);
    let unpadded = Batch {
        attention_mask: vec![1; batch().attention_mask.len()],
        ..batch()
    };
    for dtype in [Dtype::F64, Dtype::F16] {
        checkpoint.request.dtype = dtype;
        let edits = everywhere(Change::Mask(MaskChange::Ignored));
        let found = observe(&under(&checkpoint.request, edits), &batch());
        assert!(found == observe(&checkpoint.request, &unpadded), "{dtype}");
        let clean = observe(&checkpoint.request, &batch());
        assert_eq!(differing(&found, &clean), everything()[1..], "{dtype}");
    }
}

/// A number that f16 cannot hold is -∞ there, and padding is not attended to.
#[test]
fn a_fill_beyond_the_format_masks_all_the_same() {
    let mut checkpoint = checkpoint(config(), PLAIN);
    checkpoint.request.dtype = Dtype::F16;
    let clean = observe(&checkpoint.request, &batch());
    let edits = everywhere(Change::Mask(MaskChange::Fill(-1e9)));
    assert!(observe(&under(&checkpoint.request, edits), &batch()) == clean);
}

/// Scores and probabilities of a layer under changed masks: `attended` for each sequence of the batch.
fn check_mask(stages: &Stages, changes: &[MaskChange], attended: &[Vec<i64>], fill: Option<f64>) {
    let (batch, what) = (&stages.batch, format!("{changes:?}"));
    let changes: Vec<Change> = changes.iter().map(|change| Change::Mask(*change)).collect();
    for (stage, step) in stages.fitting(Change::Mask(MaskChange::Ignored)) {
        let found = stages.changed(stage, step, &changes);
        let queries = stages.numbers(stage, Step::Query);
        let scores = reference::scores(batch, &queries, &stages.numbers(stage, Step::Key));
        let mut unmasked = scores.into_iter();
        let expected = reference::each_score(batch, |sequence, _, _, key| {
            let score = unmasked.next().unwrap();
            score + (1 - attended[sequence][key]) as f64 * fill.unwrap_or(0.0)
        });
        let expected_probabilities = reference::softmax(batch, &expected);
        let mut probabilities = expected_probabilities.into_iter();
        let expected_probabilities = reference::each_score(batch, |sequence, _, _, key| {
            let probability = probabilities.next().unwrap();
            match fill {
                None => probability * attended[sequence][key] as f64,
                Some(_) => probability,
            }
        });
        let pairs = found["scores"].to_f64().into_iter().zip(expected);
        for (found, expected) in pairs {
            let near = (found - expected).abs() <= 1e-13 * expected.abs().max(1.0);
            assert!(
                near,
                "{stage} {what}: score {found:e}, expected {expected:e}"
            );
        }
        let error = error(&found["probabilities"].to_f64(), &expected_probabilities);
        assert!(error < 1e-13, "{stage} {what}: {error:e}");
    }
}

#[test]
fn masks_are_the_named_ones() {
    let stages = Stages::new(checkpoint(config(), PLAIN), batch());
    let tokens = |counts: [usize; 3]| -> Vec<Vec<i64>> {
        let row = |count| (0..7).map(move |position| i64::from(position < count));
        counts.iter().map(|count| row(*count).collect()).collect()
    };
    let inverted = tokens([7, 4, 1]).into_iter();
    let inverted: Vec<Vec<i64>> = inverted
        .map(|row| row.iter().map(|attended| 1 - attended).collect())
        .collect();
    let lowest = Some(f64::MIN);
    check_mask(&stages, &[MaskChange::Ignored], &tokens([7, 7, 7]), lowest);
    check_mask(&stages, &[MaskChange::Inverted], &inverted, lowest);
    check_mask(&stages, &[MaskChange::Longer], &tokens([7, 5, 2]), lowest);
    check_mask(&stages, &[MaskChange::Shorter], &tokens([6, 3, 0]), lowest);
    check_mask(&stages, &[MaskChange::LastOf33], &tokens([7, 4, 1]), lowest);
    let fill = MaskChange::Fill(-2.5);
    check_mask(&stages, &[fill], &tokens([7, 4, 1]), Some(-2.5));
    let after = MaskChange::AfterSoftmax;
    check_mask(&stages, &[after], &tokens([7, 4, 1]), None);
    check_mask(
        &stages,
        &[fill, MaskChange::Longer],
        &tokens([7, 5, 2]),
        Some(-2.5),
    );
    check_mask(
        &stages,
        &[MaskChange::Longer, after],
        &tokens([7, 5, 2]),
        None,
    );

    let count = 33;
    let long = Batch {
        sequences: 1,
        length: count,
        input_ids: (1..=count as i64).collect(),
        token_type_ids: vec![0; count],
        attention_mask: vec![1; count],
        logit_rows: vec![],
    };
    let stages = Stages::new(checkpoint(config(), PLAIN), long);
    let attended = (0..count).map(|position| i64::from(position < 32));
    check_mask(
        &stages,
        &[MaskChange::LastOf33],
        &[attended.collect()],
        lowest,
    );
}
