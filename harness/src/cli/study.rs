//! What the commands that study the method itself have in common: every target on every case, in
//! several configurations, without a report of each run.

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use driftgauge::install::Install;
use driftgauge::model::{Manifest, Model};
use driftgauge::plan::{Plan, plan};
use driftgauge::run::{Progress, TargetOutcome, Work, run_target};
use driftgauge::suite::Suite;
use driftgauge::target::Target;

use super::Exit;
use super::inputs::{EMBEDDED_MODEL, launch, model_error, plan_error};

/// What is studied.
pub struct Study<'a> {
    /// Driftgauge's own files.
    pub install: &'a Install,
    /// The targets.
    pub targets: &'a [Target],
    /// Seconds a worker gets for each answer.
    pub timeout: f64,
}

impl Study<'_> {
    /// Runs every target on a plan; nothing is run in float64 beside it.
    pub fn outcomes(&self, model: &Model, plan: &Plan, threads: usize) -> Vec<TargetOutcome> {
        std::thread::scope(|scope| {
            let running: Vec<_> = self
                .targets
                .iter()
                .enumerate()
                .map(|(index, target)| {
                    let launch = launch(self.install, target, threads, self.timeout);
                    let request = model.load_request(&target.device, target.dtype, threads);
                    scope.spawn(move || {
                        let (queue, work) = mpsc::channel();
                        let _ = queue.send(Work {
                            request,
                            plan,
                            float64: &[],
                        });
                        run_target(index, target, &launch, &work, &Silent)
                    })
                })
                .collect();
            let done = running.into_iter();
            done.filter_map(|thread| thread.join().ok().flatten())
                .collect()
        })
    }
}

/// Nobody is told.
struct Silent;

impl Progress for Silent {
    fn stage(&self, _: usize, _: &str) {}
    fn job_done(&self, _: usize) {}
}

/// The models that are named, or the embedded one.
pub fn models(named: &[PathBuf], install: &Install) -> Vec<PathBuf> {
    if named.is_empty() {
        vec![install.models().join(EMBEDDED_MODEL)]
    } else {
        named.to_vec()
    }
}

/// Opens a model and plans its cases with batches of a certain size, or of the suites' own.
pub fn planned(
    model: &Model,
    suites: &[Suite],
    patterns: &[String],
    batch: Option<usize>,
) -> Result<Plan, Exit> {
    let mut suites = suites.to_vec();
    if let Some(batch) = batch {
        suites.iter_mut().for_each(|suite| suite.batch = batch);
    }
    plan(&suites, patterns, model).map_err(plan_error)
}

/// Opens a model.
pub fn open(directory: &Path, manifests: &[Manifest]) -> Result<Model, Exit> {
    Model::open(directory, manifests).map_err(model_error)
}
