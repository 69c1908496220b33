//! A loaded model: feeds a batch, fetches the observations.

use std::collections::{BTreeMap, BTreeSet};

use driftgauge_protocol::{
    Batch, BertConfig, Dtype, Failure, LoadedModel, Tensor, Weights, observation,
};
use half::{bf16, f16};
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, Session, SessionOutputs};
use ort::value::{DynValue, PrimitiveTensorElementType, TensorRef};

use crate::graph::INPUTS;

/// The sessions, and what is needed to check what goes in and comes out.
pub(crate) struct Model {
    pub(crate) encoder: Session,
    /// From the last hidden state to the logits.
    pub(crate) head: Option<Session>,
    pub(crate) config: BertConfig,
    pub(crate) dtype: Dtype,
    /// The session maps the word embeddings for as long as it lives, so the file is checked at every
    /// run.
    pub(crate) weights: Weights,
}

impl LoadedModel for Model {
    fn run(
        &mut self,
        batch: &Batch,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Tensor>, Failure> {
        self.weights.check_unchanged()?;
        let wanted: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.compute(batch, &wanted)
    }
}

impl Model {
    fn compute(
        &mut self,
        batch: &Batch,
        wanted: &BTreeSet<&str>,
    ) -> Result<BTreeMap<String, Tensor>, Failure> {
        let last = observation::hidden(self.config.num_hidden_layers);
        let wants_logits = wanted.contains(observation::LOGITS);
        let states = wanted
            .iter()
            .copied()
            .filter(|name| *name != observation::LOGITS);
        let needed: BTreeSet<&str> = states
            .clone()
            .chain(wants_logits.then_some(&*last))
            .collect();
        let feed = |values| TensorRef::from_array_view(([batch.sequences, batch.length], values));
        let [ids, types, mask] = INPUTS;
        let inputs = ort::inputs! {
            ids => feed(&batch.input_ids[..]).map_err(failed)?,
            types => feed(&batch.token_type_ids[..]).map_err(failed)?,
            mask => feed(&batch.attention_mask[..]).map_err(failed)?,
        };
        let options = selected(needed.into_iter()).map_err(failed)?;
        let outputs = self
            .encoder
            .run_with_options(inputs, &options)
            .map_err(failed)?;
        let mut observed = BTreeMap::new();
        for name in states {
            observed.insert(
                name.to_owned(),
                fetch(output(&outputs, name)?, self.dtype, None)?,
            );
        }
        if let (true, Some(head)) = (wants_logits, &mut self.head) {
            let inputs = ort::inputs! { &*last => output(&outputs, &last)? };
            let scores = head.run(inputs).map_err(failed)?;
            let logits = output(&scores, observation::LOGITS)?;
            let logits = fetch(logits, self.dtype, Some(&batch.logit_rows))?;
            observed.insert(observation::LOGITS.to_owned(), logits);
        }
        Ok(observed)
    }
}

/// ONNX Runtime computes every node of a graph, whatever is fetched; selecting outputs only spares
/// their copies.
fn selected<'a>(
    names: impl Iterator<Item = &'a str>,
) -> ort::Result<RunOptions<HasSelectedOutputs>> {
    let outputs = names.fold(OutputSelector::no_default(), OutputSelector::with);
    Ok(RunOptions::new()?.with_outputs(outputs))
}

fn failed(error: ort::Error) -> Failure {
    Failure::error(format!("ONNX Runtime: {error}"))
}

fn output<'a>(outputs: &'a SessionOutputs<'_>, name: &str) -> Result<&'a DynValue, Failure> {
    let missing = || Failure::error(format!("ONNX Runtime returned no output `{name}`"));
    outputs.get(name).ok_or_else(missing)
}

/// A whole output, or the selected (sequence, position) rows of it. An output of another dtype than
/// the requested one is an error.
fn fetch(
    value: &DynValue,
    dtype: Dtype,
    rows: Option<&[(usize, usize)]>,
) -> Result<Tensor, Failure> {
    let (shape, bytes) = match dtype {
        Dtype::F64 => little_endian(value, rows, f64::to_le_bytes),
        Dtype::F32 => little_endian(value, rows, f32::to_le_bytes),
        Dtype::F16 => little_endian(value, rows, f16::to_le_bytes),
        Dtype::Bf16 => little_endian(value, rows, bf16::to_le_bytes),
        Dtype::I64 => little_endian(value, rows, i64::to_le_bytes),
    }?;
    Tensor::new(dtype, shape, bytes).map_err(|error| Failure::error(error.to_string()))
}

fn little_endian<T: PrimitiveTensorElementType + Copy, const N: usize>(
    value: &DynValue,
    rows: Option<&[(usize, usize)]>,
    bytes: impl Fn(T) -> [u8; N],
) -> Result<(Vec<usize>, Vec<u8>), Failure> {
    let (shape, elements) = value
        .try_extract_tensor::<T>()
        .map_err(|error| Failure::error(format!("an output cannot be read: {error}")))?;
    let [sequences, length, width] = **shape else {
        return Err(Failure::error(format!("an output has the shape {shape:?}")));
    };
    let [sequences, length, width] = [sequences, length, width].map(|extent| extent as usize);
    let mut written = Vec::new();
    let mut write = |elements: &[T]| {
        written.reserve_exact(elements.len() * N);
        elements
            .iter()
            .for_each(|element| written.extend_from_slice(&bytes(*element)));
    };
    let Some(rows) = rows else {
        write(elements);
        return Ok((vec![sequences, length, width], written));
    };
    for (sequence, position) in rows {
        let start = (sequence * length + position) * width;
        let row = elements.get(start..start + width).ok_or_else(|| {
            Failure::error(format!(
                "row ({sequence}, {position}) is outside the output"
            ))
        })?;
        write(row);
    }
    Ok((vec![rows.len(), width], written))
}
