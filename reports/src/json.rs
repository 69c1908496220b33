//! The record as JSON: readable, and the same bytes for the same record.

use crate::RunRecord;

/// Renders the record with one key per line and a final newline.
pub fn render(record: &RunRecord) -> Result<String, serde_json::Error> {
    let mut text = serde_json::to_string_pretty(record)?;
    text.push('\n');
    Ok(text)
}
