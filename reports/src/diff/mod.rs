//! Two or more runs compared: what moved, and what changed in the environment.
//!
//! [`compare`] is a function of the records and of distances between tensors, which only a caller that
//! has the tensors can measure. Two runs are compared target by target, the first one being the earlier;
//! of three and more the distances of all pairs are told, and which one is the odd one out.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::Style;
use crate::record::{Pair, RunRecord, TargetRecord};

mod many;
mod surroundings;
mod target;
mod terminal;
mod two;

pub use many::{Matrix, OddOneOut, VerdictSplit};
pub use target::{Move, TargetDiff, VerdictChange, is_worse};
pub use two::{Cases, TwoWay};

/// The `format` of every diff.
pub const DIFF_FORMAT: &str = "driftgauge-diff";
/// Raised when a field changes its meaning or disappears.
pub const DIFF_VERSION: u32 = 1;

/// One run of the comparison.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// What to call it: the file, or the target where all are of one file.
    pub name: &'a str,
    /// Index of its file. Targets of one run have no before and after: none of them can have grown
    /// worse than the other.
    pub file: usize,
    /// Its record.
    pub record: &'a RunRecord,
}

/// What is known of the tensors of two targets.
#[derive(Debug, Clone, PartialEq)]
pub enum Direct {
    /// Distances relative to the norm of the truth, by `suite/case/observation`.
    Each(BTreeMap<String, f64>),
    /// The comparison that a run made of its own targets.
    Summary(Pair),
}

/// A target of a side: index of the side, and the target's name.
pub type Place<'a> = (usize, &'a str);

/// A comparison of two or more runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    /// [`DIFF_FORMAT`].
    pub format: &'static str,
    /// [`DIFF_VERSION`].
    pub version: u32,
    /// Whether anything got worse, moved beyond noise or vanished.
    pub drifted: bool,
    /// Whether the runs are of models whose files differ.
    pub other_model: bool,
    /// The runs, in the order in which they were named.
    pub sides: Vec<SideRecord>,
    /// What was found.
    pub comparison: Comparison,
}

/// What is said of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SideRecord {
    /// What it is called in a table: `before` and `after`, or a letter.
    pub label: String,
    /// The file, or the target where all are of one file.
    pub name: String,
    /// Version of driftgauge that wrote it.
    pub driftgauge: String,
    /// ID of the model.
    pub model: String,
    /// Number of cases.
    pub cases: usize,
    /// The targets that are compared.
    pub targets: Vec<String>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Comparison {
    /// Of two runs.
    Two(Box<TwoWay>),
    /// Of three and more: a matrix for each target.
    Many(Vec<Matrix>),
}

/// Why runs cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiffError {
    /// There are not two of them.
    #[error("there is nothing to compare `{0}` with")]
    One(String),
    /// No target is in two of them.
    #[error("the runs have no target in common: {0}")]
    NoTarget(String),
    /// No case is in two of them, with the same tokens.
    #[error("the runs have no case in common that has the same tokens in both")]
    NoCase,
}

impl DiffError {
    /// The next step for the user.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::One(_) => "name a second record or bundle, or a record with two targets",
            Self::NoTarget(_) => {
                "name one target of each file with --target: single targets are compared whatever \
                 they are called"
            }
            Self::NoCase => "run the same suites with the same model on both sides",
        }
    }
}

/// Compares runs. `direct` tells what is known of the tensors of two targets; `None` where nothing is.
///
/// # Errors
/// [`DiffError`] where the runs have nothing in common.
pub fn compare(
    sides: &[Side<'_>],
    direct: &dyn Fn(Place<'_>, Place<'_>) -> Option<Direct>,
) -> Result<Diff, DiffError> {
    let comparison = match sides {
        [] => return Err(DiffError::One(String::new())),
        [one] => return Err(DiffError::One(one.name.to_owned())),
        [before, after] => {
            let matched = matched(sides);
            if matched.is_empty() {
                return Err(DiffError::NoTarget(all_targets(sides)));
            }
            let matched: Vec<_> = matched
                .iter()
                .filter_map(|(_, group)| match group[..] {
                    [(_, before), (_, after)] => Some((before, after)),
                    _ => None,
                })
                .collect();
            let two = two::compare(before, after, &matched, direct);
            if two.cases.compared == 0 {
                return Err(DiffError::NoCase);
            }
            Comparison::Two(Box::new(two))
        }
        _ => {
            let groups = matched(sides);
            if groups.is_empty() {
                return Err(DiffError::NoTarget(all_targets(sides)));
            }
            let matrices: Vec<Matrix> = groups
                .iter()
                .map(|(name, group)| many::compare(sides, name, group, direct))
                .collect();
            if matrices
                .iter()
                .all(|matrix| matrix.pairs.iter().all(|pair| pair.compared == 0))
            {
                return Err(DiffError::NoCase);
            }
            Comparison::Many(matrices)
        }
    };
    let drifted = match &comparison {
        Comparison::Two(two) => two.drifted,
        Comparison::Many(matrices) => matrices.iter().any(|matrix| matrix.drifted),
    };
    Ok(Diff {
        format: DIFF_FORMAT,
        version: DIFF_VERSION,
        drifted,
        other_model: sides
            .windows(2)
            .any(|two| surroundings::files(two[0].record) != surroundings::files(two[1].record)),
        sides: sides
            .iter()
            .enumerate()
            .map(|(index, side)| side_record(side, label(sides, index)))
            .collect(),
        comparison,
    })
}

/// Renders a diff as a table for a person.
pub fn render(diff: &Diff, style: Style) -> String {
    terminal::render(diff, style)
}

/// Renders a diff as JSON, with one key per line and a final newline.
///
/// # Errors
/// [`serde_json::Error`] where it holds what JSON cannot say.
pub fn render_json(diff: &Diff) -> Result<String, serde_json::Error> {
    let mut text = serde_json::to_string_pretty(diff)?;
    text.push('\n');
    Ok(text)
}

fn label(sides: &[Side<'_>], index: usize) -> String {
    match sides {
        [before, after] if before.file != after.file => ["before", "after"][index].to_owned(),
        _ => match u8::try_from(index) {
            Ok(index @ 0..26) => char::from(b'A' + index).to_string(),
            _ => format!("#{}", index + 1),
        },
    }
}

fn side_record(side: &Side<'_>, label: String) -> SideRecord {
    let record = side.record;
    SideRecord {
        label,
        name: side.name.to_owned(),
        driftgauge: record.driftgauge.clone(),
        model: record.model.id.clone(),
        cases: record.summary.cases,
        targets: record.targets.iter().map(|t| t.target.clone()).collect(),
    }
}

/// The targets that are compared, with the name that they have in common: those of one name, or the
/// only ones of all sides whatever they are called.
fn matched<'a>(sides: &[Side<'a>]) -> Vec<(String, Vec<(usize, &'a TargetRecord)>)> {
    let singles: Vec<_> = sides
        .iter()
        .enumerate()
        .filter_map(|(index, side)| match &side.record.targets[..] {
            [only] => Some((index, only)),
            _ => None,
        })
        .collect();
    if singles.len() == sides.len() {
        let mut names = singles.iter().map(|(_, target)| target.target.as_str());
        let first = names.next().unwrap_or_default();
        let name = match names.all(|name| name == first) {
            true => first.to_owned(),
            false => format!("{} targets", singles.len()),
        };
        return vec![(name, singles)];
    }
    let mut seen = BTreeSet::new();
    let all = sides.iter().flat_map(|side| &side.record.targets);
    let names = all
        .map(|target| target.target.as_str())
        .filter(|name| seen.insert(*name));
    let group = |name: &str| {
        let targets = sides.iter().enumerate().filter_map(|(index, side)| {
            let targets = &side.record.targets;
            Some((index, targets.iter().find(|target| target.target == name)?))
        });
        (name.to_owned(), targets.collect::<Vec<_>>())
    };
    names
        .map(group)
        .filter(|(_, group)| group.len() > 1)
        .collect()
}

fn all_targets(sides: &[Side<'_>]) -> String {
    let side = |side: &Side<'_>| {
        let targets: Vec<&str> = side
            .record
            .targets
            .iter()
            .map(|t| t.target.as_str())
            .collect();
        let targets = if targets.is_empty() {
            "none of them".to_owned()
        } else {
            targets.join(", ")
        };
        format!("`{}` has {targets}", side.name)
    };
    sides.iter().map(side).collect::<Vec<_>>().join("; ")
}
