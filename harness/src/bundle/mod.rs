//! Bundles: a record with its tensors in one file, to move to another machine.
//!
//! A bundle is a ZIP archive whose entries are stored as they are: `record.json`, to the byte the file
//! that the run wrote; for each target `tensors/<n>.safetensors` with what it delivered, a tensor
//! `suite/case/observation` for each observation, padding dropped; `norms.json`, the norm of the truth of
//! each observation, so that tensors can be compared where there is no model; and `manifest.json` with
//! size and SHA-256 of all others. The same run gives the same bytes.
//!
//! Reading trusts nothing: what is not in the manifest, what has another size or digest, and tensors that
//! are not those of the record are refused, and no more is read than the file has bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use driftgauge_protocol::{Tensor, encode_tensors};
use driftgauge_reports::RunRecord;
use driftgauge_reports::record::ReadError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::extract::{Part, extract};
use crate::judge::Bench;
use crate::output::write_whole_with;
use crate::run::TargetOutcome;

mod read;
#[cfg(test)]
mod tests;

pub use read::read;

/// The `format` of every bundle.
pub const BUNDLE_FORMAT: &str = "driftgauge-bundle";
/// Raised when an older driftgauge could not read what a newer one writes.
pub const BUNDLE_VERSION: u32 = 1;

const MANIFEST: &str = "manifest.json";
const RECORD: &str = "record.json";
const NORMS: &str = "norms.json";

/// Tensors by `suite/case/observation`.
pub type Tensors = BTreeMap<String, Tensor>;

/// What a bundle holds.
#[derive(Debug)]
pub struct Bundle {
    /// The record.
    pub record: RunRecord,
    /// Norm of the truth of each observation, by `suite/case/observation`.
    pub norms: BTreeMap<String, f64>,
    /// What each target delivered, by target.
    pub tensors: BTreeMap<String, Tensors>,
}

/// What is said of all other entries.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: String,
    version: u32,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    size: u64,
    sha256: String,
    /// The target whose tensors these are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

impl Entry {
    fn of(bytes: &[u8], target: Option<String>) -> Self {
        Self {
            size: bytes.len() as u64,
            sha256: hex::encode(Sha256::digest(bytes)),
            target,
        }
    }
}

/// Why a bundle cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file cannot be read.
    #[error("cannot read `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
    /// Not a whole archive, or not one of ours.
    #[error("bundle `{path}` {problem}")]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// One entry is wrong.
    #[error("bundle `{path}`: entry `{entry}` {problem}")]
    Entry {
        /// The file.
        path: PathBuf,
        /// Name of the entry.
        entry: String,
        /// What is wrong.
        problem: String,
    },
    /// A version that this driftgauge does not know.
    #[error(
        "bundle `{path}` is of version {version}: a newer driftgauge wrote it, this one reads \
         version {BUNDLE_VERSION}"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Its record cannot be read.
    #[error("bundle `{path}`: entry `{RECORD}` cannot be read")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReadError,
    },
}

impl BundleError {
    /// The next step for the user.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } => "name a record.json, or a file that `driftgauge run --bundle` wrote",
            Self::Newer { .. } => "update driftgauge",
            Self::Record { source, .. } => crate::evidence::record_hint(source),
            Self::Archive { .. } | Self::Entry { .. } => {
                "copy it again, or write it anew with `driftgauge run --bundle`"
            }
        }
    }
}

/// What a target delivered for each case, padding dropped; what is damaged is left out, as in the record.
pub fn delivered(bench: Bench<'_>, outcome: &TargetOutcome) -> Tensors {
    let mut tensors = Tensors::new();
    let Some(loaded) = &outcome.loaded else {
        return tensors;
    };
    let config = &bench.model.config;
    for (job, answer) in bench.plan.jobs.iter().zip(&outcome.jobs) {
        let Ok(answer) = answer else { continue };
        for case in &bench.plan.cases[job.cases.clone()] {
            for name in &loaded.observations {
                let parts = Part::of(job, case);
                match extract(name, answer, &job.batch, &parts, loaded.dtype, config) {
                    // Cases without a mask have no logits.
                    Ok(tensor) if tensor.shape()[0] > 0 => {
                        tensors.insert(format!("{}/{name}", case.id()), tensor);
                    }
                    _ => {}
                }
            }
        }
    }
    tensors
}

/// Writes a bundle whole or not at all: `record` is the text of the record, `targets` are its targets with
/// what they delivered.
///
/// # Errors
/// What the file system says; the file at `path` is then as it was.
pub fn write(
    path: &Path,
    record: &str,
    norms: &BTreeMap<String, f64>,
    targets: impl Iterator<Item = (String, Tensors)>,
) -> io::Result<()> {
    write_whole_with(path, |file| {
        let mut entries = BTreeMap::new();
        let mut archive = ZipWriter::new(file);
        let mut add = |name: String, bytes: &[u8], target: Option<String>| {
            add(&mut archive, &name, bytes)?;
            entries.insert(name, Entry::of(bytes, target));
            io::Result::Ok(())
        };
        add(RECORD.to_owned(), record.as_bytes(), None)?;
        add(NORMS.to_owned(), &serde_json::to_vec(norms)?, None)?;
        for (index, (target, tensors)) in targets.enumerate() {
            let bytes = encode_tensors(&tensors).map_err(io::Error::other)?;
            add(tensors_entry(index), &bytes, Some(target))?;
        }
        let manifest = Manifest {
            format: BUNDLE_FORMAT.to_owned(),
            version: BUNDLE_VERSION,
            entries,
        };
        let manifest = serde_json::to_vec_pretty(&manifest)?;
        self::add(&mut archive, MANIFEST, &manifest)?;
        archive.finish().map_err(io::Error::other).map(drop)
    })
}

fn tensors_entry(index: usize) -> String {
    format!("tensors/{index}.safetensors")
}

fn add(archive: &mut ZipWriter<&mut File>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644)
        .large_file(bytes.len() >= u32::MAX as usize);
    archive
        .start_file(name, options)
        .map_err(io::Error::other)?;
    archive.write_all(bytes)
}
