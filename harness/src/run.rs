//! From jobs to outcomes: drives every target's worker, all of them side by side.
//!
//! The only module of the flow that is not pure.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Instant;

use driftgauge_protocol::{Hello, LoadRequest, Loaded, Tensor, observation};

use crate::plan::{Job, Plan};
use crate::target::Target;
use crate::worker::{Broken, Launch, Stage, Trouble, Worker};

/// Crashes in a row after which a target is given up.
const MOST_CRASHES_IN_A_ROW: usize = 3;

/// What a target did with all jobs.
#[derive(Debug)]
pub struct TargetOutcome {
    /// The target.
    pub target: Target,
    /// What its worker said of itself.
    pub hello: Option<Hello>,
    /// What its worker said of the loaded model.
    pub loaded: Option<Loaded>,
    /// Why it could not be used at all; then no job was run.
    pub trouble: Option<Trouble>,
    /// One outcome for each job, in order.
    pub jobs: Vec<Result<JobOutcome, Trouble>>,
    /// How often a worker had to be started again.
    pub restarts: usize,
    /// Seconds from starting the process to its first message.
    pub start_seconds: f64,
    /// Seconds of all forward passes, by the worker's clock.
    pub forward_seconds: f64,
    /// Seconds from starting the process to the last answer.
    pub total_seconds: f64,
}

/// What a target made of one batch: each offered observation, as it came.
pub type JobOutcome = BTreeMap<String, Tensor>;

/// What a target thread has to know, once the model is open.
#[derive(Debug)]
pub struct Work<'a> {
    /// What to load.
    pub request: LoadRequest,
    /// What to run.
    pub plan: &'a Plan,
}

/// Told about progress: called from the targets' threads.
pub trait Progress: Sync {
    /// A target has reached a stage.
    fn stage(&self, target: usize, stage: &str);
    /// A target has finished one more job.
    fn job_done(&self, target: usize);
}

/// Runs one target. Starts the worker at once and then waits for `work`, so that libraries load
/// while the model is being hashed; `None` is returned where no work comes.
pub fn run_target(
    index: usize,
    target: &Target,
    launch: &Launch,
    work: &mpsc::Receiver<Work<'_>>,
    progress: &dyn Progress,
) -> Option<TargetOutcome> {
    let start = Instant::now();
    progress.stage(index, "starting");
    let started = Worker::start(launch.clone());
    let start_seconds = start.elapsed().as_secs_f64();
    let Work { request, plan } = work.recv().ok()?;
    let request = LoadRequest {
        options: target.options.clone(),
        ..request
    };
    let mut outcome = TargetOutcome {
        target: target.clone(),
        hello: None,
        loaded: None,
        trouble: None,
        jobs: Vec::new(),
        restarts: 0,
        start_seconds,
        forward_seconds: 0.0,
        total_seconds: 0.0,
    };
    match started {
        Err(trouble) => outcome.trouble = Some(trouble),
        Ok((mut worker, hello)) => {
            outcome.hello = Some(hello);
            progress.stage(index, "loading");
            match worker
                .load(&request)
                .and_then(|loaded| as_requested(&request, loaded))
            {
                Err(trouble) => outcome.trouble = Some(trouble),
                Ok(loaded) => {
                    progress.stage(index, "running");
                    let session = Session {
                        launch,
                        request: &request,
                        loaded: &loaded,
                    };
                    session.run_jobs(worker, plan, &mut outcome, &|| progress.job_done(index));
                    outcome.loaded = Some(loaded);
                }
            }
        }
    }
    outcome.total_seconds = start.elapsed().as_secs_f64();
    progress.stage(index, "done");
    Some(outcome)
}

/// A worker that runs on another device or in another dtype than asked for, offers what there is no
/// truth for, or does not offer what answers are made of, is broken, whatever it answers.
fn as_requested(request: &LoadRequest, loaded: Loaded) -> Result<Loaded, Trouble> {
    let is_known = |name: &String| match name.as_str() {
        observation::EMBEDDINGS => true,
        observation::LOGITS => request.mlm_head,
        other => (1..=request.config.num_hidden_layers).any(|n| other == observation::hidden(n)),
    };
    let unknown = loaded.observations.iter().find(|name| !is_known(name));
    let last = observation::hidden(request.config.num_hidden_layers);
    let logits = request.mlm_head.then(|| observation::LOGITS.to_owned());
    let mut needed = [Some(last), logits].into_iter().flatten();
    let needed = needed.find(|name| !loaded.observations.contains(name));
    let message = if loaded.device != request.device || loaded.dtype != request.dtype {
        format!(
            "asked for {}/{}, the worker loaded the model on {}/{}",
            request.device, request.dtype, loaded.device, loaded.dtype
        )
    } else if let Some(unknown) = unknown {
        format!("the worker offers `{unknown}`, which this model does not have")
    } else if let Some(needed) = needed {
        format!("the worker does not offer `{needed}`, of which answers are made")
    } else {
        return Ok(loaded);
    };
    Err(Trouble::Broken(Broken {
        stage: Stage::Load,
        message,
        hint: None,
        stderr: Vec::new(),
    }))
}

struct Session<'a> {
    launch: &'a Launch,
    request: &'a LoadRequest,
    loaded: &'a Loaded,
}

impl Session<'_> {
    /// Runs all jobs; a worker that breaks is replaced by a fresh one for the next job.
    fn run_jobs(
        &self,
        worker: Worker,
        plan: &Plan,
        outcome: &mut TargetOutcome,
        job_done: &dyn Fn(),
    ) {
        let mut worker = Some(worker);
        let mut crashes = 0;
        for job in &plan.jobs {
            let result = self.run_job(&mut worker, plan, job, outcome);
            crashes = match &result {
                Err(Trouble::Broken(_)) => crashes + 1,
                _ => 0,
            };
            outcome.jobs.push(result);
            job_done();
            if crashes == MOST_CRASHES_IN_A_ROW {
                break;
            }
        }
        for _ in outcome.jobs.len()..plan.jobs.len() {
            outcome.jobs.push(Err(Trouble::Broken(Broken {
                stage: Stage::Start,
                message: format!(
                    "not run: the worker broke on {MOST_CRASHES_IN_A_ROW} batches in a row and was given up"
                ),
                hint: None,
                stderr: Vec::new(),
            })));
            job_done();
        }
    }

    fn run_job(
        &self,
        slot: &mut Option<Worker>,
        plan: &Plan,
        job: &Job,
        outcome: &mut TargetOutcome,
    ) -> Result<JobOutcome, Trouble> {
        let mut worker = match slot.take() {
            Some(worker) => worker,
            None => {
                outcome.restarts += 1;
                let (mut worker, _) = Worker::start(self.launch.clone())?;
                let loaded = worker.load(self.request)?;
                as_requested(self.request, loaded)?;
                worker
            }
        };
        let wanted = wanted(self.loaded, job);
        let result = worker.run(&job.batch, &wanted, &names(plan, job));
        if !matches!(result, Err(Trouble::Broken(_))) {
            *slot = Some(worker);
        }
        let (ran, tensors) = result?;
        outcome.forward_seconds += ran.seconds;
        Ok(tensors)
    }
}

/// Everything the target offers, but logits only where the batch asks for any.
fn wanted(loaded: &Loaded, job: &Job) -> Vec<String> {
    let wants_logits = !job.batch.logit_rows.is_empty();
    let offered = loaded.observations.iter();
    offered
        .filter(|name| *name != observation::LOGITS || wants_logits)
        .cloned()
        .collect()
}

fn names(plan: &Plan, job: &Job) -> String {
    let cases = &plan.cases[job.cases.clone()];
    let names: Vec<String> = cases
        .iter()
        .map(|case| format!("`{}`", case.id()))
        .collect();
    names.join(", ")
}
