//! Suites: TOML files of cases. What a file may say is in `file`.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use toml::Spanned;

use crate::model::Input;

mod file;

/// A file of cases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite {
    /// Name, unique in a run.
    pub name: String,
    /// What the suite is for, in a sentence.
    pub description: String,
    /// Cases that are run together in one padded batch; 1 runs them one by one.
    pub batch: usize,
    /// Its cases, in the order of the file.
    pub cases: Vec<Case>,
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// One input with a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Name, unique in the suite.
    pub name: String,
    /// What is asked about the input.
    pub task: Task,
    /// Why the case exists, where that is not plain.
    pub note: Option<String>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Which tokens fit the masks of a text, or of a pair of texts.
    FillMask {
        /// The text, or the first of a pair.
        text: String,
        /// The second text of a pair. One of the two has a `[MASK]`.
        text_pair: Option<String>,
    },
    /// How similar two texts are: the cosine of their CLS vectors.
    Similarity {
        /// One text.
        a: String,
        /// The other text.
        b: String,
    },
    /// The vectors of a text, or of a pair of texts.
    Features {
        /// The text, or the first of a pair.
        text: String,
        /// The second text of a pair.
        text_pair: Option<String>,
    },
}

impl Task {
    /// The word for it in suites and records.
    pub fn name(&self) -> &'static str {
        match self {
            Task::FillMask { .. } => "fill-mask",
            Task::Similarity { .. } => "similarity",
            Task::Features { .. } => "features",
        }
    }

    /// What becomes a sequence each, in order.
    pub fn inputs(&self) -> Vec<Input<'_>> {
        match self {
            Task::FillMask { text, text_pair } | Task::Features { text, text_pair } => {
                let pair = text_pair.as_deref();
                vec![Input { text, pair }]
            }
            Task::Similarity { a, b } => vec![Input::from(a.as_str()), Input::from(b.as_str())],
        }
    }

    /// The texts, in order, whether they are sequences of their own or a pair.
    pub fn texts(&self) -> Vec<&str> {
        let inputs = self.inputs().into_iter();
        inputs
            .flat_map(|input| [Some(input.text), input.pair])
            .flatten()
            .collect()
    }
}

/// What is wrong with a suite.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// The file cannot be read.
    #[error("cannot read suite `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: std::io::Error,
    },
    /// The file is not UTF-8.
    #[error("suite `{path}` is not UTF-8 at byte {offset}")]
    Encoding {
        /// The file.
        path: PathBuf,
        /// First byte that is not UTF-8.
        offset: usize,
    },
    /// The content is wrong; the message shows the line with a caret.
    #[error("{rendered}")]
    Content {
        /// File, line, the line's text, and what is wrong with it.
        rendered: String,
    },
    /// Two suites of a run have one name.
    #[error("suites `{first}` and `{second}` are both named `{name}`")]
    SameName {
        /// The name.
        name: String,
        /// One file.
        first: PathBuf,
        /// The other file.
        second: PathBuf,
    },
}

impl SuiteError {
    /// The next step for the user.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } => "--suite takes a TOML file of cases, see cases/README.md",
            Self::Encoding { .. } => "save the file as UTF-8",
            Self::Content { .. } => "the format of suites is in cases/README.md",
            Self::SameName { .. } => "give one of them another name",
        }
    }
}

/// Loads suites, whose names must differ.
///
/// # Errors
/// [`SuiteError`] with the file and, for wrong content, the line and a caret.
pub fn load_all(paths: &[PathBuf]) -> Result<Vec<Suite>, SuiteError> {
    let mut suites: Vec<Suite> = Vec::with_capacity(paths.len());
    for path in paths {
        let suite = load(path)?;
        if let Some(first) = suites.iter().find(|other| other.name == suite.name) {
            return Err(SuiteError::SameName {
                name: suite.name,
                first: first.path.clone(),
                second: suite.path,
            });
        }
        suites.push(suite);
    }
    Ok(suites)
}

/// Loads one suite.
///
/// # Errors
/// As [`load_all`].
pub fn load(path: &Path) -> Result<Suite, SuiteError> {
    let bytes = std::fs::read(path).map_err(|source| SuiteError::Io {
        path: path.to_owned(),
        source,
    })?;
    let text = std::str::from_utf8(&bytes).map_err(|error| SuiteError::Encoding {
        path: path.to_owned(),
        offset: error.valid_up_to(),
    })?;
    let (suite, cases) = file::parse(text).map_err(|problem| SuiteError::Content {
        rendered: problem.render(path, text),
    })?;
    Ok(Suite {
        name: suite.name.into_inner(),
        description: suite.description,
        batch: suite.batch.map_or(1, Spanned::into_inner),
        cases,
        path: path.to_owned(),
        sha256: hex::encode(Sha256::digest(&bytes)),
    })
}
