//! The activation functions, with the constants and in the order of transformers' formulas.

use std::f64::consts::{PI, SQRT_2};

use driftgauge_protocol::fault::{Activation, Change};
use driftgauge_protocol::{Failure, Stage, Step};

use super::bert::Bert;

impl Bert<'_> {
    /// The activation step of a stage: the function of the configuration, or of a fault.
    pub(super) fn activation(&mut self, stage: Stage, input: &str) -> Result<String, Failure> {
        let at = (stage, Step::Activation);
        let other = self.changes(at).filter_map(|change| match change {
            Change::Activate(function) => Some(function),
            _ => None,
        });
        let function = other.last().unwrap_or(self.config.hidden_act.into());
        let output = format!("{input}.{}", suffix(function));
        self.step(at, &output, |bert, output| {
            Ok(bert.activate(function, input, output))
        })
    }

    fn activate(&mut self, function: Activation, input: &str, output: &str) -> String {
        // Both have a root, and a graph may hold both: the one of the configuration is `gelu.root`.
        let root = match function == self.config.hidden_act.into() {
            true => "gelu.root",
            false => other_root(function),
        };
        match function {
            Activation::Gelu => self.gelu(root, input, output),
            Activation::GeluTanh => self.gelu_tanh(root, input, output),
            Activation::GeluQuick => {
                let scaled = format!("{input}.scaled");
                let scaled = self.with("Mul", input, ("gelu.quick", 1.702), &scaled);
                self.sigmoid_product(input, &scaled, output)
            }
            Activation::Relu => self.node("Relu", &[input], output),
            Activation::Silu => self.sigmoid_product(input, input, output),
            Activation::Identity => input.to_owned(),
        }
    }

    /// x · (1 + erf(x / √2)) · 0.5
    fn gelu(&mut self, root: &str, input: &str, output: &str) -> String {
        let step = |name: &str| format!("{input}.{name}");
        let scaled = self.with("Div", input, (root, SQRT_2), &step("scaled"));
        let erf = self.node("Erf", &[&scaled], &step("erf"));
        let shifted = self.with("Add", &erf, ("one", 1.0), &step("shifted"));
        let product = self.node("Mul", &[input, &shifted], &step("product"));
        self.with("Mul", &product, ("half", 0.5), output)
    }

    /// 0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))
    fn gelu_tanh(&mut self, root: &str, input: &str, output: &str) -> String {
        let step = |name: &str| format!("{input}.{name}");
        let cube = self.with("Pow", input, ("three", 3.0), &step("cube"));
        let cubic = self.with("Mul", &cube, ("gelu.cubic", 0.044715), &step("cubic"));
        let sum = self.node("Add", &[input, &cubic], &step("sum"));
        let root = (root, (2.0 / PI).sqrt());
        let scaled = self.with("Mul", &sum, root, &step("scaled"));
        let tanh = self.node("Tanh", &[&scaled], &step("tanh"));
        let shifted = self.with("Add", &tanh, ("one", 1.0), &step("shifted"));
        let halved = self.with("Mul", input, ("half", 0.5), &step("halved"));
        self.node("Mul", &[&halved, &shifted], output)
    }

    /// x · sigmoid(y)
    fn sigmoid_product(&mut self, x: &str, y: &str, output: &str) -> String {
        let sigmoid = self.node("Sigmoid", &[y], &format!("{x}.sigmoid"));
        self.node("Mul", &[x, &sigmoid], output)
    }
}

/// What the result is called, after the input.
fn suffix(function: Activation) -> &'static str {
    match function {
        Activation::Gelu | Activation::GeluTanh => "gelu",
        Activation::GeluQuick => "gelu_quick",
        Activation::Relu => "relu",
        Activation::Silu => "silu",
        Activation::Identity => "identity",
    }
}

fn other_root(function: Activation) -> &'static str {
    match function {
        Activation::GeluTanh => "gelu_tanh.root",
        _ => "gelu_erf.root",
    }
}
