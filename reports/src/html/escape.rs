//! How text gets into a page.

use std::fmt;

use askama::filters::{Escaper, Html};

use crate::text::plain;

/// Escapes text for HTML, attributes included, and makes characters visible that a browser would not show
/// or would obey: controls, escape sequences, right-to-left overrides. Templates use it for every value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Visible;

impl Escaper for Visible {
    fn write_escaped_str<W: fmt::Write>(&self, dest: W, string: &str) -> fmt::Result {
        Html.write_escaped_str(dest, &plain(string))
    }
}

/// `text` as it may stand in HTML that is not made by a template.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    // Writing into a string does not fail.
    let _ = Visible.write_escaped_str(&mut safe, text);
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_breaks_out_of_an_attribute_or_hides() {
        let hostile = "\"><script>\u{202e}\u{0}\u{1b}[2J&'";
        let expected = "&#34;&#62;&#60;script&#62;\\u{202e}\\u{0}\\u{1b}[2J&#38;&#39;";
        assert_eq!(escaped(hostile), expected);
    }
}
