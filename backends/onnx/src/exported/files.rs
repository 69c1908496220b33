//! The files of an exported model: read once, hashed, and held to what was hashed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use driftgauge_protocol::{Failure, FileIdentity};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::proto::{DataLocation, ModelOutline};

/// A model file, in memory, and the files beside it that hold weights.
pub(super) struct Files {
    pub(super) path: PathBuf,
    pub(super) model: Vec<u8>,
    /// Of the model file, in hexadecimal digits.
    pub(super) sha256: String,
    pub(super) outline: ModelOutline,
    pub(super) external: External,
}

/// Files that constants of the graph name, each with the state that it was found in. ONNX Runtime maps them for
/// as long as a session lives.
pub(super) struct External {
    files: Vec<(String, PathBuf, FileIdentity)>,
}

impl Files {
    /// Reads and hashes the model file, and looks at the files that it names.
    ///
    /// # Errors
    /// For a file that is missing, cannot be read, or is no ONNX model.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let model = std::fs::read(path).map_err(|error| {
            Failure::error(format!("cannot read `{}`: {error}", path.display()))
                .with_hint("give the target option `model` the path of an `.onnx` file")
        })?;
        let outline = ModelOutline::decode(&model[..]);
        let outline = outline.ok().filter(|outline| outline.graph.is_some());
        let outline = outline.ok_or_else(|| {
            let (path, size) = (path.display(), model.len());
            Failure::error(format!(
                "`{path}` ({size} bytes) is not an ONNX model, or only a part of one"
            ))
            .with_hint("give the target option `model` the path of a whole `.onnx` file")
        })?;
        Ok(Self {
            path: path.to_owned(),
            sha256: hex::encode(Sha256::digest(&model)),
            external: External::of(path, &outline)?,
            model,
            outline,
        })
    }
}

impl External {
    fn of(model: &Path, outline: &ModelOutline) -> Result<Self, Failure> {
        let tensors = outline.graph.iter().flat_map(|graph| &graph.initializer);
        let entries = tensors
            .filter(|tensor| tensor.data_location() == DataLocation::External)
            .flat_map(|tensor| &tensor.external_data);
        let names: BTreeSet<&str> = entries
            .filter(|entry| entry.key == "location")
            .map(|entry| entry.value.as_str())
            .collect();
        let folder = model.parent().unwrap_or(Path::new("."));
        let files = names.into_iter().map(|name| {
            let path = folder.join(name);
            let identity = File::open(&path).and_then(|file| FileIdentity::of(&file));
            let identity = identity.map_err(|error| {
                Failure::error(format!(
                    "cannot read `{}`, which holds weights of `{}`: {error}",
                    path.display(),
                    model.display()
                ))
            })?;
            Ok((name.to_owned(), path, identity))
        });
        Ok(Self {
            files: files.collect::<Result<_, Failure>>()?,
        })
    }

    /// Each file by its name in the model, with its SHA-256.
    ///
    /// # Errors
    /// For a file that cannot be read any more.
    pub(super) fn digests(&self) -> Result<Vec<(&str, String)>, Failure> {
        let files = self.files.iter().map(|(name, path, _)| {
            let digest = digest(path).map_err(|error| {
                Failure::error(format!("cannot read `{}`: {error}", path.display()))
            })?;
            Ok((name.as_str(), digest))
        });
        files.collect()
    }

    /// Checks that every file is in the state that it was found in.
    ///
    /// # Errors
    /// For one that is not.
    pub(super) fn check_unchanged(&self) -> Result<(), Failure> {
        for (_, path, identity) in &self.files {
            let found = File::open(path).and_then(|file| FileIdentity::of(&file));
            if found.ok() != Some(*identity) {
                return Err(Failure::error(format!(
                    "`{}` changed after it was loaded",
                    path.display()
                )));
            }
        }
        Ok(())
    }
}

fn digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hash.finalize())),
            length => hash.update(&buffer[..length]),
        }
    }
}
