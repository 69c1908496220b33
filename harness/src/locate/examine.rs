//! The examination of one target of a run: every stage alone, and where one is bad, what it looks like.

use std::collections::{BTreeMap, BTreeSet};

use driftgauge_protocol::{Batch, LoadRequest, Stage, Tensor, observation};
use driftgauge_reports::location::Location;

use super::{
    Blind, Clean, Look, Probe, Sample, StageCheck, optimiser, stage_noise, stage_noise_of, unsteady,
};
use crate::cache::Cache;
use crate::catalogue::Instance;
use crate::judge::{Bench, describe};
use crate::model::Model;
use crate::plan::Plan;
use crate::run::{JobOutcome, TargetOutcome, start_loaded, wanted};
use crate::worker::{Launch, Worker};

/// Multiplications of weights with tokens that an examination may cost for each target.
const WORK: f64 = 1e9;

/// How to start a target's worker again.
#[derive(Debug, Clone)]
pub struct Again {
    /// The process.
    pub launch: Launch,
    /// The model.
    pub request: LoadRequest,
}

/// The batches of a plan that are examined for a target: those with a case that `suspects` names, the smallest first, or
/// else some of all; as many as may be worked on.
pub fn chosen(model: &Model, plan: &Plan, suspects: &BTreeSet<usize>) -> Vec<usize> {
    let size = |job: &usize| plan.jobs[*job].batch.input_ids.len();
    let is_suspect = |job: &usize| {
        plan.jobs[*job]
            .cases
            .clone()
            .any(|case| suspects.contains(&case))
    };
    let all = 0..plan.jobs.len();
    let mut jobs: Vec<usize> = match suspects.is_empty() {
        true => plan.sample_jobs(8, 256),
        false => all.filter(is_suspect).collect(),
    };
    jobs.sort_by_key(size);
    let room = (WORK / model.weights.parameters() as f64) as usize;
    let mut tokens = 0;
    let places = jobs.into_iter().enumerate().take_while(|(place, job)| {
        tokens += size(job);
        *place == 0 || tokens <= room
    });
    let mut jobs: Vec<usize> = places.map(|(_, job)| job).collect();
    jobs.sort_unstable();
    jobs
}

/// Examines a target: `jobs` are batches of the plan that it ran. `again` is asked for only where a stage is
/// bad, or where `suspicious` says that something is wrong.
///
/// # Errors
/// Where a tensor has another shape than it must have; a worker that breaks is a note.
pub fn examine(
    bench: Bench<'_>,
    outcome: &TargetOutcome,
    jobs: &[usize],
    instances: &[Instance],
    cache: &Cache,
    suspicious: bool,
    again: &dyn Fn() -> Again,
) -> Result<Option<Location>, String> {
    let Some(loaded) = &outcome.loaded else {
        return Ok(None);
    };
    let run: Vec<(usize, &JobOutcome)> = jobs
        .iter()
        .filter_map(|job| Some((*job, outcome.jobs.get(*job)?.as_ref().ok()?)))
        .collect();
    if run.is_empty() {
        return Ok(None);
    }
    let jobs: Vec<usize> = run.iter().map(|(job, _)| *job).collect();
    let plan = bench.plan.only(&jobs);
    let predictions = cache
        .predictions(bench.model, &plan, &stage_noise(loaded))
        .cases;
    let noises: Vec<BTreeMap<String, f64>> = plan
        .jobs
        .iter()
        .map(|job| stage_noise_of(job, &predictions))
        .collect();
    let parts = plan.jobs.iter().zip(&run).zip(&noises);
    let samples: Vec<Sample<'_>> = parts
        .map(|((job, (_, tensors)), predicted)| Sample {
            batch: &job.batch,
            tensors,
            predicted,
        })
        .collect();
    let look = Look {
        model: bench.model,
        loaded,
        k: bench.k,
        samples: &samples,
    };
    let checks = look.stages()?;
    let is_blind = checks.iter().filter(|check| check.reached).count() < 2;
    let is_bad = checks.iter().any(|check| !check.within(bench.k));
    let mut location = match (is_bad || suspicious, is_blind) {
        (true, true) => blind(bench, &plan, outcome, &run, instances, &checks)?,
        (true, false) => opened(&look, &checks, &plan, instances, again)?,
        (false, _) => Location {
            stages: checks.iter().map(|check| check.record(bench.k)).collect(),
            ..Location::default()
        },
    };
    location.cases = plan
        .cases
        .iter()
        .map(crate::plan::PlannedCase::id)
        .collect();
    Ok(Some(location))
}

/// With a worker that can be asked again.
fn opened(
    look: &Look<'_>,
    checks: &[StageCheck],
    plan: &Plan,
    instances: &[Instance],
    again: &dyn Fn() -> Again,
) -> Result<Location, String> {
    let batches = plan.jobs.iter().map(|job| &job.batch);
    let clean = Clean::compute(look.model, look.loaded, batches)?;
    let again = again();
    let (mut worker, _, loaded) = match start_loaded(&again.launch, &again.request) {
        Ok(started) => started,
        Err(trouble) => {
            let mut location = look.origins(checks, &clean, instances, None)?;
            location.notes.push(describe(&trouble).message);
            return Ok(location);
        }
    };
    let batch = &plan.jobs[0].batch;
    let second = worker.run(batch, &wanted(&loaded, batch), "the same batch again");
    let layers = look.model.config.num_hidden_layers;
    if let Ok((_, second)) = &second
        && let Some(origin) = unsteady(look.samples[0].tensors, second, layers, instances)
        && checks.iter().any(|check| !check.within(look.k))
    {
        let mut location = Location {
            stages: checks.iter().map(|check| check.record(look.k)).collect(),
            origins: vec![origin],
            ..Location::default()
        };
        location
            .notes
            .push("another result in every run".to_owned());
        return Ok(location);
    }
    let mut probe = Opened(&mut worker);
    let mut location = look.origins(checks, &clean, instances, Some(&mut probe))?;
    if let Some(stage) = bad_stage(checks, look.k) {
        location
            .notes
            .extend(optimiser::bisect(look, plan, &again, &loaded, stage));
    }
    Ok(location)
}

fn bad_stage(checks: &[StageCheck], k: f64) -> Option<Stage> {
    let bad = checks.iter().find(|check| !check.within(k));
    bad.map(|check| check.stage)
}

/// Without a view of the inside: from the logits alone.
fn blind(
    bench: Bench<'_>,
    plan: &Plan,
    outcome: &TargetOutcome,
    run: &[(usize, &JobOutcome)],
    instances: &[Instance],
    checks: &[StageCheck],
) -> Result<Location, String> {
    let loaded = outcome.loaded.as_ref().ok_or("the target is not loaded")?;
    let truths: Vec<crate::oracle::Truth> = run
        .iter()
        .flat_map(|(job, _)| bench.truths[bench.plan.jobs[*job].sequences.clone()].to_vec())
        .collect();
    let bench = Bench {
        plan,
        truths: &truths,
        ..bench
    };
    let mut location = Location {
        stages: checks.iter().map(|check| check.record(bench.k)).collect(),
        ..Location::default()
    };
    let offers = loaded
        .observations
        .iter()
        .any(|name| name == observation::LOGITS);
    if !offers || plan.jobs.iter().all(|job| job.batch.logit_rows.is_empty()) {
        let note = "neither the inside of this model nor its logits are seen";
        location.notes.push(note.to_owned());
        return Ok(location);
    }
    let tensors: Vec<JobOutcome> = run.iter().map(|(_, tensors)| (*tensors).clone()).collect();
    let blind = Blind::compute(bench, loaded, instances)?;
    let verdict = blind.look(bench, &tensors)?;
    location
        .notes
        .push("only the logits of this model are seen, not its inside".to_owned());
    location.origins.extend(verdict.origin());
    Ok(location)
}

/// A worker as something that can be opened.
pub struct Opened<'a>(pub &'a mut Worker);

impl Probe for Opened<'_> {
    fn probe(
        &mut self,
        stage: Stage,
        batch: &Batch,
        input: Option<&Tensor>,
    ) -> Result<BTreeMap<String, Tensor>, String> {
        let steps = self.0.probe(stage, batch, input, &format!("`{stage}`"));
        steps.map_err(|trouble| describe(&trouble).message)
    }
}
