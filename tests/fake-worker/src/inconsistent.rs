//! What the faults do that make answers depend on how a case is run.

use std::collections::BTreeMap;

use driftgauge_protocol::{Batch, Dtype, Failure, Tensor, observation};

use crate::fault::Fault;
use crate::truth::tensor;

/// How a model is run.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// Threads that it was asked to use.
    pub threads: usize,
    /// Whether another process was there first.
    pub is_later: bool,
    /// How far off an answer is, in u.
    pub by: f64,
}

/// Puts those sequences of an answer off that the fault strikes; does nothing where the fault is of
/// another kind.
///
/// # Errors
/// Where a tensor cannot be made.
pub fn distort(
    fault: Fault,
    batch: &Batch,
    circumstances: Circumstances,
    tensors: &mut BTreeMap<String, Tensor>,
) -> Result<(), Failure> {
    let depends = [
        Fault::Position,
        Fault::Padding,
        Fault::Batch,
        Fault::Order,
        Fault::Process,
        Fault::Threads,
    ];
    if !depends.contains(&fault) {
        return Ok(());
    }
    let is_off = |row: usize| {
        let mask = &batch.attention_mask[row * batch.length..(row + 1) * batch.length];
        match fault {
            Fault::Position => row > 0,
            Fault::Padding => mask.contains(&0),
            Fault::Batch => batch.sequences > 1,
            Fault::Order => first_is_longest(batch),
            Fault::Process => circumstances.is_later,
            Fault::Threads => circumstances.threads > 1,
            _ => false,
        }
    };
    for (name, values) in tensors.iter_mut() {
        let (dtype, shape) = (values.dtype(), values.shape().to_vec());
        let unit = match dtype {
            Dtype::F64 => 0.5f64.powi(53),
            _ => 0.5f64.powi(24),
        };
        let width = shape.last().copied().unwrap_or(1);
        let sequence = |row: usize| match name == observation::LOGITS {
            true => batch.logit_rows[row].0,
            false => row / batch.length,
        };
        let rows = values.to_f64();
        let rows = rows.chunks(width).enumerate().flat_map(|(row, numbers)| {
            let off = if is_off(sequence(row)) {
                circumstances.by * unit
            } else {
                0.0
            };
            numbers.iter().map(move |number| number * (1.0 + off))
        });
        *values = tensor(dtype, shape, rows.collect())
            .map_err(|error| Failure::error(error.to_string()))?;
    }
    Ok(())
}

/// Whether the first of several sequences has no padding and the last one has some.
fn first_is_longest(batch: &Batch) -> bool {
    let tokens = |row: usize| {
        let mask = &batch.attention_mask[row * batch.length..(row + 1) * batch.length];
        mask.iter().filter(|mask| **mask == 1).count()
    };
    batch.sequences > 1 && tokens(0) > tokens(batch.sequences - 1)
}
