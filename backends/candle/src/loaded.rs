//! A loaded model that answers batches: the stock stages, and in their place the opened ones where a
//! probe or a fault needs to get between the steps.

use std::collections::BTreeMap;

use candle_core::{DType, DeviceLocation, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::Config;
use driftgauge_protocol::fault::Fault;
use driftgauge_protocol::{
    self as protocol, Batch, Dtype, Failure, LoadedModel, Stage, Step, observation,
};

use crate::backend::words;
use crate::mask::{Mask, extended_attention_mask};
use crate::model::{Bert, Inputs};
use crate::opened::Opened;
use crate::steps::Steps;
use crate::weights::from_protocol;

/// A model and what it offers.
pub struct Ready {
    bert: Bert,
    opened: Opened,
    fault: Option<Fault>,
    observations: Vec<String>,
}

impl Ready {
    /// Loads a model, stock and opened: what they share is in memory once, because the builder gives
    /// one storage for one name.
    ///
    /// # Errors
    /// Where a tensor is missing or has a wrong shape.
    pub fn load(
        builder: VarBuilder,
        config: &Config,
        mlm_head: bool,
        fault: Option<&Fault>,
    ) -> candle_core::Result<Self> {
        let bert = Bert::load(builder.clone(), config, mlm_head)?;
        let mut observations = vec![observation::EMBEDDINGS.to_owned()];
        observations.extend((1..=bert.depth()).map(observation::hidden));
        if bert.has_head() {
            observations.push(observation::LOGITS.to_owned());
        }
        Ok(Self {
            bert,
            opened: Opened::load(&builder, config, mlm_head)?,
            fault: fault.cloned(),
            observations,
        })
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
            .map_err(failure)?
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
        let states = self.hidden_states(inputs, batch, depth)?;
        let mut observed = BTreeMap::new();
        for name in wanted {
            let state = &states[layer_of(name)];
            let tensor = match name.as_str() {
                observation::LOGITS => select_rows(&self.logits(inputs, batch, state)?, batch)?,
                _ => state.clone(),
            };
            observed.insert(name.clone(), tensor);
        }
        Ok(observed)
    }

    /// The output of the embedding stage and of the first `depth` layers, in this order.
    fn hidden_states(
        &self,
        inputs: &Inputs,
        batch: &Batch,
        depth: usize,
    ) -> candle_core::Result<Vec<Tensor>> {
        let embeddings = match self.is_changed(Stage::Embeddings) {
            true => self.open(Stage::Embeddings, inputs, batch, None)?.result,
            false => self.bert.embeddings(inputs)?,
        };
        let mask = extended_attention_mask(&inputs.mask, embeddings.dtype())?;
        let mut states = vec![embeddings];
        for layer in 1..=depth {
            let (stage, before) = (Stage::Layer(layer), &states[layer - 1]);
            let state = match self.is_changed(stage) {
                true => self.open(stage, inputs, batch, Some(before))?.result,
                false => self.bert.layer(layer, before, &mask)?,
            };
            states.push(state);
        }
        Ok(states)
    }

    /// Scores at every position, from the last hidden state.
    fn logits(&self, inputs: &Inputs, batch: &Batch, last: &Tensor) -> candle_core::Result<Tensor> {
        match self.is_changed(Stage::Head) {
            true => Ok(self.open(Stage::Head, inputs, batch, Some(last))?.result),
            false => self.bert.logits(last),
        }
    }

    /// Whether the fault changes a step of a stage. Where it does not, the stock stage runs.
    fn is_changed(&self, stage: Stage) -> bool {
        let mut edits = self.fault.iter().flat_map(Fault::step_edits);
        edits.any(|edit| edit.stage == stage)
    }

    /// Runs a stage opened, under the fault, from the hidden state before it.
    fn open(
        &self,
        stage: Stage,
        inputs: &Inputs,
        batch: &Batch,
        before: Option<&Tensor>,
    ) -> candle_core::Result<OpenedRun> {
        let mut steps = Steps::new(stage, self.fault.as_ref());
        let result = match (stage, before) {
            (Stage::Embeddings, _) => self.opened.embeddings(inputs, &mut steps)?,
            (Stage::Layer(layer), Some(before)) => {
                let mask = self.mask(layer, inputs, batch, before.dtype())?;
                self.opened.layer(layer, before, &mask, &mut steps)?
            }
            (Stage::Head, Some(before)) => self.opened.head(before, &mut steps)?,
            (_, None) => candle_core::bail!("`{stage}` starts from a hidden state"),
        };
        Ok(OpenedRun {
            result,
            steps: steps.into_results(),
        })
    }

    fn mask(
        &self,
        layer: usize,
        inputs: &Inputs,
        batch: &Batch,
        dtype: DType,
    ) -> candle_core::Result<Mask> {
        let changed = self.fault.as_ref();
        match changed.and_then(|fault| fault.mask(layer, batch)) {
            None => Mask::stock(&inputs.mask, dtype),
            Some(mask) => {
                let attended = self.indices(batch, &mask.attended)?;
                Mask::changed(&mask, &attended, dtype)
            }
        }
    }

    /// The batch as candle's users pass it. What candle would read as something else is refused:
    /// it takes the largest `u32` for "no token" and answers zeros.
    fn inputs(&self, batch: &Batch) -> Result<Inputs, Failure> {
        let tensor = |values| self.indices(batch, values).map_err(failure);
        Ok(Inputs {
            ids: tensor(&batch.input_ids)?,
            types: tensor(&batch.token_type_ids)?,
            mask: tensor(&batch.attention_mask)?,
        })
    }

    /// Numbers of a batch, which were checked against the model's limits, so that nothing is cut off.
    fn indices(&self, batch: &Batch, values: &[i64]) -> candle_core::Result<Tensor> {
        let values: Vec<u32> = values.iter().map(|value| *value as u32).collect();
        let shape = (batch.sequences, batch.length);
        Tensor::from_vec(values, shape, self.bert.device())
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

    fn probe(
        &mut self,
        stage: Stage,
        batch: &Batch,
        input: Option<&protocol::Tensor>,
    ) -> Result<BTreeMap<String, protocol::Tensor>, Failure> {
        let inputs = self.inputs(batch)?;
        let before = input
            .map(|input| from_protocol(input, self.bert.device()))
            .transpose()
            .map_err(failure)?;
        let run = self.open(stage, &inputs, batch, before.as_ref());
        let steps = run.map_err(failure)?.steps.into_iter();
        steps
            .map(|(step, tensor)| {
                // The head computes every position, as in a run.
                let tensor = match stage {
                    Stage::Head => select_rows(&tensor, batch).map_err(failure)?,
                    _ => tensor,
                };
                Ok((step.name().to_owned(), to_protocol(&tensor)?))
            })
            .collect()
    }
}

/// What an opened stage gave.
struct OpenedRun {
    result: Tensor,
    steps: Vec<(Step, Tensor)>,
}

fn failure(error: candle_core::Error) -> Failure {
    Failure::error(words(error))
}

/// The requested rows of what the head computed at every position, in the order of the request:
/// `[rows, width]`.
fn select_rows(every: &Tensor, batch: &Batch) -> candle_core::Result<Tensor> {
    let rows: Vec<i64> = batch
        .logit_rows
        .iter()
        .map(|(sequence, position)| (sequence * batch.length + position) as i64)
        .collect();
    let rows = Tensor::from_vec(rows, batch.logit_rows.len(), every.device())?;
    every.flatten(0, 1)?.index_select(&rows, 0)
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
    tensor.write_bytes(&mut bytes).map_err(failure)?;
    protocol::Tensor::new(dtype, tensor.dims().to_vec(), bytes)
        .map_err(|error| Failure::error(error.to_string()))
}
