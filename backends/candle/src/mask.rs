//! How a layer is kept from attending to padding: candle's own mask, and those of a fault.

use candle_core::{DType, Result, Tensor};
use driftgauge_protocol::fault::AttentionMask;

/// An attention mask as a layer applies it; its tensor is of shape `[sequences, 1, 1, length]`.
pub enum Mask {
    /// Added to the scores.
    Added(Tensor),
    /// Multiplied with the probabilities.
    Multiplied(Tensor),
}

impl Mask {
    /// candle's mask, of a `u32` tensor `[sequences, length]` that is 1 where a position is attended to.
    ///
    /// # Errors
    /// What candle says.
    pub fn stock(attended: &Tensor, dtype: DType) -> Result<Self> {
        Ok(Self::Added(extended_attention_mask(attended, dtype)?))
    }

    /// A fault's mask. `attended` is its own, as a tensor like that of [`Mask::stock`].
    ///
    /// # Errors
    /// What candle says.
    pub fn changed(mask: &AttentionMask, attended: &Tensor, dtype: DType) -> Result<Self> {
        let wide = attended.unsqueeze(1)?.unsqueeze(1)?;
        match mask.fill {
            _ if mask.after_softmax => Ok(Self::Multiplied(wide.to_dtype(dtype)?)),
            None => Self::stock(attended, dtype),
            Some(fill) => {
                let fill = Tensor::new(fill, wide.device())?.to_dtype(dtype)?;
                let zeros = Tensor::zeros(wide.shape(), dtype, wide.device())?;
                let added = wide.where_cond(&zeros, &fill.broadcast_as(wide.shape())?)?;
                Ok(Self::Added(added))
            }
        }
    }

    /// The scores, with the mask where it is added to them.
    ///
    /// # Errors
    /// What candle says.
    pub fn on_scores(&self, scores: Tensor) -> Result<Tensor> {
        match self {
            Self::Added(mask) => scores.broadcast_add(mask),
            Self::Multiplied(_) => Ok(scores),
        }
    }

    /// The probabilities, with the mask where it is multiplied with them.
    ///
    /// # Errors
    /// What candle says.
    pub fn on_probabilities(&self, probabilities: Tensor) -> Result<Tensor> {
        match self {
            Self::Added(_) => Ok(probabilities),
            Self::Multiplied(mask) => probabilities.broadcast_mul(mask),
        }
    }
}

/// candle's private `get_extended_attention_mask`, for a mask of rank 2. In `f16` and `bf16` the
/// cast of `f32::MIN` is −∞ and 0 · −∞ is NaN; that is how candle computes, so it stays.
/// <https://github.com/huggingface/candle/blob/59f8e903ca80a32ea7f8514b39748fc979e69e82/candle-transformers/src/models/bert.rs#L520-L533>
pub fn extended_attention_mask(mask: &Tensor, dtype: DType) -> Result<Tensor> {
    let mask = mask.unsqueeze(1)?.unsqueeze(1)?.to_dtype(dtype)?;
    (mask.ones_like()? - &mask)?.broadcast_mul(
        &Tensor::try_from(f32::MIN)?
            .to_device(mask.device())?
            .to_dtype(dtype)?,
    )
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn values(tensor: &Tensor) -> Vec<f32> {
        let wide = tensor.to_dtype(DType::F32).unwrap();
        wide.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Half precision: candle's mask is NaN on every token that is attended to.
    #[test]
    fn the_mask_is_candles_own_in_half_precision_too() {
        let mask = Tensor::new(&[[1u32, 0]], &Device::Cpu).unwrap();
        for (dtype, expected) in [
            (DType::F32, [0.0, f32::MIN]),
            (DType::F16, [f32::NAN, f32::NEG_INFINITY]),
            (DType::BF16, [f32::NAN, f32::NEG_INFINITY]),
        ] {
            let extended = extended_attention_mask(&mask, dtype).unwrap();
            assert_eq!(extended.dims(), &[1, 1, 1, 2]);
            for (got, expected) in values(&extended).iter().zip(expected) {
                assert!(
                    *got == expected || got.is_nan() && expected.is_nan(),
                    "{dtype:?}: {got}, expected {expected}"
                );
            }
        }
    }

    /// A fill reaches masked positions only, in every dtype.
    #[test]
    fn a_fault_says_what_is_added_or_multiplied() {
        let attended = Tensor::new(&[[1u32, 0], [1, 1]], &Device::Cpu).unwrap();
        let changed = |fill, after_softmax, dtype| {
            let mask = AttentionMask {
                attended: Vec::new(),
                fill,
                after_softmax,
            };
            Mask::changed(&mask, &attended, dtype).unwrap()
        };
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let Mask::Added(added) = changed(Some(-16.0), false, dtype) else {
                panic!("should be added");
            };
            assert_eq!(added.dims(), &[2, 1, 1, 2]);
            assert_eq!(values(&added), [0.0, -16.0, 0.0, 0.0]);
            let Mask::Multiplied(factor) = changed(Some(-16.0), true, dtype) else {
                panic!("should be multiplied");
            };
            assert_eq!(values(&factor), [1.0, 0.0, 1.0, 1.0]);
        }
        let Mask::Added(added) = changed(None, false, DType::F32) else {
            panic!("should be added");
        };
        assert_eq!(values(&added), [0.0, f32::MIN, 0.0, 0.0]);
    }
}
