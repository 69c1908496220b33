//! Evidence of an earlier run: a `record.json`, or a bundle that holds the tensors, too.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use driftgauge_protocol::{Tensor, observation};
use driftgauge_reports::RunRecord;
use driftgauge_reports::record::{ReadError, ResultRecord};
use rayon::prelude::*;

use crate::bundle::{self, BundleError, Tensors};
use crate::measure::{apart, centre_rows};
use crate::observed::{CLS, first_rows_of};

/// How every ZIP archive starts that holds anything.
const ZIP: &[u8] = b"PK\x03\x04";
/// A record of more bytes is none.
const LARGEST_RECORD: u64 = 1 << 30;

/// What one file says of a run.
#[derive(Debug)]
pub struct Evidence {
    /// The record.
    pub record: RunRecord,
    /// The tensors, where the file is a bundle.
    pub tensors: Option<Delivered>,
}

/// The tensors of a bundle.
#[derive(Debug)]
pub struct Delivered {
    /// Norm of the truth of each observation, by `suite/case/observation`.
    pub norms: BTreeMap<String, f64>,
    /// What each target delivered, by target.
    pub targets: BTreeMap<String, Tensors>,
}

/// Why a file is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// The file cannot be read.
    #[error("cannot read `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
    /// It is neither a record nor a bundle.
    #[error("`{path}` is neither a record nor a bundle: {problem}")]
    Neither {
        /// The file.
        path: PathBuf,
        /// What it is.
        problem: &'static str,
    },
    /// It looks like a record and cannot be read as one.
    #[error("record `{path}` cannot be read")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// It is a bundle that cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

impl EvidenceError {
    /// The next step for the user.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } | Self::Neither { .. } => {
                "name a record.json, or a file that `driftgauge run --bundle` wrote"
            }
            Self::Record { source, .. } => record_hint(source),
            Self::Bundle(error) => error.hint(),
        }
    }
}

/// The next step where a record cannot be read.
pub fn record_hint(error: &ReadError) -> &'static str {
    match error {
        ReadError::Newer(..) => "a newer driftgauge wrote it: update this one",
        ReadError::Older(..) => "run the cases again: older records are not converted",
        ReadError::Json(_) | ReadError::Format(_) => {
            "copy it again, or write it anew with `driftgauge run`"
        }
    }
}

/// Reads a record or a bundle; its content says which it is.
///
/// # Errors
/// [`EvidenceError`] that names the file.
pub fn read(path: &Path) -> Result<Evidence, EvidenceError> {
    let io_error = |source| EvidenceError::Io {
        path: path.to_owned(),
        source,
    };
    let neither = |problem| EvidenceError::Neither {
        path: path.to_owned(),
        problem,
    };
    let mut file = File::open(path).map_err(io_error)?;
    if file.metadata().map_err(io_error)?.is_dir() {
        return Err(neither("it is a folder"));
    }
    let mut start = Vec::new();
    (&mut file)
        .take(ZIP.len() as u64)
        .read_to_end(&mut start)
        .map_err(io_error)?;
    if start == ZIP {
        let bundle = bundle::read(path)?;
        return Ok(Evidence {
            record: bundle.record,
            tensors: Some(Delivered {
                norms: bundle.norms,
                targets: bundle.tensors,
            }),
        });
    }
    file.take(LARGEST_RECORD)
        .read_to_end(&mut start)
        .map_err(io_error)?;
    let text = std::str::from_utf8(&start).map_err(|_| neither("it is not text"))?;
    match text.trim_start().chars().next() {
        None => Err(neither("it is empty")),
        Some('{') => match RunRecord::from_json(text) {
            Ok(record) => Ok(Evidence {
                record,
                tensors: None,
            }),
            Err(source) => Err(EvidenceError::Record {
                path: path.to_owned(),
                source,
            }),
        },
        Some(_) => Err(neither("it is other text")),
    }
}

/// Distances between what a target of one run and a target of another delivered, in units of the norm of
/// the truth, by `suite/case/observation`; `None` where a file holds no tensors. Numbers of different
/// shape have no distance.
pub fn distances(a: (&Evidence, &str), b: (&Evidence, &str)) -> Option<BTreeMap<String, f64>> {
    let (of_a, of_b) = (a.0.tensors.as_ref()?, b.0.tensors.as_ref()?);
    let (one, other) = (of_a.targets.get(a.1)?, of_b.targets.get(b.1)?);
    let results: Vec<&ResultRecord> =
        a.0.record
            .results
            .iter()
            .filter(|r| r.target == a.1)
            .collect();
    let distances = results.par_iter().flat_map_iter(|result| {
        let id = format!("{}/{}", result.suite, result.case);
        result.observations.keys().filter_map(move |name| {
            let key = format!("{id}/{name}");
            let source = format!("{id}/{}", source(result, name)?);
            let (one, other) = (one.get(&source)?, other.get(&source)?);
            if one == other {
                return Some((key, 0.0));
            }
            if one.shape() != other.shape() {
                return None;
            }
            let norm = *of_a.norms.get(&key)?;
            let (one, other) = (values(one, result, name)?, values(other, result, name)?);
            Some((key, apart(&one, &other, norm)))
        })
    });
    Some(distances.collect())
}

/// The observation from which another one is taken.
fn source(result: &ResultRecord, name: &str) -> Option<String> {
    if name != CLS {
        return Some(name.to_owned());
    }
    let layers = result.observations.keys();
    let last = layers
        .filter_map(|name| observation::hidden_layer(name))
        .max()?;
    Some(observation::hidden(last))
}

/// A tensor as it is compared; `None` where it cannot be what it is said to be.
fn values(tensor: &Tensor, result: &ResultRecord, name: &str) -> Option<Vec<f64>> {
    let &[height, width] = tensor.shape() else {
        return None;
    };
    if width == 0 {
        return None;
    }
    let mut values = tensor.to_f64();
    if name == observation::LOGITS {
        centre_rows(&mut values, width);
    } else if name == CLS {
        let lengths: Vec<usize> = result
            .tokens
            .iter()
            .map(|tokens| tokens.ids.len())
            .collect();
        if lengths.contains(&0) || lengths.iter().sum::<usize>() != height {
            return None;
        }
        values = first_rows_of(lengths.into_iter(), &values, width);
    }
    Some(values)
}
