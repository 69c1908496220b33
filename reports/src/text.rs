//! Text from cases, models and workers: untrusted, and often Chinese.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Makes text safe for a terminal: control characters, including escape sequences and
/// right-to-left overrides, and what XML does not allow become visible escapes.
pub fn plain(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut safe, c| {
        let invisible = matches!(c,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}');
        if c.is_control() || invisible {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
        safe
    })
}

/// [`plain`], but line ends stay.
pub fn plain_lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// Columns that a text takes on a terminal.
pub fn width(text: &str) -> usize {
    text.width()
}

/// Cuts a text to at most `columns`, with an ellipsis where something is cut.
pub fn shorten(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut short = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > columns {
            break;
        }
        short.push(c);
    }
    short.push('…');
    short
}

/// Cuts a text to at most `columns` in its middle: of paths, the end tells most.
pub fn shorten_middle(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let kept = columns.saturating_sub(1);
    let start = shorten(text, kept / 3 + 1);
    let free = columns.saturating_sub(start.width());
    let mut used = 0;
    let end = text.char_indices().rev().find(|(_, c)| {
        used += c.width().unwrap_or(0);
        used > free
    });
    let end = end.map_or(0, |(index, c)| index + c.len_utf8());
    format!("{start}{}", &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_visible() {
        assert_eq!(
            plain("a\u{1b}[31m\u{202e}中\n"),
            "a\\u{1b}[31m\\u{202e}中\\n"
        );
    }

    #[test]
    fn the_middle_is_cut_where_the_end_matters() {
        for (text, columns, expected) in [
            ("onnx@cpu/f32", 12, "onnx@cpu/f32"),
            ("onnx@cpu/f32?lib=so.1.23.2", 12, "onn…o.1.23.2"),
            ("中国的首都北京市", 9, "中…北京市"),
            ("abc", 1, "…"),
        ] {
            let short = shorten_middle(text, columns);
            assert_eq!(short, expected);
            assert!(width(&short) <= columns);
        }
    }

    #[test]
    fn shortening_counts_columns_not_characters() {
        for (text, columns, expected) in [
            ("中国的首都", 10, "中国的首都"),
            ("中国的首都", 9, "中国的首…"),
            ("中国的首都", 8, "中国的…"),
            ("abc", 2, "a…"),
        ] {
            let short = shorten(text, columns);
            assert_eq!(short, expected);
            assert!(width(&short) <= columns);
        }
    }
}
