//! Tensors on the pipe, and the safetensors payload that carries them.

use std::collections::BTreeMap;

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use safetensors::{SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

/// Number format of a tensor, or that a target computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE binary64.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    Bf16,
    /// 64-bit integer, for token IDs and masks.
    I64,
}

impl Dtype {
    /// Size of one element in bytes.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// Unit roundoff: the largest relative error of rounding one number to nearest, 2^-p for a
    /// significand of p bits. `None` for integers, which are exact.
    pub fn unit_roundoff(self) -> Option<f64> {
        let significand_bits = match self {
            Dtype::F64 => 53,
            Dtype::F32 => 24,
            Dtype::F16 => 11,
            Dtype::Bf16 => 8,
            Dtype::I64 => return None,
        };
        Some(0.5f64.powi(significand_bits))
    }

    /// The name used in targets and records: `f32`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F64 => "f64",
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::I64 => "i64",
        }
    }
}

impl From<Dtype> for safetensors::Dtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F64 => safetensors::Dtype::F64,
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::Bf16 => safetensors::Dtype::BF16,
            Dtype::I64 => safetensors::Dtype::I64,
        }
    }
}

impl TryFrom<safetensors::Dtype> for Dtype {
    type Error = TensorError;

    fn try_from(dtype: safetensors::Dtype) -> Result<Self, TensorError> {
        Ok(match dtype {
            safetensors::Dtype::F64 => Dtype::F64,
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::BF16 => Dtype::Bf16,
            safetensors::Dtype::I64 => Dtype::I64,
            other => return Err(TensorError::Dtype(format!("{other:?}"))),
        })
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What is wrong with a tensor or a payload of tensors.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// Shape and number of bytes disagree.
    #[error("a {dtype} tensor of shape {shape:?} cannot have {bytes} bytes")]
    Size {
        /// The claimed dtype.
        dtype: Dtype,
        /// The claimed shape.
        shape: Vec<usize>,
        /// The bytes there are.
        bytes: usize,
    },
    /// A dtype that no message uses.
    #[error("tensors of dtype {0} are not used here")]
    Dtype(String),
    /// The payload is not safetensors.
    #[error("the payload is not a valid safetensors file")]
    Payload(#[from] safetensors::SafeTensorError),
}

/// A dense row-major tensor of little-endian numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    /// A tensor of given bytes.
    ///
    /// # Errors
    /// [`TensorError::Size`] where shape, dtype and length do not fit together.
    pub fn new(dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Result<Self, TensorError> {
        let expected = shape
            .iter()
            .try_fold(dtype.size(), |product, extent| product.checked_mul(*extent));
        if expected != Some(bytes.len()) {
            return Err(TensorError::Size {
                dtype,
                shape,
                bytes: bytes.len(),
            });
        }
        Ok(Self {
            dtype,
            shape,
            bytes,
        })
    }

    /// A tensor of `f32` numbers.
    ///
    /// # Errors
    /// [`TensorError::Size`] where the shape does not fit the number of elements.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Result<Self, TensorError> {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Self::new(Dtype::F32, shape, bytes)
    }

    /// A tensor of `f64` numbers.
    ///
    /// # Errors
    /// [`TensorError::Size`] where the shape does not fit the number of elements.
    pub fn from_f64(shape: Vec<usize>, values: &[f64]) -> Result<Self, TensorError> {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Self::new(Dtype::F64, shape, bytes)
    }

    /// A tensor of `i64` numbers.
    ///
    /// # Errors
    /// [`TensorError::Size`] where the shape does not fit the number of elements.
    pub fn from_i64(shape: Vec<usize>, values: &[i64]) -> Result<Self, TensorError> {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Self::new(Dtype::I64, shape, bytes)
    }

    /// A tensor of this dtype and shape with other values, rounded to nearest. `values` must be as many as
    /// there are elements.
    #[must_use]
    pub(crate) fn with_values(&self, values: &[f64]) -> Self {
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for value in values {
            match self.dtype {
                Dtype::F64 => bytes.extend(value.to_le_bytes()),
                Dtype::F32 => bytes.extend((*value as f32).to_le_bytes()),
                Dtype::F16 => bytes.extend(f16::from_f64(*value).to_le_bytes()),
                Dtype::Bf16 => bytes.extend(bf16::from_f64(*value).to_le_bytes()),
                Dtype::I64 => bytes.extend((*value as i64).to_le_bytes()),
            }
        }
        Self {
            dtype: self.dtype,
            shape: self.shape.clone(),
            bytes,
        }
    }

    /// Number format of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, little-endian, row by row.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The elements as `f64`; exact for every dtype (integers up to 2^53).
    pub fn to_f64(&self) -> Vec<f64> {
        widen(self.dtype, &self.bytes)
    }

    /// The elements as `f32`: exact from `f32`, `f16` and `bf16`, rounded to nearest from `f64`.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::F32 => {
                let (words, _) = self.bytes.as_chunks::<4>();
                words.iter().map(|word| f32::from_le_bytes(*word)).collect()
            }
            _ => self
                .to_f64()
                .into_iter()
                .map(|value| value as f32)
                .collect(),
        }
    }

    /// The elements of an integer tensor; `None` for floating-point tensors.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        let (words, _) = self.bytes.as_chunks::<8>();
        (self.dtype == Dtype::I64)
            .then(|| words.iter().map(|word| i64::from_le_bytes(*word)).collect())
    }
}

/// Little-endian numbers of any dtype as `f64`; exact (integers up to 2^53).
pub fn widen(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let (halves, _) = bytes.as_chunks::<2>();
    let (words, _) = bytes.as_chunks::<4>();
    let (doubles, _) = bytes.as_chunks::<8>();
    match dtype {
        Dtype::F64 => doubles
            .iter()
            .map(|bytes| f64::from_le_bytes(*bytes))
            .collect(),
        Dtype::I64 => doubles
            .iter()
            .map(|bytes| i64::from_le_bytes(*bytes) as f64)
            .collect(),
        Dtype::F32 => words
            .iter()
            .map(|bytes| f64::from(f32::from_le_bytes(*bytes)))
            .collect(),
        Dtype::F16 => widen_halves(halves, |halves, wide| {
            halves.reinterpret_cast::<f16>().convert_to_f32_slice(wide);
        }),
        Dtype::Bf16 => widen_halves(halves, |halves, wide| {
            halves.reinterpret_cast::<bf16>().convert_to_f32_slice(wide);
        }),
    }
}

/// Widens by way of f32, many at a time: one by one, each is a call that no compiler puts in line.
fn widen_halves(halves: &[[u8; 2]], convert: impl Fn(&[u16], &mut [f32])) -> Vec<f64> {
    const MANY: usize = 1024;
    let (mut words, mut wide) = ([0u16; MANY], [0f32; MANY]);
    let mut widened = Vec::with_capacity(halves.len());
    for halves in halves.chunks(MANY) {
        let (words, wide) = (&mut words[..halves.len()], &mut wide[..halves.len()]);
        let pairs = words.iter_mut().zip(halves);
        pairs.for_each(|(word, bytes)| *word = u16::from_le_bytes(*bytes));
        convert(words, wide);
        widened.extend(wide.iter().map(|value| f64::from(*value)));
    }
    widened
}

/// Named tensors as a safetensors payload.
///
/// # Errors
/// [`TensorError::Payload`] where the serialiser refuses them.
pub fn encode_tensors(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>, TensorError> {
    let views = tensors
        .iter()
        .map(|(name, tensor)| {
            let dtype = tensor.dtype.into();
            Ok((
                name,
                TensorView::new(dtype, tensor.shape.clone(), &tensor.bytes)?,
            ))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    Ok(safetensors::serialize(views, None)?)
}

/// The named tensors of a safetensors payload; an empty payload holds none.
///
/// # Errors
/// [`TensorError`] where it is not safetensors, or holds a dtype that no message uses.
pub fn decode_tensors(payload: &[u8]) -> Result<BTreeMap<String, Tensor>, TensorError> {
    if payload.is_empty() {
        return Ok(BTreeMap::new());
    }
    SafeTensors::deserialize(payload)?
        .iter()
        .map(|(name, view)| {
            let dtype = Dtype::try_from(view.dtype())?;
            let tensor = Tensor::new(dtype, view.shape().to_vec(), view.data().to_vec())?;
            Ok((name.to_owned(), tensor))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_survive_the_payload() {
        let tensors = BTreeMap::from([
            (
                "ids".to_owned(),
                Tensor::from_i64(vec![1, 2], &[101, -1]).unwrap(),
            ),
            (
                "logits".to_owned(),
                Tensor::from_f32(vec![3], &[0.1, f32::NAN, -0.0]).unwrap(),
            ),
            (
                "none".to_owned(),
                Tensor::from_f64(vec![0, 4], &[]).unwrap(),
            ),
        ]);
        let decoded = decode_tensors(&encode_tensors(&tensors).unwrap()).unwrap();
        assert_eq!(decoded["ids"].to_i64(), Some(vec![101, -1]));
        // Bytes, not numbers: NaN is not equal to itself.
        assert_eq!(decoded["logits"].bytes(), tensors["logits"].bytes());
        assert_eq!(decoded["none"].shape(), &[0, 4]);
    }

    #[test]
    fn widening_is_exact() {
        for value in [0.1f32, -1.5, f32::MIN_POSITIVE, f32::MAX] {
            let tensor = Tensor::from_f32(vec![1], &[value]).unwrap();
            assert_eq!(
                (tensor.to_f64(), tensor.to_f32()),
                (vec![f64::from(value)], vec![value])
            );
        }
        let half = Tensor::new(Dtype::F16, vec![2], vec![0x00, 0x3c, 0x01, 0x00]).unwrap();
        assert_eq!(half.to_f64(), vec![1.0, 2f64.powi(-24)]);
        let brain = Tensor::new(Dtype::Bf16, vec![1], vec![0x80, 0xbf]).unwrap();
        assert_eq!(brain.to_f64(), vec![-1.0]);
    }

    #[test]
    fn wrong_sizes_are_refused() {
        assert!(Tensor::from_f32(vec![2, 2], &[1.0]).is_err());
        assert!(Tensor::new(Dtype::F64, vec![usize::MAX, 2], vec![]).is_err());
        assert!(decode_tensors(b"not safetensors").is_err());
    }
}
