//! The weights of a model, as a worker reads them.
//!
//! The harness hashes the file and tells the workers which file that was ([`FileIdentity`]) and
//! under which name each tensor stands in it. A worker checks the identity when it opens the file
//! and again after it has read everything, so what was hashed is what is loaded.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use safetensors::{SafeTensorError, tensor::Metadata};
use serde::{Deserialize, Serialize};

use crate::fault::{self, Fault, Values, WeightEdit};
use crate::{Dtype, Failure, Tensor, TensorError};

/// A safetensors file and the names of its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightsFile {
    /// Where it is; symbolic links are already resolved.
    pub path: PathBuf,
    /// Which state of the file was hashed.
    pub identity: FileIdentity,
    /// From the canonical name of a tensor to its name in the file. Canonical names are those of
    /// transformers' `BertForMaskedLM`: `bert.encoder.layer.0.attention.self.query.weight`,
    /// `…LayerNorm.weight` (never `gamma`), `cls.predictions.decoder.weight` (also when it is tied
    /// to the word embeddings), `cls.predictions.decoder.bias` (also when it is stored as
    /// `cls.predictions.bias`).
    pub names: BTreeMap<String, String>,
}

/// Tells one state of a file from another without reading it: replacing or changing the file
/// changes at least one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileIdentity {
    /// Length in bytes.
    pub size: u64,
    /// Device that holds the file.
    pub device: u64,
    /// Inode number on that device.
    pub inode: u64,
    /// Last change of the content: seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Last change of the inode: seconds and nanoseconds.
    pub changed: (i64, i64),
}

impl FileIdentity {
    /// The identity of an open file.
    ///
    /// # Errors
    /// Where the file system does not answer.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            size: metadata.size(),
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// Why weights could not be read.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be read.
    #[error("cannot read `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
    /// The file is not the one that the harness hashed.
    #[error("`{path}` changed after it was hashed")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The file's header is not that of a safetensors file.
    #[error("`{path}` is not a valid safetensors file")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: SafeTensorError,
    },
    /// The file has no such tensor.
    #[error("`{path}` has no tensor `{name}`")]
    Missing {
        /// The file.
        path: PathBuf,
        /// Canonical name of the tensor.
        name: String,
    },
    /// The fault does not fit the model.
    #[error("the fault does not fit the model: {why}")]
    Fault {
        /// What does not fit.
        why: String,
    },
    /// The tensor cannot be used.
    #[error("tensor `{name}` of `{path}` cannot be used")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Canonical name of the tensor.
        name: String,
        /// What is wrong with it.
        #[source]
        source: TensorError,
    },
}

impl From<WeightsError> for Failure {
    fn from(error: WeightsError) -> Self {
        let cause = std::error::Error::source(&error);
        let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
        Failure::error(format!("{error}{cause}"))
    }
}

/// Where a tensor lies in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Number format in the file.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: usize,
}

/// An opened weights file. Tensors are read one by one and never through a memory map, so a worker
/// holds each weight once.
#[derive(Debug)]
pub struct Weights {
    file: File,
    path: PathBuf,
    identity: FileIdentity,
    names: BTreeMap<String, String>,
    stored: BTreeMap<String, Location>,
    edits: Vec<WeightEdit>,
    /// From the canonical names of changed tensors to names that no stored tensor has.
    changed: BTreeMap<String, String>,
}

impl Weights {
    /// Opens the file, checks that it is the one that was hashed, and reads its header.
    ///
    /// # Errors
    /// [`WeightsError`] for a file that cannot be read, changed, or is not safetensors.
    pub fn open(weights: &WeightsFile) -> Result<Self, WeightsError> {
        let path = weights.path.clone();
        let io_error = |source| WeightsError::Io {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(io_error)?;
        let size = file.metadata().map_err(io_error)?.len();
        let stored = read_header(&file, size).map_err(|error| match error {
            HeaderError::Io(source) => WeightsError::Io {
                path: path.clone(),
                source,
            },
            HeaderError::Format(source) => WeightsError::Header {
                path: path.clone(),
                source,
            },
        })?;
        let opened = Self {
            file,
            path,
            identity: weights.identity,
            names: weights.names.clone(),
            stored,
            edits: Vec::new(),
            changed: BTreeMap::new(),
        };
        opened.check_unchanged()?;
        Ok(opened)
    }

    /// The same weights under a fault.
    #[must_use]
    pub fn under(mut self, fault: Option<&Fault>) -> Self {
        self.edits = fault
            .iter()
            .flat_map(|fault| fault.weight_edits())
            .cloned()
            .collect();
        let tensors = self.edits.iter().map(|edit| &edit.tensor);
        self.changed = tensors
            .map(|tensor| (tensor.clone(), format!("changed {tensor}")))
            .collect();
        self
    }

    /// Whether a fault changes the tensor with a canonical name: then only [`Weights::read`] knows it.
    pub fn is_changed(&self, name: &str) -> bool {
        self.changed.contains_key(name)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Canonical names of the tensors there are.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// Name in the file of the tensor with a canonical name; tensors of one name are one. One that a fault changes
    /// has a name of its own.
    ///
    /// # Errors
    /// [`WeightsError::Missing`].
    pub fn stored_name(&self, name: &str) -> Result<&str, WeightsError> {
        match self.changed.get(name) {
            Some(changed) => Ok(changed),
            None => self.name_in_file(name),
        }
    }

    fn name_in_file(&self, name: &str) -> Result<&str, WeightsError> {
        self.names
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| WeightsError::Missing {
                path: self.path.clone(),
                name: name.to_owned(),
            })
    }

    /// Where the tensor with a canonical name lies. Also of one that a fault changes: its shape stays.
    ///
    /// # Errors
    /// [`WeightsError::Missing`].
    pub fn location(&self, name: &str) -> Result<&Location, WeightsError> {
        let stored = self.name_in_file(name)?;
        self.stored
            .get(stored)
            .ok_or_else(|| WeightsError::Missing {
                path: self.path.clone(),
                name: name.to_owned(),
            })
    }

    /// Reads the tensor with a canonical name, in the dtype it is stored in, or in f32 where a fault
    /// changes it.
    ///
    /// # Errors
    /// [`WeightsError`] for a missing tensor, a file that cannot be read, or a fault that does not fit.
    pub fn read(&self, name: &str) -> Result<Tensor, WeightsError> {
        if !self.is_changed(name) {
            return self.read_stored(name);
        }
        let fault = |why| WeightsError::Fault { why };
        let stored = |name: &str| {
            let tensor = self.read_stored(name).map_err(|error| error.to_string())?;
            Ok(Values {
                numbers: tensor.to_f64(),
                shape: tensor.shape().to_vec(),
            })
        };
        let values = fault::changed(self.edits.iter(), name, stored).map_err(fault)?;
        let Some(Values { numbers, shape }) = values else {
            return self.read_stored(name);
        };
        let numbers: Vec<f32> = numbers.into_iter().map(|number| number as f32).collect();
        Tensor::from_f32(shape, &numbers).map_err(|source| WeightsError::Tensor {
            path: self.path.clone(),
            name: name.to_owned(),
            source,
        })
    }

    fn read_stored(&self, name: &str) -> Result<Tensor, WeightsError> {
        let location = self.location(name)?;
        let mut bytes = vec![0u8; location.length];
        self.file
            .read_exact_at(&mut bytes, location.offset)
            .map_err(|source| WeightsError::Io {
                path: self.path.clone(),
                source,
            })?;
        Tensor::new(location.dtype, location.shape.clone(), bytes).map_err(|source| {
            WeightsError::Tensor {
                path: self.path.clone(),
                name: name.to_owned(),
                source,
            }
        })
    }

    /// Checks that the file at the path is still the one that was hashed. To be called again when
    /// everything has been read.
    ///
    /// # Errors
    /// [`WeightsError::Changed`], or what the file system says.
    pub fn check_unchanged(&self) -> Result<(), WeightsError> {
        let io_error = |source| WeightsError::Io {
            path: self.path.clone(),
            source,
        };
        let opened = FileIdentity::of(&self.file).map_err(io_error)?;
        let named = File::open(&self.path).and_then(|file| FileIdentity::of(&file));
        if opened != self.identity || named.map_err(io_error)? != self.identity {
            return Err(WeightsError::Changed {
                path: self.path.clone(),
            });
        }
        Ok(())
    }
}

enum HeaderError {
    Io(io::Error),
    Format(SafeTensorError),
}

/// Reads the header alone and says where each tensor of a usable dtype lies.
fn read_header(file: &File, size: u64) -> Result<BTreeMap<String, Location>, HeaderError> {
    let mut length = [0u8; 8];
    file.read_exact_at(&mut length, 0)
        .map_err(HeaderError::Io)?;
    let header_length = u64::from_le_bytes(length);
    // A lying length must not become an allocation.
    if header_length > size.saturating_sub(8) {
        return Err(HeaderError::Format(SafeTensorError::InvalidHeaderLength));
    }
    let mut header = vec![0u8; header_length as usize];
    file.read_exact_at(&mut header, 8)
        .map_err(HeaderError::Io)?;
    // Deserialising checks that the tensors are well formed, adjacent and in order.
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| {
        HeaderError::Format(SafeTensorError::InvalidHeaderDeserialization(error))
    })?;
    let data = 8 + header_length;
    let mut stored = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        if data + end as u64 > size {
            return Err(HeaderError::Format(
                SafeTensorError::MetadataIncompleteBuffer,
            ));
        }
        if let Ok(dtype) = Dtype::try_from(info.dtype) {
            let shape = info.shape.clone();
            let offset = data + start as u64;
            stored.insert(
                name,
                Location {
                    dtype,
                    shape,
                    offset,
                    length: end - start,
                },
            );
        }
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::encode_tensors;

    fn weights_file() -> (tempfile::NamedTempFile, WeightsFile) {
        let tensor = Tensor::from_f32(vec![2, 2], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        let tensors = BTreeMap::from([("LayerNorm.gamma".to_owned(), tensor)]);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&encode_tensors(&tensors).unwrap()).unwrap();
        let weights = WeightsFile {
            path: file.path().to_owned(),
            identity: FileIdentity::of(file.as_file()).unwrap(),
            names: BTreeMap::from([("LayerNorm.weight".to_owned(), "LayerNorm.gamma".to_owned())]),
        };
        (file, weights)
    }

    #[test]
    fn tensors_are_found_by_their_canonical_name() {
        let (_file, weights) = weights_file();
        let weights = Weights::open(&weights).unwrap();
        let tensor = weights.read("LayerNorm.weight").unwrap();
        assert_eq!(tensor.to_f32(), vec![1.0, 2.0, 3.0, 4.0]);
        assert!(matches!(
            weights.read("LayerNorm.gamma"),
            Err(WeightsError::Missing { .. })
        ));
        weights.check_unchanged().unwrap();
    }

    #[test]
    fn a_file_that_changed_after_hashing_is_refused() {
        let (mut file, weights) = weights_file();
        let opened = Weights::open(&weights).unwrap();
        file.write_all(b"!").unwrap();
        assert!(matches!(
            opened.check_unchanged(),
            Err(WeightsError::Changed { .. })
        ));
        assert!(matches!(
            Weights::open(&weights),
            Err(WeightsError::Changed { .. })
        ));
    }

    #[test]
    fn a_file_that_is_not_safetensors_is_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[0xff; 64]).unwrap();
        let identity = FileIdentity::of(file.as_file()).unwrap();
        let path = file.path().to_owned();
        let error = Weights::open(&WeightsFile {
            path,
            identity,
            names: BTreeMap::new(),
        });
        assert!(matches!(error, Err(WeightsError::Header { .. })));
    }
}
