//! Model manifests (`cases/models/<id>.toml`): what a model's files must be, so that a directory
//! that claims to be a model can be held to it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::ModelError;
use super::file::HashedFile;

/// A model as it was published.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Who it is and where it comes from.
    pub model: Identity,
    /// What its tokenizer files say.
    pub tokenizer: TokenizerFacts,
    /// Its files.
    #[serde(rename = "file")]
    pub files: Vec<ManifestFile>,
    /// The manifest itself.
    #[serde(skip)]
    pub path: PathBuf,
}

/// The `[model]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Name of the model.
    pub id: String,
    /// Other names that a directory of it may carry, as hub IDs.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// What it is, in a sentence.
    pub description: String,
    /// Where it was published.
    pub source: String,
    /// Which state of the source, where the source has states.
    pub revision: Option<String>,
    /// SPDX expression.
    pub licence: String,
    /// What the source says about the licence, where that is not the same everywhere.
    pub licence_note: Option<String>,
    /// Where the files are, relative to the manifest, for models that are part of this repository.
    pub directory: Option<PathBuf>,
}

/// The `[tokenizer]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerFacts {
    /// Whether text is lower-cased.
    pub lowercase: bool,
    /// Whether accents are stripped; `"unset"` leaves it to `lowercase`.
    pub strip_accents: StripAccents,
    /// Whether Chinese characters are split from their neighbours.
    pub tokenize_chinese_chars: bool,
    /// Longest sequence in tokens.
    pub max_length: usize,
}

/// `strip_accents` of a BERT tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "toml::Value")]
pub struct StripAccents(pub Option<bool>);

impl TryFrom<toml::Value> for StripAccents {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Boolean(strip) => Ok(Self(Some(strip))),
            toml::Value::String(word) if word == "unset" => Ok(Self(None)),
            other => Err(format!(
                "`strip_accents` is {other}, expected true, false or \"unset\""
            )),
        }
    }
}

/// One `[[file]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Path inside the model directory.
    pub path: String,
    /// Length in bytes, where it was published.
    pub size: Option<u64>,
    /// SHA-256, 64 hexadecimal digits.
    pub sha256: String,
    /// Anything a reader should know.
    pub note: Option<String>,
    /// Where the size comes from, when it was not read off the published file.
    pub size_evidence: Option<String>,
}

/// All manifests of a folder, sorted by path.
///
/// # Errors
/// [`ModelError::Manifest`] for one that is not understood, [`ModelError::Io`] for one that cannot
/// be read.
pub fn load_all(folder: &Path) -> Result<Vec<Manifest>, ModelError> {
    let io_error = |source| ModelError::Io {
        path: folder.to_owned(),
        source,
    };
    let mut paths = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(io_error)? {
        let path = entry.map_err(io_error)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.insert(path);
        }
    }
    paths.iter().map(|path| load(path)).collect()
}

/// One manifest.
///
/// # Errors
/// As [`load_all`].
pub fn load(path: &Path) -> Result<Manifest, ModelError> {
    let text = std::fs::read_to_string(path).map_err(|source| ModelError::Io {
        path: path.to_owned(),
        source,
    })?;
    let error = |problem: String| ModelError::Manifest {
        path: path.to_owned(),
        problem,
    };
    let manifest: Manifest = toml::from_str(&text).map_err(|cause| error(cause.to_string()))?;
    for file in &manifest.files {
        let plain = Path::new(&file.path).components();
        if !plain
            .clone()
            .all(|part| matches!(part, std::path::Component::Normal(_)))
        {
            return Err(error(format!(
                "file path `{}` leaves the model directory",
                file.path
            )));
        }
        if file.sha256.len() != 64 || !file.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(error(format!(
                "the sha256 of `{}` is not 64 hexadecimal digits",
                file.path
            )));
        }
    }
    Ok(Manifest {
        path: path.to_owned(),
        ..manifest
    })
}

/// The manifest of the model that a directory claims to be, by its name or by its place in a
/// Hugging Face cache (`models--google-bert--bert-base-chinese/snapshots/…`).
pub fn claimed<'a>(manifests: &'a [Manifest], directory: &Path) -> Option<&'a Manifest> {
    let resolved = directory
        .canonicalize()
        .unwrap_or_else(|_| directory.to_owned());
    let names: Vec<String> = [directory, &resolved]
        .into_iter()
        .flat_map(claims)
        .collect();
    manifests.iter().find(|manifest| {
        let Identity { id, aliases, .. } = &manifest.model;
        names
            .iter()
            .any(|name| name == id || aliases.contains(name))
    })
}

fn claims(directory: &Path) -> Vec<String> {
    let part =
        |component: std::path::Component| component.as_os_str().to_string_lossy().into_owned();
    let in_cache = directory
        .components()
        .filter_map(|component| Some(part(component).strip_prefix("models--")?.replace("--", "/")));
    directory
        .components()
        .next_back()
        .map(part)
        .into_iter()
        .chain(in_cache)
        .collect()
}

/// Holds the files that a run loads against the manifest.
///
/// # Errors
/// [`ModelError::NotTheModel`] that lists every file that differs.
pub fn verify(manifest: &Manifest, loaded: &[&HashedFile]) -> Result<(), ModelError> {
    let mut differences = Vec::new();
    let names: Vec<String> = loaded.iter().map(|file| name_of(file)).collect();
    for (file, name) in loaded.iter().zip(&names) {
        let Some(published) = manifest
            .files
            .iter()
            .find(|published| published.path == *name)
        else {
            differences.push(format!("`{name}` is not among the files of the model"));
            continue;
        };
        if !published.sha256.eq_ignore_ascii_case(&file.sha256) {
            let size = published.size.filter(|size| *size != file.size());
            let size = size.map_or(String::new(), |size| {
                format!("has {} bytes, the manifest says {size}; it ", file.size())
            });
            differences.push(format!(
                "`{name}` {size}has SHA-256 {}, the manifest says {}",
                file.sha256, published.sha256
            ));
        }
    }
    // Without its options a vocabulary gives other tokens; tokenizer.json holds them itself.
    let options = "tokenizer_config.json";
    let has = |name: &str| names.iter().any(|loaded| loaded == name);
    let is_published = manifest.files.iter().any(|file| file.path == options);
    if is_published && !has(options) && !has("tokenizer.json") {
        differences.push(format!("`{options}` is missing"));
    }
    if differences.is_empty() {
        return Ok(());
    }
    let directory = loaded
        .first()
        .and_then(|file| file.path.parent())
        .map(Path::to_owned);
    Err(ModelError::NotTheModel {
        directory: directory.unwrap_or_default(),
        id: manifest.model.id.clone(),
        manifest: manifest.path.clone(),
        differences,
    })
}

fn name_of(file: &HashedFile) -> String {
    let name = file.path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
[model]
id = "bert-base-chinese"
aliases = ["google-bert/bert-base-chinese"]
description = "d"
source = "s"
licence = "Apache-2.0"

[tokenizer]
lowercase = false
strip_accents = "unset"
tokenize_chinese_chars = true
max_length = 512

[[file]]
path = "config.json"
size = 624
sha256 = "88af762cfb15fa9ce183c84dcbfdc9d635196ba635dfe81f265fdd21d67f4c4c"
"#;

    fn parse(text: &str) -> Result<Manifest, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.toml");
        std::fs::write(&path, text).unwrap();
        load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_directory_claims_a_model_by_name_or_cache_place() {
        let manifests = [parse(TEXT).unwrap()];
        for (directory, claims) in [
            ("/data/bert-base-chinese", true),
            ("bert-base-chinese/", true),
            (
                "/c/hub/models--google-bert--bert-base-chinese/snapshots/8f23c25b",
                true,
            ),
            ("/c/hub/models--bert-base-chinese/snapshots/8f23c25b", true),
            ("/data/my-bert", false),
            ("/data/models--hfl--chinese-bert/snapshots/1", false),
        ] {
            assert_eq!(
                claimed(&manifests, Path::new(directory)).is_some(),
                claims,
                "{directory}"
            );
        }
    }

    #[test]
    fn broken_manifests_are_named() {
        for (from, to, expected) in [
            ("id =", "name =", "unknown field `name`"),
            (
                "\"unset\"",
                "\"maybe\"",
                "expected true, false or \"unset\"",
            ),
            (
                "\"config.json\"",
                "\"../config.json\"",
                "leaves the model directory",
            ),
            ("88af", "xyzw", "not 64 hexadecimal digits"),
        ] {
            let error = parse(&TEXT.replace(from, to)).unwrap_err();
            assert!(
                error.contains(expected),
                "{error:?} should contain {expected:?}"
            );
        }
    }
}
