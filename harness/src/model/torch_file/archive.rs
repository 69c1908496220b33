//! The zip archive of torch 1.6 and later.

use std::io::Cursor;

use zip::read::{ArchiveOffset, Config, ZipArchive};
use zip::{CompressionMethod, result::ZipError};

use super::pickle::Pickle;
use super::{Starts, TorchFileError, shown, storages};

/// Reads the state dict and finds its storages. All entries lie in one folder: `data.pkl` is the
/// state dict, `data/KEY` are the storages.
pub(super) fn open(bytes: &[u8]) -> Result<(Pickle<'_>, Starts<'_>), TorchFileError> {
    // Only offsets from the start of the file count, as for torch.
    let config = Config {
        archive_offset: ArchiveOffset::Known(0),
    };
    let archive = ZipArchive::with_config(config, Cursor::new(bytes));
    let mut archive = archive.map_err(TorchFileError::Zip)?;
    if archive.has_duplicate_names() {
        let problem = "two entries of one name".into();
        return Err(TorchFileError::Zip(ZipError::InvalidArchive(problem)));
    }
    // Torch takes the folder of the first entry, too.
    let first = archive.file_names_raw().next().unwrap_or_default();
    let first = String::from_utf8_lossy(first).into_owned();
    let Some((folder, _)) = first.split_once('/') else {
        return Err(entry_error(&first, "is in no folder"));
    };
    let byte_order = format!("{folder}/byteorder");
    if archive.index_for_name_raw(byte_order.as_bytes()).is_some() {
        let (start, length) = entry_place(&mut archive, bytes, &byte_order)?;
        if &bytes[start..start + length] != b"little" {
            return Err(entry_error(&byte_order, "is not `little`"));
        }
    }
    let (start, length) = entry_place(&mut archive, bytes, &format!("{folder}/data.pkl"))?;
    let state = Pickle::read(&bytes[..start + length], start)?;
    let mut starts = Starts::new();
    for (key, storage) in storages(&state)? {
        let entry = format!("{folder}/data/{key}");
        let (start, length) = entry_place(&mut archive, bytes, &entry)?;
        if storage.count.checked_mul(storage.element.size) != Some(length) {
            let (count, size) = (storage.count, storage.element.size);
            let problem = format!("has {length} bytes, not {count} elements of {size} bytes");
            return Err(entry_error(&entry, problem));
        }
        starts.insert(key, start);
    }
    Ok((state, starts))
}

/// Start and length of an entry that is stored as it is; both lie in the file.
fn entry_place(
    archive: &mut ZipArchive<Cursor<&[u8]>>,
    bytes: &[u8],
    name: &str,
) -> Result<(usize, usize), TorchFileError> {
    let index = archive.index_for_name_raw(name.as_bytes());
    let index = index.ok_or_else(|| entry_error(name, "is missing"))?;
    let entry = archive.by_index_raw(index).map_err(TorchFileError::Zip)?;
    if entry.encrypted() {
        return Err(entry_error(name, "is encrypted"));
    }
    if entry.compression() != CompressionMethod::Stored || entry.compressed_size() != entry.size() {
        return Err(entry_error(name, "is compressed"));
    }
    let place = || {
        let start = usize::try_from(entry.data_start()?).ok()?;
        let length = usize::try_from(entry.size()).ok()?;
        (start.checked_add(length)? <= bytes.len()).then_some((start, length))
    };
    place().ok_or_else(|| entry_error(name, "reaches beyond the end of the file"))
}

fn entry_error(entry: &str, problem: impl Into<String>) -> TorchFileError {
    TorchFileError::Entry {
        entry: shown(entry),
        problem: problem.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::{ZipWriter, write::SimpleFileOptions};

    use super::super::{list_tensors, tests::check};
    use super::*;

    /// A state dict of one storage `k` of two `f32` that no tensor uses.
    const PICKLE: &[u8] =
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0kX\x03\0\0\0cpuK\x02tQ}.";

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        for (name, content) in entries {
            writer.start_file(*name, stored).unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    #[test]
    fn entries_are_where_and_what_torch_writes() {
        let whole = archive(&[("a/data.pkl", PICKLE), ("a/data/k", &[0; 8])]);
        assert_eq!(list_tensors(&whole).unwrap(), []);
        check(
            &archive(&[("data.pkl", PICKLE)]),
            "`data.pkl` is in no folder",
        );
        check(
            &archive(&[("a/model.pkl", PICKLE)]),
            "`a/data.pkl` is missing",
        );
        check(&archive(&[("a/data.pkl", PICKLE)]), "`a/data/k` is missing");
        let short = archive(&[("a/data.pkl", PICKLE), ("a/data/k", &[0; 7])]);
        check(&short, "`a/data/k` has 7 bytes, not 2 elements of 4 bytes");

        let twice = archive(&[("a/data.pkl", PICKLE), ("a/date.pkl", PICKLE)]);
        let twice: Vec<u8> = twice
            .into_iter()
            .map(|byte| if byte == b'e' { b'a' } else { byte })
            .collect();
        check(&twice, "two entries of one name");
        let mut headers = whole
            .windows(4)
            .enumerate()
            .filter(|(_, bytes)| bytes == b"PK\x01\x02");
        let (last, _) = headers.next_back().unwrap();
        let mut encrypted = whole.clone();
        encrypted[last + 8] |= 1;
        check(&encrypted, "`a/data/k` is encrypted");
        let mut long = whole.clone();
        (long[last + 22], long[last + 26]) = (1, 1);
        check(&long, "`a/data/k` reaches beyond the end of the file");
    }
}
