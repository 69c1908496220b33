//! PyTorch checkpoints (`pytorch_model.bin`): where their tensors lie in the file.
//!
//! Reads what `torch.save(model.state_dict(), …)` writes, both the zip archive (torch 1.6 and
//! later) and the legacy format before it. The pickle inside is never executed, see [`pickle`].
//! This module looks at no number: checksums and NaN are the business of its caller.

mod archive;
mod legacy;
mod objects;
mod pickle;
mod value;

use std::collections::{BTreeMap, BTreeSet};

use driftgauge_protocol::Dtype;
use zip::result::ZipError;

use pickle::Pickle;
use value::{Storage, Tensor, Value};

/// First bytes of a zip archive.
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
/// First byte of a pickle of protocol 2 or later.
const PICKLE_MAGIC: u8 = 0x80;
/// Characters of a name that a message shows.
const SHOWN: usize = 100;

/// One tensor of the checkpoint, as a place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchTensor {
    /// Its key in the state dict.
    pub name: String,
    /// Number format of the elements, which are little-endian.
    pub dtype: Dtype,
    /// Extents, outermost first; no extent for a scalar.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file. Tied tensors share it; nothing is aligned.
    pub offset: u64,
    /// Length in bytes: the elements lie row by row without gaps.
    pub length: usize,
}

/// Why a checkpoint cannot be used. Names in messages are shortened and escaped.
#[derive(Debug, thiserror::Error)]
pub enum TorchFileError {
    /// Neither format.
    #[error("not a checkpoint: it starts neither like a zip archive nor like a legacy file")]
    Format,
    /// The zip archive is damaged.
    #[error("the zip archive cannot be read: {0}")]
    Zip(ZipError),
    /// An entry of the zip archive is missing or not as torch writes it.
    #[error("archive entry `{entry}` {problem}")]
    Entry {
        /// Name of the entry.
        entry: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What stands before the state dict of a legacy file, or after it, is not as torch writes it.
    #[error("the legacy file {problem}")]
    Legacy {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The pickle asks for something that loading tensors does not take.
    #[error("refused: the pickle uses `{global}` at byte {offset}, which no tensor needs")]
    Refused {
        /// Module and name of what it asks for.
        global: String,
        /// Where in the file.
        offset: usize,
    },
    /// The pickle is damaged or not one of tensors.
    #[error("the pickle cannot be read at byte {offset}: {problem}")]
    Pickle {
        /// Where in the file the opcode stands.
        offset: usize,
        /// What is wrong there.
        problem: String,
    },
    /// The pickle is not one of a state dict.
    #[error("the checkpoint is {kind}, not a dict of tensors by name")]
    StateDict {
        /// What it is, or has for a key.
        kind: String,
    },
    /// The numbers of a storage are missing or of another size than the pickle says.
    #[error("storage `{key}` {problem}")]
    Storage {
        /// Its key in the file.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An entry of the state dict cannot be used.
    #[error("`{name}` {problem}")]
    Tensor {
        /// Its key in the state dict.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Lists the tensors of a checkpoint in the order of its state dict.
///
/// `bytes` is the whole file. Tensors of a dtype that no worker takes (`bool` and the integers
/// below 64 bits) are left out.
///
/// # Errors
/// [`TorchFileError`] for files that are damaged, for pickles that ask for anything but tensors,
/// and for tensors whose elements do not lie row by row without gaps.
pub fn list_tensors(bytes: &[u8]) -> Result<Vec<TorchTensor>, TorchFileError> {
    let (state, starts) = if bytes.starts_with(ZIP_MAGIC) {
        archive::open(bytes)?
    } else if bytes.first() == Some(&PICKLE_MAGIC) {
        legacy::open(bytes)?
    } else {
        return Err(TorchFileError::Format);
    };
    tensors(&state, &starts)
}

/// First bytes of the storages, by key. Each storage lies in the file as a whole.
type Starts<'a> = BTreeMap<&'a str, usize>;

/// The storages of a state dict by key; tensors that share one agree about it.
fn storages<'p, 'a>(
    state: &'p Pickle<'a>,
) -> Result<BTreeMap<&'a str, &'p Storage<'a>>, TorchFileError> {
    let mut storages: BTreeMap<&str, &Storage<'_>> = BTreeMap::new();
    for storage in state.storages() {
        let first = storages.entry(storage.key).or_insert(storage);
        if (first.element, first.count) != (storage.element, storage.count) {
            return Err(TorchFileError::Storage {
                key: shown(storage.key),
                problem: "is used with two dtypes or sizes".into(),
            });
        }
    }
    Ok(storages)
}

fn tensors(state: &Pickle<'_>, starts: &Starts<'_>) -> Result<Vec<TorchTensor>, TorchFileError> {
    let Value::Dict(entries) = state.root() else {
        return Err(TorchFileError::StateDict {
            kind: state.root().kind().into(),
        });
    };
    let mut names = BTreeSet::new();
    let mut tensors = Vec::new();
    for (key, value) in entries {
        let Value::Text(name) = state.value(*key) else {
            let kind = format!("a dict with {} for a key", state.value(*key).kind());
            return Err(TorchFileError::StateDict { kind });
        };
        let error = |problem| TorchFileError::Tensor {
            name: shown(name),
            problem,
        };
        if !names.insert(*name) {
            return Err(error("occurs twice".into()));
        }
        let tensor = match state.value(*value) {
            Value::Tensor(tensor) => tensor,
            other => return Err(error(format!("is {}, not a tensor", other.kind()))),
        };
        let element = tensor.storage.element;
        let Some(dtype) = element.dtype else { continue };
        let start = starts.get(tensor.storage.key).ok_or_else(|| {
            error(format!(
                "lies in storage `{}`, which is missing",
                shown(tensor.storage.key)
            ))
        })?;
        let elements = check_dense(tensor).map_err(|problem| error(problem.into()))?;
        // Start and end lie in the storage, and the storage lies in the file: nothing overflows.
        tensors.push(TorchTensor {
            name: (*name).to_owned(),
            dtype,
            shape: tensor.shape.clone(),
            offset: (start + (tensor.storage.window.start + tensor.first) * element.size) as u64,
            length: elements * element.size,
        });
    }
    Ok(tensors)
}

/// Checks that the elements lie row by row, without gaps, in the storage; returns how many.
fn check_dense(tensor: &Tensor<'_>) -> Result<usize, &'static str> {
    let Tensor {
        storage,
        first,
        shape,
        strides,
    } = tensor;
    let outside = "reaches beyond the end of its storage";
    if shape.len() != strides.len() {
        return Err("has another number of strides than of extents");
    }
    // An empty tensor has no elements that could lie in a wrong order.
    let empty = shape.contains(&0);
    let mut elements = usize::from(!empty);
    for (extent, stride) in shape.iter().zip(strides).rev().filter(|_| !empty) {
        if *extent != 1 && *stride != elements {
            return Err("is not contiguous (transposed, expanded or cut out of a larger tensor)");
        }
        elements = elements.checked_mul(*extent).ok_or(outside)?;
    }
    match first.checked_add(elements) {
        Some(end) if end <= storage.window.len() => Ok(elements),
        _ => Err(outside),
    }
}

/// A name from the file as a message may show it: short, and without control characters.
fn shown(name: &str) -> String {
    let mut shown: String = name
        .chars()
        .take(SHOWN)
        .flat_map(char::escape_debug)
        .collect();
    if name.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A checkpoint that `tests/fixtures/torch/make_fixtures.py` has made.
    macro_rules! fixture {
        ($name:literal) => {
            include_bytes!(concat!("../../../../tests/fixtures/torch/", $name)).as_slice()
        };
    }

    const PLAIN: [&[u8]; 3] = [
        fixture!("zip.bin"),
        fixture!("zip_protocol4.bin"),
        fixture!("legacy.bin"),
    ];

    /// Name, dtype, shape and numbers of every tensor.
    fn listing(bytes: &[u8]) -> Vec<(String, Dtype, Vec<usize>, Vec<f64>)> {
        let listed = list_tensors(bytes).unwrap().into_iter();
        let read = listed.map(|tensor| {
            let start = tensor.offset as usize;
            let data = bytes[start..start + tensor.length].to_vec();
            let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
            let numbers = driftgauge_protocol::Tensor::new(dtype, shape, data)
                .unwrap()
                .to_f64();
            (tensor.name, tensor.dtype, tensor.shape, numbers)
        });
        read.collect()
    }

    #[test]
    fn tensors_are_where_torch_put_them() {
        let weight = vec![-1.0, -0.75, -0.5, -0.25, 0.0, 0.25];
        let expected = [
            ("embeddings.weight", Dtype::F32, vec![2, 3], weight.clone()),
            ("half", Dtype::F16, vec![3], vec![0.5, -2.0, 65504.0]),
            ("bfloat16", Dtype::Bf16, vec![2], vec![1.5, -0.0078125]),
            ("double", Dtype::F64, vec![2], vec![0.1, -1e300]),
            ("position_ids", Dtype::I64, vec![1, 3], vec![0.0, 1.0, 2.0]),
            ("scalar", Dtype::F32, vec![], vec![7.0]),
            ("rows", Dtype::F32, vec![2, 2], vec![2.0, 3.0, 4.0, 5.0]),
            ("one_row", Dtype::F32, vec![1, 3], vec![0.0, 1.0, 2.0]),
            ("empty", Dtype::F32, vec![0, 4], vec![]),
            ("parameter", Dtype::F32, vec![1], vec![2.5]),
            ("decoder.weight", Dtype::F32, vec![2, 3], weight),
        ];
        for bytes in PLAIN {
            let expected = expected
                .clone()
                .map(|(name, dtype, shape, numbers)| (name.to_owned(), dtype, shape, numbers));
            assert_eq!(listing(bytes), expected);
            let tensors = list_tensors(bytes).unwrap();
            assert_eq!(
                tensors[0].offset, tensors[10].offset,
                "tied tensors share their storage"
            );
        }
        assert_eq!(listing(fixture!("little_endian.bin")).len(), 1);
    }

    /// The message for a file that cannot be used contains `expected`.
    pub(super) fn check(bytes: &[u8], expected: &str) {
        let error = list_tensors(bytes).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn files_that_torch_would_load_otherwise_are_refused() {
        check(
            fixture!("os_system.bin"),
            "refused: the pickle uses `posix.system` at byte 82,",
        );
        check(
            fixture!("os_system_legacy.bin"),
            "refused: the pickle uses `posix.system`",
        );
        check(fixture!("transposed.bin"), "`matrix` is not contiguous");
        check(fixture!("expanded.bin"), "`matrix` is not contiguous");
        check(fixture!("column.bin"), "`matrix` is not contiguous");
        check(
            fixture!("nested.bin"),
            "`epoch` is an integer, not a tensor",
        );
        check(fixture!("list.bin"), "the checkpoint is a list");
        check(
            fixture!("compressed.bin"),
            "`compressed/data/0` is compressed",
        );
        check(
            fixture!("big_endian.bin"),
            "`big_endian/byteorder` is not `little`",
        );
    }

    #[test]
    fn other_files_are_told_apart() {
        check(b"", "not a checkpoint");
        check(
            b"version https://git-lfs.github.com/spec/v1\n",
            "not a checkpoint",
        );
        check(
            b"\x80\x02K\x01.",
            "does not start with torch's magic number",
        );
        check(b"PK\x03\x04", "the zip archive cannot be read");
    }

    #[test]
    fn damaged_files_never_panic_and_never_list_what_is_outside() {
        let inside = |bytes: &[u8]| {
            for tensor in list_tensors(bytes).unwrap_or_default() {
                let elements: usize = tensor.shape.iter().product();
                assert_eq!(elements * tensor.dtype.size(), tensor.length);
                assert!(tensor.offset + tensor.length as u64 <= bytes.len() as u64);
            }
        };
        for whole in PLAIN.into_iter().chain([fixture!("little_endian.bin")]) {
            for length in 0..whole.len() {
                assert!(
                    list_tensors(&whole[..length]).is_err(),
                    "cut after {length} bytes"
                );
            }
            let mut damaged = whole.to_vec();
            for at in 0..whole.len() {
                for flipped in [0x01, 0x80, 0xff, whole[at], whole[at] ^ b'.'] {
                    damaged[at] = whole[at] ^ flipped;
                    inside(&damaged);
                }
                damaged[at] = whole[at];
            }
        }
    }
}
