//! From jobs to outcomes: drives every target's worker, all of them side by side.
//!
//! The only module of the flow that is not pure.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Instant;

use driftgauge_protocol::{Batch, Dtype, Hello, LoadRequest, Loaded, Tensor, observation};

use crate::plan::{Job, Plan};
use crate::target::Target;
use crate::worker::{Broken, Launch, Stage, Trouble, Worker};

/// Crashes in a row after which a target is given up.
pub const MOST_CRASHES_IN_A_ROW: usize = 3;

/// The option of a target that names a model file of the user's own.
pub const MODEL_OPTION: &str = "model";

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
    /// What the same library made of a few batches in float64, or why there is nothing; `None` where
    /// that was not asked for.
    pub float64: Option<Result<Float64, Trouble>>,
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

/// What the library of a target made of a few batches in float64.
#[derive(Debug)]
pub struct Float64 {
    /// The target that ran.
    pub target: Target,
    /// What its worker said of the loaded model.
    pub loaded: Loaded,
    /// Indices of batches, and their outcomes.
    pub jobs: Vec<(usize, JobOutcome)>,
}

/// What a target thread has to know, once the model is open.
#[derive(Debug)]
pub struct Work<'a> {
    /// What to load.
    pub request: LoadRequest,
    /// What to run.
    pub plan: &'a Plan,
    /// Batches to run in float64 as well, by their index.
    pub float64: &'a [usize],
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
    let Work {
        request,
        plan,
        float64,
    } = work.recv().ok()?;
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
        float64: None,
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
                    let mut spent = Spent::default();
                    session.run_jobs(Some(worker), plan, &mut spent, &mut |_, result| {
                        outcome.jobs.push(result);
                        progress.job_done(index);
                    });
                    outcome.restarts = spent.restarts;
                    outcome.forward_seconds = spent.forward_seconds;
                    outcome.loaded = Some(loaded);
                }
            }
        }
    }
    outcome.total_seconds = start.elapsed().as_secs_f64();
    if let Some(loaded) = &outcome.loaded
        && !float64.is_empty()
    {
        progress.stage(index, "checking in f64");
        let target = Target {
            dtype: Dtype::F64,
            options: loaded.float64_options.clone(),
            ..target.clone()
        };
        outcome.float64 = Some(run_float64(target, launch, &request, plan, float64));
    }
    progress.stage(index, "done");
    Some(outcome)
}

/// Runs a few batches of a target in float64, where its library has that.
fn run_float64(
    target: Target,
    launch: &Launch,
    request: &LoadRequest,
    plan: &Plan,
    jobs: &[usize],
) -> Result<Float64, Trouble> {
    let request = LoadRequest {
        dtype: target.dtype,
        options: target.options.clone(),
        ..request.clone()
    };
    let (mut worker, _, loaded) = start_loaded(launch, &request)?;
    let mut done = Vec::with_capacity(jobs.len());
    for index in jobs {
        let job = &plan.jobs[*index];
        let wanted = wanted(&loaded, &job.batch);
        let (_, tensors) = worker.run(&job.batch, &wanted, &names(plan, job))?;
        done.push((*index, tensors));
    }
    Ok(Float64 {
        target,
        loaded,
        jobs: done,
    })
}

/// Runs all jobs once more in a fresh worker, that of a target that has `loaded` the model before.
/// Each outcome is handed to `take` with the index of its job, and is then gone.
pub fn run_again(
    launch: &Launch,
    request: &LoadRequest,
    loaded: &Loaded,
    plan: &Plan,
    take: &mut dyn FnMut(usize, Result<JobOutcome, Trouble>),
) {
    let session = Session {
        launch,
        request,
        loaded,
    };
    session.run_jobs(None, plan, &mut Spent::default(), take);
}

/// Starts a worker and loads the model exactly as requested.
///
/// # Errors
/// [`Trouble`] where it cannot be started, cannot load, or loaded something else.
pub fn start_loaded(
    launch: &Launch,
    request: &LoadRequest,
) -> Result<(Worker, Hello, Loaded), Trouble> {
    let (mut worker, hello) = Worker::start(launch.clone())?;
    let loaded = worker.load(request)?;
    let loaded = as_requested(request, loaded)?;
    Ok((worker, hello, loaded))
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
    // A user's own model file may give one and not the other; the cases that need it say so.
    let is_own_file = request.options.contains_key(MODEL_OPTION);
    let mut needed = [Some(last), logits].into_iter().flatten();
    let is_missing = |name: &String| !is_own_file && !loaded.observations.contains(name);
    let needed = needed.find(is_missing);
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

/// What running jobs took.
#[derive(Default)]
struct Spent {
    restarts: usize,
    forward_seconds: f64,
}

impl Session<'_> {
    /// Runs all jobs; a worker that breaks, or is not there, is replaced by a fresh one for the next
    /// job.
    fn run_jobs(
        &self,
        mut worker: Option<Worker>,
        plan: &Plan,
        spent: &mut Spent,
        take: &mut dyn FnMut(usize, Result<JobOutcome, Trouble>),
    ) {
        let (mut crashes, mut done) = (0, 0);
        for (index, job) in plan.jobs.iter().enumerate() {
            let result = self.run_job(&mut worker, plan, job, spent);
            crashes = match &result {
                Err(Trouble::Broken(_)) => crashes + 1,
                _ => 0,
            };
            take(index, result);
            done += 1;
            if crashes == MOST_CRASHES_IN_A_ROW {
                break;
            }
        }
        for index in done..plan.jobs.len() {
            take(index, Err(given_up()));
        }
    }

    fn run_job(
        &self,
        slot: &mut Option<Worker>,
        plan: &Plan,
        job: &Job,
        spent: &mut Spent,
    ) -> Result<JobOutcome, Trouble> {
        let mut worker = match slot.take() {
            Some(worker) => worker,
            None => {
                spent.restarts += 1;
                start_loaded(self.launch, self.request)?.0
            }
        };
        let wanted = wanted(self.loaded, &job.batch);
        let result = worker.run(&job.batch, &wanted, &names(plan, job));
        if !matches!(result, Err(Trouble::Broken(_))) {
            *slot = Some(worker);
        }
        let (ran, tensors) = result?;
        spent.forward_seconds += ran.seconds;
        Ok(tensors)
    }
}

/// What is said of a batch that was not run because too many before it broke.
pub fn given_up() -> Trouble {
    Trouble::Broken(Broken {
        stage: Stage::Start,
        message: format!(
            "not run: the worker broke on {MOST_CRASHES_IN_A_ROW} batches in a row and was given up"
        ),
        hint: None,
        stderr: Vec::new(),
    })
}

/// Everything the target offers, but logits only where the batch asks for any.
pub fn wanted(loaded: &Loaded, batch: &Batch) -> Vec<String> {
    let wants_logits = !batch.logit_rows.is_empty();
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
