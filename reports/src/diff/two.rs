//! Two runs, the earlier one first.

use std::collections::BTreeMap;

use serde::Serialize;

use super::surroundings::{files, method, model, suites};
use super::target::{self, End, TargetDiff, same_tokens};
use super::{Direct, Place, Side};
use crate::environment::{Changed, changed};
use crate::record::{ResultRecord, RunRecord, TargetRecord};

/// What is different in two runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TwoWay {
    /// Whether a target drifted, or the same texts of the same model became other tokens.
    pub drifted: bool,
    /// What changed in the model.
    pub model: Changed,
    /// What changed in how errors are judged.
    pub method: Changed,
    /// What changed in the suites: SHA-256 of the file, cases per batch.
    pub suites: Changed,
    /// The cases.
    pub cases: Cases,
    /// The targets that are in both.
    pub targets: Vec<TargetDiff>,
    /// Targets that are in the first run only.
    pub only_before: Vec<String>,
    /// Targets that are in the second run only.
    pub only_after: Vec<String>,
    /// By how much an error may grow, in units of noise.
    pub move_limit: f64,
    /// How far two correct implementations may be apart, in units of the noise of their difference.
    pub k: f64,
}

/// Which cases were compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cases {
    /// Cases of both runs that have the same tokens.
    pub compared: usize,
    /// Cases of both runs whose text is another one: they are other cases of the same name.
    pub other_text: Vec<String>,
    /// Cases of both runs whose text is the same and whose tokens are not.
    pub other_tokens: Vec<String>,
    /// Cases of the first run only.
    pub only_before: Vec<String>,
    /// Cases of the second run only.
    pub only_after: Vec<String>,
}

pub(super) fn compare(
    before: &Side<'_>,
    after: &Side<'_>,
    matched: &[(&TargetRecord, &TargetRecord)],
    direct: &dyn Fn(Place<'_>, Place<'_>) -> Option<Direct>,
) -> TwoWay {
    let targets: Vec<TargetDiff> = matched
        .iter()
        .map(|(old, new)| {
            let (old, new) = (End::of(before, 0, old), End::of(after, 1, new));
            target::compare(old, new, direct)
        })
        .collect();
    let (before, after) = (before.record, after.record);
    let unmatched = |record: &RunRecord, is_matched: &dyn Fn(&str) -> bool| {
        let names = record.targets.iter().map(|target| target.target.clone());
        names.filter(|name| !is_matched(name)).collect()
    };
    let other_model = files(before) != files(after);
    let cases = cases(before, after);
    let drifted = targets.iter().any(|target| target.drifted);
    TwoWay {
        drifted: drifted || (!other_model && !cases.other_tokens.is_empty()),
        model: changed(&model(before), &model(after)),
        method: changed(&method(before), &method(after)),
        suites: changed(&suites(before), &suites(after)),
        cases,
        only_before: unmatched(before, &|name| targets.iter().any(|t| t.before == name)),
        only_after: unmatched(after, &|name| targets.iter().any(|t| t.after == name)),
        targets,
        move_limit: after.method.move_limit,
        k: after.method.k,
    }
}

/// The cases of a record, in order, each with one of its results.
fn cases_of(record: &RunRecord) -> Vec<(String, &ResultRecord)> {
    let mut known = BTreeMap::new();
    let mut cases = Vec::new();
    for result in &record.results {
        let id = format!("{}/{}", result.suite, result.case);
        if known.insert(id.clone(), ()).is_none() {
            cases.push((id, result));
        }
    }
    cases
}

fn cases(before: &RunRecord, after: &RunRecord) -> Cases {
    let (old, new) = (cases_of(before), cases_of(after));
    let earlier: BTreeMap<&str, &ResultRecord> = old
        .iter()
        .map(|(id, result)| (id.as_str(), *result))
        .collect();
    let mut cases = Cases::default();
    for (id, result) in &new {
        match earlier.get(id.as_str()) {
            None => cases.only_after.push(id.clone()),
            Some(old) if same_tokens(old, result) => cases.compared += 1,
            Some(old) if old.texts == result.texts => cases.other_tokens.push(id.clone()),
            Some(_) => cases.other_text.push(id.clone()),
        }
    }
    let later: BTreeMap<&str, ()> = new.iter().map(|(id, _)| (id.as_str(), ())).collect();
    let gone = old
        .iter()
        .map(|(id, _)| id)
        .filter(|id| !later.contains_key(id.as_str()));
    cases.only_before = gone.cloned().collect();
    cases
}
