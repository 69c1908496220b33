//! The steps of a stage, each carried out in candle's operations and kept, with what a fault changes
//! in it.
//!
//! Changes of the computation itself come first, then those of its result, in the order of the
//! fault's edits. Where a fault states one thing twice, the later edit holds.

use candle_core::{D, Result, Tensor};
use candle_nn::{LayerNorm, Linear, Module, ops};
use driftgauge_protocol::fault::{Activation, Change, Fault};
use driftgauge_protocol::{Dtype, Stage, Step};

use crate::changes::{changed, rounded};
use crate::mask::Mask;

/// The steps of one stage that have been carried out.
pub struct Steps<'a> {
    stage: Stage,
    fault: Option<&'a Fault>,
    results: Vec<(Step, Tensor)>,
}

impl<'a> Steps<'a> {
    /// A stage at its beginning.
    pub fn new(stage: Stage, fault: Option<&'a Fault>) -> Self {
        Self {
            stage,
            fault,
            results: Vec::with_capacity(stage.steps().len()),
        }
    }

    /// The result of every step, in the order of the computation.
    pub fn into_results(self) -> Vec<(Step, Tensor)> {
        self.results
    }

    /// A step that has no structure to change: its result is the given one.
    ///
    /// # Errors
    /// What candle says; so do all steps.
    pub fn keep(&mut self, step: Step, result: Tensor) -> Result<Tensor> {
        let result = self
            .changes(step)
            .try_fold(result, |result, change| changed(change, result))?;
        self.results.push((step, result.clone()));
        Ok(result)
    }

    /// A dense layer.
    pub fn dense(&mut self, step: Step, dense: &Linear, input: &Tensor) -> Result<Tensor> {
        let input = self.input(step, input)?;
        let accumulate = self.last(step, |change| match change {
            Change::Accumulate { to, every } => Some((to, every)),
            _ => None,
        });
        let result = match accumulate {
            Some((to, every)) => accumulated(dense, &input, to, every)?,
            None => dense.forward(&input)?,
        };
        self.keep(step, result)
    }

    /// A layer norm.
    pub fn norm(&mut self, step: Step, norm: &LayerNorm, input: &Tensor) -> Result<Tensor> {
        let input = self.input(step, input)?;
        let epsilon = self.last(step, |change| match change {
            Change::Epsilon(epsilon) => Some(epsilon),
            _ => None,
        });
        let result = match (epsilon, norm.bias()) {
            (Some(epsilon), Some(bias)) => {
                LayerNorm::new(norm.weight().clone(), bias.clone(), epsilon).forward(&input)?
            }
            _ => norm.forward(&input)?,
        };
        self.keep(step, result)
    }

    /// The activation function, which is `own` unless a fault puts another in its place.
    pub fn activation(&mut self, own: Activation, input: &Tensor) -> Result<Tensor> {
        let other = self.last(Step::Activation, |change| match change {
            Change::Activate(activation) => Some(activation),
            _ => None,
        });
        let result = activate(other.unwrap_or(own), input)?;
        self.keep(Step::Activation, result)
    }

    /// A branch and the residual that goes around it.
    pub fn sum(&mut self, step: Step, branch: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let result = match self.has(step, Change::DropResidual) {
            true => branch.clone(),
            false => (branch + residual)?,
        };
        self.keep(step, result)
    }

    /// The scores, from scaled products.
    pub fn scores(&mut self, products: Tensor, mask: &Mask) -> Result<Tensor> {
        self.keep(Step::Scores, mask.on_scores(products)?)
    }

    /// The softmax of the scores.
    pub fn probabilities(&mut self, scores: &Tensor, mask: &Mask) -> Result<Tensor> {
        let axis = match self.has(Step::Probabilities, Change::SoftmaxOverQueries) {
            true => D::Minus2,
            false => D::Minus1,
        };
        let result = mask.on_probabilities(ops::softmax(scores, axis)?)?;
        self.keep(Step::Probabilities, result)
    }

    /// The input of a step.
    fn input(&self, step: Step, input: &Tensor) -> Result<Tensor> {
        self.changes(step)
            .try_fold(input.clone(), |input, change| match change {
                Change::RoundInput(to) => rounded(&input, to),
                _ => Ok(input),
            })
    }

    fn changes(&self, step: Step) -> impl Iterator<Item = Change> + use<'a> {
        let stage = self.stage;
        let fault = self.fault.into_iter();
        fault.flat_map(move |fault| fault.changes(stage, step))
    }

    fn last<T>(&self, step: Step, of: impl Fn(Change) -> Option<T>) -> Option<T> {
        self.changes(step).filter_map(of).last()
    }

    fn has(&self, step: Step, change: Change) -> bool {
        self.changes(step).any(|other| other == change)
    }
}

fn activate(activation: Activation, input: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Gelu => input.gelu_erf(),
        Activation::GeluTanh => input.gelu(),
        Activation::GeluQuick => input * ops::sigmoid(&(input * 1.702)?)?,
        Activation::Relu => input.relu(),
        Activation::Silu => input.silu(),
        Activation::Identity => Ok(input.clone()),
    }
}

/// A dense layer whose sums are rounded as [`Change::Accumulate`] says.
fn accumulated(dense: &Linear, input: &Tensor, to: Dtype, every: usize) -> Result<Tensor> {
    let width = input.dim(D::Minus1)?;
    let mut sum: Option<Tensor> = None;
    for start in (0..width).step_by(every) {
        let length = every.min(width - start);
        let weight = dense.weight().narrow(1, start, length)?.contiguous()?;
        let part = input.narrow(D::Minus1, start, length)?.contiguous()?;
        let part = rounded(&Linear::new(weight, None).forward(&part)?, to)?;
        sum = Some(match sum {
            Some(sum) => rounded(&(sum + part)?, to)?,
            None => part,
        });
    }
    match (sum, dense.bias()) {
        (Some(sum), Some(bias)) => sum.broadcast_add(bias),
        _ => candle_core::bail!("a dense layer without inputs or without a bias"),
    }
}
