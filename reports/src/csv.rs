//! Comma-separated values: one row for each case, target and observation, under the names of the record.
//!
//! A result without observations has one row. Numbers are written so that reading gives the same bits; what is
//! not finite is empty. Text that a spreadsheet would take for a formula begins with an apostrophe.

use ::csv::Writer;

use crate::RenderError;
use crate::record::{Observation, ResultRecord, RunRecord};
use crate::text::plain;

/// Names of the columns.
const COLUMNS: [&str; 20] = [
    "suite",
    "case",
    "task",
    "target",
    "verdict",
    "observation",
    "dtype",
    "within",
    "error_u",
    "predicted_u",
    "budget_u",
    "effective_bits",
    "max_abs",
    "max_rel",
    "cosine",
    "accepted_u",
    "moved_noise",
    "digest",
    "finding",
    "text",
];

/// Renders the record.
///
/// # Errors
/// [`RenderError::Csv`] with the library's words.
pub(crate) fn render(record: &RunRecord) -> Result<String, RenderError> {
    let csv = |error: &dyn std::fmt::Display| RenderError::Csv(error.to_string());
    let mut writer = Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS).map_err(|error| csv(&error))?;
    for result in &record.results {
        if result.observations.is_empty() {
            writer
                .write_record(row(result, None))
                .map_err(|error| csv(&error))?;
        }
        for one in &result.observations {
            writer
                .write_record(row(result, Some(one)))
                .map_err(|error| csv(&error))?;
        }
    }
    let bytes = writer.into_inner().map_err(|error| csv(&error))?;
    String::from_utf8(bytes).map_err(|error| csv(&error))
}

fn row(result: &ResultRecord, observation: Option<(&String, &Observation)>) -> [String; 20] {
    let one = observation.map(|(_, one)| one);
    let number = |value: Option<f64>| {
        let value = value.filter(|value| value.is_finite());
        value.map_or(String::new(), |value| format!("{value:?}"))
    };
    let moved = one.and_then(|one| one.moved.as_ref());
    let name = observation.map(|(name, _)| name);
    let mut findings = result.findings.iter();
    let finding = findings.find(|finding| finding.observation.as_ref() == name);
    [
        cell(&result.suite),
        cell(&result.case),
        cell(&result.task),
        cell(&result.target),
        result.verdict.name().to_owned(),
        name.map_or(String::new(), |name| cell(name)),
        one.map_or(String::new(), |one| cell(&one.dtype)),
        one.map_or(String::new(), |one| one.within.to_string()),
        number(one.and_then(|one| one.error_u)),
        number(one.map(|one| one.predicted_u)),
        number(one.map(|one| one.budget_u)),
        number(one.and_then(|one| one.effective_bits)),
        number(one.and_then(|one| one.max_abs)),
        number(one.and_then(|one| one.max_rel)),
        number(one.and_then(|one| one.cosine)),
        number(moved.and_then(|moved| moved.accepted_u)),
        number(moved.and_then(|moved| moved.noise)),
        one.map_or(String::new(), |one| cell(&one.digest)),
        finding.map_or(String::new(), |finding| cell(&finding.message)),
        cell(&result.texts.join(" | ")),
    ]
}

/// Text as a cell that no program runs.
fn cell(text: &str) -> String {
    let text = plain(text);
    match text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        true => format!("'{text}"),
        false => text,
    }
}
