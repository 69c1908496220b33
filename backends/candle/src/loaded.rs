//! A loaded model that answers batches.

use std::collections::BTreeMap;

use candle_core::{DType, DeviceLocation, Tensor};
use driftgauge_protocol::{
    self as protocol, Batch, BertConfig, Dtype, Failure, LoadedModel, observation,
};

use crate::backend::words;
use crate::model::{Bert, Inputs};

/// A model, what it offers, and the limits of what may be asked of it.
pub struct Ready {
    bert: Bert,
    observations: Vec<String>,
    vocab_size: usize,
    type_vocab_size: usize,
}

impl Ready {
    /// A loaded model; the configuration is the one that it was loaded with.
    pub fn new(bert: Bert, config: &BertConfig) -> Self {
        let mut observations = vec![observation::EMBEDDINGS.to_owned()];
        observations.extend((1..=bert.depth()).map(observation::hidden));
        if bert.has_head() {
            observations.push(observation::LOGITS.to_owned());
        }
        Self {
            bert,
            observations,
            vocab_size: config.vocab_size,
            type_vocab_size: config.type_vocab_size,
        }
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
        let batch = Batch {
            sequences: 1,
            length: 1,
            input_ids: vec![0],
            token_type_ids: vec![0],
            attention_mask: vec![1],
            logit_rows: vec![(0, 0)],
        };
        let all = self.observe(&batch, &self.observations)?;
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
        if let Some(unknown) = wanted.iter().find(|name| !self.observations.contains(name)) {
            let known = self.observations.join(", ");
            let message = format!("unknown observation `{unknown}` (known: {known})");
            return Err(Failure::error(message));
        }
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
        let tensor = |name: &str, values: &[i64], limit: usize| {
            let values = values
                .iter()
                .map(|value| {
                    let number = u32::try_from(*value).ok();
                    number
                        .filter(|number| (*number as usize) < limit)
                        .ok_or(value)
                })
                .collect::<Result<Vec<u32>, _>>()
                .map_err(|value| {
                    Failure::error(format!("`{name}` holds {value}, the limit is {limit}"))
                })?;
            let shape = (batch.sequences, batch.length);
            Tensor::from_vec(values, shape, self.bert.device())
                .map_err(|error| Failure::error(words(error)))
        };
        Ok(Inputs {
            ids: tensor("input_ids", &batch.input_ids, self.vocab_size)?,
            types: tensor(
                "token_type_ids",
                &batch.token_type_ids,
                self.type_vocab_size,
            )?,
            mask: tensor("attention_mask", &batch.attention_mask, 2)?,
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
