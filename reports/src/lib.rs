//! The record of a run, and one file per report format.
//!
//! A report is a function of the record alone: [`render`] reads nothing else, no clock, no
//! environment, no terminal. Adding a format is one file, a variant of [`Format`] and its arm.

pub mod apart;
mod baselines;
pub mod calibration;
pub mod consistency;
pub mod detection;
pub mod diff;
pub mod environment;
mod findings;
mod json;
mod layout;
pub mod location;
mod pairs;
pub mod record;
pub mod selftest;
mod terminal;
pub mod text;

pub use layout::wrap;
pub use record::RunRecord;

/// The formats there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A table for a person, at most as wide as the terminal.
    Table,
    /// The record itself.
    Json,
}

impl Format {
    /// All formats, in the order of `--help`.
    pub const ALL: [Format; 2] = [Format::Table, Format::Json];

    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Table => "table",
            Format::Json => "json",
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

/// Renders a record.
///
/// # Errors
/// [`serde_json::Error`] where the record holds what JSON cannot say.
pub fn render(
    record: &RunRecord,
    format: Format,
    style: Style,
) -> Result<String, serde_json::Error> {
    match format {
        Format::Table => Ok(terminal::render(record, style)),
        Format::Json => json::render(record),
    }
}
