//! A file of known deviations: what may stand in it, and errors that point at the place.

use std::ops::Range;

use driftgauge_reports::record::{Class, FindingKind};
use globset::{Glob, GlobMatcher};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as ValueError;
use toml::Spanned;
use toml::value::Datetime;

use super::{Entry, Expected};
use crate::problem::Problem;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownFile {
    #[serde(rename = "known")]
    entries: Vec<Spanned<EntryTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryTable {
    target: Spanned<String>,
    case: Spanned<String>,
    library_version: Option<Spanned<String>>,
    #[serde(rename = "finding")]
    findings: Vec<ExpectedTable>,
    reason: Spanned<String>,
    expires: Spanned<Datetime>,
    #[serde(default)]
    sometimes: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedTable {
    kind: Spanned<String>,
    class: Option<Spanned<String>>,
    observation: Option<Spanned<String>>,
    up_to_u: Option<Spanned<f64>>,
}

/// The entries of a file. `name` is what the file is called in reports.
pub(super) fn parse(name: &str, text: &str) -> Result<Vec<Entry>, Problem> {
    let file: KnownFile = toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        let message = "the file of known deviations is not understood";
        Problem::at(span, message, error.message())
    })?;
    let entries = file.entries.into_iter();
    entries
        .map(|table| {
            let header = table.span();
            let before = text.get(..header.start).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            entry(table.into_inner(), header, name, line)
        })
        .collect()
}

fn entry(
    table: EntryTable,
    header: Range<usize>,
    file: &str,
    line: usize,
) -> Result<Entry, Problem> {
    if table.reason.get_ref().trim().is_empty() {
        let message = "the reason is empty";
        let label = "say why it is known and not mended";
        return Err(Problem::at(table.reason.span(), message, label));
    }
    if table.findings.is_empty() {
        let message = "the entry expects no finding";
        return Err(Problem::at(header, message, "add a [[known.finding]]"));
    }
    Ok(Entry {
        file: file.to_owned(),
        line,
        target: pattern(&table.target)?,
        case: pattern(&table.case)?,
        library_version: table.library_version.as_ref().map(pattern).transpose()?,
        findings: table
            .findings
            .iter()
            .map(expected)
            .collect::<Result<_, _>>()?,
        reason: table.reason.get_ref().trim().to_owned(),
        expires: day(&table.expires)?,
        sometimes: table.sometimes,
    })
}

fn expected(table: &ExpectedTable) -> Result<Expected, Problem> {
    let kind: FindingKind = word(&table.kind)?;
    if let Err(why) = can_be_known(kind) {
        let message = format!("a finding `{}` can never be known", table.kind.get_ref());
        return Err(Problem::at(table.kind.span(), message, why));
    }
    let up_to_u = table.up_to_u.as_ref().map(|bound| match *bound.get_ref() {
        number if number.is_finite() && number > 0.0 => Ok(number),
        _ => {
            let message = "`up_to_u` must be a positive number";
            Err(Problem::at(bound.span(), message, "in units of roundoff"))
        }
    });
    Ok(Expected {
        kind,
        class: table.class.as_ref().map(word::<Class>).transpose()?,
        observation: table.observation.as_ref().map(pattern).transpose()?,
        up_to_u: up_to_u.transpose()?,
    })
}

/// Whether a finding may be expected; why not, where it may not.
fn can_be_known(kind: FindingKind) -> Result<(), &'static str> {
    match kind {
        FindingKind::Moved | FindingKind::Order | FindingKind::Numeric | FindingKind::Damage => {
            Ok(())
        }
        FindingKind::Broken | FindingKind::Unsupported => {
            Err("what gave no result is never hidden")
        }
        FindingKind::Flaky => Err("what differs from run to run may be anything"),
        FindingKind::Expired => Err("it says that an entry has expired"),
    }
}

/// A word of the record: a kind, a class.
fn word<T: for<'a> Deserialize<'a>>(text: &Spanned<String>) -> Result<T, Problem> {
    T::deserialize(text.get_ref().as_str().into_deserializer()).map_err(|error: ValueError| {
        let message = format!("unknown word `{}`", text.get_ref());
        Problem::at(text.span(), message, error.to_string())
    })
}

fn pattern(text: &Spanned<String>) -> Result<GlobMatcher, Problem> {
    let compiled = Glob::new(text.get_ref()).map(|glob| glob.compile_matcher());
    compiled.map_err(|error| {
        let message = format!("`{}` is not a pattern", text.get_ref());
        Problem::at(text.span(), message, error.kind().to_string())
    })
}

fn day(date: &Spanned<Datetime>) -> Result<String, Problem> {
    match date.get_ref() {
        Datetime {
            date: Some(day),
            time: None,
            offset: None,
        } => Ok(day.to_string()),
        _ => {
            let message = "`expires` is a day without a time";
            Err(Problem::at(date.span(), message, "as in 2027-03-31"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const GOOD: &str = r#"# Where the fused layer norm is off.
[[known]]
target = "onnx@cpu/f32*"
case = "fill-mask/*"
library_version = "1.18.*"
reason = " see #12 "
expires = 2027-03-31
sometimes = true

[[known.finding]]
kind = "numeric"
class = "precision"
observation = "hidden.*"
up_to_u = 40

[[known]]
target = "candle*"
case = "*"
reason = "NaN"
expires = 2026-12-01
finding = [{ kind = "damage" }]
"#;

    fn check(text: &str) -> Result<Vec<Entry>, String> {
        parse("known/x.toml", text).map_err(|p| p.render(Path::new("known/x.toml"), text))
    }

    #[test]
    fn a_good_file() {
        let entries = check(GOOD).unwrap();
        let facts: Vec<_> = entries
            .iter()
            .map(|e| (e.line, e.reason.as_str(), e.expires.as_str(), e.sometimes))
            .collect();
        assert_eq!(
            facts,
            [
                (2, "see #12", "2027-03-31", true),
                (16, "NaN", "2026-12-01", false)
            ]
        );
        assert_eq!(
            entries[0].findings[0].in_words(),
            "numeric, precision, in `hidden.*`, up to 40 u"
        );
        assert_eq!(entries[1].findings[0].in_words(), "damage");
    }

    /// Every error shows file, line and a caret under the place.
    #[test]
    fn bad_files_point_at_the_place() {
        for (from, to, message, place) in [
            (
                "kind = \"numeric\"",
                "kind = \"num",
                "not understood",
                ":11:",
            ),
            (
                "sometimes",
                "somtimes",
                "unknown field `somtimes`",
                "x.toml:8:1",
            ),
            (
                "reason = \" see #12 \"",
                "reason = \"  \"",
                "the reason is empty",
                "x.toml:6:10",
            ),
            (
                "reason = \"NaN\"\n",
                "",
                "missing field `reason`",
                "x.toml:16:1",
            ),
            (
                "expires = 2026-12-01\n",
                "",
                "missing field `expires`",
                "x.toml:16:1",
            ),
            ("2026-12-01", "2026-02-30", "not understood", "x.toml:20:"),
            ("2026-12-01", "\"soon\"", "not understood", "x.toml:20:11"),
            (
                "2026-12-01",
                "2026-12-01T10:00:00",
                "a day without a time",
                "x.toml:20:11",
            ),
            (
                "\"damage\"",
                "\"broken\"",
                "`broken` can never be known",
                "x.toml:21:21",
            ),
            (
                "\"damage\"",
                "\"unsupported\"",
                "can never be known",
                "x.toml:21:21",
            ),
            (
                "\"damage\"",
                "\"flaky\"",
                "can never be known",
                "x.toml:21:21",
            ),
            (
                "\"damage\"",
                "\"odd\"",
                "unknown variant `odd`, expected one of",
                "x.toml:21:21",
            ),
            (
                "\"precision\"",
                "\"exact\"",
                "unknown variant `exact`",
                "x.toml:12:9",
            ),
            (
                "[{ kind = \"damage\" }]",
                "[]",
                "expects no finding",
                "x.toml:16:1",
            ),
            (
                "\"candle*\"",
                "\"[\"",
                "`[` is not a pattern",
                "x.toml:17:10",
            ),
            ("= 40", "= -1", "must be a positive number", "x.toml:14:11"),
            ("= 40", "= nan", "must be a positive number", "x.toml:14:11"),
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
        let error = check("# nothing\n").unwrap_err();
        assert!(error.contains("missing field `known`"), "{error}");
    }
}
