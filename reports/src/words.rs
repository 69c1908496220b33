//! Texts and numbers as every report for people shows them.

use crate::phrases::{Phrases, fill};
use crate::terminal::number;

/// Characters of a text that are shown.
pub(crate) const TEXT: usize = 300;
/// Characters of a name that are shown.
pub(crate) const NAME: usize = 120;

/// A text of at most some characters, with a note where it was cut.
pub(crate) fn shown(text: &str, most: usize, t: &Phrases) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}… ({})", &text[..end], t.shortened),
    }
}

/// An error with its unit.
pub(crate) fn in_u(error: Option<f64>, t: &Phrases) -> String {
    match error {
        Some(error) if error.is_finite() => format!("{} u", number(error)),
        _ => t.not_finite.to_owned(),
    }
}

/// A number without a unit.
pub(crate) fn bare(value: f64, t: &Phrases) -> String {
    match value.is_finite() {
        true => number(value),
        false => t.not_finite.to_owned(),
    }
}

/// How much is not shown, as a sentence.
pub(crate) fn hidden(count: usize, t: &Phrases) -> Option<String> {
    (count > 0).then(|| fill(t.more, &[("n", &count.to_string())]))
}
