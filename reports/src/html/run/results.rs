//! Every case on every target.

use std::collections::BTreeMap;

use super::nearest;
use crate::phrases::{Phrases, fill};
use crate::record::{ResultRecord, RunRecord, Verdict};
use crate::words::{NAME, TEXT, bare, hidden, shown};

/// Cases that have a row.
const ROWS: usize = 1000;
/// Targets that have a column.
const COLUMNS: usize = 16;

/// All results, as far as there is room.
pub(crate) struct Results {
    pub about: String,
    pub targets: Vec<String>,
    pub rows: Vec<Row>,
    pub hidden: Option<String>,
    pub hidden_targets: Option<String>,
}

/// One case.
pub(crate) struct Row {
    pub case: String,
    pub text: String,
    /// Whether all targets pass.
    pub passes: bool,
    pub cells: Vec<Cell>,
}

/// One case on one target.
pub(crate) struct Cell {
    pub class: &'static str,
    pub sign: &'static str,
    pub word: &'static str,
    pub error: String,
    /// Error in units of noise, for sorting.
    pub order: String,
}

/// The results of each case, the worst first.
pub(crate) fn by_case(record: &RunRecord) -> Vec<Vec<&ResultRecord>> {
    let mut index: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut cases: Vec<Vec<&ResultRecord>> = Vec::new();
    for result in &record.results {
        let next = cases.len();
        let place = *index.entry((&result.suite, &result.case)).or_insert(next);
        match cases.get_mut(place) {
            Some(results) => results.push(result),
            None => cases.push(vec![result]),
        }
    }
    let mut ranked: Vec<_> = cases
        .into_iter()
        .map(|results| (rank(&results), results))
        .collect();
    ranked.sort_by(|(a, _), (b, _)| b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)));
    ranked.into_iter().map(|(_, results)| results).collect()
}

/// How bad a case is: its worst verdict, and where that is not the same on all, its largest error.
fn rank(results: &[&ResultRecord]) -> (u8, f64) {
    let severity = results.iter().map(|result| result.verdict.severity()).max();
    let severity = severity.unwrap_or(0);
    let errors = results
        .iter()
        .flat_map(|result| result.observations.values());
    match severity {
        // Where nothing deviates, the order of the suite is what a reader knows.
        0 => (0, 0.0),
        severity => (
            severity,
            errors.map(|one| one.in_noise()).fold(0.0, f64::max),
        ),
    }
}

pub(crate) fn of(record: &RunRecord, t: &'static Phrases) -> Results {
    let cases = by_case(record);
    let targets: Vec<&str> = record
        .targets
        .iter()
        .map(|target| target.target.as_str())
        .collect();
    let columns = &targets[..targets.len().min(COLUMNS)];
    let row = |results: &Vec<&ResultRecord>| {
        let cells = columns.iter().map(|target| {
            let own = results.iter().find(|result| result.target == **target);
            own.map_or_else(Cell::empty, |result| Cell::new(result, t))
        });
        let first = results[0];
        let texts: Vec<String> = first
            .texts
            .iter()
            .map(|text| shown(text, TEXT / 5, t))
            .collect();
        Row {
            case: shown(&format!("{}/{}", first.suite, first.case), NAME, t),
            text: texts.join(" | "),
            passes: results.iter().all(|result| result.verdict == Verdict::Pass),
            cells: cells.collect(),
        }
    };
    Results {
        about: fill(t.results_about, &[("k", &record.method.k.to_string())]),
        targets: columns
            .iter()
            .map(|target| shown(target, NAME, t))
            .collect(),
        rows: cases.iter().take(ROWS).map(row).collect(),
        hidden: hidden(cases.len().saturating_sub(ROWS), t),
        hidden_targets: hidden(targets.len() - columns.len(), t),
    }
}

impl Cell {
    fn new(result: &ResultRecord, t: &'static Phrases) -> Self {
        let worst = nearest(result.observations.iter()).map(|(_, one)| one.in_noise());
        Self {
            class: result.verdict.name(),
            sign: result.verdict.sign(),
            word: t.verdict(result.verdict),
            error: worst.map_or(String::new(), |error| bare(error, t)),
            order: match worst {
                Some(error) if error.is_finite() => format!("{error:.3}"),
                Some(_) => "1e300".to_owned(),
                None => "-1".to_owned(),
            },
        }
    }

    fn empty() -> Self {
        Self {
            class: "empty",
            sign: "",
            word: "",
            error: String::new(),
            order: "-2".to_owned(),
        }
    }
}
