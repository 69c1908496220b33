//! Tensors of the protocol as values of ONNX Runtime, and back.

use driftgauge_protocol::{Dtype, Failure, Tensor};
use half::{bf16, f16};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor as Value};

/// Some rows of a value: (sequence, position) pairs, and the positions of a sequence.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) wanted: &'a [(usize, usize)],
    pub(crate) length: usize,
}

/// The value of a tensor.
///
/// # Errors
/// With ONNX Runtime's own words.
pub(crate) fn value(tensor: &Tensor) -> Result<DynValue, Failure> {
    match tensor.dtype() {
        Dtype::F64 => from_bytes(tensor, f64::from_le_bytes),
        Dtype::F32 => from_bytes(tensor, f32::from_le_bytes),
        Dtype::F16 => from_bytes(tensor, f16::from_le_bytes),
        Dtype::Bf16 => from_bytes(tensor, bf16::from_le_bytes),
        Dtype::I64 => from_bytes(tensor, i64::from_le_bytes),
    }
}

/// The tensor of a value, or the selected rows of it. A value of another dtype than the requested one
/// is an error.
///
/// # Errors
/// For another dtype, and for a row that is not there.
pub(crate) fn tensor(
    value: &DynValue,
    dtype: Dtype,
    rows: Option<Rows<'_>>,
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

/// The same numbers in another shape.
///
/// # Errors
/// Where there are more or fewer of them.
pub(crate) fn reshaped(tensor: &Tensor, shape: Vec<usize>) -> Result<Tensor, Failure> {
    Tensor::new(tensor.dtype(), shape, tensor.bytes().to_vec())
        .map_err(|error| Failure::error(error.to_string()))
}

fn from_bytes<T, const N: usize>(
    tensor: &Tensor,
    number: impl Fn([u8; N]) -> T,
) -> Result<DynValue, Failure>
where
    T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
{
    let (bytes, _) = tensor.bytes().as_chunks::<N>();
    let numbers: Vec<T> = bytes.iter().map(|bytes| number(*bytes)).collect();
    let value = Value::from_array((tensor.shape(), numbers));
    let value = value.map_err(|error| Failure::error(format!("ONNX Runtime: {error}")))?;
    Ok(value.into_dyn())
}

fn little_endian<T: PrimitiveTensorElementType + Copy, const N: usize>(
    value: &DynValue,
    rows: Option<Rows<'_>>,
    bytes: impl Fn(T) -> [u8; N],
) -> Result<(Vec<usize>, Vec<u8>), Failure> {
    let (shape, elements) = value
        .try_extract_tensor::<T>()
        .map_err(|error| Failure::error(format!("an output cannot be read: {error}")))?;
    let shape: Vec<usize> = shape.iter().map(|&extent| extent as usize).collect();
    let mut written = Vec::new();
    let mut write = |elements: &[T]| {
        written.reserve_exact(elements.len() * N);
        elements
            .iter()
            .for_each(|element| written.extend_from_slice(&bytes(*element)));
    };
    let Some(Rows { wanted, length }) = rows else {
        write(elements);
        return Ok((shape, written));
    };
    let width = shape.last().copied().unwrap_or(0);
    for (sequence, position) in wanted {
        let start = (sequence * length + position) * width;
        let row = elements.get(start..start + width).ok_or_else(|| {
            Failure::error(format!(
                "row ({sequence}, {position}) is outside the output"
            ))
        })?;
        write(row);
    }
    Ok((vec![wanted.len(), width], written))
}
