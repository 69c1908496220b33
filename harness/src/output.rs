//! Files that driftgauge writes.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Finds out whether files can be written into a folder, which need not exist yet. Leaves nothing.
///
/// # Errors
/// What the file system says of the folder, or of the nearest one above it that exists.
pub fn check_writable(folder: &Path) -> io::Result<()> {
    let absolute = std::path::absolute(folder)?;
    let existing = absolute.ancestors().find(|folder| folder.exists());
    let existing = existing.unwrap_or(Path::new("/"));
    if !existing.is_dir() {
        let problem = format!("`{}` is not a folder", existing.display());
        return Err(io::Error::new(io::ErrorKind::NotADirectory, problem));
    }
    tempfile::tempfile_in(existing).map(drop)
}

/// Writes `bytes` to `path` whole or not at all, and makes the folder where it is missing.
///
/// # Errors
/// What the file system says; the file at `path` is then as it was.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole_with(path, |file| file.write_all(bytes))
}

/// [`write_whole`] of what `write` puts into the file.
///
/// # Errors
/// What the file system or `write` says; the file at `path` is then as it was.
pub fn write_whole_with(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let folder = folder_of(path);
    std::fs::create_dir_all(folder)?;
    // Readable as any other file that a program writes, less what the umask takes away.
    let readable = std::fs::Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new()
        .permissions(readable)
        .tempfile_in(folder)?;
    write(file.as_file_mut())?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// The folder of a file.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
