//! The record of a run, and one file per report format.
//!
//! A report is a function of the record alone: [`render`] reads nothing else, no clock, no
//! environment, no terminal. Adding a format is one file, a variant of [`Format`] and its arm.

pub mod apart;
mod baselines;
pub mod calibration;
mod command;
mod conclusion;
pub mod consistency;
mod csv;
mod ctrf;
pub mod detection;
pub mod diff;
pub mod environment;
mod findings;
mod github;
mod gitlab;
pub mod history;
mod html;
mod json;
mod junit;
pub mod known;
mod language;
mod layout;
pub mod location;
mod markdown;
mod pairs;
mod phrases;
pub mod record;
pub mod selftest;
mod terminal;
pub mod text;
mod words;

pub use language::Language;
pub use layout::wrap;
pub use record::RunRecord;

/// The formats there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A table for a person, at most as wide as the terminal.
    Table,
    /// The record itself.
    Json,
    /// One page for a reviewer.
    Html,
    /// A comment on a pull request.
    Markdown,
    /// JUnit XML, which CI servers read.
    Junit,
    /// Annotations on GitHub, as workflow commands.
    Github,
    /// The summary of a step on GitHub, as Markdown.
    GithubSummary,
    /// GitLab's code quality report.
    Gitlab,
    /// The Common Test Report Format.
    Ctrf,
    /// A row for each case, target and observation.
    Csv,
}

impl Format {
    /// All formats, in the order of `--help`.
    pub const ALL: [Format; 10] = [
        Format::Table,
        Format::Json,
        Format::Html,
        Format::Markdown,
        Format::Junit,
        Format::Github,
        Format::GithubSummary,
        Format::Gitlab,
        Format::Ctrf,
        Format::Csv,
    ];

    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Table => "table",
            Format::Json => "json",
            Format::Html => "html",
            Format::Markdown => "markdown",
            Format::Junit => "junit",
            Format::Github => "github",
            Format::GithubSummary => "github-summary",
            Format::Gitlab => "gitlab",
            Format::Ctrf => "ctrf",
            Format::Csv => "csv",
        }
    }
}

/// How a report is to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Columns of the terminal.
    pub width: usize,
    /// Whether colours are wanted.
    pub colour: bool,
}

/// Why a report cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The record holds what JSON cannot say.
    #[error("cannot write the record as JSON")]
    Json(#[from] serde_json::Error),
    /// A template failed.
    #[error("cannot write the page")]
    Page(#[from] askama::Error),
    /// A chart could not be drawn.
    #[error("cannot draw a chart: {0}")]
    Chart(String),
    /// The XML cannot be written.
    #[error("cannot write JUnit XML: {0}")]
    Junit(String),
    /// The rows cannot be written.
    #[error("cannot write CSV: {0}")]
    Csv(String),
}

/// Renders a record. `style` is that of the table; `language` is that of the pages that people read.
///
/// # Errors
/// [`RenderError`] where the format cannot say what the record holds.
pub fn render(
    record: &RunRecord,
    format: Format,
    style: Style,
    language: Language,
) -> Result<String, RenderError> {
    match format {
        Format::Table => Ok(terminal::render(record, style)),
        Format::Json => json::render(record),
        Format::Html => html::run::render(record, language),
        Format::Markdown => Ok(markdown::render(record, language)),
        Format::Junit => junit::render(record),
        Format::Github => Ok(github::render(record)),
        Format::GithubSummary => Ok(markdown::render_summary(record, language)),
        Format::Gitlab => gitlab::render(record),
        Format::Ctrf => ctrf::render(record),
        Format::Csv => csv::render(record),
    }
}
