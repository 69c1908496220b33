//! The numbers of one case out of what a target made of a whole batch.

use std::ops::Range;

use driftgauge_protocol::{Batch, BertConfig, Dtype, Tensor, observation};

use crate::measure::centre_rows;
use crate::model::Encoded;
use crate::observed::{self, CLS};
use crate::plan::{Job, PlannedCase};
use crate::run::JobOutcome;

/// One sequence of a case in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its row in the batch.
    pub row: usize,
    /// Its tokens, padding not counted.
    pub tokens: usize,
}

impl Part {
    /// The parts of a case of a job.
    pub fn of(job: &Job, case: &PlannedCase) -> Vec<Self> {
        let first = case.sequences.start - job.sequences.start;
        let part = |(text, encoded): (usize, &Encoded)| Self {
            row: first + text,
            tokens: encoded.ids.len(),
        };
        case.encoded.iter().enumerate().map(part).collect()
    }
}

/// An observation of the case that `parts` are, as it was delivered: the parts below each other,
/// padding dropped.
///
/// # Errors
/// What is damaged: a missing observation, another dtype or shape than asked for.
pub fn extract(
    name: &str,
    tensors: &JobOutcome,
    batch: &Batch,
    parts: &[Part],
    dtype: Dtype,
    config: &BertConfig,
) -> Result<Tensor, String> {
    let tensor = tensors
        .get(name)
        .ok_or("the observation is missing from the answer")?;
    if tensor.dtype() != dtype {
        return Err(format!(
            "is of dtype {}, the target is declared {dtype}",
            tensor.dtype()
        ));
    }
    let (expected, width) = if name == observation::LOGITS {
        let rows = batch.logit_rows.len();
        (vec![rows, config.vocab_size], config.vocab_size)
    } else {
        let extents = vec![batch.sequences, batch.length, config.hidden_size];
        (extents, config.hidden_size)
    };
    if tensor.shape() != expected {
        return Err(format!(
            "has shape {:?}, expected {expected:?}",
            tensor.shape()
        ));
    }
    let size = width * dtype.size();
    let mut bytes = Vec::new();
    for rows in rows(name, batch, parts) {
        bytes.extend_from_slice(&tensor.bytes()[rows.start * size..rows.end * size]);
    }
    let shape = vec![bytes.len() / size, width];
    Tensor::new(dtype, shape, bytes).map_err(|error| error.to_string())
}

/// An observation of a case of a job as it is compared: the texts below each other in f64, logits
/// centred row by row, [`CLS`] taken from the last hidden state.
///
/// # Errors
/// As [`extract`].
pub fn compared(
    name: &str,
    tensors: &JobOutcome,
    job: &Job,
    case: &PlannedCase,
    dtype: Dtype,
    config: &BertConfig,
) -> Result<Vec<f64>, String> {
    let last = observation::hidden(config.num_hidden_layers);
    let source = if name == CLS { &last } else { name };
    let parts = Part::of(job, case);
    let mut values = extract(source, tensors, &job.batch, &parts, dtype, config)?.to_f64();
    if name == CLS {
        values = observed::first_rows(case, &values, config.hidden_size);
    } else if name == observation::LOGITS {
        centre_rows(&mut values, config.vocab_size);
    }
    Ok(values)
}

/// Ranges of rows of the flattened tensor that belong to the case.
fn rows(name: &str, batch: &Batch, parts: &[Part]) -> Vec<Range<usize>> {
    if name == observation::LOGITS {
        let rows = &batch.logit_rows;
        let is_own = |row: &usize| parts.iter().any(|part| part.row == rows[*row].0);
        return (0..rows.len())
            .filter(is_own)
            .map(|row| row..row + 1)
            .collect();
    }
    let range = |part: &Part| {
        let start = part.row * batch.length;
        start..start + part.tokens
    };
    parts.iter().map(range).collect()
}
