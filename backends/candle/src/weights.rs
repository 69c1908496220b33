//! The checkpoint as candle's `VarBuilder` reads it: by canonical name, one tensor at a time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use driftgauge_protocol::{self as protocol, Dtype, Failure, Weights};

/// A weights file as a source of candle tensors. Two names for one stored tensor give one storage,
/// so a tied decoder costs nothing.
pub struct Checkpointed<'a> {
    weights: &'a Weights,
    /// Tensors that were read, by their name in the file.
    read: Mutex<HashMap<String, Tensor>>,
}

impl<'a> Checkpointed<'a> {
    /// A builder over the file, which converts to `dtype` with candle's own conversion.
    pub fn builder(weights: &'a Weights, dtype: DType, device: &Device) -> VarBuilder<'a> {
        let source = Self {
            weights,
            read: Mutex::default(),
        };
        VarBuilder::from_backend(Box::new(source), dtype, device.clone())
    }
}

impl SimpleBackend for Checkpointed<'_> {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() != &shape {
            return Err(Error::UnexpectedShape {
                msg: format!("shape mismatch for {name}"),
                expected: shape,
                got: tensor.shape().clone(),
            });
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let failed = |error| Error::msg(Failure::from(error));
        let stored = self.weights.stored_name(name).map_err(failed)?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let tensor = match read.get(stored) {
            Some(tensor) => tensor.clone(),
            None => {
                let raw = self.weights.read(name).map_err(failed)?;
                let tensor = from_protocol(&raw, device)?.to_dtype(dtype)?;
                read.insert(stored.to_owned(), tensor.clone());
                tensor
            }
        };
        tensor.to_device(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.weights.location(name).is_ok()
    }
}

/// A tensor that came over the pipe or out of a file, in the dtype it has.
///
/// # Errors
/// What candle says.
pub fn from_protocol(tensor: &protocol::Tensor, device: &Device) -> Result<Tensor> {
    let dtype = candle_dtype(tensor.dtype());
    Tensor::from_raw_buffer(tensor.bytes(), dtype, tensor.shape(), device)
}

/// candle's name of a dtype.
pub fn candle_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
        Dtype::I64 => DType::I64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Checkpoint, address, tiny};

    #[test]
    fn a_tied_decoder_shares_the_storage_of_the_word_embeddings() {
        let checkpoint = Checkpoint::random(&tiny(), Dtype::F32);
        let weights = Weights::open(&checkpoint.weights).unwrap();
        let builder = Checkpointed::builder(&weights, DType::F32, &Device::Cpu);
        let words = builder.get_unchecked("bert.embeddings.word_embeddings.weight");
        let decoder = builder.get_unchecked("cls.predictions.decoder.weight");
        assert_eq!(address(&words.unwrap()), address(&decoder.unwrap()));
        assert!(builder.contains_tensor("cls.predictions.decoder.bias"));
    }

    #[test]
    fn half_precision_checkpoints_widen_exactly() {
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let checkpoint = Checkpoint::random(&tiny(), dtype);
            let weights = Weights::open(&checkpoint.weights).unwrap();
            let builder = Checkpointed::builder(&weights, DType::F32, &Device::Cpu);
            let name = "bert.embeddings.word_embeddings.weight";
            let stored = weights.read(name).unwrap();
            assert_eq!(stored.dtype(), dtype);
            let tensor = builder.get_unchecked(name).unwrap();
            let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values, stored.to_f32());
        }
    }

    #[test]
    fn what_is_wrong_with_a_tensor_is_said() {
        let mut checkpoint = Checkpoint::random(&tiny(), Dtype::F32);
        checkpoint
            .weights
            .names
            .remove("cls.predictions.decoder.bias");
        let weights = Weights::open(&checkpoint.weights).unwrap();
        let builder = Checkpointed::builder(&weights, DType::F32, &Device::Cpu);
        let error = builder
            .get(5, "cls.predictions.decoder.bias")
            .unwrap_err()
            .to_string();
        assert!(error.contains("has no tensor `cls.predictions.decoder.bias`"));
        let name = "bert.embeddings.LayerNorm.weight";
        let error = builder.get(5, name).unwrap_err().to_string();
        assert!(error.starts_with("shape mismatch for bert.embeddings.LayerNorm.weight"));
    }
}
