//! Numbers between the protocol and libtorch, and libtorch's errors as failures.

use std::collections::BTreeMap;

use driftgauge_protocol::{Batch, Dtype, Failure, Tensor as Numbers, Weights};
use half::{bf16, f16};
use tch::{Device, Kind, TchError, Tensor};

/// libtorch's name of a number format.
pub fn kind_of(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
    }
}

/// The protocol's name of a number format.
///
/// # Errors
/// For one that no message carries.
pub fn dtype_of(kind: Kind) -> Result<Dtype, Failure> {
    Ok(match kind {
        Kind::Double => Dtype::F64,
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::Bf16,
        Kind::Int64 => Dtype::I64,
        other => return Err(Failure::error(format!("libtorch answered in {other:?}"))),
    })
}

/// `torch.finfo(dtype).min`: the lowest finite number of a floating-point format.
pub fn lowest(kind: Kind) -> f64 {
    match kind {
        Kind::Half => f16::MIN.to_f64(),
        Kind::BFloat16 => bf16::MIN.to_f64(),
        Kind::Float => f64::from(f32::MIN),
        _ => f64::MIN,
    }
}

/// What libtorch refused, in its own words. An operation that it does not have is unsupported;
/// everything else should have worked.
pub fn refusal(error: TchError) -> Failure {
    let TchError::Torch(text) = error else {
        return Failure::error(format!("tch: {error}"));
    };
    // Below its own words libtorch prints a stack with addresses, which differ from run to run.
    let words = text.split("Exception raised from").next().unwrap_or(&text);
    let message = format!("libtorch: {}", words.trim());
    let absent = ["not implemented", "not supported", "Could not run"];
    if absent.iter().any(|phrase| words.contains(phrase)) {
        return Failure::unsupported(message);
    }
    Failure::error(message)
}

/// A copy of a tensor for the pipe, in the format it was computed in.
///
/// # Errors
/// Where libtorch cannot copy it.
pub fn to_numbers(tensor: &Tensor) -> Result<Numbers, Failure> {
    let dtype = dtype_of(tensor.f_kind().map_err(refusal)?)?;
    let shape: Vec<usize> = tensor
        .size()
        .into_iter()
        .map(|extent| extent as usize)
        .collect();
    let elements: usize = shape.iter().product();
    let mut bytes = vec![0u8; elements * dtype.size()];
    tensor
        .f_copy_data_u8(&mut bytes, elements)
        .map_err(refusal)?;
    Numbers::new(dtype, shape, bytes).map_err(|error| Failure::error(error.to_string()))
}

/// A copy of numbers from the pipe or a file, in their own format and in the machine's memory.
///
/// # Errors
/// Where libtorch cannot copy them.
pub fn from_numbers(numbers: &Numbers) -> Result<Tensor, TchError> {
    let shape = numbers.shape().iter();
    let shape: Vec<i64> = shape.map(|extent| *extent as i64).collect();
    Tensor::f_from_data_size(numbers.bytes(), &shape, kind_of(numbers.dtype()))
}

/// Reads weights one by one onto a device, in the number format of the computation.
pub struct Loader<'a> {
    weights: &'a Weights,
    kind: Kind,
    device: Device,
    /// What was read, by the name in the file: names that share a stored tensor share its memory.
    loaded: BTreeMap<String, Tensor>,
}

impl<'a> Loader<'a> {
    /// A loader that has read nothing yet.
    pub fn new(weights: &'a Weights, kind: Kind, device: Device) -> Self {
        Self {
            weights,
            kind,
            device,
            loaded: BTreeMap::new(),
        }
    }

    /// The tensor with a canonical name, which must have the given shape.
    ///
    /// # Errors
    /// For a tensor that is missing, of another shape, of integers, or that libtorch refuses.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, Failure> {
        let location = self.weights.location(name)?;
        if location.shape != shape || location.dtype == Dtype::I64 {
            let (dtype, found) = (location.dtype, &location.shape);
            return Err(Failure::error(format!(
                "tensor `{name}` is {dtype} of shape {found:?}, expected floats of shape {shape:?}"
            )));
        }
        let stored = self.weights.stored_name(name)?;
        if let Some(tensor) = self.loaded.get(stored) {
            return Ok(tensor.shallow_clone());
        }
        let tensor = self.convert(&self.weights.read(name)?).map_err(refusal)?;
        self.loaded
            .insert(stored.to_owned(), tensor.shallow_clone());
        Ok(tensor)
    }

    /// The numbers in the format of the computation: exact where it is at least as wide as the
    /// stored one, rounded to nearest where it is narrower.
    fn convert(&self, numbers: &Numbers) -> Result<Tensor, TchError> {
        from_numbers(numbers)?
            .f_to_kind(self.kind)?
            .f_to_device(self.device)
    }
}

/// A batch on the device.
pub struct Input<'a> {
    /// The batch itself.
    pub batch: &'a Batch,
    /// Token IDs, `[sequences, length]`.
    pub ids: Tensor,
    /// Segment of each token, `[sequences, length]`.
    pub segments: Tensor,
    /// Positions `0..length`.
    pub positions: Tensor,
    /// 1 for a token, 0 for padding, `[sequences, length]`.
    pub mask: Tensor,
    /// The wanted rows of the logits, counted through the whole batch.
    rows: Tensor,
}

impl<'a> Input<'a> {
    /// Moves a batch to the device.
    ///
    /// # Errors
    /// [`Failure`] with libtorch's words.
    pub fn new(batch: &'a Batch, device: Device) -> Result<Self, Failure> {
        let rows = batch.logit_rows.iter();
        let rows: Vec<i64> = rows
            .map(|row| (row.0 * batch.length + row.1) as i64)
            .collect();
        let positions: Vec<i64> = (0..batch.length as i64).collect();
        let shape = [batch.sequences as i64, batch.length as i64];
        let to_device = |values: &[i64]| Tensor::f_from_slice(values)?.f_to_device(device);
        let grid = |values| to_device(values)?.f_view(shape);
        let build = || {
            Ok(Self {
                batch,
                ids: grid(&batch.input_ids)?,
                segments: grid(&batch.token_type_ids)?,
                positions: to_device(&positions)?,
                mask: grid(&batch.attention_mask)?,
                rows: to_device(&rows)?,
            })
        };
        build().map_err(refusal)
    }

    /// The wanted rows of a result of the head: from `[sequences, length, width]` to `[rows, width]`.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn wanted_rows(&self, result: &Tensor) -> Result<Tensor, TchError> {
        result.f_flatten(0, 1)?.f_index_select(0, &self.rows)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use driftgauge_protocol::{FailureKind, FileIdentity, WeightsFile, encode_tensors};

    use super::*;

    /// The tied decoder is the word embeddings, in memory too.
    #[test]
    fn names_of_one_stored_tensor_share_its_memory() {
        let numbers = Numbers::from_f32(vec![2, 1], &[1.0, 2.0]).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let stored = BTreeMap::from([("w".to_owned(), numbers)]);
        file.write_all(&encode_tensors(&stored).unwrap()).unwrap();
        let names = ["word", "decoder"].map(|name| (name.to_owned(), "w".to_owned()));
        let weights = Weights::open(&WeightsFile {
            path: file.path().to_owned(),
            identity: FileIdentity::of(file.as_file()).unwrap(),
            names: BTreeMap::from(names),
        });
        let weights = weights.unwrap();
        let mut loader = Loader::new(&weights, Kind::Double, Device::Cpu);
        let word = loader.tensor("word", &[2, 1]).unwrap();
        let decoder = loader.tensor("decoder", &[2, 1]).unwrap();
        assert_eq!(word.data_ptr(), decoder.data_ptr());
    }

    /// An operation that libtorch does not have is told from one that failed, without addresses.
    #[test]
    fn refusals_keep_the_words_of_libtorch() {
        let integers = Tensor::f_from_slice(&[1i64, 2]).unwrap();
        let failure = refusal(integers.f_gelu("none").unwrap_err());
        assert_eq!(failure.kind, FailureKind::Unsupported);
        assert_eq!(
            failure.message,
            "libtorch: \"GeluKernelImpl\" not implemented for 'Long'"
        );

        let failure = refusal(integers.f_view([3i64]).unwrap_err());
        assert_eq!(failure.kind, FailureKind::Error);
        assert_eq!(
            failure.message,
            "libtorch: shape '[3]' is invalid for input of size 2"
        );
    }

    #[test]
    fn the_lowest_numbers_are_those_of_the_formats() {
        for (kind, expected) in [
            (Kind::Half, -65504.0),
            (Kind::BFloat16, -(2.0 - 2f64.powi(-7)) * 2f64.powi(127)),
            (Kind::Float, -(2.0 - 2f64.powi(-23)) * 2f64.powi(127)),
            (Kind::Double, f64::MIN),
        ] {
            assert_eq!(lowest(kind), expected, "{kind:?}");
            let stored = Tensor::f_from_slice(&[1.0])
                .unwrap()
                .f_to_kind(kind)
                .unwrap();
            let lowest = stored.f_mul_scalar(lowest(kind)).unwrap();
            assert_eq!(lowest.f_double_value(&[0]).unwrap(), expected, "{kind:?}");
        }
    }
}
