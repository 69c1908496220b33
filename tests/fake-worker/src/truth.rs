//! The healthy part: answers with the truth.

use std::collections::BTreeMap;

use driftgauge::model::Model;
use driftgauge::oracle::{self, Sequence, Truth};
use driftgauge_protocol::{
    Arithmetic, Batch, Dtype, Failure, LoadRequest, Loaded, Properties, Tensor, TensorError,
    observation,
};

use crate::imitate::Imitation;

/// A model that the oracle runs.
pub struct TrueModel {
    model: Model,
    dtype: Dtype,
    imitation: Option<Imitation>,
}

impl TrueModel {
    /// Opens the model directory that holds the weights.
    ///
    /// # Errors
    /// For anything but f64 and f32 on the CPU, and for a model that is not the hashed one.
    pub fn load(
        request: &LoadRequest,
        imitation: Option<Imitation>,
    ) -> Result<(Self, Loaded), Failure> {
        let (device, dtype) = (&request.device, request.dtype);
        if device != "cpu" || !matches!(dtype, Dtype::F64 | Dtype::F32) {
            let message = format!("the fake worker has no {device}/{dtype}");
            return Err(Failure::unsupported(message));
        }
        let weights = &request.weights;
        let directory = weights
            .path
            .parent()
            .ok_or_else(|| Failure::error("the weights lie in no folder"))?;
        let mut model = Model::open(directory, &[]).map_err(|e| Failure::error(e.to_string()))?;
        if model.weights.file() != weights {
            return Err(Failure::error("the weights are not those that were hashed"));
        }
        if let Some(imitation) = imitation {
            imitation.change(&mut model);
        }
        let mut observations = vec![observation::EMBEDDINGS.to_owned()];
        observations.extend((1..=request.config.num_hidden_layers).map(observation::hidden));
        observations.extend(request.mlm_head.then(|| observation::LOGITS.to_owned()));
        let loaded = Loaded {
            device: device.clone(),
            dtype,
            threads: request.threads,
            observations,
            arithmetic: Arithmetic::default(),
            float64_options: request.options.clone(),
            properties: Properties::new(),
            seconds: 0.0,
        };
        let model = Self {
            model,
            dtype,
            imitation,
        };
        Ok((model, loaded))
    }

    /// The truth of a batch; zeros where there is padding or no such observation.
    ///
    /// # Errors
    /// Where logits are wanted of a model without a head.
    pub fn run(
        &self,
        batch: &Batch,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Tensor>, Failure> {
        let sequences = sequences(batch);
        let truths = match self.imitation {
            None => oracle::truths(&self.model, &sequences),
            Some(imitation) => imitation.run(&self.model, &sequences, self.dtype),
        };
        let observe = |name: &String| {
            let tensor = if name == observation::LOGITS {
                self.logits(batch, &truths)
            } else {
                self.padded(batch, &truths, name)
            };
            let tensor = tensor.map_err(|error| Failure::error(format!("`{name}`: {error}")))?;
            Ok((name.clone(), tensor))
        };
        wanted.iter().map(observe).collect()
    }

    fn padded(&self, batch: &Batch, truths: &[Truth], name: &str) -> Result<Tensor, TensorError> {
        let width = self.model.config.hidden_size;
        let shape = vec![batch.sequences, batch.length, width];
        let mut values = Vec::new();
        for (row, truth) in truths.iter().enumerate() {
            values.extend(truth.get(name).into_iter().flat_map(|part| part.values()));
            values.resize((row + 1) * batch.length * width, 0.0);
        }
        tensor(self.dtype, shape, values)
    }

    fn logits(&self, batch: &Batch, truths: &[Truth]) -> Result<Tensor, TensorError> {
        let shape = vec![batch.logit_rows.len(), self.model.config.vocab_size];
        let mut values = Vec::new();
        // The n-th row of a sequence here is the n-th row of its truth.
        let mut next = vec![0; batch.sequences];
        for (sequence, _) in &batch.logit_rows {
            let logits = truths[*sequence].get(observation::LOGITS);
            values.extend(
                logits
                    .into_iter()
                    .flat_map(|part| part.row(next[*sequence])),
            );
            next[*sequence] += 1;
        }
        tensor(self.dtype, shape, values)
    }
}

/// The sequences of a batch without their padding.
fn sequences(batch: &Batch) -> Vec<Sequence> {
    let rows = (0..batch.sequences).map(|row| (row, row * batch.length));
    rows.map(|(row, start)| {
        let mask = &batch.attention_mask[start..start + batch.length];
        let tokens = mask.iter().filter(|mask| **mask == 1).count();
        let unsigned = |values: &[i64]| {
            let values = &values[start..start + tokens];
            values.iter().map(|value| *value as u32).collect()
        };
        let own = batch.logit_rows.iter().filter(|place| place.0 == row);
        Sequence {
            ids: unsigned(&batch.input_ids),
            type_ids: unsigned(&batch.token_type_ids),
            logit_positions: own.map(|place| place.1).collect(),
        }
    })
    .collect()
}

/// Numbers as a tensor of `f64`, or rounded to `f32`.
///
/// # Errors
/// Where shape and numbers do not fit together.
pub fn tensor(dtype: Dtype, shape: Vec<usize>, values: Vec<f64>) -> Result<Tensor, TensorError> {
    let wide = Tensor::from_f64(shape, &values)?;
    match dtype {
        Dtype::F64 => Ok(wide),
        _ => Tensor::from_f32(wide.shape().to_vec(), &wide.to_f32()),
    }
}
