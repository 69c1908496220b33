//! A file of the model: opened once, mapped once, hashed once.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use driftgauge_protocol::FileIdentity;
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::ModelError;
use super::weights::map_file;

/// A file whose bytes have been hashed and stay mapped.
#[derive(Debug, Clone)]
pub struct HashedFile {
    /// Where it is, as the user or the directory names it.
    pub path: PathBuf,
    /// Its bytes.
    pub map: Arc<Mmap>,
    /// SHA-256 of the bytes, 64 hexadecimal digits.
    pub sha256: String,
    /// The state of the file that was hashed.
    pub identity: FileIdentity,
}

impl HashedFile {
    /// Opens and hashes a file.
    ///
    /// # Errors
    /// [`ModelError::Io`] where it cannot be read or changes while it is read.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let (file, map, identity) = open_map(path)?;
        let sha256 = hex::encode(Sha256::digest(&map[..]));
        let after = FileIdentity::of(&file).map_err(|source| io_error(path, source))?;
        if after != identity {
            return Err(io_error(
                path,
                std::io::Error::other("the file changed while it was read"),
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            map: Arc::new(map),
            sha256,
            identity,
        })
    }

    /// Opens a file of our own making, whose source has been hashed already.
    pub(super) fn map_only(path: &Path) -> Result<Self, ModelError> {
        let (_, map, identity) = open_map(path)?;
        Ok(Self {
            path: path.to_owned(),
            map: Arc::new(map),
            sha256: String::new(),
            identity,
        })
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.identity.size
    }
}

fn open_map(path: &Path) -> Result<(File, Mmap, FileIdentity), ModelError> {
    // Asked before the file is opened: opening a pipe waits for somebody to write into it.
    let metadata = std::fs::metadata(path).map_err(|source| io_error(path, source))?;
    if !metadata.is_file() {
        return Err(io_error(path, std::io::Error::other("not a file")));
    }
    let file = File::open(path).map_err(|source| io_error(path, source))?;
    let identity = FileIdentity::of(&file).map_err(|source| io_error(path, source))?;
    let map = map_file(&file).map_err(|source| io_error(path, source))?;
    Ok((file, map, identity))
}

fn io_error(path: &Path, source: std::io::Error) -> ModelError {
    ModelError::Io {
        path: path.to_owned(),
        source,
    }
}
