//! Suites: TOML files of cases.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use toml::Spanned;

use crate::model::MASK;

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
    /// Which tokens fit the masks of a text.
    FillMask {
        /// The text, with at least one `[MASK]`.
        text: String,
    },
    /// How similar two texts are: the cosine of their CLS vectors.
    Similarity {
        /// One text.
        a: String,
        /// The other text.
        b: String,
    },
    /// The vectors of a text.
    Features {
        /// The text.
        text: String,
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

    /// The texts, in order.
    pub fn texts(&self) -> Vec<&str> {
        match self {
            Task::FillMask { text } | Task::Features { text } => vec![text],
            Task::Similarity { a, b } => vec![a, b],
        }
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SuiteFile {
    suite: SuiteTable,
    #[serde(rename = "case", default)]
    cases: Vec<Spanned<CaseTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SuiteTable {
    name: Spanned<String>,
    description: String,
    batch: Option<Spanned<usize>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseTable {
    name: Spanned<String>,
    task: Spanned<String>,
    text: Option<Spanned<String>>,
    a: Option<Spanned<String>>,
    b: Option<Spanned<String>>,
    note: Option<String>,
}

/// Largest `batch` of a suite.
const MAX_BATCH: usize = 256;

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
    let (suite, cases) = parse(text).map_err(|problem| SuiteError::Content {
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

/// Something wrong at a place in a file.
struct Problem {
    message: String,
    span: Range<usize>,
    label: String,
    /// An earlier place that matters, with what it is.
    earlier: Option<(Range<usize>, &'static str)>,
}

impl Problem {
    fn at(span: Range<usize>, message: impl Into<String>, label: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            span,
            label: label.into(),
            earlier: None,
        }
    }

    fn render(&self, path: &Path, text: &str) -> String {
        let path = path.display().to_string();
        let mut snippet = Snippet::source(text).path(&path).annotation(
            AnnotationKind::Primary
                .span(self.span.clone())
                .label(self.label.as_str()),
        );
        if let Some((span, label)) = &self.earlier {
            snippet = snippet.annotation(AnnotationKind::Context.span(span.clone()).label(*label));
        }
        let report = [Level::ERROR
            .primary_title(self.message.as_str())
            .element(snippet)];
        let rendered = Renderer::plain().render(&report);
        // The caller writes `error:` itself.
        rendered
            .strip_prefix("error: ")
            .map_or(rendered.clone(), str::to_owned)
    }
}

fn parse(text: &str) -> Result<(SuiteTable, Vec<Case>), Problem> {
    let file: SuiteFile = toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        Problem::at(span, "the suite is not understood", error.message())
    })?;
    check_name(&file.suite.name)?;
    if let Some(batch) = &file.suite.batch
        && !(1..=MAX_BATCH).contains(batch.get_ref())
    {
        let message = format!("`batch` must be between 1 and {MAX_BATCH}");
        return Err(Problem::at(batch.span(), message, "out of range"));
    }
    let mut seen: HashMap<String, Range<usize>> = HashMap::new();
    let mut cases = Vec::with_capacity(file.cases.len());
    for table in file.cases {
        let header = table.span();
        let table = table.into_inner();
        check_name(&table.name)?;
        let (name, span) = (table.name.get_ref().clone(), table.name.span());
        if let Some(earlier) = seen.insert(name.clone(), span.clone()) {
            let mut problem = Problem::at(
                span,
                format!("two cases are named `{name}`"),
                "used again here",
            );
            problem.earlier = Some((earlier, "first used here"));
            return Err(problem);
        }
        let note = table.note.clone();
        cases.push(Case {
            task: task(table, header)?,
            name,
            note,
        });
    }
    if cases.is_empty() {
        let span = file.suite.name.span();
        return Err(Problem::at(
            span,
            "the suite has no cases",
            "add a [[case]]",
        ));
    }
    Ok((file.suite, cases))
}

/// Names become parts of file names, patterns and report identifiers.
fn check_name(name: &Spanned<String>) -> Result<(), Problem> {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.get_ref().is_empty() || !name.get_ref().chars().all(allowed) {
        let message = "a name consists of letters, digits, `-`, `_` and `.`";
        return Err(Problem::at(name.span(), message, "not a name"));
    }
    Ok(())
}

fn task(table: CaseTable, header: Range<usize>) -> Result<Task, Problem> {
    let word = table.task.get_ref().as_str();
    let (wanted, unwanted): (&[&str], &[&str]) = match word {
        "fill-mask" | "features" => (&["text"], &["a", "b"]),
        "similarity" => (&["a", "b"], &["text"]),
        "tokens" => {
            let label = "known: fill-mask, similarity, features";
            let message = "this version compares no tokenizers, so it has no `tokens` task";
            return Err(Problem::at(table.task.span(), message, label));
        }
        _ => {
            let known = "known: fill-mask, similarity, features";
            return Err(Problem::at(
                table.task.span(),
                format!("unknown task `{word}`"),
                known,
            ));
        }
    };
    let fields = [("text", &table.text), ("a", &table.a), ("b", &table.b)];
    for (field, value) in fields {
        match value {
            Some(value) if unwanted.contains(&field) => {
                let message = format!("a {word} case has no `{field}`");
                let label = format!("expected {}", wanted.join(" and "));
                return Err(Problem::at(value.span(), message, label));
            }
            None if wanted.contains(&field) => {
                let message = format!("case `{}` has no `{field}`", table.name.get_ref());
                return Err(Problem::at(
                    header,
                    message,
                    format!("{word} needs `{field}`"),
                ));
            }
            _ => {}
        }
    }
    if word == "fill-mask"
        && let Some(text) = &table.text
        && !text.get_ref().contains(MASK)
    {
        let message = format!("the text of a fill-mask case needs a {MASK}");
        return Err(Problem::at(
            text.span(),
            message,
            format!("no {MASK} in here"),
        ));
    }
    let take = |field: Option<Spanned<String>>| field.map(Spanned::into_inner).unwrap_or_default();
    Ok(match word {
        "fill-mask" => Task::FillMask {
            text: take(table.text),
        },
        "features" => Task::Features {
            text: take(table.text),
        },
        _ => Task::Similarity {
            a: take(table.a),
            b: take(table.b),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"[suite]
name = "seed"
description = "d"

[[case]]
name = "capital"
task = "fill-mask"
text = "中国的首都是[MASK]。"

[[case]]
name = "pair"
task = "similarity"
a = "科"
b = ""
"#;

    fn check(text: &str) -> Result<Vec<Case>, String> {
        parse(text)
            .map(|(_, cases)| cases)
            .map_err(|p| p.render(Path::new("cases/seed.toml"), text))
    }

    #[test]
    fn a_good_suite() {
        let cases = check(GOOD).unwrap();
        assert_eq!(
            cases[0].task,
            Task::FillMask {
                text: "中国的首都是[MASK]。".to_owned()
            }
        );
        assert_eq!(cases[1].task.texts(), ["科", ""]);
    }

    /// Every error shows file, line and a caret under the place.
    #[test]
    fn bad_suites_point_at_the_place() {
        for (from, to, message, place) in [
            (
                "name = \"seed\"",
                "name = \"se",
                "not understood",
                "seed.toml:2:",
            ),
            (
                "description",
                "describtion",
                "unknown field `describtion`",
                "seed.toml:3:1",
            ),
            (
                "text = \"中国的首都是[MASK]。\"",
                "text = \"中国的首都是。\"",
                "needs a [MASK]",
                "seed.toml:8:8",
            ),
            (
                "\"pair\"",
                "\"capital\"",
                "two cases are named `capital`",
                "seed.toml:11:8",
            ),
            (
                "\"pair\"",
                "\"a/b\"",
                "a name consists of",
                "seed.toml:11:8",
            ),
            (
                "similarity",
                "similar",
                "unknown task `similar`",
                "seed.toml:12:8",
            ),
            (
                "similarity",
                "tokens",
                "compares no tokenizers",
                "seed.toml:12:8",
            ),
            ("b = \"\"", "", "case `pair` has no `b`", "seed.toml:10:1"),
            (
                "b = \"\"",
                "b = \"\"\ntext = \"x\"",
                "a similarity case has no `text`",
                "seed.toml:15:8",
            ),
            (
                "a = \"科\"",
                "a = 3",
                "invalid type: integer",
                "seed.toml:13:5",
            ),
            (
                "\n[[case]]",
                "batch = 0\n[[case]]",
                "between 1 and 256",
                "seed.toml:4:9",
            ),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let error = check(&GOOD.replacen(from, to, 1)).unwrap_err();
            assert!(
                error.contains(message),
                "{error}\nshould contain {message:?}"
            );
            assert!(error.contains(place), "{error}\nshould point at {place}");
            assert!(error.contains('^'), "{error}\nshould have a caret");
        }
    }

    #[test]
    fn a_suite_without_cases_is_refused() {
        let error = check("[suite]\nname = \"x\"\ndescription = \"d\"\n").unwrap_err();
        assert!(error.contains("the suite has no cases"), "{error}");
    }
}
