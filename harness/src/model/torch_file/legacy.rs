//! The format of torch before 1.6.

use super::pickle::Pickle;
use super::value::Value;
use super::{Starts, TorchFileError, shown, storages};

/// The number that a legacy file starts with, as a pickle.
const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
/// The only version of the legacy format.
const LEGACY_VERSION: i128 = 1001;

/// Reads the state dict and finds its storages: there are five pickles (magic number, version,
/// system, state dict, keys of the storages), then the number of elements and the elements for
/// each key.
pub(super) fn open(bytes: &[u8]) -> Result<(Pickle<'_>, Starts<'_>), TorchFileError> {
    let error = |problem| TorchFileError::Legacy { problem };
    let magic = Pickle::read(bytes, 0)?;
    if !matches!(magic.root(), Value::Integer(LEGACY_MAGIC)) {
        return Err(error("does not start with torch's magic number"));
    }
    let version = Pickle::read(bytes, magic.end)?;
    if !matches!(version.root(), Value::Integer(LEGACY_VERSION)) {
        return Err(error("is not of version 1001"));
    }
    let system = Pickle::read(bytes, version.end)?;
    if !is_little_endian(&system) {
        return Err(error("does not say that it is little-endian"));
    }
    let state = Pickle::read(bytes, system.end)?;
    let keys = Pickle::read(bytes, state.end)?;
    let Value::List(list) = keys.root() else {
        return Err(error("does not list its storages"));
    };
    let storages = storages(&state)?;
    let mut starts = Starts::new();
    let mut at = keys.end;
    for key in list {
        let Value::Text(key) = keys.value(*key) else {
            return Err(error("lists a storage whose key is not a string"));
        };
        let error = |problem: &str| TorchFileError::Storage {
            key: shown(key),
            problem: problem.into(),
        };
        let storage = storages
            .get(key)
            .ok_or_else(|| error("does not belong to any tensor"))?;
        let (count, data) = bytes[at..]
            .split_first_chunk()
            .ok_or_else(|| error("is missing: the file ends before it"))?;
        if i64::from_le_bytes(*count).try_into() != Ok(storage.count) {
            return Err(error("has another number of elements in the pickle"));
        }
        let length = storage.count.checked_mul(storage.element.size);
        let Some(length) = length.filter(|length| *length <= data.len()) else {
            return Err(error("reaches beyond the end of the file"));
        };
        if starts.insert(key, at + count.len()).is_some() {
            return Err(error("is listed twice"));
        }
        at += count.len() + length;
    }
    Ok((state, starts))
}

fn is_little_endian(system: &Pickle<'_>) -> bool {
    let Value::Dict(entries) = system.root() else {
        return false;
    };
    entries.iter().any(|(key, value)| {
        matches!(
            (system.value(*key), system.value(*value)),
            (Value::Text("little_endian"), Value::Bool(true))
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::{list_tensors, tests::check};

    const TWO_BY_TWO: &[u8] = b"K\0K\x02K\x02\x86K\x02K\x01\x86";
    const SCALAR: &[u8] = b"K\0))";
    const COUNT: [u8; 8] = [4, 0, 0, 0, 0, 0, 0, 0];

    /// A legacy file with tensor `t` of storage `k`, 4 `f32`. As opcodes: the part of the storage
    /// that is meant; offset, shape and strides; what follows in the state dict. Then the name of
    /// the storage that is listed, and its numbers.
    fn legacy(part: &[u8], place: &[u8], rest: &[u8], key: &[u8], numbers: &[u8]) -> Vec<u8> {
        let parts: [&[u8]; 15] = [
            b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.",
            b"M\xe9\x03.",
            b"}X\x0d\0\0\0little_endian\x88s.",
            b"}X\x01\0\0\0tctorch._utils\n_rebuild_tensor_v2\n(",
            b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0kX\x03\0\0\0cpuK\x04",
            part,
            b"tQ",
            place,
            b"\x89)",
            rest,
            b".",
            b"]X\x01\0\0\0",
            key,
            b"a.",
            numbers,
        ];
        parts.concat()
    }

    #[test]
    fn tensors_stay_inside_their_storage() {
        let whole = [COUNT.as_slice(), &[0; 16]].concat();
        let made = |part: &[u8], place: &[u8]| legacy(part, place, b"tRs", b"k", &whole);
        let bytes_after =
            |bytes: &[u8]| bytes.len() as u64 - list_tensors(bytes).unwrap()[0].offset;
        assert_eq!(bytes_after(&made(b"N", TWO_BY_TWO)), 16);
        let outside = "`t` reaches beyond the end of its storage";
        check(&made(b"N", b"K\x01K\x04\x85K\x01\x85"), outside);
        check(&made(b"N", b"K\x05K\0\x85K\x01\x85"), outside);
        let huge = b"K\0\x8a\x08\0\0\0\0\0\0\0\x10K\x10K\x02\x87K\x20K\x02K\x01\x87";
        check(&made(b"N", huge), outside);
        check(&made(b"N", b"K\0)K\x01\x85"), "another number of strides");
        let negative = b"K\0J\xff\xff\xff\xff\x85K\x01\x85";
        check(&made(b"N", negative), "unexpected arguments");
        // Only the two elements from the second one on are meant.
        let part = b"X\x01\0\0\0vK\x01K\x02\x87";
        assert_eq!(bytes_after(&made(part, b"K\0K\x02\x85K\x01\x85")), 12);
        check(&made(part, b"K\0K\x03\x85K\x01\x85"), outside);
        let part = b"X\x01\0\0\0vK\x01K\x04\x87";
        check(&made(part, SCALAR), "a persistent id that is not a storage");
    }

    #[test]
    fn state_dicts_name_each_tensor_once() {
        let made = |rest: &[u8]| legacy(b"N", SCALAR, rest, b"k", &[COUNT, COUNT, COUNT].concat());
        assert!(list_tensors(&made(b"tRs")).is_ok());
        // A seventh argument says that the numbers are to be negated or conjugated.
        check(&made(b"}tRs"), "unexpected arguments");
        check(&made(b"tRsX\x01\0\0\0tNs"), "`t` occurs twice");
        check(&made(b"tRsK\x01Ns"), "an integer for a key");
    }

    #[test]
    fn storages_are_whole_and_inside_the_file() {
        let made = |numbers: &[u8]| legacy(b"N", SCALAR, b"tRs", b"k", numbers);
        check(&made(&[4, 0, 0]), "storage `k` is missing");
        let short = [COUNT.as_slice(), &[0; 15]].concat();
        check(
            &made(&short),
            "storage `k` reaches beyond the end of the file",
        );
        check(
            &made(&[0xff; 24]),
            "storage `k` has another number of elements",
        );
        let with = |key: &[u8]| {
            let storage = b"tRs(X\x07\0\0\0storagectorch\nHalfStorage\nX\x01\0\0\0";
            let rest = [storage, key, b"NK\x04tQ0"].concat();
            legacy(b"N", SCALAR, &rest, key, &[COUNT, COUNT].concat())
        };
        check(&with(b"k"), "storage `k` is used with two dtypes or sizes");
        check(&with(b"o"), "`t` lies in storage `k`, which is missing");
        let unused = legacy(b"N", SCALAR, b"tRs", b"o", &[]);
        check(&unused, "storage `o` does not belong to any tensor");
    }
}
