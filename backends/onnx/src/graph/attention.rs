//! Attention, and the masks that go with it.

use driftgauge_protocol::fault::Change;
use driftgauge_protocol::{Batch, Dtype, Failure, Stage, Step};
use half::{bf16, f16};

use super::bert::{At, Bert};
use super::{INPUTS, mask_input};
use crate::proto::AttributeProto;

/// Heads and positions change places.
const HEADS_FIRST: [i64; 4] = [0, 2, 1, 3];
/// As [`HEADS_FIRST`], and transposed for the product with the queries.
const HEADS_FIRST_TRANSPOSED: [i64; 4] = [0, 2, 3, 1];

/// A value of shape `[batch, 1, 1, sequence]`, and where it is used.
#[derive(Debug)]
pub(super) enum Mask {
    /// Added to the scores.
    Added(String),
    /// 1 or 0, multiplied with the probabilities.
    Multiplied(String),
}

impl Bert<'_> {
    /// `(1 - mask) * finfo.min`
    pub(super) fn shared_mask(&mut self) -> Mask {
        let [_, _, input] = INPUTS;
        let mask = self.wide_mask(input, "mask");
        Mask::Added(self.added_mask(&mask, "mask", None))
    }

    /// The mask of a layer, from an input of its own. What is added, and where, does not depend on the
    /// batch.
    pub(super) fn own_mask(&mut self, layer: usize) -> Mask {
        let fault = self.fault;
        let mask = fault.and_then(|fault| fault.mask(layer, &Batch::one_token()));
        let name = format!("mask.{layer}");
        let wide = self.wide_mask(&mask_input(layer), &name);
        match mask {
            Some(mask) if mask.after_softmax => Mask::Multiplied(wide),
            mask => Mask::Added(self.added_mask(&wide, &name, mask.and_then(|mask| mask.fill))),
        }
    }

    fn wide_mask(&mut self, input: &str, name: &str) -> String {
        let writer = &mut self.writer;
        let axes = writer.integers("mask.axes", &[1, 2]);
        let wide = format!("{name}.wide");
        let mask = writer.node("Unsqueeze", &[input, &axes], &wide, Vec::new());
        writer.cast(&mask, &format!("{name}.cast"))
    }

    fn added_mask(&mut self, mask: &str, name: &str, fill: Option<f64>) -> String {
        let one = self.writer.scalar("one", 1.0);
        let mask = self.node("Sub", &[&one, mask], &format!("{name}.inverted"));
        let fill = match fill {
            Some(fill) => self.writer.scalar(&format!("{name}.fill"), fill),
            None => {
                let minimum = minimum(self.writer.dtype());
                self.writer.scalar("mask.minimum", minimum)
            }
        };
        self.node("Mul", &[&mask, &fill], name)
    }

    /// `softmax(Q·Kᵀ / sqrt(head size) + mask) · V`, as rows.
    pub(super) fn attention(
        &mut self,
        stage: Stage,
        module: &str,
        hidden: &str,
        mask: &Mask,
    ) -> Result<String, Failure> {
        let module = format!("{module}.attention.self");
        let rows = self.rows(hidden);
        let query = self.heads((stage, Step::Query), &rows, &HEADS_FIRST)?;
        let key = self.heads((stage, Step::Key), &rows, &HEADS_FIRST_TRANSPOSED)?;
        let value = self.heads((stage, Step::Value), &rows, &HEADS_FIRST)?;
        let scores = self.node("MatMul", &[&query, &key], &format!("{module}.products"));
        let root = self
            .writer
            .scalar("head.root", (self.config.head_size() as f64).sqrt());
        let scores = self.node("Div", &[&scores, &root], &format!("{module}.scores"));
        let masked = format!("{module}.masked");
        let scores = self.step((stage, Step::Scores), &masked, |bert, output| match mask {
            Mask::Added(mask) => Ok(bert.node("Add", &[&scores, mask], output)),
            Mask::Multiplied(_) => Ok(scores),
        })?;
        let at = (stage, Step::Probabilities);
        let probabilities = format!("{module}.probabilities");
        let probabilities = self.probabilities(at, &scores, mask, &probabilities)?;
        let context = format!("{module}.context");
        let context = self.node("MatMul", &[&probabilities, &value], &context);
        let merged = format!("{context}.transposed");
        let context = self.step((stage, Step::Context), &merged, |bert, output| {
            Ok(bert.transpose(&context, &HEADS_FIRST, output))
        })?;
        Ok(self.rows(&context))
    }

    fn probabilities(
        &mut self,
        at: At,
        scores: &str,
        mask: &Mask,
        output: &str,
    ) -> Result<String, Failure> {
        let over_queries = self
            .changes(at)
            .any(|change| matches!(change, Change::SoftmaxOverQueries));
        let axis = AttributeProto::int("axis", if over_queries { -2 } else { -1 });
        self.step(at, output, |bert, output| match mask {
            Mask::Added(_) => Ok(bert.writer.node("Softmax", &[scores], output, vec![axis])),
            Mask::Multiplied(mask) => {
                let unmasked = format!("{output}.unmasked");
                let unmasked = bert
                    .writer
                    .node("Softmax", &[scores], &unmasked, vec![axis]);
                Ok(bert.node("Mul", &[&unmasked, mask], output))
            }
        })
    }

    /// One of Q, K and V, split into heads.
    fn heads(&mut self, at: At, rows: &str, order: &[i64]) -> Result<String, Failure> {
        let config = self.config;
        let dense = self.dense(at, rows, config.hidden_size, config.hidden_size)?;
        let shape = self.batch_shape(
            "shape.heads",
            &[config.num_attention_heads, config.head_size()],
        );
        let split = self.node("Reshape", &[&dense, &shape], &format!("{dense}.heads"));
        Ok(self.transpose(&split, order, &format!("{split}.transposed")))
    }
}

fn minimum(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 => f64::MIN,
        Dtype::F32 => f32::MIN.into(),
        Dtype::F16 => f16::MIN.into(),
        Dtype::Bf16 => bf16::MIN.into(),
        Dtype::I64 => i64::MIN as f64,
    }
}
