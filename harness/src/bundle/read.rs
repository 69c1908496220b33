//! Reads bundles, and trusts nothing in them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use driftgauge_protocol::decode_tensors;
use driftgauge_reports::RunRecord;
use driftgauge_reports::record::ResultRecord;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use zip::CompressionMethod;
use zip::read::{ArchiveOffset, Config, ZipArchive, ZipReadOptions};

use super::{
    BUNDLE_FORMAT, BUNDLE_VERSION, Bundle, BundleError, MANIFEST, Manifest, NORMS, RECORD, Tensors,
    tensors_entry,
};
use crate::judge::digest;
use crate::observed::CLS;

/// A manifest of more bytes is none.
const LARGEST_MANIFEST: u64 = 16 << 20;

/// Reads a bundle and checks all of it.
///
/// # Errors
/// [`BundleError`] that names the file, the entry and what is wrong.
pub fn read(path: &Path) -> Result<Bundle, BundleError> {
    let io_error = |source| BundleError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io_error)?;
    let length = file.metadata().map_err(io_error)?.len();
    // Only offsets from the start of the file count.
    let config = Config {
        archive_offset: ArchiveOffset::Known(0),
    };
    let archive = ZipArchive::with_config(config, BufReader::new(file));
    let archive = archive.map_err(|error| BundleError::Archive {
        path: path.to_owned(),
        problem: format!("is cut off, or not a ZIP archive ({error})"),
    })?;
    Reading {
        path,
        length,
        archive,
    }
    .read()
}

struct Reading<'a, R> {
    path: &'a Path,
    /// Bytes of the file.
    length: u64,
    archive: ZipArchive<R>,
}

impl<R: Read + Seek> Reading<'_, R> {
    fn read(mut self) -> Result<Bundle, BundleError> {
        if self.archive.has_duplicate_names() {
            return Err(self.archive_error("has two entries of one name"));
        }
        let manifest = self.manifest()?;
        self.check_names(&manifest)?;
        let mut content = BTreeMap::new();
        let mut left = self.length;
        for (name, entry) in &manifest.entries {
            let bytes = self.entry(name, left)?;
            left -= bytes.len() as u64;
            if bytes.len() as u64 != entry.size {
                let problem = format!(
                    "has {} bytes, the manifest says {}",
                    bytes.len(),
                    entry.size
                );
                return Err(self.entry_error(name, problem));
            }
            let found = hex::encode(Sha256::digest(&bytes));
            if found != entry.sha256 {
                let problem = format!("has SHA-256 {found}, the manifest says {}", entry.sha256);
                return Err(self.entry_error(name, problem));
            }
            content.insert(name.as_str(), bytes);
        }
        let record = self.record(&content[RECORD])?;
        let norms = serde_json::from_slice(&content[NORMS]).map_err(|error| {
            self.entry_error(NORMS, format!("is not what it should be: {error}"))
        })?;
        if let Some(more) = content.keys().nth(record.targets.len() + 2) {
            return Err(self.entry_error(more, "is of no target of the record"));
        }
        let mut tensors = BTreeMap::new();
        for (index, target) in record.targets.iter().enumerate() {
            let name = tensors_entry(index);
            let stated = manifest
                .entries
                .get(&name)
                .and_then(|entry| entry.target.as_deref());
            let Some(bytes) = content.remove(name.as_str()) else {
                return Err(self.entry_error(&name, "is missing"));
            };
            if stated != Some(&target.target) {
                let problem = format!("is not of target `{}`, as in the record", target.target);
                return Err(self.entry_error(&name, problem));
            }
            let of_target = decode_tensors(&bytes)
                .map_err(|error| self.entry_error(&name, format!("cannot be read: {error}")))?;
            let results = record.results.iter().filter(|r| r.target == target.target);
            check_tensors(results, &of_target)
                .map_err(|problem| self.entry_error(&name, problem))?;
            tensors.insert(target.target.clone(), of_target);
        }
        Ok(Bundle {
            record,
            norms,
            tensors,
        })
    }

    fn manifest(&mut self) -> Result<Manifest, BundleError> {
        /// What every version has.
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let bytes = self.entry(MANIFEST, self.length.min(LARGEST_MANIFEST))?;
        let no_manifest =
            |error: serde_json::Error| format!("is not the manifest of a bundle: {error}");
        let head: Head = serde_json::from_slice(&bytes)
            .map_err(|error| self.entry_error(MANIFEST, no_manifest(error)))?;
        if head.format != BUNDLE_FORMAT {
            let problem = format!("has format `{}`, expected `{BUNDLE_FORMAT}`", head.format);
            return Err(self.entry_error(MANIFEST, problem));
        }
        if head.version > BUNDLE_VERSION {
            return Err(BundleError::Newer {
                path: self.path.to_owned(),
                version: head.version,
            });
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| self.entry_error(MANIFEST, no_manifest(error)))
    }

    /// Exactly the entries of the manifest, and exactly the names that a bundle has.
    fn check_names(&self, manifest: &Manifest) -> Result<(), BundleError> {
        for name in self.archive.file_names_raw() {
            let name = String::from_utf8_lossy(name);
            if name != MANIFEST && !manifest.entries.contains_key(&*name) {
                return Err(self.entry_error(&name, "is not in the manifest"));
            }
        }
        for name in manifest.entries.keys() {
            if ![RECORD, NORMS].contains(&name.as_str()) && !is_tensors_entry(name) {
                return Err(self.entry_error(name, "does not belong into a bundle"));
            }
        }
        match [RECORD, NORMS]
            .into_iter()
            .find(|name| !manifest.entries.contains_key(*name))
        {
            Some(missing) => Err(self.entry_error(missing, "is missing")),
            None => Ok(()),
        }
    }

    /// The bytes of an entry that is stored as it is and has at most `most` bytes.
    fn entry(&mut self, name: &str, most: u64) -> Result<Vec<u8>, BundleError> {
        let Some(index) = self.archive.index_for_name_raw(name.as_bytes()) else {
            return Err(self.entry_error(name, "is missing"));
        };
        let problem = match self.stored(index, most) {
            Ok(bytes) => return Ok(bytes),
            Err(problem) => problem,
        };
        Err(self.entry_error(name, problem))
    }

    fn stored(&mut self, index: usize, most: u64) -> Result<Vec<u8>, String> {
        let entry = self
            .archive
            .by_index_raw(index)
            .map_err(|error| error.to_string())?;
        let size = entry.size();
        if entry.encrypted() {
            return Err("is encrypted".to_owned());
        }
        if entry.compression() != CompressionMethod::Stored || entry.compressed_size() != size {
            return Err("is compressed, expected stored as it is".to_owned());
        }
        if size > most {
            return Err(format!("claims {size} bytes, at most {most} are possible"));
        }
        drop(entry);
        // Damage shows in the SHA-256, for which there is a clearer message.
        let options = ZipReadOptions::new().ignore_crc32(true);
        let cannot = |error: String| format!("cannot be read: {error}");
        let mut entry = self
            .archive
            .by_index_with_options(index, options)
            .map_err(|error| cannot(error.to_string()))?;
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        (&mut entry)
            .take(size)
            .read_to_end(&mut bytes)
            .map_err(|error| cannot(error.to_string()))?;
        Ok(bytes)
    }

    fn record(&self, bytes: &[u8]) -> Result<RunRecord, BundleError> {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| self.entry_error(RECORD, format!("is not text: {error}")))?;
        RunRecord::from_json(text).map_err(|source| BundleError::Record {
            path: self.path.to_owned(),
            source,
        })
    }

    fn archive_error(&self, problem: &str) -> BundleError {
        BundleError::Archive {
            path: self.path.to_owned(),
            problem: problem.to_owned(),
        }
    }

    fn entry_error(&self, entry: &str, problem: impl Into<String>) -> BundleError {
        BundleError::Entry {
            path: self.path.to_owned(),
            entry: entry.to_owned(),
            problem: problem.into(),
        }
    }
}

/// The tensors must be exactly those that the record speaks of.
fn check_tensors<'a>(
    results: impl Iterator<Item = &'a ResultRecord>,
    tensors: &Tensors,
) -> Result<(), String> {
    let mut expected = 0;
    for result in results {
        // CLS vectors are rows of the last hidden state.
        for (name, observation) in result.observations.iter().filter(|(name, _)| *name != CLS) {
            expected += 1;
            let key = format!("{}/{}/{name}", result.suite, result.case);
            let Some(tensor) = tensors.get(&key) else {
                return Err(format!("lacks the tensor `{key}`"));
            };
            let is_same = tensor.dtype().name() == observation.dtype
                && tensor.shape() == observation.shape
                && digest(&tensor.to_f64()) == observation.digest;
            if !is_same {
                return Err(format!(
                    "holds another tensor `{key}` than the record is about"
                ));
            }
        }
    }
    if tensors.len() != expected {
        let (held, known) = (tensors.len(), expected);
        return Err(format!("holds {held} tensors, the record is about {known}"));
    }
    Ok(())
}

fn is_tensors_entry(name: &str) -> bool {
    let index = name
        .strip_prefix("tensors/")
        .and_then(|rest| rest.strip_suffix(".safetensors"));
    let index = index.and_then(|index| index.parse().ok());
    index.is_some_and(|index| tensors_entry(index) == name)
}
