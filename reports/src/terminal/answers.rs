//! What the truth answers to some cases, and how far each target is from it.

use std::fmt::Write;

use tabled::builder::Builder;

use super::{CELL, NARROWEST_CASE, heading, number};
use crate::Style;
use crate::layout::{layout, paint, visible_width};
use crate::record::{Answer, MaskAnswer, ResultRecord, RunRecord, Verdict};
use crate::text::{plain, shorten};

/// Cases whose answers are shown.
const SHOWN_CASES: usize = 12;
/// Columns below which the answers are left out.
const NARROWEST_ANSWERS: usize = 36;

/// The first cases with the truth's answer and each target's distance.
pub(super) fn answers(record: &RunRecord, style: Style) -> String {
    let cases = cases(record);
    let first_suite = cases.first().map(|results| results[0].suite.as_str());
    let shown: Vec<&Vec<&ResultRecord>> = cases
        .iter()
        .filter(|results| {
            cases.len() <= SHOWN_CASES || Some(results[0].suite.as_str()) == first_suite
        })
        .take(SHOWN_CASES)
        .collect();
    if shown.is_empty() {
        return String::new();
    }
    let cells: Vec<Vec<String>> = shown
        .iter()
        .map(|results| {
            let own = record.targets.iter().map(|target| {
                let own = results.iter().find(|result| result.target == target.target);
                own.map_or_else(|| "-".to_owned(), |result| cell(result, style))
            });
            own.collect()
        })
        .collect();
    let heads: Vec<String> = record.targets.iter().map(heading).collect();
    let mut used = 0;
    for (column, head) in heads.iter().enumerate() {
        let widest = cells
            .iter()
            .map(|row| visible_width(&row[column]))
            .max()
            .unwrap_or(0);
        used += widest.max(visible_width(head)) + 2;
    }
    let free = style.width.saturating_sub(used + 4);
    // With many targets the answers give way: they are in the record.
    let with_answers = free >= NARROWEST_ANSWERS;
    let case_width = if with_answers {
        free / 2
    } else {
        (free + 2).max(NARROWEST_CASE)
    };

    let mut table = Builder::default();
    let title = with_answers.then(|| "the truth (f64) answers".to_owned());
    table.push_record(["case".to_owned()].into_iter().chain(title).chain(heads));
    for (results, cells) in shown.iter().zip(cells) {
        let texts: Vec<String> = results[0].texts.iter().map(|text| quoted(text)).collect();
        let text = shorten(&texts.join(" | "), case_width);
        let answer = results[0]
            .truth_answer
            .as_ref()
            .map(brief)
            .unwrap_or_default();
        let answer = with_answers.then(|| shorten(&answer, free - case_width));
        table.push_record([text].into_iter().chain(answer).chain(cells));
    }
    let mut text = format!(
        "answers, and for each target the error nearest its limit, in units of noise\n{}\n",
        layout(table, if with_answers { 2 } else { 1 })
    );
    let hidden = cases.len() - shown.len();
    if hidden > 0 {
        let _ = writeln!(text, " ... and {hidden} more cases, all in the record");
    }
    text
}

/// Results grouped by case, in the order of the record.
fn cases(record: &RunRecord) -> Vec<Vec<&ResultRecord>> {
    record
        .results
        .chunk_by(|a, b| (&a.suite, &a.case) == (&b.suite, &b.case))
        .map(|results| results.iter().collect())
        .collect()
}

/// A result in a few characters: the error that uses most of its budget, or the verdict.
fn cell(result: &ResultRecord, style: Style) -> String {
    let all = result.observations.values();
    let worst = all.max_by(|a, b| a.in_noise().total_cmp(&b.in_noise()));
    let error = worst.map(|worst| number(worst.in_noise()));
    let mut text = match (result.verdict, error) {
        (Verdict::Pass, Some(error)) => error,
        (verdict, Some(error)) => format!("{} {error}", verdict.name()),
        (verdict, None) => verdict.name().to_owned(),
    };
    let leading = |answer: &Answer| match answer {
        Answer::FillMask { masks } => masks
            .iter()
            .filter_map(|mask| Some(mask.top.first()?.id))
            .collect::<Vec<_>>(),
        _ => Vec::new(),
    };
    if let (Some(answer), Some(truth)) = (&result.answer, &result.truth_answer)
        && leading(answer) != leading(truth)
    {
        text = format!("{text}\n{}", shorten(&brief(answer), CELL));
    }
    text.split('\n')
        .map(|line| paint(line, result.verdict, style))
        .collect::<Vec<_>>()
        .join("\n")
}

/// An answer on one line.
fn brief(answer: &Answer) -> String {
    match answer {
        Answer::FillMask { masks } if masks.len() == 1 => {
            masks.first().map(|mask| top(mask, 3)).unwrap_or_default()
        }
        Answer::FillMask { masks } => masks
            .iter()
            .map(|mask| top(mask, 1))
            .collect::<Vec<_>>()
            .join(" / "),
        Answer::Similarity { cosine } => format!("cosine {cosine:.4}"),
        Answer::Features { shape, first } => {
            let first: Vec<String> = first
                .iter()
                .take(3)
                .map(|value| format!("{value:.2}"))
                .collect();
            format!("[{}, {}] {} ...", shape[0], shape[1], first.join(" "))
        }
    }
}

fn top(mask: &MaskAnswer, count: usize) -> String {
    let best = mask.top.iter().take(count).map(|candidate| {
        format!(
            "{} {:.1}%",
            plain(&candidate.token),
            candidate.probability * 100.0
        )
    });
    best.collect::<Vec<_>>().join(" ")
}

/// Texts that would not be seen are put in quotes.
fn quoted(text: &str) -> String {
    let text = plain(text);
    if text.trim().is_empty() {
        format!("\"{text}\"")
    } else {
        text
    }
}
