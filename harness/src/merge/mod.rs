//! Several records of one model brought together: shards of a run, legs of a matrix.
//!
//! Pure. Results of one target and environment from different cases become one target. One target
//! in different environments, as two versions of its library, becomes two, told apart by the version or
//! by a label. Nothing is left out: every target must have every case.

mod targets;

use std::collections::{BTreeMap, BTreeSet};

use driftgauge_reports::environment;
use driftgauge_reports::record::{
    KnownDeviations, KnownEntry, Pair, ResultRecord, RunRecord, RunTime, SuiteRecord, TruthRecord,
};

use crate::baseline::TRUTH_LIMIT;
use crate::baseline::truth::{self, Sketch};
use crate::collect::summary;
use targets::{Case, Named, Names, Targets};

/// One record, with the truth beside it.
#[derive(Debug, Clone)]
pub struct Input {
    /// What errors call it: the file.
    pub name: String,
    /// What is added to the names of its targets, where something is.
    pub label: Option<String>,
    /// The record.
    pub record: RunRecord,
    /// Its truth.
    pub truth: Sketch,
}

/// Why records cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Something that must be the same is not.
    #[error("`{one}` and `{other}` differ in {what}: {values}")]
    Differ {
        /// One file.
        one: String,
        /// The other file.
        other: String,
        /// What differs.
        what: &'static str,
        /// Both values.
        values: String,
    },
    /// The truth of one case is not the same.
    #[error(
        "`{other}` has another truth of `{case}` than the records before it ({difference:.1e})"
    )]
    Truth {
        /// The file.
        other: String,
        /// The case.
        case: String,
        /// Relative difference.
        difference: f64,
    },
    /// A case was run twice on one target.
    #[error("`{other}` has results of `{case}` on `{target}`, and so has a record before it")]
    Twice {
        /// The file.
        other: String,
        /// The case.
        case: String,
        /// The target.
        target: String,
    },
    /// One target in two environments that its library's version does not tell apart.
    #[error("`{other}` has `{target}` in another environment than a record before it: {changed}")]
    Environment {
        /// The file.
        other: String,
        /// The target.
        target: String,
        /// What differs.
        changed: String,
    },
    /// A case was not run on a target.
    #[error("`{case}` has no result on `{target}`")]
    Missing {
        /// The case.
        case: String,
        /// The target.
        target: String,
    },
}

impl MergeError {
    /// The next step for the user.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Differ { .. } => "merge records of the same model, suites and driftgauge",
            Self::Truth { .. } => "what computes the truth differs between the machines: run again",
            Self::Twice { .. } => {
                "leave one of them out, or tell them apart with --label for each record"
            }
            Self::Environment { .. } => "tell them apart with --label, once for each record",
            Self::Missing { .. } => "a record is missing, or a target was not run on every case",
        }
    }
}

/// Brings records together, in their order; there must be at least one. The summary is counted anew; the
/// record says of its truth what the records said, except its digest, which is the caller's to enter.
///
/// # Errors
/// [`MergeError`] where they are not of one model, or not all results are there exactly once.
pub fn merge(inputs: &[Input]) -> Result<(RunRecord, Sketch), MergeError> {
    let Some(first) = inputs.first() else {
        unreachable!("the command line asks for at least one record");
    };
    for other in &inputs[1..] {
        check_same(first, other)?;
    }
    let mut sketch = Sketch::new();
    for input in inputs {
        add_truth(&mut sketch, input)?;
    }
    let host = common(inputs.iter().map(|input| &input.record.host));
    let mut targets = Targets::default();
    for input in inputs {
        targets.add(input, &host)?;
    }
    let Named {
        targets,
        mut results,
        names,
    } = targets.named()?;
    let order = case_order(inputs);
    for case in order.keys() {
        for target in &targets {
            if !results.contains_key(&(case.clone(), target.target.clone())) {
                return Err(MergeError::Missing {
                    case: format!("{}/{}", case.0, case.1),
                    target: target.target.clone(),
                });
            }
        }
    }
    let mut cases: Vec<&(String, String)> = order.keys().collect();
    cases.sort_by_key(|case| order[*case]);
    let results: Vec<ResultRecord> = cases
        .into_iter()
        .flat_map(|case| targets.iter().map(move |target| (case, target)))
        .filter_map(|(case, target)| results.remove(&(case.clone(), target.target.clone())))
        .collect();
    let truth = truth_record(inputs);
    let record = RunRecord {
        summary: summary(&results, &truth, targets.len()),
        truth,
        suites: suites(inputs, &results),
        pairs: pairs(inputs, &names),
        known: known(inputs),
        host,
        paths: paths(inputs),
        time: time(inputs),
        targets,
        results,
        ..first.record.clone()
    };
    Ok((record, sketch))
}

/// What every record must agree on.
fn check_same(first: &Input, other: &Input) -> Result<(), MergeError> {
    let differ = |what, values: String| MergeError::Differ {
        one: first.name.clone(),
        other: other.name.clone(),
        what,
        values,
    };
    let (a, b) = (&first.record, &other.record);
    if a.driftgauge != b.driftgauge {
        let values = format!("{} and {}", a.driftgauge, b.driftgauge);
        return Err(differ("the version of driftgauge", values));
    }
    let files = |record: &RunRecord| -> BTreeMap<String, String> {
        let files = record.model.files.iter();
        files
            .map(|file| (file.name.clone(), file.sha256.clone()))
            .collect()
    };
    let changed = environment::changed(&files(a), &files(b));
    if !changed.is_empty() {
        let values = environment::in_words(&changed, 3);
        return Err(differ("the files of the model", values));
    }
    if a.model.tokenizer != b.model.tokenizer {
        let changed = environment::changed(&a.model.tokenizer, &b.model.tokenizer);
        let values = environment::in_words(&changed, 3);
        return Err(differ("the options of the tokenizer", values));
    }
    if a.method != b.method {
        let values = format!("{:?} and {:?}", a.method, b.method);
        return Err(differ("the method", values));
    }
    for suite in &a.suites {
        let same_name = b.suites.iter().find(|other| other.name == suite.name);
        if let Some(other) = same_name.filter(|other| other.sha256 != suite.sha256) {
            let values = format!("{} and {}", suite.sha256, other.sha256);
            return Err(differ("a suite", format!("{} {values}", suite.name)));
        }
    }
    if (a.known.applied, a.truth.baselines) != (b.known.applied, b.truth.baselines) {
        let say = |record: &RunRecord| {
            let (known, baselines) = (record.known.applied, record.truth.baselines);
            format!("known deviations {known}, baselines {baselines}")
        };
        let values = format!("{}; {}", say(a), say(b));
        return Err(differ("what results were compared with", values));
    }
    Ok(())
}

fn add_truth(sketch: &mut Sketch, input: &Input) -> Result<(), MergeError> {
    for (case, now) in &input.truth {
        match sketch.get(case) {
            None => {
                sketch.insert(case.clone(), now.clone());
            }
            Some(known) => {
                let difference = truth::difference(known, now);
                if difference > TRUTH_LIMIT {
                    return Err(MergeError::Truth {
                        other: input.name.clone(),
                        case: case.clone(),
                        difference,
                    });
                }
            }
        }
    }
    Ok(())
}

/// The facts that all have, with the same value.
fn common<'a>(
    mut maps: impl Iterator<Item = &'a BTreeMap<String, String>>,
) -> BTreeMap<String, String> {
    let mut common = maps.next().cloned().unwrap_or_default();
    for other in maps {
        common.retain(|key, value| other.get(key) == Some(value));
    }
    common
}

/// The place of each case: suites in the order of the records, cases in the order of their record.
fn case_order(inputs: &[Input]) -> BTreeMap<Case, (usize, usize)> {
    let mut suites: Vec<&str> = Vec::new();
    let mut order = BTreeMap::new();
    for result in inputs.iter().flat_map(|input| &input.record.results) {
        let suite = suites.iter().position(|suite| *suite == result.suite);
        let suite = suite.unwrap_or_else(|| {
            suites.push(&result.suite);
            suites.len() - 1
        });
        let next = order.len();
        order
            .entry((result.suite.clone(), result.case.clone()))
            .or_insert((suite, next));
    }
    order
}

fn suites(inputs: &[Input], results: &[ResultRecord]) -> Vec<SuiteRecord> {
    let mut suites: Vec<SuiteRecord> = Vec::new();
    for suite in inputs.iter().flat_map(|input| &input.record.suites) {
        if suites.iter().all(|known| known.name != suite.name) {
            let cases: BTreeSet<&str> = results
                .iter()
                .filter(|result| result.suite == suite.name)
                .map(|result| result.case.as_str())
                .collect();
            suites.push(SuiteRecord {
                selected: cases.len(),
                ..suite.clone()
            });
        }
    }
    suites
}

/// The comparisons that the records made; those of the same two targets are counted together.
fn pairs(inputs: &[Input], names: &Names) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::new();
    for input in inputs {
        let name = |target: &String| {
            let known = names.get(&(input.name.clone(), target.clone()));
            known.unwrap_or(target).clone()
        };
        for pair in &input.record.pairs {
            let pair = Pair {
                a: name(&pair.a),
                b: name(&pair.b),
                ..pair.clone()
            };
            let same = |known: &&mut Pair| known.a == pair.a && known.b == pair.b;
            let Some(known) = pairs.iter_mut().find(same) else {
                pairs.push(pair);
                continue;
            };
            known.compared += pair.compared;
            known.bitwise += pair.bitwise;
            known.within += pair.within;
            let far = |pair: &Pair| match &pair.furthest {
                Some(furthest) => furthest.noise.unwrap_or(f64::INFINITY),
                None => -1.0,
            };
            if far(&pair) > far(known) {
                known.furthest = pair.furthest;
            }
        }
    }
    pairs
}

fn truth_record(inputs: &[Input]) -> TruthRecord {
    let mut all = inputs.iter().map(|input| &input.record.truth);
    let mut merged = all.next().cloned().unwrap_or_default();
    for truth in all {
        merged.compared += truth.compared;
        let size = |difference: Option<f64>| difference.unwrap_or(f64::INFINITY);
        if size(truth.difference) > size(merged.difference) {
            merged.difference = truth.difference;
            merged.place.clone_from(&truth.place);
        }
        merged.finding = merged.finding.take().or_else(|| truth.finding.clone());
    }
    merged
}

fn known(inputs: &[Input]) -> KnownDeviations {
    let mut entries: Vec<KnownEntry> = Vec::new();
    for entry in inputs.iter().flat_map(|input| &input.record.known.entries) {
        let bare = |entry: &KnownEntry| KnownEntry {
            expired: false,
            targets: 0,
            cases: 0,
            deviating: 0,
            fixed: 0,
            beyond: 0,
            ..entry.clone()
        };
        match entries.iter_mut().find(|known| bare(known) == bare(entry)) {
            None => entries.push(entry.clone()),
            Some(known) => {
                known.expired |= entry.expired;
                known.targets = known.targets.max(entry.targets);
                known.cases = known.cases.max(entry.cases);
                known.deviating += entry.deviating;
                known.fixed += entry.fixed;
                known.beyond += entry.beyond;
            }
        }
    }
    let mut all = inputs.iter().map(|input| &input.record.known);
    KnownDeviations {
        applied: all.clone().all(|known| known.applied),
        full: all.all(|known| known.full),
        entries,
    }
}

/// Places on the machines; those that differ are told apart by the record.
fn paths(inputs: &[Input]) -> BTreeMap<String, String> {
    let common = common(inputs.iter().map(|input| &input.record.paths));
    let mut paths = common.clone();
    for input in inputs {
        for (key, value) in &input.record.paths {
            if !common.contains_key(key) {
                paths.insert(format!("{key} ({})", input.name), value.clone());
            }
        }
    }
    paths
}

/// From the first start on, and the seconds of all.
fn time(inputs: &[Input]) -> RunTime {
    let all = || inputs.iter().map(|input| &input.record.time);
    let mut seconds: BTreeMap<String, f64> = BTreeMap::new();
    for (phase, one) in all().flat_map(|time| &time.seconds) {
        *seconds.entry(phase.clone()).or_insert(0.0) += one;
    }
    RunTime {
        // Days as text sort as the days do.
        day: all().map(|time| time.day.clone()).max().unwrap_or_default(),
        started: all().map(|time| time.started).min().unwrap_or_default(),
        seconds,
    }
}
