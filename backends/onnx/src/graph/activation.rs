//! The activation functions, with the constants and in the order of transformers' formulas.

use std::f64::consts::{PI, SQRT_2};

use driftgauge_protocol::HiddenAct;

use super::bert::Bert;

impl Bert<'_> {
    /// The activation of the configuration.
    pub(super) fn activation(&mut self, input: &str) -> String {
        match self.config.hidden_act {
            HiddenAct::Gelu => self.gelu(input),
            HiddenAct::GeluTanh => self.gelu_tanh(input),
            HiddenAct::Relu => self.node("Relu", &[input], &format!("{input}.relu")),
            HiddenAct::Silu => {
                let sigmoid = self.node("Sigmoid", &[input], &format!("{input}.sigmoid"));
                self.node("Mul", &[input, &sigmoid], &format!("{input}.silu"))
            }
        }
    }

    /// x · (1 + erf(x / √2)) · 0.5
    fn gelu(&mut self, input: &str) -> String {
        let step = |name: &str| format!("{input}.{name}");
        let scaled = self.with("Div", input, ("gelu.root", SQRT_2), &step("scaled"));
        let erf = self.node("Erf", &[&scaled], &step("erf"));
        let shifted = self.with("Add", &erf, ("one", 1.0), &step("shifted"));
        let product = self.node("Mul", &[input, &shifted], &step("product"));
        self.with("Mul", &product, ("half", 0.5), &step("gelu"))
    }

    /// 0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))
    fn gelu_tanh(&mut self, input: &str) -> String {
        let step = |name: &str| format!("{input}.{name}");
        let cube = self.with("Pow", input, ("three", 3.0), &step("cube"));
        let cubic = self.with("Mul", &cube, ("gelu.cubic", 0.044715), &step("cubic"));
        let sum = self.node("Add", &[input, &cubic], &step("sum"));
        let root = ("gelu.root", (2.0 / PI).sqrt());
        let scaled = self.with("Mul", &sum, root, &step("scaled"));
        let tanh = self.node("Tanh", &[&scaled], &step("tanh"));
        let shifted = self.with("Add", &tanh, ("one", 1.0), &step("shifted"));
        let halved = self.with("Mul", input, ("half", 0.5), &step("halved"));
        self.node("Mul", &[&halved, &shifted], &step("gelu"))
    }

    /// An operation on a value and a constant.
    fn with(&mut self, operator: &str, input: &str, constant: (&str, f64), output: &str) -> String {
        let constant = self.writer.scalar(constant.0, constant.1);
        self.node(operator, &[input, &constant], output)
    }
}
