//! The file of a suite: what may stand in it, and errors that point at the place.

use std::collections::HashMap;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use super::{Case, Task};
use crate::model::MASK;
use crate::problem::Problem;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SuiteFile {
    suite: SuiteTable,
    #[serde(rename = "case", default)]
    cases: Vec<Spanned<CaseTable>>,
}

/// The table `[suite]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SuiteTable {
    pub(super) name: Spanned<String>,
    pub(super) description: String,
    pub(super) batch: Option<Spanned<usize>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseTable {
    name: Spanned<String>,
    task: Spanned<String>,
    text: Option<Spanned<String>>,
    text_pair: Option<Spanned<String>>,
    a: Option<Spanned<String>>,
    b: Option<Spanned<String>>,
    note: Option<String>,
}

/// Largest `batch` of a suite.
const MAX_BATCH: usize = 256;

/// The table and the cases of a suite.
pub(super) fn parse(text: &str) -> Result<(SuiteTable, Vec<Case>), Problem> {
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
    check_fields(&table, header)?;
    let own = |field: Option<Spanned<String>>| field.map(Spanned::into_inner);
    let take = |field| own(field).unwrap_or_default();
    Ok(match table.task.get_ref().as_str() {
        "fill-mask" => Task::FillMask {
            text: take(table.text),
            text_pair: own(table.text_pair),
        },
        "features" => Task::Features {
            text: take(table.text),
            text_pair: own(table.text_pair),
        },
        _ => Task::Similarity {
            a: take(table.a),
            b: take(table.b),
        },
    })
}

/// A case has the fields of its task and no others.
fn check_fields(table: &CaseTable, header: Range<usize>) -> Result<(), Problem> {
    let known = "known: fill-mask, similarity, features";
    let word = table.task.get_ref().as_str();
    // `text_pair` may stand beside a `text`, so that it is in neither list there.
    let (wanted, unwanted): (&[&str], &[&str]) = match word {
        "fill-mask" | "features" => (&["text"], &["a", "b"]),
        "similarity" => (&["a", "b"], &["text", "text_pair"]),
        "tokens" => {
            let message = "this version compares no tokenizers, so it has no `tokens` task";
            return Err(Problem::at(table.task.span(), message, known));
        }
        _ => {
            let message = format!("unknown task `{word}`");
            return Err(Problem::at(table.task.span(), message, known));
        }
    };
    let fields = [
        ("text", &table.text),
        ("text_pair", &table.text_pair),
        ("a", &table.a),
        ("b", &table.b),
    ];
    for (field, value) in fields {
        match value {
            Some(value) if unwanted.contains(&field) => {
                let message = format!("a {word} case has no `{field}`");
                let label = format!("expected {}", wanted.join(" and "));
                return Err(Problem::at(value.span(), message, label));
            }
            None if wanted.contains(&field) => {
                let message = format!("case `{}` has no `{field}`", table.name.get_ref());
                let label = format!("{word} needs `{field}`");
                return Err(Problem::at(header, message, label));
            }
            _ => {}
        }
    }
    if word == "fill-mask" {
        check_mask(table.text.as_ref(), table.text_pair.as_ref())?;
    }
    Ok(())
}

/// One text of a fill-mask case must have a mask.
fn check_mask(
    text: Option<&Spanned<String>>,
    text_pair: Option<&Spanned<String>>,
) -> Result<(), Problem> {
    let has_mask = |text: &&Spanned<String>| text.get_ref().contains(MASK);
    let Some(place) = text else {
        return Ok(());
    };
    if [text, text_pair].iter().flatten().any(has_mask) {
        return Ok(());
    }
    let (message, label) = match text_pair {
        None => (
            format!("the text of a fill-mask case needs a {MASK}"),
            format!("no {MASK} in here"),
        ),
        Some(_) => (
            format!("the text or the text_pair of a fill-mask case needs a {MASK}"),
            format!("no {MASK} in here, nor in `text_pair`"),
        ),
    };
    Err(Problem::at(place.span(), message, label))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Input;

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
                text: "中国的首都是[MASK]。".to_owned(),
                text_pair: None,
            }
        );
        assert_eq!(cases[1].task.texts(), ["科", ""]);
        assert_eq!(cases[1].task.inputs(), ["科".into(), "".into()]);
    }

    /// A pair is two texts and one input; its mask may stand in either text.
    #[test]
    fn a_pair_of_texts() {
        for (task, text, text_pair) in [
            ("features", "下雨了。", "带上伞。"),
            ("features", "科", ""),
            ("fill-mask", "下[MASK]了。", "带上伞。"),
            ("fill-mask", "下雨了。", "带上[MASK]。"),
        ] {
            let case = format!("task = \"{task}\"\ntext = \"{text}\"\ntext_pair = \"{text_pair}\"");
            let first = GOOD.split_once("task").unwrap().0;
            let cases = check(&format!("{first}{case}\n")).unwrap();
            let pair = Some(text_pair);
            assert_eq!(cases[0].task.inputs(), [Input { text, pair }]);
            assert_eq!(cases[0].task.texts(), [text, text_pair]);
            assert_eq!(cases[0].task.name(), task);
        }
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
                "b = \"\"",
                "b = \"\"\ntext_pair = \"x\"",
                "a similarity case has no `text_pair`",
                "seed.toml:15:13",
            ),
            (
                "text = \"中国的首都是[MASK]。\"",
                "text_pair = \"中国的首都是[MASK]。\"",
                "case `capital` has no `text`",
                "seed.toml:5:1",
            ),
            (
                "text = \"中国的首都是[MASK]。\"",
                "text = \"中国\"\ntext_pair = \"首都\"",
                "the text or the text_pair of a fill-mask case needs a [MASK]",
                "seed.toml:8:8",
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
