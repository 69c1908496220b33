use std::io::Cursor;

use driftgauge_reports::record::RECORD_VERSION;
use serde_json::{Value, json};

use super::*;

/// The text of a record of one target and one case with two observations.
fn record() -> String {
    let observation = |values: &[f64]| {
        json!({"shape": [1, 2], "dtype": "f32", "max_abs": 0.0, "max_rel": 0.0, "error_u": 0.0,
            "effective_bits": 53.0, "cosine": 1.0, "predicted_u": 1.0, "budget_u": 2.0,
            "within": true, "digest": crate::judge::digest(values), "moved": null})
    };
    json!({
        "format": "driftgauge-record", "version": RECORD_VERSION, "driftgauge": "0.1.0",
        "summary": {"exit_code": 0, "cases": 1, "targets": 1, "verdicts": {"pass": 1}},
        "method": {"k": 2.0, "k_overridden": false, "move_limit": 1.0, "samples": 8, "seed": 1},
        "model": {"id": "m", "verified": false, "revision": null, "licence": null,
            "architecture": {}, "parameters": 1, "weights_dtypes": ["f32"], "naming": {},
            "tokenizer": {}, "files": []},
        "suites": [],
        "targets": [{"target": "x@cpu/f32", "library": null, "library_version": null,
            "device": null, "dtype": null, "threads": null, "observations": [], "properties": {},
            "finding": null, "restarts": 0, "semantic": null, "baseline": null, "repeats": null,
            "time": {"start": 0.0, "load": 0.0, "forward": 0.0, "total": 0.0}}],
        "results": [{"suite": "s", "case": "c", "task": "features", "target": "x@cpu/f32",
            "verdict": "pass", "texts": [], "tokens": [], "answer": null, "truth_answer": null,
            "margins": [], "findings": [], "known": null,
            "observations": {"cls": observation(&[1.0, 2.0]), "hidden.1": observation(&[1.0, 2.0])}}],
        "truth": {"sha256": "", "baselines": false, "compared": 0, "difference": null,
            "place": "", "limit": 0.0, "finding": null},
        "known": {"applied": false, "full": false, "entries": []},
        "pairs": [], "host": {}, "paths": {}, "time": {"day": "", "started": 0, "seconds": {}},
    })
    .to_string()
}

fn tensors(values: [f32; 2]) -> Tensors {
    let tensor = Tensor::from_f32(vec![1, 2], &values).unwrap();
    Tensors::from([("s/c/hidden.1".to_owned(), tensor)])
}

fn norms() -> BTreeMap<String, f64> {
    BTreeMap::from([("s/c/hidden.1".to_owned(), 5f64.sqrt())])
}

/// The bytes of a good bundle.
fn good() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/a.zip");
    let targets = [("x@cpu/f32".to_owned(), tensors([1.0, 2.0]))];
    write(&path, &record(), &norms(), targets.into_iter()).unwrap();
    std::fs::read(path).unwrap()
}

/// The entries of a good bundle, without its manifest.
fn good_entries() -> Vec<(String, Vec<u8>)> {
    vec![
        (RECORD.to_owned(), record().into_bytes()),
        (NORMS.to_owned(), b"{}".to_vec()),
        (
            tensors_entry(0),
            encode_tensors(&tensors([1.0, 2.0])).unwrap(),
        ),
    ]
}

fn manifest(entries: &[(String, Vec<u8>)]) -> Value {
    let entries = entries.iter().map(|(name, bytes)| {
        let target = name.starts_with("tensors/").then(|| "x@cpu/f32".to_owned());
        (
            name.clone(),
            serde_json::to_value(Entry::of(bytes, target)).unwrap(),
        )
    });
    let entries: serde_json::Map<String, Value> = entries.collect();
    json!({"format": BUNDLE_FORMAT, "version": BUNDLE_VERSION, "entries": entries})
}

fn archive(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, content) in entries {
        writer.start_file(name, stored).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// A bundle of some entries with a manifest that fits them, after a change.
fn bundle(entries: Vec<(String, Vec<u8>)>, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut manifest = manifest(&entries);
    change(&mut manifest);
    let manifest = (MANIFEST.to_owned(), manifest.to_string().into_bytes());
    archive(&[entries, vec![manifest]].concat())
}

fn read_bytes(bytes: &[u8]) -> Result<Bundle, BundleError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.zip");
    std::fs::write(&path, bytes).unwrap();
    read(&path)
}

/// Checks that a bundle is refused with its name, a reason and a next step.
#[track_caller]
fn check(bytes: &[u8], expected: &str) {
    let error = read_bytes(bytes).unwrap_err();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    assert!(text.contains(expected) && text.contains("b.zip"), "{text}");
    assert!(!error.hint().is_empty());
}

#[test]
fn what_is_written_is_read_and_always_the_same() {
    let bytes = good();
    assert_eq!(bytes, good());
    let bundle = read_bytes(&bytes).unwrap();
    assert_eq!(bundle.record, RunRecord::from_json(&record()).unwrap());
    assert_eq!(bundle.norms, norms());
    assert_eq!(bundle.tensors["x@cpu/f32"], tensors([1.0, 2.0]));
    assert!(read_bytes(&self::bundle(good_entries(), |_| ())).is_ok());
}

#[test]
fn archives_that_are_none_are_refused() {
    let good = good();
    check(
        b"PK\x03\x04 and no more",
        "is cut off, or not a ZIP archive",
    );
    check(b"", "is cut off, or not a ZIP archive");
    for length in [good.len() - 1, good.len() / 2, 40] {
        check(&good[..length], "is cut off, or not a ZIP archive");
    }
    let entry = |name: &str| (name.to_owned(), b"{}".to_vec());
    check(
        &archive(&[entry("word/document.xml")]),
        "entry `manifest.json` is missing",
    );
    check(
        &archive(&[entry(MANIFEST)]),
        "is not the manifest of a bundle",
    );
    let other = (
        MANIFEST.to_owned(),
        br#"{"format": "x", "version": 1}"#.to_vec(),
    );
    check(
        &archive(&[other]),
        "has format `x`, expected `driftgauge-bundle`",
    );
}

#[test]
fn every_flipped_byte_of_an_entry_is_found() {
    let good = good();
    let find = |needle: &[u8]| {
        good.windows(needle.len())
            .position(|part| part == needle)
            .unwrap()
    };
    // The two numbers of the tensor, and a character of the record.
    for (place, entry) in [
        (
            find(&1.0f32.to_le_bytes()),
            "`tensors/0.safetensors` has SHA-256",
        ),
        (find(b"\"budget_u\""), "`record.json` has SHA-256"),
        (find(b"2.236"), "`norms.json` has SHA-256"),
    ] {
        let mut damaged = good.clone();
        damaged[place + 1] ^= 1;
        check(&damaged, entry);
    }
}

#[test]
fn entries_are_those_of_the_manifest() {
    for missing in [RECORD, NORMS, "tensors/0.safetensors"] {
        let entries = good_entries()
            .into_iter()
            .filter(|(name, _)| name != missing);
        let expected = format!("entry `{missing}` is missing");
        check(&bundle(entries.collect(), |_| ()), &expected);
        // Missing although the manifest has it.
        let mut with_manifest = good_entries();
        let manifest = manifest(&with_manifest).to_string().into_bytes();
        with_manifest.retain(|(name, _)| name != missing);
        with_manifest.push((MANIFEST.to_owned(), manifest));
        check(&archive(&with_manifest), &expected);
    }
    for more in [
        "../../etc/passwd",
        "/etc/passwd",
        "tensors/../record.json",
        "tensors/00.safetensors",
        "x",
    ] {
        let entries = [good_entries(), vec![(more.to_owned(), b"{}".to_vec())]].concat();
        let expected = format!("entry `{more}` does not belong into a bundle");
        check(&bundle(entries.clone(), |_| ()), &expected);
        let unlisted = bundle(entries, |manifest| {
            manifest["entries"].as_object_mut().unwrap().remove(more);
        });
        check(&unlisted, &format!("entry `{more}` is not in the manifest"));
    }
    let more = (tensors_entry(1), encode_tensors(&Tensors::new()).unwrap());
    let entries = [good_entries(), vec![more]].concat();
    check(
        &bundle(entries, |_| ()),
        "`tensors/1.safetensors` is of no target of the record",
    );
    let twice = archive(&[good_entries(), vec![("recard.json".to_owned(), Vec::new())]].concat());
    let place = |bytes: &[u8]| bytes.windows(11).position(|part| part == b"recard.json");
    let mut twice = twice;
    while let Some(start) = place(&twice) {
        twice[start + 3] = b'o';
    }
    check(&twice, "two entries of one name");
}

#[test]
fn newer_versions_say_so() {
    let newer = bundle(good_entries(), |manifest| {
        manifest["version"] = json!(99);
        manifest["compression"] = json!("zstd");
    });
    check(&newer, "is of version 99: a newer driftgauge wrote it");
    let mut entries = good_entries();
    let version = format!("\"version\":{RECORD_VERSION}");
    let record = record().replacen(&version, "\"version\":98", 1);
    entries[0].1 = record.into_bytes();
    check(
        &bundle(entries, |_| ()),
        "the record is of the newer version 98",
    );
}

#[test]
fn sizes_are_not_believed() {
    for (size, expected) in [(1u64, "has"), (u64::MAX, "has")] {
        let lying = bundle(good_entries(), |manifest| {
            manifest["entries"][RECORD]["size"] = json!(size);
        });
        check(&lying, &format!("`record.json` {expected}"));
    }
    // The directory of the archive claims four gigabytes for the first entry.
    let good = good();
    let directory = good
        .windows(4)
        .position(|part| part == b"PK\x01\x02")
        .unwrap();
    let mut bomb = good.clone();
    bomb[directory + 20..directory + 28].fill(0xfe);
    check(&bomb, "claims 4278124286 bytes, at most");
    let mut compressed = good.clone();
    compressed[directory + 10] = 8;
    check(&compressed, "is compressed, expected stored as it is");
    let mut encrypted = good;
    encrypted[directory + 8] |= 1;
    check(&encrypted, "is encrypted");
}

#[test]
fn tensors_are_those_of_the_record() {
    let with = |tensors: Tensors| {
        let mut entries = good_entries();
        entries[2].1 = encode_tensors(&tensors).unwrap();
        bundle(entries, |_| ())
    };
    check(&with(Tensors::new()), "lacks the tensor `s/c/hidden.1`");
    check(
        &with(tensors([1.0, 3.0])),
        "holds another tensor `s/c/hidden.1`",
    );
    let mut more = tensors([1.0, 2.0]);
    let tensor = more["s/c/hidden.1"].clone();
    more.insert("s/c/hidden.2".to_owned(), tensor);
    check(&with(more), "holds 2 tensors, the record is about 1");
    let mut entries = good_entries();
    entries[2].1 = b"no tensors".to_vec();
    check(
        &bundle(entries, |_| ()),
        "`tensors/0.safetensors` cannot be read",
    );
    let other_target = bundle(good_entries(), |manifest| {
        manifest["entries"]["tensors/0.safetensors"]["target"] = json!("y@cpu/f32");
    });
    check(
        &other_target,
        "is not of target `x@cpu/f32`, as in the record",
    );
}
