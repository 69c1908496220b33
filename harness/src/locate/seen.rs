//! The numbers of a step or a stage that can be compared: what padding leaves.

use driftgauge_protocol::{Batch, Stage, Step};

use crate::measure::{centre_rows, root_mean_square};
use crate::model::Model;
use crate::oracle::Matrix;

/// Beyond this, and where it is not finite, a number stands for that and nothing else.
const LARGEST: f64 = 1e4;
const INFINITE: f64 = 2e4;
const UNDEFINED: f64 = 4e4;
/// A score that is so far below the largest of its row has no part in the softmax.
const UNSEEN: f64 = 100.0;

/// What can be compared of one step of a batch.
pub(super) struct Seen<'a> {
    batch: &'a Batch,
    stage: Stage,
    step: Step,
    heads: usize,
}

impl<'a> Seen<'a> {
    pub(super) fn new(model: &'a Model, batch: &'a Batch, stage: Stage, step: Step) -> Self {
        Self {
            batch,
            stage,
            step,
            heads: model.config.num_attention_heads,
        }
    }

    /// The numbers of a result that can be compared, in a fixed order.
    pub(super) fn of(&self, result: &Matrix) -> Vec<f64> {
        match (self.stage, self.step) {
            (Stage::Head, _) => result.values().iter().map(|x| bounded(*x)).collect(),
            (_, Step::Scores | Step::Probabilities) => self.attention(result),
            _ => self
                .tokens()
                .flat_map(|row| result.row(row))
                .map(|x| bounded(*x))
                .collect(),
        }
    }

    /// Root mean square of the deviations of these numbers, of a matrix of them. What belongs to a masked
    /// key, or is not finite, has none.
    pub(super) fn deviation(&self, deviations: &Matrix) -> f64 {
        let length = self.batch.length;
        let all: Vec<f64> = match (self.stage, self.step) {
            (Stage::Head, _) => deviations.values().to_vec(),
            (_, Step::Scores | Step::Probabilities) => self
                .queries()
                .flat_map(|(sequence, row)| {
                    let mask = &self.batch.attention_mask[sequence * length..];
                    let row = deviations.row(row).iter().zip(mask);
                    row.filter(|(_, attended)| **attended == 1).map(|(x, _)| *x)
                })
                .collect(),
            _ => self
                .tokens()
                .flat_map(|row| deviations.row(row))
                .copied()
                .collect(),
        };
        // Squares of what a fault has blown up would not be finite.
        let finite = all.into_iter().filter(|x| x.abs() < LARGEST * LARGEST);
        root_mean_square(finite)
    }

    /// Rows of tokens.
    fn tokens(&self) -> impl Iterator<Item = usize> {
        let mask = self.batch.attention_mask.iter().enumerate();
        mask.filter(|(_, attended)| **attended == 1)
            .map(|(row, _)| row)
    }

    /// Sequence and row of every query that is a token, of every head.
    fn queries(&self) -> impl Iterator<Item = (usize, usize)> {
        let (length, heads) = (self.batch.length, self.heads);
        (0..self.batch.sequences).flat_map(move |sequence| {
            let mask = &self.batch.attention_mask[sequence * length..(sequence + 1) * length];
            (0..heads).flat_map(move |head| {
                let start = (sequence * heads + head) * length;
                let tokens = (0..length).filter(|query| mask[*query] == 1);
                tokens.map(move |query| (sequence, start + query))
            })
        })
    }

    /// Of a masked key only how far it is from having no part.
    fn attention(&self, result: &Matrix) -> Vec<f64> {
        let length = self.batch.length;
        let mut seen = Vec::new();
        for (sequence, row) in self.queries() {
            let row = result.row(row);
            if self.step == Step::Probabilities {
                seen.extend(row.iter().map(|x| bounded(*x)));
                continue;
            }
            let mask = &self.batch.attention_mask[sequence * length..(sequence + 1) * length];
            let pairs = || row.iter().zip(mask);
            let attended = pairs().filter(|(_, attended)| **attended == 1);
            let largest = attended.fold(f64::NEG_INFINITY, |largest, (x, _)| largest.max(*x));
            seen.extend(pairs().map(|(x, attended)| match attended {
                1 => bounded(*x),
                // `max` would drop what is not a number.
                _ if x.is_nan() => bounded(*x),
                _ => bounded((x - (largest.max(-LARGEST) - UNSEEN)).max(0.0)),
            }));
        }
        seen
    }
}

/// The rows of a stage's result that can be compared: those of tokens; logits centred.
pub(super) fn stage_rows(stage: Stage, batch: &Batch, result: &Matrix) -> Vec<f64> {
    if stage == Stage::Head {
        let mut values = result.values().to_vec();
        centre_rows(&mut values, result.width());
        return values;
    }
    let mask = batch.attention_mask.iter().enumerate();
    let tokens = mask.filter(|(_, attended)| **attended == 1);
    let rows = tokens.flat_map(|(row, _)| result.row(row));
    rows.copied().collect()
}

/// A number that can be squared and compared, whatever it is.
pub(super) fn bounded(x: f64) -> f64 {
    if x.is_nan() {
        UNDEFINED
    } else if x.is_infinite() {
        INFINITE.copysign(x)
    } else {
        x.clamp(-LARGEST, LARGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two texts of two and three tokens, one head.
    fn batch() -> Batch {
        Batch {
            sequences: 2,
            length: 3,
            input_ids: vec![0; 6],
            token_type_ids: vec![0; 6],
            attention_mask: vec![1, 1, 0, 1, 1, 1],
            logit_rows: vec![(0, 1)],
        }
    }

    fn seen(batch: &Batch, stage: Stage, step: Step) -> Seen<'_> {
        Seen {
            batch,
            stage,
            step,
            heads: 1,
        }
    }

    const LAYER: Stage = Stage::Layer(1);

    #[test]
    fn rows_of_padding_are_not_seen() {
        let batch = batch();
        let result = Matrix::new(1, vec![1.0, 2.0, f64::NAN, 4.0, 5.0, f64::INFINITY]);
        let numbers = seen(&batch, LAYER, Step::Query).of(&result);
        assert_eq!(numbers, [1.0, 2.0, 4.0, 5.0, INFINITE]);
        let rows = stage_rows(LAYER, &batch, &result);
        assert_eq!(rows, [1.0, 2.0, 4.0, 5.0, f64::INFINITY]);
    }

    /// However low a masked score is, it has no part; one that is not low shows.
    #[test]
    fn of_masked_scores_only_what_has_a_part_is_seen() {
        let batch = batch();
        let scores = |masked: f64| {
            let mut values = vec![1.0; 18];
            values[2] = masked;
            // The query of a padding and its scores are nothing to compare.
            values[6..9].fill(f64::NAN);
            values[5] = f64::from(f32::MIN);
            seen(&batch, LAYER, Step::Scores).of(&Matrix::new(3, values))
        };
        assert_eq!(scores(-1e4), scores(f64::from(f32::MIN)));
        assert_eq!(scores(-1e4), scores(f64::NEG_INFINITY));
        assert_eq!(scores(-1e4).len(), 2 * 3 + 3 * 3);
        assert_eq!(scores(-9.0)[2], 90.0);
        assert!(scores(f64::NAN) != scores(-1e4), "NaN should show");
    }

    #[test]
    fn probabilities_are_seen_with_those_of_masked_keys() {
        let batch = batch();
        let mut values = vec![0.5; 18];
        values[2] = 0.25;
        let numbers = seen(&batch, LAYER, Step::Probabilities).of(&Matrix::new(3, values));
        assert_eq!((numbers.len(), numbers[2]), (15, 0.25));
    }

    /// The deviation is that of what can be compared: not of masked keys, not of what is blown up.
    #[test]
    fn deviations_of_what_is_seen() {
        let batch = batch();
        let mut values = vec![2.0; 18];
        values[2] = 7.0;
        values[6..9].fill(9.0);
        values[5] = f64::INFINITY;
        values[0] = 1e300;
        let deviation = seen(&batch, LAYER, Step::Scores).deviation(&Matrix::new(3, values));
        assert_eq!(deviation, 2.0);
        let column = Matrix::new(1, vec![3.0, 3.0, 100.0, 3.0, 3.0, 3.0]);
        assert_eq!(seen(&batch, LAYER, Step::Norm).deviation(&column), 3.0);
    }

    #[test]
    fn logits_are_compared_centred() {
        let rows = |shift: f64| {
            let row = Matrix::new(3, vec![1.0 + shift, 2.0 + shift, 6.0 + shift]);
            stage_rows(Stage::Head, &batch(), &row)
        };
        assert_eq!(rows(0.0), [-2.0, -1.0, 3.0]);
        assert_eq!(rows(0.0), rows(8.0));
    }

    #[test]
    fn everything_can_be_squared() {
        let all = [
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            1e300,
            -1e300,
            0.5,
        ];
        assert_eq!(
            all.map(bounded),
            [UNDEFINED, INFINITE, -INFINITE, LARGEST, -LARGEST, 0.5]
        );
    }
}
