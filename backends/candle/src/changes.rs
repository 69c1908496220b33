//! What a fault makes of the result of a step, in candle's operations, and which faults candle cannot have.

use candle_core::{DType, Device, Result, Tensor};
use driftgauge_protocol::fault::{Change, Fault};
use driftgauge_protocol::{Dtype, Failure, Stage};

use crate::weights::candle_dtype;

/// Refuses a fault that could not be carried out, or would have no effect.
///
/// # Errors
/// [`driftgauge_protocol::FailureKind::Unsupported`].
pub fn refuse(fault: &Fault, layers: usize, mlm_head: bool) -> std::result::Result<(), Failure> {
    let stages = Stage::all(layers, mlm_head);
    for edit in fault.step_edits() {
        let why = match edit.change {
            _ if !stages.contains(&edit.stage) => format!("there is no `{}`", edit.stage),
            Change::Round(to) | Change::RoundInput(to) | Change::Accumulate { to, .. }
                if to == Dtype::I64 =>
            {
                format!("candle does not round numbers to {to}")
            }
            Change::Accumulate { every: 0, .. } => "sums of 0 inputs have no value".to_owned(),
            _ => continue,
        };
        return Err(Failure::unsupported(format!(
            "fault `{}`: {why}",
            fault.name
        )));
    }
    Ok(())
}

/// A result after a change. Changes of how it is computed leave it as it is.
///
/// # Errors
/// What candle says.
pub fn changed(change: Change, result: Tensor) -> Result<Tensor> {
    match change {
        Change::Round(to) => rounded(&result, to),
        Change::Beyond { limit, becomes } => {
            let other = constant(becomes.value(), &result)?;
            result.abs()?.gt(limit)?.where_cond(&other, &result)
        }
        Change::Flush(limit) => {
            let zero = constant(0.0, &result)?;
            result.abs()?.lt(limit)?.where_cond(&zero, &result)
        }
        Change::Noise(fraction) => {
            let deviation = fraction * root_mean_square(&result)?;
            // Scaled afterwards: candle draws no numbers of a deviation that is NaN or infinite.
            &result + (result.randn_like(0.0, 1.0)? * deviation)?
        }
        Change::Activate(_)
        | Change::Epsilon(_)
        | Change::DropResidual
        | Change::Mask(_)
        | Change::SoftmaxOverQueries
        | Change::RoundInput(_)
        | Change::Accumulate { .. } => Ok(result),
    }
}

/// Numbers rounded to another format and back.
///
/// # Errors
/// What candle says.
pub fn rounded(tensor: &Tensor, to: Dtype) -> Result<Tensor> {
    tensor.to_dtype(candle_dtype(to))?.to_dtype(tensor.dtype())
}

/// One number in every place of a tensor like another.
fn constant(value: f64, like: &Tensor) -> Result<Tensor> {
    Tensor::new(value, like.device())?
        .to_dtype(like.dtype())?
        .broadcast_as(like.shape())
}

/// In f64, where the square of the lowest f32, which stands in masked scores, is a number.
fn root_mean_square(tensor: &Tensor) -> Result<f64> {
    let squares = tensor
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F64)?
        .sqr()?;
    Ok(squares.mean_all()?.to_scalar::<f64>()?.sqrt())
}

#[cfg(test)]
mod tests {
    use driftgauge_protocol::fault::{Activation, Edit, StepEdit};
    use driftgauge_protocol::{FailureKind, Step};

    use super::*;

    fn check(stage: Stage, step: Step, change: Change, expected: Option<&str>) {
        let edit = StepEdit {
            stage,
            step,
            change,
        };
        let fault = Fault {
            name: "f".to_owned(),
            edits: vec![Edit::Step(edit)],
        };
        let refused = refuse(&fault, 2, false).err();
        let expected = expected.map(|why| (FailureKind::Unsupported, format!("fault `f`: {why}")));
        let refused = refused.map(|failure| (failure.kind, failure.message));
        assert_eq!(refused, expected, "{stage} {step} {change:?}");
    }

    #[test]
    fn what_cannot_be_carried_out_is_refused() {
        let (first, to) = (Stage::Layer(1), Dtype::I64);
        let relu = Change::Activate(Activation::Relu);
        let integers = Some("candle does not round numbers to i64");
        check(first, Step::Activation, relu, None);
        check(first, Step::Query, Change::Round(Dtype::Bf16), None);
        check(first, Step::Query, Change::Round(to), integers);
        check(first, Step::Query, Change::RoundInput(to), integers);
        let accumulate = |to, every| Change::Accumulate { to, every };
        check(first, Step::Query, accumulate(to, 4), integers);
        check(first, Step::Query, accumulate(Dtype::F16, 4), None);
        let empty = Some("sums of 0 inputs have no value");
        check(first, Step::Query, accumulate(Dtype::F16, 0), empty);
        let absent = Some("there is no `layer.3`");
        check(Stage::Layer(3), Step::Activation, relu, absent);
        let headless = Some("there is no `head`");
        check(Stage::Head, Step::Activation, relu, headless);
    }
}
