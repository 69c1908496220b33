//! The cache of predictions: a folder of the user's, that may vanish at any time.
//!
//! One file for each model, dtype and arithmetic. A file that cannot be read, was changed, or was
//! written by another version counts as empty; one that cannot be written costs time at the next run and
//! nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::Model;
use crate::oracle::{Noise, Sequence};
use crate::output;
use crate::plan::{Plan, PlannedCase};
use crate::predict::{Prediction, predict};

/// Raised when the noise model or what is kept of it changes.
const VERSION: u32 = 4;

/// A folder of predictions.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CacheFile {
    version: u32,
    /// SHA-256 of the cases as they stand in the file: budgets come from them.
    sha256: String,
    cases: BTreeMap<String, Prediction>,
}

/// Predictions of every case of a plan.
#[derive(Debug, Clone)]
pub struct Predicted {
    /// In the order of the plan.
    pub cases: Vec<Prediction>,
    /// How many of them had to be computed.
    pub computed: usize,
    /// Why they could not be kept, where they could not.
    pub not_kept: Option<String>,
}

impl Cache {
    /// The folder that `DRIFTGAUGE_CACHE` names, or the one for caches of this user.
    pub fn find() -> Self {
        let named = std::env::var_os("DRIFTGAUGE_CACHE").filter(|name| !name.is_empty());
        let usual = || dirs::cache_dir().map(|folder| folder.join("driftgauge"));
        Self {
            folder: named.map(PathBuf::from).or_else(usual),
        }
    }

    /// A cache in a certain folder, or none at all.
    pub fn at(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// Predictions of all cases of a plan; computes what is not there, and keeps it.
    pub fn predictions(&self, model: &Model, plan: &Plan, noise: &Noise) -> Predicted {
        let file = self.file(model, noise);
        let mut known = file.as_deref().map(read).unwrap_or_default();
        let keys: Vec<String> = plan
            .cases
            .iter()
            .map(|case| key(case, &plan.sequences))
            .collect();
        let mut missing: Vec<(&String, &PlannedCase)> = keys
            .iter()
            .zip(&plan.cases)
            .filter(|(key, _)| !known.contains_key(*key))
            .collect();
        missing.sort_by_key(|(key, _)| *key);
        missing.dedup_by_key(|(key, _)| *key);
        let computed = missing.len();
        let mut not_kept = None;
        if !missing.is_empty() {
            let cases: Vec<&PlannedCase> = missing.iter().map(|(_, case)| *case).collect();
            let predictions = predict(model, plan, &cases, noise);
            let keys = missing.iter().map(|(key, _)| (*key).clone());
            known.extend(keys.zip(predictions));
            not_kept = file.and_then(|file| write(&file, &known).err());
        }
        let cases = keys.iter().map(|key| known[key].clone()).collect();
        Predicted {
            cases,
            computed,
            not_kept,
        }
    }

    fn file(&self, model: &Model, noise: &Noise) -> Option<PathBuf> {
        let mut hash = Sha256::new();
        for file in &model.files {
            hash.update(&file.sha256);
        }
        let Noise {
            dtype,
            arithmetic,
            shortcut,
            by_stage,
            samples,
            seed,
        } = noise;
        hash.update(format!(
            "{VERSION} {dtype} {arithmetic:?} {shortcut:?} {by_stage} {samples} {seed}"
        ));
        let digest = hex::encode(hash.finalize());
        let name = format!("noise-{dtype}-{}.json", &digest[..32]);
        Some(self.folder.as_ref()?.join(name))
    }
}

/// Identifies a case by what its prediction depends on.
fn key(case: &PlannedCase, sequences: &[Sequence]) -> String {
    let mut hash = Sha256::new_with_prefix(case.case.task.name());
    for sequence in &sequences[case.sequences.clone()] {
        hash.update(format!("{sequence:?}"));
    }
    hex::encode(&hash.finalize()[..16])
}

fn read(path: &Path) -> BTreeMap<String, Prediction> {
    let bytes = std::fs::read(path).unwrap_or_default();
    match serde_json::from_slice::<CacheFile>(&bytes) {
        Ok(file)
            if file.version == VERSION && digest(&file.cases).is_ok_and(|d| d == file.sha256) =>
        {
            file.cases
        }
        _ => BTreeMap::new(),
    }
}

fn write(path: &Path, cases: &BTreeMap<String, Prediction>) -> Result<(), String> {
    let file = digest(cases).map(|sha256| CacheFile {
        version: VERSION,
        sha256,
        cases: cases.clone(),
    });
    file.and_then(|file| serde_json::to_vec(&file))
        .map_err(std::io::Error::other)
        .and_then(|bytes| output::write_whole(path, &bytes))
        .map_err(|error| format!("cannot write `{}`: {error}", path.display()))
}

fn digest(cases: &BTreeMap<String, Prediction>) -> Result<String, serde_json::Error> {
    Ok(hex::encode(Sha256::digest(serde_json::to_vec(cases)?)))
}
