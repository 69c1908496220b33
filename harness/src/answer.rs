//! Answers: what a user asks a model for.

use driftgauge_reports::record::{Answer, Candidate, MaskAnswer};

use crate::measure::cosine;
use crate::model::Tokenizer;
use crate::plan::PlannedCase;
use crate::suite::Task;

/// Tokens shown for each mask.
const TOP: usize = 5;
/// Values shown of a vector.
const FIRST: usize = 10;

/// The observations that answers are made of, for one case: rows of all its texts, in order.
#[derive(Debug, Clone, Copy)]
pub struct Answering<'a> {
    /// Last layer: a row for each token of each text.
    pub hidden: &'a [f64],
    /// Width of a row of `hidden`.
    pub hidden_width: usize,
    /// Logits: a row for each mask.
    pub logits: &'a [f64],
    /// Width of a row of `logits`.
    pub logits_width: usize,
}

/// The answer to a case; `None` where the observations do not suffice or are not finite.
pub fn answer(case: &PlannedCase, from: Answering<'_>, tokenizer: &Tokenizer) -> Option<Answer> {
    let finite = |values: &[f64]| !values.is_empty() && values.iter().all(|v| v.is_finite());
    match case.case.task {
        Task::FillMask { .. } => {
            if !finite(from.logits) {
                return None;
            }
            let positions = case.encoded.iter().flat_map(|encoded| &encoded.masks);
            let rows = from.logits.chunks(from.logits_width);
            let masks = positions.zip(rows).map(|(position, row)| MaskAnswer {
                position: *position,
                top: top(row, tokenizer),
            });
            Some(Answer::FillMask {
                masks: masks.collect(),
            })
        }
        Task::Similarity { .. } => {
            if !finite(from.hidden) {
                return None;
            }
            let row =
                |row: usize| &from.hidden[row * from.hidden_width..(row + 1) * from.hidden_width];
            let second = case.encoded.first()?.ids.len();
            Some(Answer::Similarity {
                cosine: cosine(row(0), row(second)),
            })
        }
        Task::Features { .. } => {
            if !finite(from.hidden) {
                return None;
            }
            let shape = [from.hidden.len() / from.hidden_width, from.hidden_width];
            let first = from
                .hidden
                .iter()
                .take(FIRST.min(from.hidden_width))
                .copied()
                .collect();
            Some(Answer::Features { shape, first })
        }
    }
}

/// The likeliest tokens of a row of logits.
fn top(logits: &[f64], tokenizer: &Tokenizer) -> Vec<Candidate> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - largest).exp()).sum();
    best(logits, TOP)
        .into_iter()
        .map(|id| Candidate {
            token: tokenizer.token(id),
            id,
            probability: (logits[id as usize] - largest).exp() / sum,
        })
        .collect()
}

/// The tokens with the largest logits, the largest first; equal logits are in order of their IDs.
pub fn best(logits: &[f64], count: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| {
        let (one, other) = (logits[*a as usize], logits[*b as usize]);
        other.total_cmp(&one).then(a.cmp(b))
    };
    if ids.len() > count {
        ids.select_nth_unstable_by(count, by_logit);
        ids.truncate(count);
    }
    ids.sort_by(by_logit);
    ids
}
