//! Activation functions: their values and their slopes.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

use driftgauge_protocol::HiddenAct;
use driftgauge_protocol::fault::Activation;

/// The cubic coefficient of the tanh approximation of GELU.
const CUBIC: f64 = 0.044715;

/// An activation function at one point.
pub fn activation_value(activation: impl Into<Activation>, x: f64) -> f64 {
    match activation.into() {
        // x Φ(x), with erfc so that nothing cancels for negative x.
        Activation::Gelu => 0.5 * x * libm::erfc(-x * FRAC_1_SQRT_2),
        // Hendrycks and Gimpel, arXiv:1606.08415, section 2.
        Activation::GeluTanh => {
            let inner = (2.0 / PI).sqrt() * (x + CUBIC * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::GeluQuick => x / (1.0 + (-1.702 * x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Identity => x,
    }
}

/// An activation function at one point, with what its rounding depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct ActivationPoint {
    /// The point.
    pub(super) x: f64,
    /// The value there.
    pub(super) value: f64,
    /// The function that it is made of.
    pub(super) inner: Inner,
}

/// erf, tanh or the sigmoid inside an activation function.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Inner {
    /// Its argument.
    pub(super) argument: f64,
    /// Its value.
    pub(super) value: f64,
    /// Its derivative by its argument.
    pub(super) slope: f64,
}

impl ActivationPoint {
    /// The activation function at `x`, and its derivative.
    pub(super) fn at(activation: HiddenAct, x: f64) -> (Self, f64) {
        let (inner, value, slope) = match activation {
            HiddenAct::Gelu => {
                let argument = x * FRAC_1_SQRT_2;
                let complement = libm::erfc(-argument);
                let inner = Inner {
                    argument,
                    value: complement - 1.0,
                    slope: FRAC_2_SQRT_PI * (-argument * argument).exp(),
                };
                let slope = 0.5 * complement + 0.5 * x * inner.slope * FRAC_1_SQRT_2;
                (inner, 0.5 * x * complement, slope)
            }
            HiddenAct::GeluTanh => {
                let factor = (2.0 / PI).sqrt();
                let argument = factor * (x + CUBIC * x * x * x);
                let tanh = argument.tanh();
                let inner = Inner {
                    argument,
                    value: tanh,
                    slope: 1.0 - tanh * tanh,
                };
                let inner_slope = factor * (1.0 + 3.0 * CUBIC * x * x);
                let slope = 0.5 * (1.0 + tanh) + 0.5 * x * inner.slope * inner_slope;
                (inner, 0.5 * x * (1.0 + tanh), slope)
            }
            HiddenAct::Relu => (Inner::default(), x.max(0.0), f64::from(x > 0.0)),
            HiddenAct::Silu => {
                let sigmoid = 1.0 / (1.0 + (-x).exp());
                let inner = Inner {
                    argument: x,
                    value: sigmoid,
                    slope: sigmoid * (1.0 - sigmoid),
                };
                (inner, x * sigmoid, sigmoid + x * inner.slope)
            }
        };
        (Self { x, value, inner }, slope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of Φ from Abramowitz and Stegun, table 26.1.
    #[test]
    fn activations_at_known_points() {
        for (activation, x, expected, tolerance) in [
            (HiddenAct::Gelu, 1.0, 0.841_344_746_068_543, 1e-14),
            (
                HiddenAct::Gelu,
                -3.0,
                -3.0 * 0.001_349_898_031_630_094_6,
                1e-15,
            ),
            (HiddenAct::GeluTanh, 1.0, 0.841_191_990_608_276_9, 1e-9),
            (HiddenAct::Relu, -2.0, 0.0, 0.0),
            (HiddenAct::Silu, 1.0, 0.731_058_578_630_004_9, 1e-15),
        ] {
            let value = activation_value(activation, x);
            assert!(
                (value - expected).abs() <= tolerance,
                "{activation:?}({x}) = {value}"
            );
        }
    }

    #[test]
    fn slopes_are_those_of_the_values() {
        for activation in [
            HiddenAct::Gelu,
            HiddenAct::GeluTanh,
            HiddenAct::Relu,
            HiddenAct::Silu,
        ] {
            for x in [-3.0, -0.7, 0.2, 1.5] {
                let at = |x| activation_value(activation, x);
                let expected = (at(x + 1e-5) - at(x - 1e-5)) / 2e-5;
                let (point, slope) = ActivationPoint::at(activation, x);
                assert!(
                    (slope - expected).abs() < 1e-8,
                    "{activation:?} at {x}: {slope}"
                );
                assert!((point.value - at(x)).abs() < 1e-15, "{activation:?} at {x}");
            }
        }
    }
}
