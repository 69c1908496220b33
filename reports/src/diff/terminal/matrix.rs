//! Three and more runs: the matrix of distances and the odd one out.

use std::fmt::Write;

use tabled::builder::Builder;

use super::changes::{changed, more, section};
use super::{Diff, bound_note};
use crate::Style;
use crate::diff::many::Matrix;
use crate::layout::{layout, paint, visible_width, wrap};
use crate::record::{Pair, Verdict};
use crate::terminal::counted;
use crate::text::{plain, shorten};

/// Pairs beyond noise that are named.
const SHOWN_PAIRS: usize = 6;
/// Cases whose verdict differs that are named.
const SHOWN_CASES: usize = 3;

/// Renders the comparison of one target in several runs.
pub(super) fn render(diff: &Diff, matrix: &Matrix, style: Style) -> String {
    let letters: Vec<&str> = matrix
        .entries
        .iter()
        .map(|side| &*diff.sides[*side].label)
        .collect();
    let title = format!(
        "{}: distances in units of noise (limit {})",
        plain(&matrix.target),
        matrix.k
    );
    let mut text = format!("{}\n", shorten(&title, style.width));
    text.push_str(&distances(matrix, &letters, style));
    if !matrix.exact {
        text.push_str(&bound_note(&matrix.pairs, style));
    }
    let mut parts = vec![
        beyond(matrix, &letters, style),
        verdicts(matrix, &letters, style),
    ];
    if let Some(odd) = &matrix.odd {
        let letter = letters[odd.entry];
        let lines = changed(&odd.environment, style, |key| {
            Some(key.replacen("host.", "host ", 1))
        });
        let title = format!("what only {letter} has (the others -> {letter})");
        parts.push(section(&title, &lines, style));
    }
    parts.push(conclusion(diff, matrix, style));
    for part in parts.iter().filter(|part| !part.is_empty()) {
        let _ = write!(text, "\n{part}");
    }
    text
}

/// The two of each pair, as places among the entries.
fn places(matrix: &Matrix) -> impl Iterator<Item = ((usize, usize), &Pair)> {
    let count = matrix.entries.len();
    let places = (0..count).flat_map(move |a| (a + 1..count).map(move |b| (a, b)));
    places.zip(&matrix.pairs)
}

fn cell(pair: &Pair, exact: bool) -> String {
    match &pair.furthest {
        None => "-".to_owned(),
        Some(_) if pair.bitwise == pair.compared => "same".to_owned(),
        Some(furthest) => match furthest.noise {
            None => "inf".to_owned(),
            Some(noise) if exact => format!("{noise:.2}"),
            Some(noise) => format!(">={noise:.2}"),
        },
    }
}

fn distances(matrix: &Matrix, letters: &[&str], style: Style) -> String {
    let count = matrix.entries.len();
    let mut cells = vec![vec![String::new(); count]; count];
    for ((a, b), pair) in places(matrix) {
        let cell = cell(pair, matrix.exact);
        cells[b][a].clone_from(&cell);
        cells[a][b] = cell;
    }
    let mut table = Builder::default();
    let heads = letters.iter().map(|letter| (*letter).to_owned());
    table.push_record([String::new()].into_iter().chain(heads));
    for (letter, cells) in letters.iter().zip(cells) {
        table.push_record([(*letter).to_owned()].into_iter().chain(cells));
    }
    let table = layout(table, 1);
    if visible_width(&table) > style.width {
        return format!(
            "  {count} runs are too many for this width: --format json has the matrix\n"
        );
    }
    format!("{table}\n")
}

/// Where those are furthest apart that are beyond noise.
fn beyond(matrix: &Matrix, letters: &[&str], style: Style) -> String {
    let lines: Vec<String> = places(matrix)
        .filter_map(|((a, b), pair)| {
            let (beyond, furthest) = (pair.compared - pair.within, pair.furthest.as_ref()?);
            (beyond > 0).then(|| {
                format!(
                    "{} and {}: {beyond} of {} observations, furthest {} of {}",
                    letters[a], letters[b], pair.compared, furthest.observation, furthest.case
                )
            })
        })
        .collect();
    let mut text = section(
        "beyond noise",
        &lines[..lines.len().min(SHOWN_PAIRS)],
        style,
    );
    more(&mut text, lines.len(), SHOWN_PAIRS, "pairs");
    text
}

fn verdicts(matrix: &Matrix, letters: &[&str], style: Style) -> String {
    let mut text = String::new();
    for split in matrix.verdicts.iter().take(SHOWN_CASES) {
        let words = split.verdicts.iter().zip(letters).map(|(verdict, letter)| {
            let word = verdict.map_or("not run", Verdict::name);
            format!("{letter} {word}")
        });
        let line = format!(
            "  {}: {}",
            plain(&split.case),
            words.collect::<Vec<_>>().join(", ")
        );
        let _ = writeln!(text, "{}", shorten(&line, style.width));
    }
    more(&mut text, matrix.verdicts.len(), SHOWN_CASES, "cases");
    if text.is_empty() {
        return text;
    }
    format!("verdicts that differ\n{text}")
}

fn conclusion(diff: &Diff, matrix: &Matrix, style: Style) -> String {
    let (verdict, sentence) = match &matrix.odd {
        Some(odd) => {
            let side = &diff.sides[matrix.entries[odd.entry]];
            let at_least = if matrix.exact { "" } else { "at least " };
            let distance = match odd.median {
                Some(median) => format!("{at_least}{median:.2} x noise"),
                None => "not finitely".to_owned(),
            };
            let sentence = format!(
                "ODD ONE OUT: {} ({}) is {distance} away from the others, which are within {:.2}",
                side.label,
                plain(&side.name),
                odd.others
            );
            (Verdict::Drift, sentence)
        }
        None if matrix.drifted => {
            let sentence = "DRIFT: the runs differ by more than noise, or a verdict got worse, and no \
                            single one is the odd one out";
            (Verdict::Drift, sentence.to_owned())
        }
        None => {
            let runs = counted(matrix.entries.len(), "run");
            let all_same = matrix
                .pairs
                .iter()
                .all(|pair| pair.bitwise == pair.compared);
            let sentence = match (all_same, matrix.exact) {
                (true, _) => format!("NO DIFFERENCE: {runs} are the same to the bit"),
                (false, true) => format!("NO DRIFT: {runs} are within noise of each other"),
                (false, false) => {
                    format!("NO DRIFT: the errors of {runs} are within noise of each other")
                }
            };
            (Verdict::Pass, sentence)
        }
    };
    let lines = wrap(&sentence, style.width);
    let lines = lines.iter().map(|line| paint(line, verdict, style));
    lines.collect::<Vec<_>>().join("\n") + "\n"
}
