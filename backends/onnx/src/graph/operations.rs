//! The operations that the architecture is made of.

use driftgauge_protocol::fault::Change;
use driftgauge_protocol::{Failure, Step};

use super::bert::{At, Bert};
use crate::proto::AttributeProto;

impl Bert<'_> {
    /// `rows · weightᵀ + bias`: a dense step, named after the module whose weights it uses.
    pub(super) fn dense(
        &mut self,
        at: At,
        rows: &str,
        from: usize,
        to: usize,
    ) -> Result<String, Failure> {
        let module = module(at)?;
        let accumulate = self.changes(at).find_map(|change| match change {
            Change::Accumulate { to, every } => Some((to, every)),
            _ => None,
        });
        self.step(at, &module, |bert, output| {
            let rows = bert.rounded_input(at, rows, output);
            let weight = bert.weight(&format!("{module}.weight"), &[to, from])?;
            let bias = bert.weight(&format!("{module}.bias"), &[to])?;
            match accumulate {
                None => Ok(bert.gemm(&[&rows, &weight, &bias], output)),
                Some(how) => {
                    let sum = bert.partial_sums(&rows, &weight, from, how, output);
                    Ok(bert.node("Add", &[&sum, &bias], output))
                }
            }
        })
    }

    /// A layer norm whose result is called `output`.
    pub(super) fn layer_norm(
        &mut self,
        at: At,
        input: &str,
        output: &str,
    ) -> Result<String, Failure> {
        let module = module(at)?;
        let epsilon = self.changes(at).filter_map(|change| match change {
            Change::Epsilon(epsilon) => Some(epsilon),
            _ => None,
        });
        let epsilon = epsilon.last().unwrap_or(self.config.layer_norm_eps);
        self.step(at, output, |bert, output| {
            let input = bert.rounded_input(at, input, output);
            let width = [bert.config.hidden_size];
            let weight = bert.weight(&format!("{module}.weight"), &width)?;
            let bias = bert.weight(&format!("{module}.bias"), &width)?;
            let attributes = vec![
                AttributeProto::int("axis", -1),
                AttributeProto::float("epsilon", epsilon as f32),
            ];
            let inputs = [&*input, &weight, &bias];
            Ok(bert
                .writer
                .node("LayerNormalization", &inputs, output, attributes))
        })
    }

    /// `rows · weightᵀ`, and a bias where there is a third input.
    pub(super) fn gemm(&mut self, inputs: &[&str], output: &str) -> String {
        let transposed = AttributeProto::int("transB", 1);
        self.writer.node("Gemm", inputs, output, vec![transposed])
    }

    /// `[batch · sequence, hidden_size]` of anything with as many elements.
    pub(super) fn rows(&mut self, input: &str) -> String {
        let width = self.config.hidden_size as i64;
        let shape = self.writer.integers("shape.rows", &[-1, width]);
        self.node("Reshape", &[input, &shape], &format!("{input}.rows"))
    }

    /// `[batch, sequence, width]` of rows.
    pub(super) fn sequences(&mut self, rows: &str, width: usize, output: &str) -> String {
        let shape = self.batch_shape(&format!("shape.{width}"), &[width]);
        self.node("Reshape", &[rows, &shape], output)
    }

    /// The shape of the batch, followed by `extents`.
    pub(super) fn batch_shape(&mut self, name: &str, extents: &[usize]) -> String {
        let values: Vec<i64> = extents.iter().map(|&extent| extent as i64).collect();
        let tail = self.writer.integers(&format!("{name}.tail"), &values);
        let axis = AttributeProto::int("axis", 0);
        self.writer
            .node_once("Concat", &["shape", &tail], name, vec![axis])
    }

    pub(super) fn transpose(&mut self, input: &str, order: &[i64], output: &str) -> String {
        let order = AttributeProto::ints("perm", order);
        self.writer.node("Transpose", &[input], output, vec![order])
    }

    pub(super) fn node(&mut self, operator: &str, inputs: &[&str], output: &str) -> String {
        self.writer.node(operator, inputs, output, Vec::new())
    }

    /// An operation on a value and a constant.
    pub(super) fn with(
        &mut self,
        operator: &str,
        input: &str,
        constant: (&str, f64),
        output: &str,
    ) -> String {
        let constant = self.writer.scalar(constant.0, constant.1);
        self.node(operator, &[input, &constant], output)
    }

    pub(super) fn weight(&mut self, name: &str, shape: &[usize]) -> Result<String, Failure> {
        self.writer.weight(name, shape)
    }
}

/// The module whose weights a step uses.
fn module((stage, step): At) -> Result<String, Failure> {
    Step::module(step, stage)
        .ok_or_else(|| Failure::error(format!("step `{step}` of `{stage}` has no weights")))
}
