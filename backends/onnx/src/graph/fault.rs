//! What a fault changes in a step. Without a fault nothing here writes a node.

use driftgauge_protocol::fault::Change;
use driftgauge_protocol::{Dtype, Failure};
use half::f16;

use super::bert::{At, Bert};
use super::writer::data_type;
use crate::proto::AttributeProto;

impl<'a> Bert<'a> {
    /// Writes a step and what a fault does to its result. `compute` writes the step itself and names
    /// its value as it is told, which is `output` where nothing is done to it.
    pub(super) fn step(
        &mut self,
        at: At,
        output: &str,
        compute: impl FnOnce(&mut Self, &str) -> Result<String, Failure>,
    ) -> Result<String, Failure> {
        let changes = self.result_changes(at);
        let value = match changes.len() {
            0 => compute(self, output)?,
            count => {
                let mut value = compute(self, &format!("{output}.computed"))?;
                for (number, change) in (1..).zip(changes) {
                    let name = match number == count {
                        true => output.to_owned(),
                        false => format!("{output}.changed.{number}"),
                    };
                    value = self.changed(change, &value, &name);
                }
                value
            }
        };
        self.steps.push((at, value.clone()));
        Ok(value)
    }

    /// The changes of a step, in order.
    pub(super) fn changes(&self, (stage, step): At) -> impl Iterator<Item = Change> + use<'a> {
        let fault = self.fault.into_iter();
        fault.flat_map(move |fault| fault.changes(stage, step))
    }

    /// The input of a step, rounded where a fault asks for it. `step` names the new values.
    pub(super) fn rounded_input(&mut self, at: At, input: &str, step: &str) -> String {
        let mut value = input.to_owned();
        let formats = self.changes(at).filter_map(|change| match change {
            Change::RoundInput(to) => Some(to),
            _ => None,
        });
        for (number, to) in (1..).zip(formats) {
            if narrows(self.writer.dtype(), to) {
                value = self.rounded(to, &value, &format!("{step}.input.{number}"));
            }
        }
        value
    }

    /// `rows · weightᵀ`, where the products of so many inputs each are summed, and each partial sum, and
    /// the sum after every addition of one, is rounded.
    pub(super) fn partial_sums(
        &mut self,
        rows: &str,
        weight: &str,
        inputs: usize,
        (to, every): (Dtype, usize),
        step: &str,
    ) -> String {
        let axis = self.writer.integers("inputs.axis", &[1]);
        let mut total: Option<String> = None;
        for start in (0..inputs).step_by(every.max(1)) {
            let end = inputs.min(start + every.max(1));
            let [first, last] =
                [start, end].map(|at| self.writer.integers(&format!("inputs.{at}"), &[at as i64]));
            let mut part = |value: &str, name: &str| {
                let output = format!("{step}.{name}.{start}");
                self.node("Slice", &[value, &first, &last, &axis], &output)
            };
            let (rows, weight) = (part(rows, "rows"), part(weight, "weight"));
            let sum = self.gemm(&[&rows, &weight], &format!("{step}.product.{start}"));
            let sum = self.rounded_if_narrower(to, sum);
            total = Some(match total {
                None => sum,
                Some(total) => {
                    let added = format!("{step}.total.{end}");
                    let added = self.node("Add", &[&total, &sum], &added);
                    self.rounded_if_narrower(to, added)
                }
            });
        }
        total.unwrap_or_default()
    }

    /// The changes of a result that write nodes: rounding to a format that is not narrower is none.
    fn result_changes(&self, at: At) -> Vec<Change> {
        let dtype = self.writer.dtype();
        self.changes(at)
            .filter(|change| match change {
                Change::Round(to) => narrows(dtype, *to),
                Change::Beyond { .. } | Change::Flush(_) | Change::Noise(_) => true,
                _ => false,
            })
            .collect()
    }

    fn changed(&mut self, change: Change, value: &str, output: &str) -> String {
        match change {
            Change::Round(to) => self.rounded(to, value, output),
            Change::Beyond { limit, becomes } => {
                self.replaced("Greater", limit, becomes.value(), value, output)
            }
            Change::Flush(limit) => self.replaced("Less", limit, 0.0, value, output),
            Change::Noise(relative) => self.noisy(relative, value, output),
            _ => value.to_owned(),
        }
    }

    /// To a narrower format and back.
    fn rounded(&mut self, to: Dtype, value: &str, output: &str) -> String {
        let narrow = self.writer.cast_to(to, value, &format!("{output}.narrow"));
        self.writer.cast(&narrow, output)
    }

    fn rounded_if_narrower(&mut self, to: Dtype, value: String) -> String {
        match narrows(self.writer.dtype(), to) {
            true => self.rounded(to, &value, &format!("{value}.rounded")),
            false => value,
        }
    }

    /// Another number wherever the magnitude compares with the limit as the operator says.
    fn replaced(
        &mut self,
        comparison: &str,
        limit: f64,
        by: f64,
        value: &str,
        output: &str,
    ) -> String {
        let magnitude = self.node("Abs", &[value], &format!("{output}.magnitude"));
        let limit = (&*format!("{output}.limit"), limit);
        let chosen = self.with(comparison, &magnitude, limit, &format!("{output}.chosen"));
        let by = self.writer.scalar(&format!("{output}.replacement"), by);
        self.node("Where", &[&chosen, &by, value], output)
    }

    /// With normal numbers added whose deviation is a fraction of the root mean square. The operator has
    /// no seed, so that ONNX Runtime draws new numbers in every run, and starts from the time in every process.
    fn noisy(&mut self, relative: f64, value: &str, output: &str) -> String {
        let name = |part: &str| format!("{output}.noise.{part}");
        let dtype = self.writer.dtype();
        let (wide, lowest) = match dtype {
            Dtype::F64 => (Dtype::F64, f64::MIN),
            Dtype::F16 => (Dtype::F32, f64::from(f16::MIN)),
            _ => (Dtype::F32, f64::from(f32::MIN)),
        };
        let value = match wide == dtype {
            true => value.to_owned(),
            false => self.writer.cast_to(wide, value, &name("wide")),
        };
        let root = self.root_mean_square(&value, wide, lowest, &name("root"));
        let relative = self.writer.scalar_of(wide, &name("relative"), relative);
        let deviation = self.node("Mul", &[&root, &relative], &name("deviation"));
        let kind = AttributeProto::int("dtype", i32::from(data_type(wide)).into());
        let random = name("random");
        let random = self
            .writer
            .node("RandomNormalLike", &[&value], &random, vec![kind]);
        let noise = self.node("Mul", &[&random, &deviation], &name("scaled"));
        match wide == dtype {
            true => self.node("Add", &[&value, &noise], output),
            false => {
                let sum = self.node("Add", &[&value, &noise], &name("sum"));
                self.writer.cast(&sum, output)
            }
        }
    }

    /// Of the numbers that are not near the lowest there is: those stand for masked keys.
    fn root_mean_square(&mut self, value: &str, dtype: Dtype, lowest: f64, output: &str) -> String {
        let name = |part: &str| format!("{output}.{part}");
        let limit = self.writer.scalar_of(dtype, &name("limit"), -lowest / 2.0);
        let zero = self.writer.scalar_of(dtype, &name("zero"), 0.0);
        let magnitude = self.node("Abs", &[value], &name("magnitude"));
        let counts = self.node("Less", &[&magnitude, &limit], &name("counts"));
        let numbers = self.node("Where", &[&counts, value, &zero], &name("numbers"));
        let squares = self.node("Mul", &[&numbers, &numbers], &name("squares"));
        let counts = self.writer.cast_to(dtype, &counts, &name("ones"));
        let [squares, counts] = [(squares, "total"), (counts, "count")].map(|(value, part)| {
            let scalar = vec![AttributeProto::int("keepdims", 0)];
            self.writer
                .node("ReduceSum", &[&value], &name(part), scalar)
        });
        let mean = self.node("Div", &[&squares, &counts], &name("mean"));
        self.node("Sqrt", &[&mean], output)
    }
}

/// Whether rounding from a dtype to another loses anything.
fn narrows(from: Dtype, to: Dtype) -> bool {
    match from {
        Dtype::F64 => to != Dtype::F64 && to != Dtype::I64,
        Dtype::F32 => matches!(to, Dtype::F16 | Dtype::Bf16),
        Dtype::F16 => to == Dtype::Bf16,
        Dtype::Bf16 => to == Dtype::F16,
        Dtype::I64 => false,
    }
}
