//! What accepting a record would write, and what speaks against it. Nothing is written here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use driftgauge_reports::environment::{self, Changed};
use driftgauge_reports::record::{FindingKind, ResultRecord, RunRecord, TargetRecord, Verdict};

use super::compare::nearest;
use super::folder::Stored;
use super::standing::Standing;
use super::truth::{self, FILE, MadeFor, Sketch};
use super::{
    AcceptedCase, AcceptedError, Baseline, ModelIdentity, Reason, SuiteIdentity, TRUTH_LIMIT, file,
    identity, input,
};

/// What accepting a record would do to one suite.
#[derive(Debug)]
pub struct SuitePlan {
    /// Name of the suite.
    pub suite: String,
    /// File of the truth, and its new content where that changes.
    pub truth: (PathBuf, Option<Vec<u8>>),
    /// One step for each target.
    pub steps: Vec<Step>,
}

/// What accepting a record would do to one baseline.
#[derive(Debug)]
pub struct Step {
    /// The target, as the record has it.
    pub target: String,
    /// Cases of the record that would be accepted.
    pub cases: usize,
    /// Its file.
    pub path: PathBuf,
    /// New content of the file, where it changes.
    pub content: Option<String>,
    /// The baseline that a run compares with, and the keys that differ; nothing where there is none.
    pub compared: Option<(String, Changed)>,
    /// How the cases stand to that baseline.
    pub standing: Standing,
    /// Why it takes a reason.
    pub objections: Vec<String>,
}

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The day.
    pub date: &'a str,
    /// The reason.
    pub reason: Option<&'a str>,
}

/// Why a record cannot be accepted at all.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Two targets would be accepted as one and the same.
    #[error(
        "targets `{first}` and `{second}` are the same target in the same environment and differ in \
         their numbers (suite `{suite}`)"
    )]
    Conflict {
        /// One target.
        first: String,
        /// The other target.
        second: String,
        /// The suite.
        suite: String,
    },
    /// Something cannot be written down.
    #[error("cannot write down what suite `{suite}` accepts: {problem}")]
    Encode {
        /// The suite.
        suite: String,
        /// Why not.
        problem: String,
    },
}

/// The model of a record, by its digests.
pub fn model_of(record: &RunRecord) -> ModelIdentity {
    let files = record.model.files.iter();
    ModelIdentity {
        id: record.model.id.clone(),
        files: files
            .map(|file| (file.name.clone(), file.sha256.clone()))
            .collect(),
    }
}

/// Plans the acceptance of one suite of a record for some of its targets, against what is stored.
///
/// # Errors
/// [`AcceptError`] where there is nothing that could be written.
pub fn plan(
    record: &RunRecord,
    sketch: &Sketch,
    suite: &SuiteIdentity,
    targets: &[&TargetRecord],
    stored: &Stored,
    asked: Asked<'_>,
) -> Result<SuitePlan, AcceptError> {
    let encode = |problem: String| AcceptError::Encode {
        suite: suite.name.clone(),
        problem,
    };
    let context = Context {
        record,
        model: model_of(record),
        suite,
        stored,
        asked,
    };
    let (truth, objection) = context.truth(sketch).map_err(encode)?;
    let mut steps: Vec<(Step, Baseline)> = Vec::new();
    for target in targets {
        let Some((mut step, baseline)) = context.step(target).map_err(encode)? else {
            continue;
        };
        step.objections.extend(objection.clone());
        let same = steps.iter().find(|(other, _)| other.path == step.path);
        match same {
            Some((_, other)) if other.cases == baseline.cases => {}
            Some((other, _)) => {
                return Err(AcceptError::Conflict {
                    first: other.target.clone(),
                    second: step.target,
                    suite: suite.name.clone(),
                });
            }
            None => steps.push((step, baseline)),
        }
    }
    Ok(SuitePlan {
        suite: suite.name.clone(),
        truth: (stored.folder.join(FILE), truth),
        steps: steps.into_iter().map(|(step, _)| step).collect(),
    })
}

struct Context<'a> {
    record: &'a RunRecord,
    model: ModelIdentity,
    suite: &'a SuiteIdentity,
    stored: &'a Stored,
    asked: Asked<'a>,
}

impl Context<'_> {
    /// Content of the new truth where it changes, and why that takes a reason.
    fn truth(&self, sketch: &Sketch) -> Result<(Option<Vec<u8>>, Option<String>), String> {
        let prefix = format!("{}/", self.suite.name);
        let own = sketch
            .iter()
            .filter_map(|(id, truth)| Some((id.strip_prefix(&prefix)?.to_owned(), truth.clone())));
        let mut new: Sketch = own.collect();
        let mut objection = None;
        if let Some((old, made_for)) = &self.stored.truth {
            let fits = (&made_for.model, &made_for.suite) == (&self.model, self.suite);
            let mut far = 0;
            for (case, truth) in old {
                match new.get(case).map(|now| truth::difference(truth, now)) {
                    Some(difference) if difference > TRUTH_LIMIT => far += 1,
                    // What is there says the same, or says what this record does not.
                    None if !fits => {}
                    _ => {
                        new.insert(case.clone(), truth.clone());
                    }
                }
            }
            // Another version of the suite may ask something else under the same name.
            if far > 0 && made_for.suite == *self.suite {
                let all = old.len();
                objection = Some(format!(
                    "the accepted truth changes in {far} of {all} cases"
                ));
            }
            if fits && new == *old {
                return Ok((None, None));
            }
        }
        let made_for = MadeFor {
            accepted: self.asked.date.to_owned(),
            model: self.model.clone(),
            suite: self.suite.clone(),
        };
        Ok((Some(truth::encode(&new, Some(&made_for))?), objection))
    }

    /// Whether a baseline is for the model and the version of the suite that were run.
    fn fits(&self, baseline: &Baseline) -> bool {
        (&baseline.model, &baseline.suite) == (&self.model, self.suite)
    }

    /// Nothing where the target produced nothing at all.
    fn step(&self, target: &TargetRecord) -> Result<Option<(Step, Baseline)>, String> {
        let all = self.record.results.iter();
        let results: Vec<&ResultRecord> = all
            .filter(|one| one.target == target.target && one.suite == self.suite.name)
            .collect();
        let environment = environment::of(self.record, target);
        let Some(new) = self.baseline(target, &results, environment) else {
            return Ok(None);
        };
        let own = self.stored.baselines.iter().map(|(_, one)| one);
        let own: Vec<&Baseline> = own.filter(|one| one.target == new.target).collect();
        // A run compares with what was made for this version, where there is any.
        let fitting = own.iter().copied().filter(|one| self.fits(one));
        let compared = nearest(fitting, &new.environment)
            .or_else(|| nearest(own.iter().copied(), &new.environment));
        let mut objections = self.verdicts(&results);
        let mut standing = Standing::default();
        if let Some((baseline, _)) = &compared {
            if baseline.model == self.model {
                standing = Standing::of(&results, baseline, self.record.method.move_limit);
            } else {
                objections.push("the files of the model have changed".to_owned());
            }
            if standing.counts.drifted > 0 {
                let drifted = standing.counts.drifted;
                objections.push(format!("moved beyond noise: {drifted} of the errors"));
            }
        }
        let (cases, new) = (new.cases.len(), self.on_top_of(&own, new));
        let is_same = own.iter().any(|old| {
            let parts = |one: &Baseline| (one.model.clone(), one.suite.clone(), one.cases.clone());
            old.environment == new.environment && parts(old) == parts(&new)
        });
        let content = match is_same {
            true => None,
            false => Some(file::encode(&new).map_err(|error| error.to_string())?),
        };
        let stem = file::stem(&new.target, &new.environment);
        let step = Step {
            target: target.target.clone(),
            cases,
            path: self.stored.folder.join(format!("{stem}.json")),
            content,
            compared: compared.map(|(baseline, changed)| {
                let name = file::stem(&baseline.target, &baseline.environment);
                (name, changed)
            }),
            standing,
            objections,
        };
        Ok(Some((step, new)))
    }

    /// What the record alone accepts; nothing where there are no numbers.
    fn baseline(
        &self,
        target: &TargetRecord,
        results: &[&ResultRecord],
        environment: BTreeMap<String, String>,
    ) -> Option<Baseline> {
        let reason = self.asked.reason.map(|reason| Reason {
            date: self.asked.date.to_owned(),
            reason: reason.to_owned(),
        });
        let cases: BTreeMap<String, AcceptedCase> = results
            .iter()
            .filter(|result| !result.observations.is_empty())
            .map(|result| (result.case.clone(), accepted_case(result)))
            .collect();
        (!cases.is_empty()).then_some(Baseline {
            driftgauge: self.record.driftgauge.clone(),
            accepted: self.asked.date.to_owned(),
            model: self.model.clone(),
            suite: self.suite.clone(),
            target: identity(target)?,
            dtype: target.dtype.clone()?,
            environment,
            history: reason.into_iter().collect(),
            cases,
        })
    }

    /// What of an old baseline of the same environment stays: its history, and its cases where they
    /// are of this version.
    fn on_top_of(&self, own: &[&Baseline], mut new: Baseline) -> Baseline {
        let old = own.iter().find(|old| old.environment == new.environment);
        if let Some(old) = old {
            new.history = [&old.history[..], &new.history].concat();
            if self.fits(old) {
                keep(&mut new.cases, &old.cases);
            }
        }
        new
    }

    /// What the run itself says against accepting it.
    fn verdicts(&self, results: &[&ResultRecord]) -> Vec<String> {
        let mut objections = Vec::new();
        for verdict in [Verdict::Broken, Verdict::Unsupported, Verdict::Drift] {
            // What has only moved is counted observation by observation.
            let is_more = |result: &&&ResultRecord| {
                let only_moved = |one: &ResultRecord| {
                    let mut kinds = one.findings.iter().map(|finding| finding.kind);
                    kinds.all(|kind| kind == FindingKind::Moved)
                };
                result.verdict == verdict && (verdict != Verdict::Drift || !only_moved(result))
            };
            let (count, all) = (results.iter().filter(is_more).count(), results.len());
            if count > 0 {
                objections.push(format!("{count} of {all} cases are {}", verdict.name()));
            }
        }
        if self.record.method.k_overridden {
            let k = self.record.method.k;
            objections.push(format!("budgets were set by hand (--k {k})"));
        }
        objections
    }
}

fn accepted_case(result: &ResultRecord) -> AcceptedCase {
    let observations = result.observations.iter();
    AcceptedCase {
        input: input(&result.tokens),
        observations: observations
            .map(|(name, one)| (name.clone(), AcceptedError::of(one)))
            .collect(),
    }
}

/// Keeps of the old cases those that were not run, and the entries that are equal to the bit: their
/// errors can differ in the last digit where another machine computed the truth.
fn keep(cases: &mut BTreeMap<String, AcceptedCase>, old: &BTreeMap<String, AcceptedCase>) {
    for (name, old) in old {
        let Some(case) = cases.get_mut(name) else {
            cases.insert(name.clone(), old.clone());
            continue;
        };
        for (name, error) in &mut case.observations {
            if let Some(old) = old.observations.get(name).filter(|old| old.2 == error.2) {
                *error = old.clone();
            }
        }
    }
}
