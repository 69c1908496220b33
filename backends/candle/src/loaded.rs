//! A loaded model that answers batches.

use std::collections::BTreeMap;

use candle_core::{DType, DeviceLocation, Tensor};
use driftgauge_protocol::{self as protocol, Batch, Dtype, Failure, LoadedModel, observation};

use crate::backend::words;
use crate::model::{Bert, Inputs};

/// A model and what it offers.
pub struct Ready {
    bert: Bert,
    observations: Vec<String>,
}

impl Ready {
    /// A loaded model.
    pub fn new(bert: Bert) -> Self {
        let mut observations = vec![observation::EMBEDDINGS.to_owned()];
        observations.extend((1..=bert.depth()).map(observation::hidden));
        if bert.has_head() {
            observations.push(observation::LOGITS.to_owned());
        }
        Self { bert, observations }
    }

    /// Names of all observations there are.
    pub fn observations(&self) -> &[String] {
        &self.observations
    }

    /// The device that holds the weights, in the words of the protocol.
    pub fn device(&self) -> String {
        match self.bert.device().location() {
            DeviceLocation::Cpu => "cpu".to_owned(),
            DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        }
    }

    /// Runs one token through the whole model and returns the dtype of what comes out.
    ///
    /// # Errors
    /// Where candle cannot compute in the dtype of the weights.
    pub fn try_one_token(&self) -> Result<Dtype, Failure> {
        let all = self.observe(&Batch::one_token(), &self.observations)?;
        let dtypes: Vec<Dtype> = all.values().map(protocol::Tensor::dtype).collect();
        match dtypes[..] {
            [dtype, ref rest @ ..] if rest.iter().all(|other| *other == dtype) => Ok(dtype),
            _ => Err(Failure::error(format!(
                "candle computes in several dtypes: {dtypes:?}"
            ))),
        }
    }

    fn observe(
        &self,
        batch: &Batch,
        wanted: &[String],
    ) -> Result<BTreeMap<String, protocol::Tensor>, Failure> {
        let inputs = self.inputs(batch)?;
        self.compute(&inputs, batch, wanted)
            .map_err(|error| Failure::error(words(error)))?
            .into_iter()
            .map(|(name, tensor)| Ok((name, to_protocol(&tensor)?)))
            .collect()
    }

    /// The wanted observations, all of which exist. Layers that no observation needs are left out.
    fn compute(
        &self,
        inputs: &Inputs,
        batch: &Batch,
        wanted: &[String],
    ) -> candle_core::Result<BTreeMap<String, Tensor>> {
        let layer_of = |name: &String| match name.as_str() {
            observation::LOGITS => self.bert.depth(),
            name => observation::hidden_layer(name).unwrap_or(0),
        };
        let depth = wanted.iter().map(layer_of).max().unwrap_or(0);
        let states = self.bert.hidden_states(inputs, depth)?;
        let mut observed = BTreeMap::new();
        for name in wanted {
            let state = &states[layer_of(name)];
            let tensor = match name.as_str() {
                observation::LOGITS => select_rows(&self.bert.logits(state)?, batch)?,
                _ => state.clone(),
            };
            observed.insert(name.clone(), tensor);
        }
        Ok(observed)
    }

    /// The batch as candle's users pass it. What candle would read as something else is refused:
    /// it takes the largest `u32` for "no token" and answers zeros.
    fn inputs(&self, batch: &Batch) -> Result<Inputs, Failure> {
        let tensor = |values: &[i64]| {
            // Checked against the model's limits, so nothing is cut off.
            let values: Vec<u32> = values.iter().map(|value| *value as u32).collect();
            let shape = (batch.sequences, batch.length);
            Tensor::from_vec(values, shape, self.bert.device())
                .map_err(|error| Failure::error(words(error)))
        };
        Ok(Inputs {
            ids: tensor(&batch.input_ids)?,
            types: tensor(&batch.token_type_ids)?,
            mask: tensor(&batch.attention_mask)?,
        })
    }
}

impl LoadedModel for Ready {
    fn run(
        &mut self,
        batch: &Batch,
        wanted: &[String],
    ) -> Result<BTreeMap<String, protocol::Tensor>, Failure> {
        self.observe(batch, wanted)
    }
}

/// The requested rows of the scores, in the order of the request: `[rows, vocab_size]`.
fn select_rows(logits: &Tensor, batch: &Batch) -> candle_core::Result<Tensor> {
    let rows: Vec<i64> = batch
        .logit_rows
        .iter()
        .map(|(sequence, position)| (sequence * batch.length + position) as i64)
        .collect();
    let rows = Tensor::from_vec(rows, batch.logit_rows.len(), logits.device())?;
    logits.flatten(0, 1)?.index_select(&rows, 0)
}

/// A tensor as it goes over the pipe, in the dtype it has.
fn to_protocol(tensor: &Tensor) -> Result<protocol::Tensor, Failure> {
    let dtype = match tensor.dtype() {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::Bf16,
        other => return Err(Failure::error(format!("candle returned dtype {other:?}"))),
    };
    let mut bytes = Vec::with_capacity(tensor.elem_count() * dtype.size());
    tensor
        .write_bytes(&mut bytes)
        .map_err(|error| Failure::error(words(error)))?;
    protocol::Tensor::new(dtype, tensor.dims().to_vec(), bytes)
        .map_err(|error| Failure::error(error.to_string()))
}
