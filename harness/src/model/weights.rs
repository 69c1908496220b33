//! The weights as the harness holds them: one memory map, hashed, checked, and read by the oracle.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use driftgauge_protocol::{BertConfig, Dtype, FileIdentity, WeightsFile, widen};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::tensor::{SafeTensors, TensorView};

use super::file::MappedFile;
use super::{ModelError, names, torch_file};

/// The tensors of a checkpoint under their canonical names.
#[derive(Debug)]
pub struct ModelWeights {
    map: Arc<Mmap>,
    tensors: BTreeMap<String, Place>,
    file: WeightsFile,
    naming: names::Naming,
    dtypes: Vec<Dtype>,
    parameters: usize,
    /// Keeps the converted copy of a PyTorch checkpoint alive.
    _converted: Option<tempfile::NamedTempFile>,
}

#[derive(Debug, Clone)]
struct Place {
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// A tensor inside the memory map.
#[derive(Debug, Clone, Copy)]
pub struct WeightView<'a> {
    /// Number format in which it is stored.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: &'a [usize],
    bytes: &'a [u8],
}

impl WeightView<'_> {
    /// All elements as `f64`, exactly.
    pub fn to_f64(&self) -> Vec<f64> {
        self.rows_to_f64(0..self.shape[0])
    }

    /// The rows of the outermost extent as `f64`, exactly.
    pub fn rows_to_f64(&self, rows: std::ops::Range<usize>) -> Vec<f64> {
        let row = self.bytes.len() / self.shape[0];
        widen(self.dtype, &self.bytes[rows.start * row..rows.end * row])
    }
}

impl ModelWeights {
    /// Checks a `model.safetensors` file against the architecture.
    ///
    /// # Errors
    /// [`ModelError`] that names the file and the tensors: missing, of a wrong shape or dtype, or
    /// not finite.
    pub fn from_safetensors(file: &MappedFile, config: &BertConfig) -> Result<Self, ModelError> {
        Self::build(&file.path, file.map.clone(), file.identity, config, None)
    }

    /// Reads a PyTorch checkpoint without executing its pickle, and writes its tensors into a
    /// private safetensors file from which the workers load.
    ///
    /// # Errors
    /// As [`ModelWeights::from_safetensors`], and where the pickle holds anything but tensors.
    pub fn from_torch(file: &MappedFile, config: &BertConfig) -> Result<Self, ModelError> {
        let error = |cause: &dyn std::fmt::Display| ModelError::Weights {
            path: file.path.clone(),
            problem: format!("cannot be read as a PyTorch checkpoint: {cause}"),
        };
        let mut tensors = torch_file::list_tensors(&file.map).map_err(|cause| error(&cause))?;
        leave_out_tied_decoder(&mut tensors);
        let converted = convert(&file.map, &tensors).map_err(|cause| error(&cause))?;
        let opened = MappedFile::open(converted.path())?;
        Self::build(
            &file.path,
            opened.map,
            opened.identity,
            config,
            Some(converted),
        )
    }

    fn build(
        source: &Path,
        map: Arc<Mmap>,
        identity: FileIdentity,
        config: &BertConfig,
        converted: Option<tempfile::NamedTempFile>,
    ) -> Result<Self, ModelError> {
        let error = |problem: String| ModelError::Weights {
            path: source.to_owned(),
            problem,
        };
        if map.starts_with(b"version https://git-lfs") {
            return Err(error(
                "is a Git LFS pointer, not the weights: run `git lfs pull`".to_owned(),
            ));
        }
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|cause| {
            let length = map.len();
            error(format!(
                "not a valid safetensors file: {cause} ({length} bytes)"
            ))
        })?;
        let stored = metadata.tensors();
        let find = |expected: &[names::Expected]| {
            names::resolve(expected, &|name| stored.contains_key(name))
        };
        let mut expected = names::encoder(config);
        let (mut found, missing) = find(&expected);
        if !missing.is_empty() {
            return Err(error(list_missing(&missing, stored.len())));
        }
        let head = names::head(config);
        let (head_names, head_missing) = find(&head);
        // A head is there whole or not at all; the decoder alone is always found when it is tied.
        let has_head = stored
            .keys()
            .any(|name| name.starts_with("cls.predictions."));
        if has_head {
            if !head_missing.is_empty() {
                return Err(error(list_missing(&head_missing, stored.len())));
            }
            check_one_decoder_bias(&map[8 + header..], &metadata).map_err(error)?;
            found.extend(head_names);
            expected.extend(head);
        }
        let mut tensors = BTreeMap::new();
        for tensor in &expected {
            let stored_name = &found[&tensor.name];
            let info = stored[stored_name];
            let dtype = Dtype::try_from(info.dtype)
                .ok()
                .filter(|dtype| *dtype != Dtype::I64)
                .ok_or_else(|| {
                    error(format!(
                        "tensor `{stored_name}` is of dtype {:?}, expected F64, F32, F16 or BF16",
                        info.dtype
                    ))
                })?;
            if info.shape != tensor.shape {
                return Err(error(format!(
                    "tensor `{stored_name}` has shape {:?}, config.json asks for {:?}",
                    info.shape, tensor.shape
                )));
            }
            let (start, end) = (
                8 + header + info.data_offsets.0,
                8 + header + info.data_offsets.1,
            );
            tensors.insert(
                tensor.name.clone(),
                Place {
                    dtype,
                    shape: tensor.shape.clone(),
                    start,
                    end,
                },
            );
        }
        let path = match &converted {
            Some(file) => file.path().to_owned(),
            None => source.canonicalize().unwrap_or_else(|_| source.to_owned()),
        };
        let mut places: Vec<&Place> = tensors.values().collect();
        places.sort_by_key(|place| place.start);
        places.dedup_by_key(|place| place.start);
        let mut dtypes: Vec<Dtype> = places.iter().map(|place| place.dtype).collect();
        dtypes.sort();
        dtypes.dedup();
        let parameters = places
            .iter()
            .map(|place| (place.end - place.start) / place.dtype.size())
            .sum();
        let weights = Self {
            naming: names::naming(&found),
            file: WeightsFile {
                path,
                identity,
                names: found,
            },
            map,
            tensors,
            dtypes,
            parameters,
            _converted: converted,
        };
        weights.check_finite().map_err(error)?;
        Ok(weights)
    }

    /// The tensor with a canonical name; the constructor has made sure that it is there.
    pub fn view(&self, name: &str) -> WeightView<'_> {
        let place = self.tensors.get(name).unwrap_or_else(|| {
            unreachable!("`{name}` was checked when the model was opened");
        });
        let bytes = &self.map[place.start..place.end];
        WeightView {
            dtype: place.dtype,
            shape: &place.shape,
            bytes,
        }
    }

    /// A tensor by its canonical name, if the model has it.
    pub fn find(&self, name: &str) -> Option<WeightView<'_>> {
        self.tensors.contains_key(name).then(|| self.view(name))
    }

    /// What the workers are told about the file.
    pub fn file(&self) -> &WeightsFile {
        &self.file
    }

    /// How the checkpoint spells its names.
    pub fn naming(&self) -> &names::Naming {
        &self.naming
    }

    /// Whether there is a masked-language-model head.
    pub fn has_head(&self) -> bool {
        self.naming.decoder != "none"
    }

    /// Number formats of the stored tensors.
    pub fn dtypes(&self) -> &[Dtype] {
        &self.dtypes
    }

    /// Number of parameters that the architecture uses; a tied decoder counts once.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    fn check_finite(&self) -> Result<(), String> {
        let mut damaged: Vec<String> = self
            .tensors
            .par_iter()
            .filter_map(|(name, place)| {
                let count = count_non_finite(place.dtype, &self.map[place.start..place.end]);
                (count > 0).then(|| format!("`{}` ({count})", self.file.names[name]))
            })
            .collect();
        if damaged.is_empty() {
            return Ok(());
        }
        damaged.sort();
        let more = damaged.len().saturating_sub(5);
        damaged.truncate(5);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        Err(format!(
            "tensors hold NaN or infinite numbers: {}{more}",
            damaged.join(", ")
        ))
    }
}

/// transformers ties `cls.predictions.bias` and `cls.predictions.decoder.bias`; a file that holds
/// both with different numbers means something else to every reader.
fn check_one_decoder_bias(
    data: &[u8],
    metadata: &safetensors::tensor::Metadata,
) -> Result<(), String> {
    let bytes = |name: &str| {
        let (start, end) = metadata.info(name)?.data_offsets;
        data.get(start..end)
    };
    let (one, other) = ("cls.predictions.bias", "cls.predictions.decoder.bias");
    match (bytes(one), bytes(other)) {
        (Some(a), Some(b)) if a != b => {
            Err(format!("`{one}` and `{other}` are both there and differ"))
        }
        _ => Ok(()),
    }
}

fn list_missing(missing: &[String], stored: usize) -> String {
    let shown: Vec<String> = missing
        .iter()
        .take(5)
        .map(|name| format!("`{name}`"))
        .collect();
    let more = missing.len().saturating_sub(shown.len());
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    let count = match missing.len() {
        1 => "a tensor is".to_owned(),
        count => format!("{count} tensors are"),
    };
    format!(
        "{count} missing (the file has {stored}): {}{more}",
        shown.join(", ")
    )
}

/// Counts numbers whose exponent bits are all ones.
fn count_non_finite(dtype: Dtype, bytes: &[u8]) -> usize {
    let (halves, _) = bytes.as_chunks::<2>();
    let (words, _) = bytes.as_chunks::<4>();
    let (doubles, _) = bytes.as_chunks::<8>();
    let half = |mask: u16| {
        halves
            .iter()
            .filter(|h| u16::from_le_bytes(**h) & mask == mask)
            .count()
    };
    match dtype {
        Dtype::F16 => half(0x7c00),
        Dtype::Bf16 => half(0x7f80),
        Dtype::F32 => words
            .iter()
            .filter(|word| !f32::from_le_bytes(**word).is_finite())
            .count(),
        Dtype::F64 => doubles
            .iter()
            .filter(|word| !f64::from_le_bytes(**word).is_finite())
            .count(),
        Dtype::I64 => 0,
    }
}

/// Leaves a decoder out that is the word embeddings under another name, as transformers does when
/// it writes safetensors: names that share numbers cannot stand side by side there.
fn leave_out_tied_decoder(tensors: &mut Vec<torch_file::TorchTensor>) {
    let words: Vec<(u64, usize)> = tensors
        .iter()
        .filter(|tensor| tensor.name.ends_with("embeddings.word_embeddings.weight"))
        .map(|tensor| (tensor.offset, tensor.length))
        .collect();
    tensors.retain(|tensor| {
        let is_decoder = tensor.name == "cls.predictions.decoder.weight";
        !(is_decoder && words.contains(&(tensor.offset, tensor.length)))
    });
}

/// Writes the tensors of a PyTorch checkpoint as safetensors, byte for byte.
fn convert(
    bytes: &[u8],
    tensors: &[torch_file::TorchTensor],
) -> Result<tempfile::NamedTempFile, Box<dyn std::error::Error>> {
    let mut views = Vec::with_capacity(tensors.len());
    let mut total = 0usize;
    for tensor in tensors
        .iter()
        .filter(|tensor| !is_tied_decoder(tensor, tensors))
    {
        let start = usize::try_from(tensor.offset)?;
        let data = start
            .checked_add(tensor.length)
            .and_then(|end| bytes.get(start..end))
            .ok_or_else(|| format!("tensor `{}` lies outside the file", tensor.name))?;
        total += data.len();
        if total > 2 * bytes.len() {
            return Err("its tensors overlap so much that they would fill the disk".into());
        }
        let view = TensorView::new(tensor.dtype.into(), tensor.shape.clone(), data)?;
        views.push((tensor.name.clone(), view));
    }
    let file = tempfile::Builder::new()
        .prefix("driftgauge-")
        .suffix(".safetensors")
        .tempfile()?;
    safetensors::serialize_to_file(views, None, file.path())?;
    Ok(file)
}

/// A decoder that shares its storage with the embeddings; it is found there without being copied.
fn is_tied_decoder(tensor: &torch_file::TorchTensor, all: &[torch_file::TorchTensor]) -> bool {
    let shares = |other: &torch_file::TorchTensor| {
        other.name != tensor.name && (other.offset, &other.shape) == (tensor.offset, &tensor.shape)
    };
    tensor.name.starts_with("cls.predictions.decoder.") && all.iter().any(shares)
}

/// Opens a file for a memory map.
///
/// # Errors
/// What the file system says.
pub(super) fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is only read. A file that is cut short under it would raise SIGBUS, as for
    // every program that maps files; one that is changed is noticed by its identity.
    unsafe { Mmap::map(file) }
}
