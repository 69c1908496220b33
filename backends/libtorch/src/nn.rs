//! The modules of `torch.nn` that BERT is made of, each as one step of a stage.

use driftgauge_protocol::fault::{Activation, Change};
use driftgauge_protocol::{BertConfig, Dtype, Failure, HiddenAct, Step};
use tch::{TchError, Tensor};

use crate::steps::{Steps, rounded};
use crate::tensors::Loader;

/// `torch.nn.Linear`: weights are `[outputs, inputs]`.
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// Reads its weights.
    ///
    /// # Errors
    /// For weights that are missing or of a wrong shape.
    pub fn load(
        loader: &mut Loader,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Self, Failure> {
        Ok(Self {
            weight: loader.tensor(&format!("{name}.weight"), &[outputs, inputs])?,
            bias: loader.tensor(&format!("{name}.bias"), &[outputs])?,
        })
    }

    /// The dense step of this name.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn forward(
        &self,
        input: &Tensor,
        step: Step,
        steps: &mut Steps,
    ) -> Result<Tensor, TchError> {
        let rounded_input = steps.rounded_input(step, input)?;
        let input = rounded_input.as_ref().unwrap_or(input);
        let accumulation = steps.find(step, |change| match change {
            Change::Accumulate { to, every } => Some((to, every)),
            _ => None,
        });
        let output = match accumulation {
            None => input.f_linear(&self.weight, Some(&self.bias))?,
            Some((to, every)) => self.accumulated(input, to, every)?,
        };
        steps.result(step, output)
    }

    /// The same from partial sums over `every` inputs, everything that is summed rounded to a narrower format.
    fn accumulated(&self, input: &Tensor, to: Dtype, every: usize) -> Result<Tensor, TchError> {
        let (_, inputs) = self.weight.size2()?;
        let width = i64::try_from(every).unwrap_or(inputs);
        let partial = |first: i64| {
            let count = width.min(inputs - first);
            let weight = self.weight.f_narrow(1, first, count)?;
            let partial = input.f_narrow(-1, first, count)?;
            rounded(&partial.f_linear(&weight, None::<Tensor>)?, to)
        };
        let mut sum = partial(0)?;
        for first in (0..inputs).step_by(every).skip(1) {
            sum = rounded(&sum.f_add(&partial(first)?)?, to)?;
        }
        sum.f_add(&self.bias)
    }
}

/// `torch.nn.LayerNorm` over the last extent.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    width: i64,
    eps: f64,
}

impl LayerNorm {
    /// Reads its weights.
    ///
    /// # Errors
    /// For weights that are missing or of a wrong shape.
    pub fn load(loader: &mut Loader, config: &BertConfig, name: &str) -> Result<Self, Failure> {
        let width = config.hidden_size;
        Ok(Self {
            weight: loader.tensor(&format!("{name}.weight"), &[width])?,
            bias: loader.tensor(&format!("{name}.bias"), &[width])?,
            width: width as i64,
            eps: config.layer_norm_eps,
        })
    }

    /// The normalising step of this name.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn forward(
        &self,
        input: &Tensor,
        step: Step,
        steps: &mut Steps,
    ) -> Result<Tensor, TchError> {
        let rounded_input = steps.rounded_input(step, input)?;
        let input = rounded_input.as_ref().unwrap_or(input);
        let eps = steps.find(step, |change| match change {
            Change::Epsilon(eps) => Some(eps),
            _ => None,
        });
        let eps = eps.unwrap_or(self.eps);
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        let cudnn = true;
        let output = input.f_layer_norm([self.width], weight, bias, eps, cudnn)?;
        steps.result(step, output)
    }
}

/// The activation step of a stage, with the function of the configuration.
///
/// # Errors
/// What libtorch refuses.
pub fn activate(
    configured: HiddenAct,
    input: &Tensor,
    steps: &mut Steps,
) -> Result<Tensor, TchError> {
    let changed = steps.find(Step::Activation, |change| match change {
        Change::Activate(activation) => Some(activation),
        _ => None,
    });
    let activation = changed.unwrap_or(configured.into());
    steps.result(Step::Activation, apply(activation, input)?)
}

fn apply(activation: Activation, input: &Tensor) -> Result<Tensor, TchError> {
    match activation {
        Activation::Gelu => input.f_gelu("none"),
        Activation::GeluTanh => input.f_gelu("tanh"),
        Activation::GeluQuick => input.f_mul_scalar(1.702)?.f_sigmoid()?.f_mul(input),
        Activation::Relu => input.f_relu(),
        Activation::Silu => input.f_silu(),
        Activation::Identity => Ok(input.shallow_clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::{FRAC_1_SQRT_2, PI};

    use super::*;

    fn formula(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Gelu => 0.5 * x * (1.0 + libm::erf(x * FRAC_1_SQRT_2)),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            Activation::GeluQuick => x / (1.0 + (-1.702 * x).exp()),
            Activation::Relu => x.max(0.0),
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Identity => x,
        }
    }

    /// Every activation is the formula that its name promises. 41 numbers, so that both the
    /// vector part and the scalar remainder of the kernels are seen.
    #[test]
    fn activations_follow_their_formulas() {
        let inputs: Vec<f64> = (-20..=20).map(|step| f64::from(step) * 0.3).collect();
        let tensor = Tensor::f_from_slice(&inputs).unwrap();
        for activation in [
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::GeluQuick,
            Activation::Relu,
            Activation::Silu,
            Activation::Identity,
        ] {
            let outputs: Vec<f64> = apply(activation, &tensor).unwrap().try_into().unwrap();
            for (x, y) in inputs.iter().zip(outputs) {
                let expected = formula(activation, *x);
                let near = (y - expected).abs() <= 1e-14 * expected.abs().max(1e-2);
                assert!(near, "{activation:?}({x}) is {y}, expected {expected}");
            }
        }
    }
}
