//! One fault at one place: injected, run, judged.

use driftgauge_protocol::fault::Fault;
use driftgauge_protocol::{FailureKind, LoadRequest, Loaded, Stage, Step};
use driftgauge_reports::location::Location;
use driftgauge_reports::record::{Class, FindingKind};
use driftgauge_reports::selftest::{BlindTrial, Status, Trial};

use super::gates::Gates;
use super::{Ground, Subject, kind_name};
use crate::catalogue::{self, Instance, Kind};
use crate::extract::compared;
use crate::judge::diagnosis::{Failing, diagnose};
use crate::judge::{Judgement, judge};
use crate::locate::examine::Opened;
use crate::locate::{Look, Probe, Sample, causes, unsteady};
use crate::observed;
use crate::run::{JobOutcome, start_loaded, wanted};
use crate::worker::{Trouble, Worker};

/// Tries one injection. The worker is in `slot`; one that breaks is replaced the next time.
///
/// # Errors
/// [`Trouble`] where a worker cannot be started again.
pub(super) fn try_one(
    ground: &Ground<'_>,
    subject: &Subject<'_>,
    injection: &Instance,
    slot: &mut Option<Worker>,
) -> Result<Trial, Trouble> {
    let mut trial = blank(ground, injection);
    let mut worker = match slot.take() {
        Some(worker) => worker,
        None => start_loaded(subject.launch, subject.request)?.0,
    };
    match run_under(ground, subject, injection, &mut worker) {
        Err(Trouble::Refused(failure)) => {
            *slot = Some(worker);
            trial.status = match failure.kind {
                FailureKind::Unsupported => Status::Unsupported,
                FailureKind::Error => Status::Broken,
            };
            trial.note = failure.message;
        }
        Err(Trouble::Broken(broken)) => {
            trial.status = Status::Broken;
            trial.note = broken.message;
        }
        Ok(ran) => {
            let judged = assess(ground, injection, &ran, &mut worker, &mut trial);
            *slot = Some(worker);
            if let Err(why) = judged {
                trial.status = Status::Broken;
                trial.note = why;
            }
        }
    }
    Ok(trial)
}

/// What a target made of all batches, and of the first one again.
pub(super) struct Ran {
    pub(super) loaded: Loaded,
    pub(super) jobs: Vec<JobOutcome>,
    pub(super) again: JobOutcome,
}

fn run_under(
    ground: &Ground<'_>,
    subject: &Subject<'_>,
    injection: &Instance,
    worker: &mut Worker,
) -> Result<Ran, Trouble> {
    let request = LoadRequest {
        fault: Some(injection.fault.clone()),
        ..subject.request.clone()
    };
    let loaded = worker.load(&request)?;
    let jobs = &ground.bench.plan.jobs;
    let mut outcomes = Vec::with_capacity(jobs.len());
    for job in jobs.iter().chain(&jobs[..1]) {
        let wanted = wanted(&loaded, &job.batch);
        let (_, tensors) = worker.run(&job.batch, &wanted, &injection.fault.name)?;
        outcomes.push(tensors);
    }
    let again = outcomes.pop().unwrap_or_default();
    Ok(Ran {
        loaded,
        jobs: outcomes,
        again,
    })
}

fn assess(
    ground: &Ground<'_>,
    injection: &Instance,
    ran: &Ran,
    worker: &mut Worker,
    trial: &mut Trial,
) -> Result<(), String> {
    let samples = samples(ground, &ran.jobs);
    let look = Look {
        model: ground.bench.model,
        loaded: &ran.loaded,
        k: ground.bench.k,
        samples: &samples,
    };
    let judgements = judgements(ground, ran);
    if trial.signal.is_none() && !ground.clean.changes(&injection.fault)? {
        trial.signal = Some(0.0);
    }
    let checks = look.stages()?;
    trial.by_budget = judgements
        .iter()
        .any(|(_, judgement)| !judgement.findings.is_empty());
    trial.by_stage = checks.iter().any(|check| !check.within(look.k));
    trial.gates = gates(ground, ran).0.to_vec();
    let others: Vec<Instance>;
    let instances = match ground.unknown {
        false => ground.instances,
        true => {
            let is_other = |one: &&Instance| one.entry.name != injection.entry.name;
            others = ground.instances.iter().filter(is_other).cloned().collect();
            &others
        }
    };
    let layers = ground.bench.model.config.num_hidden_layers;
    let first = ran.jobs.first().ok_or("no batch was run")?;
    let mut location = Location::default();
    if let Some(origin) = unsteady(first, &ran.again, layers, instances) {
        trial.by_repeat = true;
        location.origins.push(origin);
    } else if trial.by_budget || trial.by_stage {
        let probe: &mut dyn Probe = &mut Opened(worker);
        location = look.origins(&checks, &ground.clean, instances, Some(probe))?;
    }
    let has_logits = |name: &String| name == driftgauge_protocol::observation::LOGITS;
    if !ground.unknown && ran.loaded.observations.iter().any(has_logits) {
        trial.blind = Some(blind(ground, injection, ran)?);
    }
    conclude(ground, injection, &location, &judgements, trial);
    Ok(())
}

pub(super) fn samples<'a>(ground: &'a Ground<'_>, jobs: &'a [JobOutcome]) -> Vec<Sample<'a>> {
    let parts = ground.bench.plan.jobs.iter().zip(jobs).zip(&ground.noises);
    parts
        .map(|((job, tensors), predicted)| Sample {
            batch: &job.batch,
            tensors,
            predicted,
        })
        .collect()
}

/// The judgement of every case.
fn judgements(ground: &Ground<'_>, ran: &Ran) -> Vec<(usize, Judgement)> {
    let plan = ground.bench.plan;
    let jobs = plan.jobs.iter().zip(&ran.jobs);
    jobs.flat_map(|(job, tensors)| {
        job.cases.clone().map(move |place| {
            let prediction = &ground.predictions[place];
            let case = &plan.cases[place];
            let judgement = judge(
                ground.bench,
                job,
                case,
                &ran.loaded,
                prediction,
                Ok(tensors),
            );
            (place, judgement)
        })
    })
    .collect()
}

/// What the gates notice in any observation of any case. What is missing or of another shape, every gate
/// notices.
fn gates(ground: &Ground<'_>, ran: &Ran) -> Gates {
    let plan = ground.bench.plan;
    let config = &ground.bench.model.config;
    let mut gates = Gates::default();
    for (job, tensors) in plan.jobs.iter().zip(&ran.jobs) {
        for place in job.cases.clone() {
            let case = &plan.cases[place];
            let truths = ground.bench.truths_of(case);
            for name in ground.predictions[place].errors.keys() {
                let truth = observed::truth(&truths, name, config.num_hidden_layers);
                let values = compared(name, tensors, job, case, ran.loaded.dtype, config);
                gates.join(match values {
                    Ok(values) => Gates::of(&values, &truth),
                    Err(_) => Gates([true; super::gates::NAMES.len()]),
                });
            }
        }
    }
    gates
}

fn blind(ground: &Ground<'_>, injection: &Instance, ran: &Ran) -> Result<BlindTrial, String> {
    let verdict = ground.blind.look(ground.bench, &ran.jobs)?;
    let unsteady = ran.jobs.first().is_some_and(|first| {
        first.get(driftgauge_protocol::observation::LOGITS)
            != ran.again.get(driftgauge_protocol::observation::LOGITS)
    });
    let is_right = |cause: &driftgauge_reports::location::Cause| {
        let stage = injection.stage.map(|stage| stage.to_string());
        cause.name == injection.entry.name && (injection.stage.is_none() || cause.stage == stage)
    };
    let detected = verdict.detected || unsteady;
    let cause = verdict.causes.first();
    let cause_right = match unsteady {
        true => injection.entry.kind == Kind::Unsteady,
        false => cause.is_some_and(is_right),
    };
    Ok(BlindTrial {
        detected,
        cause_right: detected.then_some(cause_right),
        note: match (unsteady, cause) {
            (true, _) => "another result in every run".to_owned(),
            (false, Some(cause)) => {
                let stage = cause.stage.as_deref().unwrap_or("everywhere");
                format!(
                    "{} in {stage} ({:.2} ± {:.2})",
                    cause.name, cause.coefficient, cause.uncertainty
                )
            }
            (false, None) => String::new(),
        },
        signal: ground.blind.size(injection),
    })
}

/// What the trial shows: found or not, and whether place, class and cause are right.
fn conclude(
    ground: &Ground<'_>,
    injection: &Instance,
    location: &Location,
    judgements: &[(usize, Judgement)],
    trial: &mut Trial,
) {
    let found = trial.by_budget || trial.by_stage || trial.by_repeat;
    let is_benign = matches!(injection.entry.kind, Kind::Benign(_));
    trial.status = match (found, is_benign) {
        (true, _) => Status::Detected,
        (false, true) => Status::Void,
        (false, false) if trial.signal == Some(0.0) => idle(ground, &injection.fault),
        (false, false) if trial.signal.is_some_and(|signal| signal < ground.bench.k) => {
            Status::BelowNoise
        }
        (false, false) => Status::Missed,
    };
    if !found {
        return;
    }
    let origin = location.origins.first();
    let cause = origin.and_then(|origin| origin.causes.first());
    let class = class(
        ground,
        trial,
        cause.map(|cause| cause.name.as_str()),
        judgements,
    );
    trial.class_right = Some(class == kind_name(injection.entry.kind));
    trial.cause_right = Some(match ground.unknown {
        true => cause.is_none(),
        false => cause.is_some_and(|cause| cause.name == injection.entry.name),
    });
    let expected = expected(ground, injection);
    trial.stage_right = expected.map(|(stage, _)| {
        let is_first = |origin: &driftgauge_reports::location::Origin| {
            origin.stages.first() == Some(&stage.to_string())
        };
        let is_alone =
            location.origins.len() == 1 && origin.is_some_and(|origin| origin.stages.len() == 1);
        origin.is_some_and(is_first) && (is_alone || injection.stage.is_none())
    });
    let seen = origin.and_then(|origin| origin.step.as_ref());
    trial.step_right = expected
        .zip(seen)
        .map(|((_, step), seen)| step.name() == seen);
    trial.note = match origin {
        None => format!("{class}, nowhere"),
        Some(origin) => {
            let cause = cause.map_or("none of the known".to_owned(), |cause| cause.sentence());
            format!("{}: {cause}", origin.place())
        }
    };
    trial
        .note
        .extend(location.notes.first().map(|note| format!(" [{note}]")));
}

/// The first stage and step that a fault changes; nothing where it changes what is fed or answered.
fn expected(ground: &Ground<'_>, injection: &Instance) -> Option<(Stage, Step)> {
    let model = ground.bench.model;
    let head = model.weights.has_head();
    let stages = Stage::all(model.config.num_hidden_layers, head).into_iter();
    let is_whole = injection.stage.is_none() && !injection.entry.everywhere;
    let mut first = stages
        .filter(|stage| injection.stage.is_none_or(|own| own == *stage))
        .filter_map(|stage| {
            let steps = causes::affected(&injection.fault, stage);
            steps.first().map(|step| (stage, *step))
        });
    match is_whole {
        true => None,
        false => first.next(),
    }
}

/// The class of what was found: that of its cause, where one is known.
fn class(
    ground: &Ground<'_>,
    trial: &Trial,
    cause: Option<&str>,
    judgements: &[(usize, Judgement)],
) -> &'static str {
    if trial.by_repeat {
        return kind_name(Kind::Unsteady);
    }
    if let Some(entry) = cause.and_then(|name| catalogue::all().find(|entry| entry.name == name)) {
        return kind_name(entry.kind);
    }
    let mut findings = judgements
        .iter()
        .flat_map(|(_, judgement)| &judgement.findings);
    if findings.any(|finding| finding.kind == FindingKind::Damage) {
        return Class::Damage.name();
    }
    let failing: Vec<Failing<'_>> = judgements
        .iter()
        .filter_map(|(place, judgement)| {
            Some(Failing {
                case: &ground.bench.plan.cases[*place],
                observations: &judgement.observations,
                residual: judgement.residual.as_ref()?,
            })
        })
        .collect();
    match failing.is_empty() {
        true => "none",
        false => diagnose(ground.bench, &ground.loaded, &failing, None)
            .class
            .name(),
    }
}

/// Why a fault that leaves nothing leaves nothing: because the weights it changes are what it makes of
/// them, or because the cases do not reach it.
fn idle(ground: &Ground<'_>, fault: &Fault) -> Status {
    let weights = &ground.bench.model.weights;
    let stored = |name: &str| {
        let view = weights.find(name).ok_or("missing")?;
        Ok(driftgauge_protocol::fault::Values {
            numbers: view.to_f64(),
            shape: view.shape.to_vec(),
        })
    };
    let only_weights = fault.edits.len() == fault.weight_edits().count();
    let is_same = |edit: &driftgauge_protocol::fault::WeightEdit| {
        let changed =
            driftgauge_protocol::fault::changed(fault.weight_edits(), &edit.tensor, stored);
        matches!((changed, stored(&edit.tensor)), (Ok(Some(a)), Ok(b)) if a == b)
    };
    match only_weights && fault.weight_edits().all(is_same) {
        true => Status::Void,
        false => Status::NotExercised,
    }
}

fn blank(ground: &Ground<'_>, injection: &Instance) -> Trial {
    let entry = injection.entry;
    Trial {
        fault: entry.name.to_owned(),
        title: entry.title.to_owned(),
        kind: kind_name(entry.kind).to_owned(),
        stage: injection.stage.map(|stage| stage.to_string()),
        step: injection.step.map(|step| step.to_string()),
        status: Status::Missed,
        note: String::new(),
        signal: ground.signal(injection),
        by_budget: false,
        by_stage: false,
        by_repeat: false,
        class_right: None,
        stage_right: None,
        step_right: None,
        cause_right: None,
        blind: None,
        gates: Vec::new(),
    }
}
