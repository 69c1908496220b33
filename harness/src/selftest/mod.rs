//! The self-test: injects every known fault into a target and sees whether it is found.
//!
//! A worker is started for this purpose, loads the model under one fault after the other, and runs the same
//! cases; its results go through the same judgement as those of any run. Beside them stands what common gates
//! notice, and a control group of runs without a fault.

pub mod control;
pub mod gates;
pub mod tokens;
mod trial;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use driftgauge_protocol::{LoadRequest, Loaded, Stage};
use driftgauge_reports::selftest::{Control, TargetTrials, Trial};

use crate::catalogue::{self, Instance, Kind};
use crate::judge::Bench;
use crate::locate::{Blind, Clean, stage_noise, stage_noise_of};
use crate::model::Model;
use crate::oracle::Noise;
use crate::plan::Plan;
use crate::predict::{Prediction, predict};
use crate::run::start_loaded;
use crate::target::Target;
use crate::worker::{Launch, Trouble, Worker};

/// What a self-test of one target needs.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// The target.
    pub target: &'a Target,
    /// How to start its worker, for a self-test.
    pub launch: &'a Launch,
    /// How to load the model without a fault.
    pub request: &'a LoadRequest,
}

/// Everything that every trial needs and that is the same for all.
pub struct Ground<'a> {
    /// The model, the cases and their truth.
    pub bench: Bench<'a>,
    /// How the target loads the model without a fault.
    pub loaded: Loaded,
    /// Predictions of whole runs, for each case.
    pub predictions: Vec<Prediction>,
    /// Noise of each stage alone, for each batch.
    pub noises: Vec<BTreeMap<String, f64>>,
    /// Every known fault at every place.
    pub instances: &'a [Instance],
    /// Correct passes over the batches.
    pub clean: Clean<'a>,
    /// What each leaves in the logits.
    pub blind: Blind,
    /// Whether each fault is looked for without knowing it.
    pub unknown: bool,
}

/// Told about progress.
pub trait Progress: Sync {
    /// So many trials there are.
    fn total(&self, trials: usize);
    /// One more is done.
    fn done(&self);
}

/// Every known fault at every place of a model.
pub fn known(model: &Model) -> Vec<Instance> {
    let head = model.weights.has_head();
    catalogue::all()
        .flat_map(|entry| entry.instances(&model.config, head))
        .collect()
}

/// The faults that are injected: every entry that `wanted` names, at its first and last layer and in a deep model the
/// middle one, in the head and the embedding stage, and everywhere where it usually is.
pub fn injections(model: &Model, wanted: &dyn Fn(&str) -> bool) -> Vec<Instance> {
    let head = model.weights.has_head();
    let layers = model.config.num_hidden_layers;
    let chosen = match layers {
        0..=4 => vec![1, layers],
        layers => vec![1, layers.div_ceil(2), layers],
    };
    let entries = catalogue::all().filter(|entry| wanted(entry.name));
    entries
        .flat_map(|entry| {
            let everywhere = entry.everywhere(&model.config, head);
            let places = entry.instances(&model.config, head);
            at_layers(places, &chosen).into_iter().chain(everywhere)
        })
        .collect()
}

/// Those at some layers and at the first layer where each can sit; all of those that sit in no layer.
fn at_layers(instances: Vec<Instance>, layers: &[usize]) -> Vec<Instance> {
    let mut steps = BTreeSet::new();
    let mut is_wanted = |instance: &Instance| match instance.stage {
        Some(Stage::Layer(layer)) => steps.insert(instance.step) || layers.contains(&layer),
        _ => true,
    };
    instances.into_iter().filter(|one| is_wanted(one)).collect()
}

impl<'a> Ground<'a> {
    /// Prepares the trials of a target whose worker is running.
    ///
    /// # Errors
    /// [`Trouble`] of the target, or a model that no fault fits.
    pub fn prepare(
        bench: Bench<'a>,
        instances: &'a [Instance],
        loaded: Loaded,
        predict: &dyn Fn(&Noise) -> Vec<Prediction>,
        unknown: bool,
    ) -> Result<Self, String> {
        let mut whole = stage_noise(&loaded);
        let stages = predict(&whole);
        whole.by_stage = false;
        let predictions = predict(&whole);
        let jobs = bench.plan.jobs.iter();
        let noises: Vec<_> = jobs.map(|job| stage_noise_of(job, &stages)).collect();
        let batches = bench.plan.jobs.iter().map(|job| &job.batch);
        let clean = Clean::compute(bench.model, &loaded, batches)?;
        let blind = Blind::compute(bench, &loaded, instances)?;
        Ok(Self {
            bench,
            loaded,
            predictions,
            noises,
            instances,
            clean,
            blind,
            unknown,
        })
    }
}

impl Ground<'_> {
    /// What an injection leaves at its own place, in units of the noise there; of one that is everywhere,
    /// the most that it leaves at any place.
    fn signal(&self, injection: &Instance) -> Option<f64> {
        let own = |instance: &Instance| {
            let signal = self.clean.signal(instance, &self.noises);
            signal.map(|signal| signal.noise())
        };
        if injection.stage.is_some() || !injection.entry.everywhere {
            return own(injection);
        }
        let places = self.instances.iter();
        let places = places.filter(|one| one.entry.name == injection.entry.name);
        places.filter_map(own).reduce(f64::max)
    }
}

/// Tries every injection on a target, on `workers` workers side by side.
///
/// # Errors
/// [`Trouble`] where a worker cannot be started or cannot load the model as it is.
pub fn run(
    ground: &Ground<'_>,
    subject: &Subject<'_>,
    injections: &[Instance],
    controls: &[control::Control<'_>],
    workers: usize,
    progress: &dyn Progress,
) -> Result<TargetTrials, Trouble> {
    progress.total(injections.len() + controls.len());
    let next = AtomicUsize::new(0);
    let share = || -> Result<Done, Trouble> {
        let (worker, hello, _) = start_loaded(subject.launch, subject.request)?;
        let mut trials = Vec::new();
        let mut checked = Control::default();
        let mut slot: Option<Worker> = Some(worker);
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            // The controls first: then the worker has the model without a fault.
            if let Some(control) = controls.get(index) {
                control::check(ground, subject, control, &mut slot, &mut checked)?;
            } else if let Some(injection) = injections.get(index - controls.len()) {
                let trial = trial::try_one(ground, subject, injection, &mut slot)?;
                trials.push((index, trial));
            } else {
                break;
            }
            progress.done();
        }
        let library = format!("{} {}", hello.library, hello.version);
        Ok((library, trials, checked))
    };
    let shares = std::thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(share)).collect();
        let done = running.into_iter().map(|thread| match thread.join() {
            Ok(share) => share,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        done.collect::<Result<Vec<_>, Trouble>>()
    })?;
    let mut all = TargetTrials {
        target: subject.target.to_string(),
        library: String::new(),
        trials: Vec::new(),
        control: Control::default(),
    };
    let mut trials = Vec::new();
    for (library, some, control) in shares {
        all.library = library;
        trials.extend(some);
        control::join(&mut all.control, control);
    }
    trials.sort_by_key(|(index, _)| *index);
    all.trials = trials.into_iter().map(|(_, trial)| trial).collect();
    Ok(all)
}

/// What one worker has done: its library, trials by their place, and controls.
type Done = (String, Vec<(usize, Trial)>, Control);

/// The word for a kind in reports.
fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Semantic => "semantic",
        Kind::Precision => "precision",
        Kind::Damage => "damage",
        Kind::Unsteady => "unsteady",
        Kind::Benign(_) => "benign",
    }
}

/// Predictions of all cases of a plan, computed and not kept.
pub fn predicted(model: &Model, plan: &Plan, noise: &Noise) -> Vec<Prediction> {
    let cases: Vec<_> = plan.cases.iter().collect();
    predict(model, plan, &cases, noise)
}
