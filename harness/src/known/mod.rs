//! Known deviations: what is wrong with a target, why that is so, and until when it may be.
//!
//! They stand in TOML files in a folder; what a file may say is in `file`. [`apply()`] is pure: it makes
//! of drift that an entry explains wholly a known deviation, and of a pass where an entry expects a
//! deviation one that is fixed. What gave no result is never touched.

mod apply;
mod file;

use std::io;
use std::path::{Path, PathBuf};

use driftgauge_reports::record::{Class, FindingKind};
use globset::GlobMatcher;

pub use apply::apply;

/// A known deviation.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its file, as reports name it.
    pub file: String,
    /// Line of the file where it begins, from 1 on.
    pub line: usize,
    /// Its targets.
    pub target: GlobMatcher,
    /// Its cases, by name or as `suite/case`.
    pub case: GlobMatcher,
    /// The versions of the library that it is about; all where there is none.
    pub library_version: Option<GlobMatcher>,
    /// What it expects; never empty.
    pub findings: Vec<Expected>,
    /// Why it is known and not mended.
    pub reason: String,
    /// Last day on which it counts, as in `2026-11-24`.
    pub expires: String,
    /// Whether results without the deviation are a pass.
    pub sometimes: bool,
}

/// A finding that is expected.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Its kind.
    pub kind: FindingKind,
    /// Its class; any where there is none.
    pub class: Option<Class>,
    /// The observations that it may be about; any, or none at all, where there is none.
    pub observation: Option<GlobMatcher>,
    /// Largest error that it may measure, in units of roundoff; any where there is none.
    pub up_to_u: Option<f64>,
}

impl Expected {
    /// What is expected, in a few words.
    pub fn in_words(&self) -> String {
        let mut words = kind_name(self.kind).to_owned();
        if let Some(class) = self.class {
            words.push_str(&format!(", {}", class.name()));
        }
        if let Some(observation) = &self.observation {
            words.push_str(&format!(", in `{}`", observation.glob()));
        }
        if let Some(bound) = self.up_to_u {
            words.push_str(&format!(", up to {bound} u"));
        }
        words
    }
}

/// Why known deviations cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum KnownError {
    /// The folder or a file cannot be read.
    #[error("cannot read known deviations from `{path}`")]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
    /// The content is wrong; the message shows the line with a caret.
    #[error("{rendered}")]
    Content {
        /// File, line, the line's text, and what is wrong with it.
        rendered: String,
    },
}

impl KnownError {
    /// The next step for the user.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } => "--known takes a folder of TOML files, see cases/known/README.md",
            Self::Content { .. } => "the format of known deviations is in cases/known/README.md",
        }
    }
}

/// Reads every `*.toml` of a folder, in the order of their names. Reports call a file by `label` and its
/// name.
///
/// # Errors
/// [`KnownError`] with the file and, for wrong content, the line and a caret.
pub fn load(folder: &Path, label: &str) -> Result<Vec<Entry>, KnownError> {
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| KnownError::Io { path, source }
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io_error(folder))? {
        let path = entry.map_err(io_error(folder))?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    paths.sort();
    let mut entries = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).map_err(io_error(&path))?;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{}/{file}", label.trim_end_matches('/'));
        let parsed = file::parse(&name, &text).map_err(|problem| KnownError::Content {
            rendered: problem.render(&path, &text),
        })?;
        entries.extend(parsed);
    }
    Ok(entries)
}

/// The word for a kind in files and reports.
fn kind_name(kind: FindingKind) -> &'static str {
    match kind {
        FindingKind::Unsupported => "unsupported",
        FindingKind::Expired => "expired",
        FindingKind::Moved => "moved",
        FindingKind::Order => "order",
        FindingKind::Flaky => "flaky",
        FindingKind::Numeric => "numeric",
        FindingKind::Damage => "damage",
        FindingKind::Broken => "broken",
    }
}
