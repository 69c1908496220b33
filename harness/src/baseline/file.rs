//! The file of a baseline: JSON, one line for each case, so that `git diff` shows which case moved.
//!
//! ```json
//! {
//! "format": "driftgauge-baseline",
//! "version": 1,
//! "sha256": "<of this file with 64 zeros in this place>",
//! "driftgauge": "0.1.0",
//! "accepted": "2026-11-24",
//! "model": {"id":"zh-mini","files":{"config.json":"<sha256>"}},
//! "suite": {"name":"seed","sha256":"<sha256>"},
//! "target": "onnx@cpu/f32",
//! "dtype": "f32",
//! "environment": {
//! "library_version": "1.31.1",
//! "threads": "1"
//! },
//! "history": [
//! {"date":"2026-11-24","reason":"onnxruntime 1.31 fuses the layer norm"}
//! ],
//! "cases": {
//! "capital": {"input":"<digest>","observations":{"cls":[10.19,20.651,"<digest>"]}}
//! }
//! }
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Baseline;

/// The `format` of every baseline.
pub const FORMAT: &str = "driftgauge-baseline";
/// Raised when a field changes its meaning or disappears.
pub const VERSION: u32 = 1;

/// Why a file of the accepted ones is refused.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// The file or folder cannot be read.
    #[error("cannot read `{path}`")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: std::io::Error,
    },
    /// It is no such file, or only a part of one.
    #[error("baseline `{path}`: {problem}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A version that this program does not know.
    #[error(
        "baseline `{path}`: a newer driftgauge wrote it (version {version} of the format, this one \
         reads version {VERSION})"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// It is not what was accepted.
    #[error(
        "baseline `{path}`: was changed after it was accepted: its SHA-256 is {found}, its header \
         says {stated}"
    )]
    Tampered {
        /// The file.
        path: PathBuf,
        /// SHA-256 of what is there.
        found: String,
        /// SHA-256 of what was accepted.
        stated: String,
    },
    /// It was made for something else.
    #[error("baseline `{path}`: was made for {made_for}, this run has {has}")]
    MadeFor {
        /// The file.
        path: PathBuf,
        /// What it was made for.
        made_for: String,
        /// What the run has in that place.
        has: String,
    },
}

impl BaselineError {
    /// The next step.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } => "--baselines names another folder, --no-baselines runs without",
            Self::Newer { .. } => "update driftgauge, or run with --no-baselines",
            Self::Content { .. } | Self::Tampered { .. } => {
                "`git checkout` restores it; or delete the folder of its suite, run with --no-baselines, \
                 and `driftgauge accept`"
            }
            Self::MadeFor { .. } => {
                "run with --no-baselines, and `driftgauge accept --reason TEXT` where the change is \
                 wanted"
            }
        }
    }

    /// The file cannot be read.
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }

    /// The file is not what it should be.
    pub(super) fn content(path: &Path, problem: impl ToString) -> Self {
        Self::Content {
            path: path.to_owned(),
            problem: problem.to_string(),
        }
    }
}

/// What every version of a file has.
#[derive(Debug, Deserialize)]
pub(super) struct Head {
    /// Which kind of file it is.
    pub format: String,
    /// Its version.
    pub version: u32,
    /// Digest of its content.
    pub sha256: String,
}

impl Head {
    /// Checks that a file is of a kind and version that is understood.
    pub(super) fn check(&self, path: &Path, format: &str) -> Result<(), BaselineError> {
        if self.format != format {
            let problem = format!("the format is `{}`, expected `{format}`", self.format);
            return Err(BaselineError::content(path, problem));
        }
        if self.version > VERSION {
            return Err(BaselineError::Newer {
                path: path.to_owned(),
                version: self.version,
            });
        }
        if self.version != VERSION {
            let problem = format!("version {} of the format never was", self.version);
            return Err(BaselineError::content(path, problem));
        }
        Ok(())
    }
}

/// Name of a baseline's file without `.json`: the target, and eight digits for the environment.
pub fn stem(target: &str, environment: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    for (key, value) in environment {
        hash.update(format!("{key}={value}\n"));
    }
    format!(
        "{}.{}",
        file_name(target),
        hex::encode(&hash.finalize()[..4])
    )
}

/// A name that every file system takes, and that leaves no folder.
pub fn file_name(name: &str) -> String {
    let allowed = |(index, c): (usize, char)| match c {
        '@' | '/' => '-',
        '?' | '&' => '+',
        '.' if index == 0 => '_',
        '-' | '_' | '=' | '.' => c,
        c if c.is_alphanumeric() => c,
        _ => '_',
    };
    name.chars().enumerate().map(allowed).collect()
}

/// The content of a baseline's file. The same baseline gives the same bytes.
///
/// # Errors
/// [`serde_json::Error`] where it holds what JSON cannot say.
pub fn encode(baseline: &Baseline) -> Result<String, serde_json::Error> {
    fn json(value: &impl Serialize) -> Result<String, serde_json::Error> {
        serde_json::to_string(value)
    }
    fn lines<'a, V: Serialize + 'a>(
        entries: impl IntoIterator<Item = (&'a String, V)>,
    ) -> Result<String, serde_json::Error> {
        let line = |(key, value)| Ok(format!("{}: {}", json(key)?, json(&value)?));
        let lines = entries.into_iter().map(line);
        Ok(lines.collect::<Result<Vec<String>, _>>()?.join(",\n"))
    }
    let history = baseline.history.iter().map(json);
    let history = match history.collect::<Result<Vec<_>, _>>()? {
        none if none.is_empty() => "[]".to_owned(),
        some => format!("[\n{}\n]", some.join(",\n")),
    };
    let zeros = "0".repeat(64);
    let mut text = String::from("{\n");
    for (key, value) in [
        ("format", json(&FORMAT)?),
        ("version", json(&VERSION)?),
        ("sha256", json(&zeros)?),
        ("driftgauge", json(&baseline.driftgauge)?),
        ("accepted", json(&baseline.accepted)?),
        ("model", json(&baseline.model)?),
        ("suite", json(&baseline.suite)?),
        ("target", json(&baseline.target)?),
        ("dtype", json(&baseline.dtype)?),
        (
            "environment",
            format!("{{\n{}\n}}", lines(&baseline.environment)?),
        ),
        ("history", history),
    ] {
        // Writing into a string does not fail.
        let _ = writeln!(text, "\"{key}\": {value},");
    }
    let _ = write!(text, "\"cases\": {{\n{}\n}}\n}}\n", lines(&baseline.cases)?);
    let digest = hex::encode(Sha256::digest(&text));
    Ok(text.replacen(&zeros, &digest, 1))
}

/// Reads a baseline.
///
/// # Errors
/// [`BaselineError`] that names the file.
pub fn read(path: &Path) -> Result<Baseline, BaselineError> {
    let bytes = std::fs::read(path).map_err(BaselineError::io(path))?;
    let no_json = |error: serde_json::Error| {
        BaselineError::content(
            path,
            format!("not a baseline, or only a part of one: {error}"),
        )
    };
    let mut fields: serde_json::Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(no_json)?;
    let head = Head::deserialize(Value::Object(fields.clone())).map_err(no_json)?;
    head.check(path, FORMAT)?;
    let text = String::from_utf8_lossy(&bytes);
    let found = hex::encode(Sha256::digest(text.replacen(
        &head.sha256,
        &"0".repeat(64),
        1,
    )));
    if found != head.sha256 {
        return Err(BaselineError::Tampered {
            path: path.to_owned(),
            found,
            stated: head.sha256,
        });
    }
    for key in ["format", "version", "sha256"] {
        fields.remove(key);
    }
    Baseline::deserialize(Value::Object(fields)).map_err(no_json)
}

#[cfg(test)]
mod tests {
    use super::super::{AcceptedCase, AcceptedError, ModelIdentity, Reason, SuiteIdentity};
    use super::*;

    fn baseline() -> Baseline {
        let owned = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let error = AcceptedError(Some(10.19), Some(20.651), "f916".to_owned());
        let infinite = AcceptedError(None, None, "a0".to_owned());
        let case = |name: &str| {
            let observations = [("cls", error.clone()), ("logits", infinite.clone())]
                .map(|(name, error)| (name.to_owned(), error));
            let case = AcceptedCase {
                input: "0123".to_owned(),
                observations: observations.into(),
            };
            (name.to_owned(), case)
        };
        Baseline {
            driftgauge: "0.1.0".to_owned(),
            accepted: "2026-11-24".to_owned(),
            model: ModelIdentity {
                id: "zh-mini".to_owned(),
                files: [owned("config.json", "ab")].into(),
            },
            suite: SuiteIdentity {
                name: "seed".to_owned(),
                sha256: "cd".to_owned(),
            },
            target: "onnx@cpu/f32".to_owned(),
            dtype: "f32".to_owned(),
            environment: [owned("threads", "1"), owned("host.cpu", "a \"CPU\"")].into(),
            history: vec![Reason {
                date: "2026-11-24".to_owned(),
                reason: "更新\nof the library".to_owned(),
            }],
            cases: [case("capital"), case("首都")].into(),
        }
    }

    #[test]
    fn a_case_is_a_line_and_reading_gives_what_was_written() {
        let text = encode(&baseline()).unwrap();
        let line = "\"capital\": {\"input\":\"0123\",\"observations\":{\"cls\":\
                    [10.19,20.651,\"f916\"],\"logits\":[null,null,\"a0\"]}},\n";
        assert!(text.contains(line), "{text}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        std::fs::write(&path, &text).unwrap();
        assert_eq!(read(&path).unwrap(), baseline());
        let empty = Baseline {
            history: Vec::new(),
            cases: BTreeMap::new(),
            ..baseline()
        };
        std::fs::write(&path, encode(&empty).unwrap()).unwrap();
        assert_eq!(read(&path).unwrap(), empty);
    }

    #[test]
    fn damaged_files_are_refused_by_name() {
        let text = encode(&baseline()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        let replaced = |from: &str, to: &str| text.replacen(from, to, 1);
        for (damaged, expected) in [
            (String::new(), "not a baseline, or only a part of one"),
            (text[..text.len() / 2].to_owned(), "only a part of one"),
            ("[]".to_owned(), "not a baseline"),
            ("{}".to_owned(), "missing field `format`"),
            (
                replaced("gauge-baseline", "gauge-record"),
                "the format is `driftgauge-record`",
            ),
            (
                replaced("\"version\": 1", "\"version\": 2"),
                "a newer driftgauge wrote it",
            ),
            (replaced("\"version\": 1", "\"version\": 0"), "never was"),
            (
                replaced("10.19", "99.19"),
                "was changed after it was accepted",
            ),
            (replaced("更新", "新"), "was changed after it was accepted"),
            (
                replaced("\"threads\": \"1\"", "\"threads\": \"2\""),
                "was changed",
            ),
            (
                text.replace('\n', "\r\n"),
                "was changed after it was accepted",
            ),
        ] {
            std::fs::write(&path, damaged).unwrap();
            let error = read(&path).unwrap_err();
            let message = error.to_string();
            assert!(
                message.contains(expected) && message.contains("x.json"),
                "{message}"
            );
            assert!(!error.hint().is_empty());
        }
        let missing = read(&folder.path().join("y.json")).unwrap_err();
        assert!(missing.to_string().contains("y.json"), "{missing}");
    }

    #[test]
    fn file_names_leave_no_folder() {
        for (name, expected) in [
            ("onnx@cpu/f32", "onnx-cpu-f32"),
            (
                "onnx@cuda:0/f16?opt=basic&x=y",
                "onnx-cuda_0-f16+opt=basic+x=y",
            ),
            ("..", "_."),
            ("../x", "_.-x"),
            ("模型", "模型"),
        ] {
            assert_eq!(file_name(name), expected);
        }
    }
}
