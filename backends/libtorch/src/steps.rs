//! The steps of a stage: what a fault changes in them, and what a probe keeps of them.
//!
//! The model asks how a step is to be computed where it computes it ([`Steps::find`], [`Steps::has`],
//! [`Steps::rounded_input`]), and passes every step's result through [`Steps::result`]. Without a fault and a
//! probe both give back what they were given.

use std::collections::BTreeMap;

use driftgauge_protocol::fault::{Change, Fault};
use driftgauge_protocol::{Dtype, Stage, Step};
use tch::{Kind, TchError, Tensor};

use crate::tensors::{kind_of, lowest};

/// The steps of one stage in one pass.
pub struct Steps<'a> {
    stage: Stage,
    fault: Option<&'a Fault>,
    kept: Option<BTreeMap<Step, Tensor>>,
}

impl<'a> Steps<'a> {
    /// Steps of which nothing is kept.
    pub fn new(stage: Stage, fault: Option<&'a Fault>) -> Self {
        Self {
            stage,
            fault,
            kept: None,
        }
    }

    /// Steps whose results are kept.
    pub fn keeping(stage: Stage, fault: Option<&'a Fault>) -> Self {
        Self {
            kept: Some(BTreeMap::new()),
            ..Self::new(stage, fault)
        }
    }

    /// The results that were kept.
    pub fn into_kept(self) -> BTreeMap<Step, Tensor> {
        self.kept.unwrap_or_default()
    }

    /// What `choose` finds in the changes of a step; of several the last.
    pub fn find<T>(&self, step: Step, choose: impl Fn(Change) -> Option<T>) -> Option<T> {
        self.changes(step).filter_map(choose).last()
    }

    /// Whether a step is changed so.
    pub fn has(&self, step: Step, change: Change) -> bool {
        self.changes(step).any(|found| found == change)
    }

    /// The input of a step where a fault rounds it.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn rounded_input(&self, step: Step, input: &Tensor) -> Result<Option<Tensor>, TchError> {
        let mut rounded_input = None;
        for change in self.changes(step) {
            if let Change::RoundInput(to) = change {
                let input = rounded_input.as_ref().unwrap_or(input);
                rounded_input = Some(rounded(input, to)?);
            }
        }
        Ok(rounded_input)
    }

    /// The result of a step after the changes that a fault makes to it.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn result(&mut self, step: Step, mut result: Tensor) -> Result<Tensor, TchError> {
        for change in self.changes(step) {
            if let Some(changed) = changed(change, &result)? {
                result = changed;
            }
        }
        if let Some(kept) = &mut self.kept {
            kept.insert(step, result.shallow_clone());
        }
        Ok(result)
    }

    fn changes(&self, step: Step) -> impl Iterator<Item = Change> {
        let stage = self.stage;
        let fault = self.fault.into_iter();
        fault.flat_map(move |fault| fault.changes(stage, step))
    }
}

/// Numbers rounded to a narrower format and back.
///
/// # Errors
/// What libtorch refuses.
pub fn rounded(tensor: &Tensor, to: Dtype) -> Result<Tensor, TchError> {
    tensor.f_to_kind(kind_of(to))?.f_to_kind(tensor.f_kind()?)
}

/// What a change makes of a result; nothing where it changes how the step is computed.
fn changed(change: Change, result: &Tensor) -> Result<Option<Tensor>, TchError> {
    // In f64, because a bound that the result's own format cannot hold would be refused or rounded.
    let magnitudes = || result.f_to_kind(Kind::Double)?.f_abs();
    Ok(match change {
        Change::Round(to) => Some(rounded(result, to)?),
        Change::Beyond { limit, becomes } => {
            let beyond = magnitudes()?.f_gt(limit)?;
            Some(result.f_masked_fill(&beyond, becomes.value())?)
        }
        Change::Flush(bound) => {
            let small = magnitudes()?.f_lt(bound)?;
            Some(result.f_masked_fill(&small, 0.0)?)
        }
        Change::Noise(relative) => Some(noisy(result, relative)?),
        Change::Activate(_)
        | Change::Epsilon(_)
        | Change::DropResidual
        | Change::Mask(_)
        | Change::SoftmaxOverQueries
        | Change::RoundInput(_)
        | Change::Accumulate { .. } => None,
    })
}

/// Normally distributed numbers added, of this fraction of the root mean square. Numbers that stand for
/// something else do not count in that: the lowest number in the scores of masked keys, infinity, NaN.
/// libtorch seeds its generator anew in every process.
fn noisy(result: &Tensor, relative: f64) -> Result<Tensor, TchError> {
    let kind = result.f_kind()?;
    let result = result.f_to_kind(Kind::Double)?;
    let counts = result.f_abs()?.f_le(-lowest(kind) / 2.0)?;
    let squares = result.f_where_scalarother(&counts, 0.0)?.f_square()?;
    let sum = squares.f_sum(Kind::Double)?.f_double_value(&[])?;
    let count = counts.f_sum(Kind::Double)?.f_double_value(&[])?;
    let deviation = relative * (sum / count.max(1.0)).sqrt();
    let noise = result.f_randn_like()?.f_mul_scalar(deviation)?;
    result.f_add(&noise)?.f_to_kind(kind)
}
