//! Margins: whether noise explains that two things have changed places.
//!
//! Tokens of a mask, and similarities of a suite, stand in an order. Where a target's order is another
//! one than the truth's, the truth's gap between the two is compared with the predicted noise of
//! that difference: within K times the noise it is a tie, beyond it the order has drifted.

use driftgauge_protocol::Dtype;
use driftgauge_reports::record::Margin;

use crate::answer::best;
use crate::predict::{MaskNoise, Prediction};

/// Best tokens of a mask whose order is looked at.
const TOP: usize = 5;
/// Relative size of what the harness's own arithmetic does to a cosine.
const OWN_ROUNDING: f64 = 1e-15;

/// One mask: its logits as the target and the truth have them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mask<'a> {
    /// Its position among the tokens.
    pub(crate) position: usize,
    /// The target's logits.
    pub(crate) logits: &'a [f64],
    /// The truth's logits.
    pub(crate) truth: &'a [f64],
    /// The predicted noise.
    pub(crate) noise: &'a MaskNoise,
}

/// The tokens that have changed places among the best of either; `token` names them.
pub(crate) fn of_mask(
    mask: Mask<'_>,
    dtype: Dtype,
    k: f64,
    token: &dyn Fn(u32) -> String,
) -> Vec<Margin> {
    let Mask { logits, truth, .. } = mask;
    let expected = best(truth, TOP);
    let found = best(logits, TOP);
    let mut ids = expected.clone();
    ids.extend(found.iter().filter(|id| !expected.contains(id)));
    let at = |values: &[f64], id: u32| values[id as usize];
    let mut margins = Vec::new();
    for first in &ids {
        for second in &ids {
            let gap = at(truth, *first) - at(truth, *second);
            let turned = gap > 0.0 && at(logits, *first) < at(logits, *second);
            // Two tokens that neither has among its best say nothing.
            let matters = expected.contains(first) || expected.contains(second);
            if turned && matters {
                let noise = gap / mask.noise.difference(*first, *second, dtype);
                margins.push(Margin {
                    position: Some(mask.position),
                    first: token(*first),
                    second: token(*second),
                    gap,
                    noise,
                    tie: noise <= k,
                });
            }
        }
    }
    margins.sort_by(|a, b| b.noise.total_cmp(&a.noise));
    margins
}

/// The similarity of one case.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Similarity<'a> {
    /// Name of the case.
    pub(crate) case: &'a str,
    /// The target's cosine.
    pub(crate) cosine: f64,
    /// The truth's cosine.
    pub(crate) truth: f64,
    /// Absolute noise that is predicted for it.
    pub(crate) noise: f64,
}

impl<'a> Similarity<'a> {
    /// A case with its prediction.
    pub(crate) fn new(
        case: &'a str,
        cosine: f64,
        truth: f64,
        prediction: &Prediction,
        dtype: Dtype,
    ) -> Self {
        let noise = prediction.cosine_error(dtype) + OWN_ROUNDING;
        Self {
            case,
            cosine,
            truth,
            noise,
        }
    }
}

/// The cases that have changed places with the case at `index` although the truth puts that one
/// first; the noise of different cases is independent.
pub(crate) fn of_similarity(all: &[Similarity<'_>], index: usize, k: f64) -> Vec<Margin> {
    let first = all[index];
    let turned = all
        .iter()
        .filter(|second| first.truth > second.truth && first.cosine < second.cosine);
    let margin = |second: &Similarity<'_>| {
        let gap = first.truth - second.truth;
        let noise = gap / first.noise.hypot(second.noise);
        Margin {
            position: None,
            first: first.case.to_owned(),
            second: second.case.to_owned(),
            gap,
            noise,
            tie: noise <= k,
        }
    };
    let mut margins: Vec<Margin> = turned.map(margin).collect();
    margins.sort_by(|a, b| b.noise.total_cmp(&a.noise));
    margins
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

    fn margins(logits: &[f64]) -> Vec<(String, String, bool)> {
        let truth = [5.0, 5.0 - 3.0 * UNIT, 4.0, 3.0, 2.0, 1.0, 0.0];
        // Each logit has a noise of 1 u, differences one of 2 u.
        let noise = MaskNoise {
            ids: vec![0, 1, 2, 3, 4],
            errors: vec![vec![1.0, -1.0, 1.0, -1.0, 1.0]],
            any: std::f64::consts::SQRT_2,
        };
        let mask = Mask {
            position: 3,
            logits,
            truth: &truth,
            noise: &noise,
        };
        of_mask(mask, Dtype::F32, 2.0, &|id| id.to_string())
            .into_iter()
            .map(|margin| (margin.first, margin.second, margin.tie))
            .collect()
    }

    #[test]
    fn a_tie_is_told_from_a_drift() {
        let pair = |first: &str, second: &str, tie| (first.to_owned(), second.to_owned(), tie);
        for (logits, expected) in [
            ([5.0, 4.9, 4.0, 3.0, 2.0, 1.0, 0.0], vec![]),
            (
                [4.9, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0],
                vec![pair("0", "1", true)],
            ),
            (
                [5.0, 4.9, 3.0, 4.0, 2.0, 1.0, 0.0],
                vec![pair("2", "3", false)],
            ),
            // A token from outside has come in.
            (
                [5.0, 4.9, 4.0, 3.0, 2.0, 1.0, 2.5],
                vec![pair("4", "6", false)],
            ),
            // Outside the best nothing matters.
            ([5.0, 4.9, 4.0, 3.0, 2.0, 0.0, 1.0], vec![]),
        ] {
            assert_eq!(margins(&logits), expected, "{logits:?}");
        }
    }

    #[test]
    fn similarities_that_change_places() {
        let one = |case, cosine, truth| Similarity {
            case,
            cosine,
            truth,
            noise: 1e-7,
        };
        let all = [
            one("a", 0.9, 0.9),
            one("b", 0.5, 0.500_000_1),
            one("c", 0.500_000_05, 0.5),
            one("d", 0.95, 0.4),
        ];
        let found = |index| {
            let margins = of_similarity(&all, index, 2.0);
            let names = margins.iter().map(|m| format!("{}{}", m.second, m.tie));
            names.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(found(0), "dfalse");
        assert_eq!(found(1), "dfalse ctrue");
        assert_eq!(found(3), "");
    }
}
