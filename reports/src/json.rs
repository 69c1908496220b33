//! The record as JSON: readable, and the same bytes for the same record.

use crate::{RenderError, RunRecord};

/// Renders the record with one key per line and a final newline.
pub fn render(record: &RunRecord) -> Result<String, RenderError> {
    let mut text = serde_json::to_string_pretty(record)?;
    text.push('\n');
    Ok(text)
}
