//! A file of the model: opened once, mapped once, hashed once.

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use driftgauge_protocol::FileIdentity;
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::ModelError;
use super::weights::map_file;

/// A file whose bytes are mapped.
#[derive(Debug, Clone)]
pub struct MappedFile {
    /// Where it is, as the user or the directory names it.
    pub path: PathBuf,
    /// Its bytes.
    pub map: Arc<Mmap>,
    /// The state of the file that was mapped.
    pub identity: FileIdentity,
}

/// A file whose bytes have been hashed and stay mapped.
#[derive(Debug, Clone)]
pub struct HashedFile {
    file: MappedFile,
    /// SHA-256 of the bytes, 64 hexadecimal digits.
    pub sha256: String,
}

impl Deref for HashedFile {
    type Target = MappedFile;

    fn deref(&self) -> &MappedFile {
        &self.file
    }
}

impl HashedFile {
    /// Opens and hashes a file.
    ///
    /// # Errors
    /// [`ModelError::Io`] where it cannot be read or changes while it is read.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::open_beside(path, |_| ()).map(|(file, ())| file)
    }

    /// Opens and hashes a file, and does something else with its bytes on another core meanwhile.
    /// What that gives must not be used before the digest has been looked at.
    ///
    /// # Errors
    /// As [`HashedFile::open`].
    pub fn open_beside<T: Send>(
        path: &Path,
        work: impl FnOnce(&MappedFile) -> T + Send,
    ) -> Result<(Self, T), ModelError> {
        let (opened, file) = open_map(path)?;
        let hash = || hex::encode(Sha256::digest(&file.map[..]));
        let (sha256, result) = rayon::join(hash, || work(&file));
        let after = FileIdentity::of(&opened).map_err(|source| io_error(path, source))?;
        if after != file.identity {
            return Err(io_error(
                path,
                std::io::Error::other("the file changed while it was read"),
            ));
        }
        Ok((Self { file, sha256 }, result))
    }
}

impl MappedFile {
    /// Opens a file of our own making, whose source has been hashed already.
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        open_map(path).map(|(_, file)| file)
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.identity.size
    }
}

fn open_map(path: &Path) -> Result<(File, MappedFile), ModelError> {
    // Asked before the file is opened: opening a pipe waits for somebody to write into it.
    let metadata = std::fs::metadata(path).map_err(|source| io_error(path, source))?;
    if !metadata.is_file() {
        return Err(io_error(path, std::io::Error::other("not a file")));
    }
    let file = File::open(path).map_err(|source| io_error(path, source))?;
    let identity = FileIdentity::of(&file).map_err(|source| io_error(path, source))?;
    let map = map_file(&file).map_err(|source| io_error(path, source))?;
    let mapped = MappedFile {
        path: path.to_owned(),
        map: Arc::new(map),
        identity,
    };
    Ok((file, mapped))
}

fn io_error(path: &Path, source: std::io::Error) -> ModelError {
    ModelError::Io {
        path: path.to_owned(),
        source,
    }
}
