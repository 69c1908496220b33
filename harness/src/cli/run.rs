//! `driftgauge run`: the main job.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use driftgauge::collect::{Surroundings, collect};
use driftgauge::install::{DEFAULT_BACKENDS, Install};
use driftgauge::judge::Bench;
use driftgauge::model::{Manifest, Model, manifest};
use driftgauge::oracle::{self, Truth};
use driftgauge::plan::{Plan, PlanError, plan};
use driftgauge::run::{TargetOutcome, Work, run_target};
use driftgauge::suite::{self, Suite};
use driftgauge::target::Target;
use driftgauge::worker::Launch;
use driftgauge::{exit, host, output};
use driftgauge_protocol::environment;
use driftgauge_reports::Format;
use driftgauge_reports::record::RunTime;

use super::progress::Bars;
use super::{Exit, RunArguments, print, style};

/// The model that is run where none is named.
const EMBEDDED_MODEL: &str = "zh-mini";

/// Runs the cases and prints the report.
///
/// # Errors
/// [`Exit`] where nothing could be run; what happens to a target is in the record.
pub fn run(arguments: &RunArguments) -> Result<u8, Exit> {
    let mut clock = Clock::start();
    let file = arguments.out.join("record.json");
    let cannot_write = |error: std::io::Error| {
        let error = anyhow!(error).context(format!("cannot write `{}`", file.display()));
        Exit::input(error).with_hint("choose another folder with --out")
    };
    // Now, and not after a run whose results would be lost.
    output::check_writable(&arguments.out).map_err(cannot_write)?;
    let install = super::find_install()?;
    let targets = targets(arguments, &install)?;
    let suites = suites(arguments, &install)?;
    let manifests = manifest::load_all(&install.models()).map_err(model_error)?;
    let directory = arguments
        .model
        .clone()
        .unwrap_or_else(|| install.models().join(EMBEDDED_MODEL));
    let threads = match arguments.threads {
        Some(threads) => usize::from(threads),
        None => (host::logical_cpus() / targets.len()).max(1),
    };
    let setting = Setting {
        arguments,
        install: &install,
        threads,
    };
    let bars = Bars::new(&targets, arguments.quiet);

    let executed = execute(
        &setting, &targets, &suites, &manifests, &directory, &bars, &mut clock,
    );
    bars.clear();
    let (model, plan, truths, outcomes) = executed?;

    let bench = Bench {
        model: &model,
        plan: &plan,
        truths: &truths,
    };
    let paths = BTreeMap::from([("model".to_owned(), directory.display().to_string())]);
    let surroundings = Surroundings {
        host: host::describe(),
        paths,
        time: RunTime::default(),
    };
    let mut record = collect(bench, &suites, &outcomes, surroundings);
    clock.lap("judge");
    record.time = clock.finish();

    let json = driftgauge_reports::render(&record, Format::Json, style())
        .context("cannot write the record as JSON")
        .map_err(Exit::input)?;
    output::write_whole(&file, json.as_bytes()).map_err(cannot_write)?;
    match arguments.format {
        Format::Json => print(&json)?,
        format => {
            let report = driftgauge_reports::render(&record, format, style())
                .map_err(|error| Exit::input(anyhow!(error)))?;
            print(&format!("{report}\nrecord: {}\n", file.display()))?;
        }
    }
    Ok(record.summary.exit_code)
}

struct Setting<'a> {
    arguments: &'a RunArguments,
    install: &'a Install,
    threads: usize,
}

type Executed = (Model, Plan, Vec<Truth>, Vec<TargetOutcome>);

/// Starts all workers, opens the model while their libraries load, then computes the truth while
/// they run.
fn execute(
    setting: &Setting<'_>,
    targets: &[Target],
    suites: &[Suite],
    manifests: &[Manifest],
    directory: &std::path::Path,
    bars: &Bars,
    clock: &mut Clock,
) -> Result<Executed, Exit> {
    // Outlives the threads of the scope, which borrow from it.
    let planned = std::sync::OnceLock::new();
    std::thread::scope(|scope| {
        let mut queues = Vec::new();
        let mut threads = Vec::new();
        for (index, target) in targets.iter().enumerate() {
            let (queue, work) = mpsc::channel();
            let launch = launch(setting, target);
            queues.push(queue);
            threads.push(scope.spawn(move || run_target(index, target, &launch, &work, bars)));
        }
        let model = Model::open(directory, manifests).map_err(model_error)?;
        clock.lap("model");
        let plan = plan(suites, &setting.arguments.cases, &model).map_err(|error| {
            let hint = error.hint();
            let code = match error {
                PlanError::NothingSelected { .. } => exit::NOTHING,
                _ => exit::INPUT,
            };
            Exit {
                code,
                ..Exit::input(error).with_hint(hint)
            }
        })?;
        clock.lap("plan");
        bars.planned(plan.jobs.len(), plan.sequences.len());
        let (model, plan) = planned.get_or_init(|| (model, plan));
        for (queue, target) in queues.iter().zip(targets) {
            let request = model.load_request(&target.device, target.dtype, setting.threads);
            // A target whose thread is gone has ended; its outcome says why.
            let _ = queue.send(Work { request, plan });
        }
        let truths = oracle::truths(model, &plan.sequences);
        clock.lap("truth");
        bars.truth_done();
        let outcomes = threads
            .into_iter()
            .map(|thread| thread.join().ok().flatten())
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| {
                Exit::input(anyhow!("a thread of the harness ended without an outcome"))
            })?;
        clock.lap("targets");
        Ok((truths, outcomes))
    })
    .and_then(|(truths, outcomes)| {
        let (model, plan) = planned
            .into_inner()
            .ok_or_else(|| Exit::input(anyhow!("the plan is gone")))?;
        Ok((model, plan, truths, outcomes))
    })
}

fn launch(setting: &Setting<'_>, target: &Target) -> Launch {
    let deadline = Duration::from_secs_f64(setting.arguments.timeout);
    let mut launch = setting.install.launch(&target.backend, deadline);
    let threads = setting.threads.to_string();
    for variable in ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"] {
        launch
            .environment
            .push((variable.to_owned(), threads.clone().into()));
    }
    // OpenMP's threads spin while they wait; beside other targets that only slows all of them.
    let passive = ("OMP_WAIT_POLICY".to_owned(), "PASSIVE".into());
    launch.environment.push(passive);
    if let Some(library) = target.options.get("lib") {
        launch
            .environment
            .push((environment::LIBRARY.to_owned(), library.into()));
    }
    launch
}

fn targets(arguments: &RunArguments, install: &Install) -> Result<Vec<Target>, Exit> {
    let targets = if arguments.targets.is_empty() {
        let parse = |backend: &&str| backend.parse::<Target>();
        DEFAULT_BACKENDS
            .iter()
            .map(parse)
            .collect::<Result<_, _>>()
            .map_err(Exit::input)?
    } else {
        arguments.targets.clone()
    };
    let mut known: Vec<String> = DEFAULT_BACKENDS.map(str::to_owned).to_vec();
    known.extend(install.backends());
    known.sort();
    known.dedup();
    for (index, target) in targets.iter().enumerate() {
        let is_there = install.worker(&target.backend).exists();
        if !is_there && !known.contains(&target.backend) {
            let error = anyhow!(
                "unknown target `{target}` (known backends: {})",
                known.join(", ")
            );
            return Err(Exit::input(error).with_hint("driftgauge doctor shows what is there"));
        }
        if targets[..index].contains(target) {
            let error = anyhow!("target `{target}` is given twice");
            return Err(Exit::input(error).with_hint("leave one of them out"));
        }
    }
    Ok(targets)
}

fn suites(arguments: &RunArguments, install: &Install) -> Result<Vec<Suite>, Exit> {
    let paths = if arguments.suites.is_empty() {
        suites_of(&install.cases())
            .with_context(|| format!("cannot list `{}`", install.cases().display()))
            .map_err(Exit::input)?
    } else {
        arguments.suites.clone()
    };
    suite::load_all(&paths).map_err(|error| {
        let hint = error.hint();
        Exit::input(error).with_hint(hint)
    })
}

/// The suites of the repository: `seed`, which a reader knows, first.
fn suites_of(folder: &std::path::Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    paths.sort_by_key(|path| {
        (
            path.file_stem().is_none_or(|stem| stem != "seed"),
            path.clone(),
        )
    });
    Ok(paths)
}

fn model_error(error: driftgauge::model::ModelError) -> Exit {
    let hint = error.hint();
    Exit::input(error).with_hint(hint)
}

/// Seconds of each phase.
struct Clock {
    started: u64,
    start: Instant,
    last: Instant,
    laps: BTreeMap<String, f64>,
}

impl Clock {
    fn start() -> Self {
        let started = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let now = Instant::now();
        Self {
            started,
            start: now,
            last: now,
            laps: BTreeMap::new(),
        }
    }

    fn lap(&mut self, phase: &str) {
        let now = Instant::now();
        self.laps
            .insert(phase.to_owned(), (now - self.last).as_secs_f64());
        self.last = now;
    }

    fn finish(mut self) -> RunTime {
        self.laps
            .insert("total".to_owned(), self.start.elapsed().as_secs_f64());
        RunTime {
            started: self.started,
            seconds: self.laps,
        }
    }
}
