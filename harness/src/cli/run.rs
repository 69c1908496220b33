//! `driftgauge run`: the main job.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use driftgauge::baseline::folder::{self, Accepted, Wanted};
use driftgauge::baseline::{self, truth};
use driftgauge::budget::{self, Calibration};
use driftgauge::cache::Cache;
use driftgauge::collect::{Surroundings, collect, summary};
use driftgauge::install::Install;
use driftgauge::judge::Bench;
use driftgauge::known;
use driftgauge::locate::{self, Again};
use driftgauge::model::{Manifest, Model, manifest};
use driftgauge::oracle::{self, Truth};
use driftgauge::plan::{Plan, plan};
use driftgauge::predict::{self, Predictions};
use driftgauge::repeat::{self, Repeated, Repetition};
use driftgauge::run::{TargetOutcome, Work, run_target};
use driftgauge::suite::Suite;
use driftgauge::target::Target;
use driftgauge::worker::Launch;
use driftgauge::{day, exit, host, output, selftest};
use driftgauge_protocol::{Dtype, LoadRequest};
use driftgauge_reports::Format;
use driftgauge_reports::record::{
    self, Finding, FindingKind, Method, RunRecord, RunTime, TruthRecord,
};
use sha2::{Digest, Sha256};

use super::inputs::{
    EMBEDDED_MODEL, known_deviations, launch, model_error, plan_error, predictions_of, suites,
    targets,
};
use super::progress::Bars;
use super::{Exit, RunArguments, print, print_fenced, style};

/// Batches that are run in float64 as well, and the largest of them in tokens.
const FLOAT64_BATCHES: usize = 8;
const FLOAT64_TOKENS: usize = 256;

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
    if let Some(bundle) = &arguments.bundle {
        super::bundle::check(bundle)?;
    }
    let install = super::find_install()?;
    let targets = targets(&arguments.selection.targets, &install)?;
    let suites = suites(&arguments.selection.suites, &install)?;
    let calibration = Calibration::read(&install.calibration())
        .map_err(|error| Exit::input(error).with_hint(budget::HINT))?;
    let manifests = manifest::load_all(&install.models()).map_err(model_error)?;
    let directory = arguments
        .model
        .clone()
        .unwrap_or_else(|| install.models().join(EMBEDDED_MODEL));
    let baselines = baselines(arguments, &install)?;
    let known = match arguments.no_known {
        true => None,
        false => Some(known_deviations(arguments.known.as_deref(), &install)?),
    };
    let threads = match arguments.threads {
        Some(threads) => usize::from(threads),
        None => (host::logical_cpus() / targets.len()).max(1),
    };
    let setting = Setting {
        arguments,
        install: &install,
        threads,
        baselines: baselines.as_deref(),
        known: known.as_deref(),
    };
    let bars = Bars::new(&targets, arguments.quiet);

    let executed = execute(
        &setting, &targets, &suites, &manifests, &directory, &bars, &mut clock,
    );
    let executed = executed.inspect_err(|_| bars.clear())?;
    let method = Method {
        k: arguments.k.unwrap_or(calibration.k),
        k_overridden: arguments.k.is_some(),
        move_limit: calibration.move_limit,
        samples: predict::SAMPLES,
        seed: predict::SEED,
    };
    let (mut record, truth) = judged(&setting, &suites, &executed, method, &bars, &mut clock)?;
    let today = arguments.today.clone();
    let day = today.unwrap_or_else(|| day::of(clock.started));
    setting.apply_known(&mut record, &day);
    let place = directory.display().to_string();
    record.paths.insert("model".to_owned(), place);
    record.paths.extend(suite_paths(&suites));
    record.time = RunTime {
        day,
        ..clock.finish()
    };

    let language = arguments.lang.unwrap_or_else(super::locale);
    let rendered = |format| {
        driftgauge_reports::render(&record, format, style(), language).map_err(Exit::input)
    };
    let json = rendered(Format::Json)?;
    // The record last: it says which truth belongs to it.
    output::write_whole(&arguments.out.join(truth::FILE), &truth).map_err(cannot_write)?;
    output::write_whole(&file, json.as_bytes()).map_err(cannot_write)?;
    let mut written = format!("record: {}", file.display());
    if let Some(bundle) = &arguments.bundle {
        let bench = executed.bench(record.method.k);
        super::bundle::write(bundle, bench, &record, &json, &executed.outcomes)?;
        written.push_str(&format!("\nbundle: {}", bundle.display()));
    }
    match arguments.format {
        Format::Table => {
            let report = rendered(Format::Table)?;
            print_fenced(&format!("{report}\n{written}\n"))?;
        }
        format => print(&rendered(format)?)?,
    }
    Ok(record.summary.exit_code)
}

/// Where the suites are: as seen from here, if they are below.
fn suite_paths(suites: &[Suite]) -> impl Iterator<Item = (String, String)> {
    let here = std::env::current_dir().unwrap_or_default();
    suites.iter().map(move |suite| {
        let path = suite.path.strip_prefix(&here).unwrap_or(&suite.path);
        let place = path.display().to_string();
        (record::suite_key(&suite.name), place)
    })
}

/// Predicts, repeats, judges and compares with what was accepted: the record, and the truth that
/// belongs to it as it is written beside it.
fn judged(
    setting: &Setting<'_>,
    suites: &[Suite],
    executed: &Executed,
    method: Method,
    bars: &Bars,
    clock: &mut Clock,
) -> Result<(RunRecord, Vec<u8>), Exit> {
    let Executed {
        model,
        plan,
        truths,
        outcomes,
        ..
    } = executed;
    let loaded = outcomes
        .iter()
        .filter_map(|outcome| outcome.loaded.as_ref());
    let predictions = predictions_of(&Cache::find(), model, plan, loaded, bars);
    clock.lap("predictions");
    let bench = executed.bench(method.k);
    let repetitions =
        repetitions(setting, bench, &predictions, outcomes, bars).inspect_err(|_| bars.clear())?;
    bars.clear();
    clock.lap("repeats");
    let sketch = truth::sketch(model, plan, truths);
    let truth_file = truth::encode(&sketch, None).map_err(|error| Exit::input(anyhow!(error)))?;
    let surroundings = Surroundings {
        truth: TruthRecord {
            sha256: hex::encode(Sha256::digest(&truth_file)),
            ..TruthRecord::default()
        },
        host: host::describe(),
        paths: BTreeMap::new(),
        time: RunTime::default(),
    };
    let mut record = collect(bench, method, suites, outcomes, &predictions, surroundings);
    if !setting.arguments.no_locate {
        setting.locate(bench, outcomes, &mut record)?;
        clock.lap("locate");
    }
    if let Some(accepted) = &executed.accepted {
        baseline::compare(&mut record, accepted, &sketch);
        record.summary = summary(&record.results, &record.truth, outcomes.len());
    }
    repeat::enter(&mut record, repetitions);
    clock.lap("judge");
    Ok((record, truth_file))
}

/// The further runs of each target; none where there is only one run.
fn repetitions(
    setting: &Setting<'_>,
    bench: Bench<'_>,
    predictions: &Predictions,
    outcomes: &[TargetOutcome],
    bars: &Bars,
) -> Result<Vec<Option<Repetition>>, Exit> {
    let runs = usize::from(setting.arguments.repeat);
    if runs == 1 {
        return Ok(Vec::new());
    }
    bars.repeated(runs);
    let repeated = |outcome| setting.repeated(outcome, bench.model);
    let targets: Vec<Repeated<'_>> = outcomes.iter().map(repeated).collect();
    let repetitions = repeat::repeat(bench, predictions, &targets, runs, bars);
    let lost = outcomes.iter().zip(&repetitions);
    match lost
        .clone()
        .find(|(outcome, repetition)| outcome.loaded.is_some() && repetition.is_none())
    {
        None => Ok(repetitions),
        Some((outcome, _)) => Err(Exit {
            code: exit::BROKEN,
            ..Exit::input(anyhow!(
                "the repetitions of {} ended without a result",
                outcome.target
            ))
        }),
    }
}

struct Setting<'a> {
    arguments: &'a RunArguments,
    install: &'a Install,
    threads: usize,
    /// Folder of accepted baselines; nothing where none are wanted.
    baselines: Option<&'a std::path::Path>,
    /// Known deviations; nothing where they are drift.
    known: Option<&'a [known::Entry]>,
}

/// What a run has gathered when all targets are done.
struct Executed {
    model: Model,
    plan: Plan,
    accepted: Option<Vec<Accepted>>,
    truths: Vec<Truth>,
    outcomes: Vec<TargetOutcome>,
}

impl Executed {
    fn bench(&self, k: f64) -> Bench<'_> {
        Bench {
            model: &self.model,
            plan: &self.plan,
            truths: &self.truths,
            k,
        }
    }
}

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
    let sampled = std::sync::OnceLock::new();
    std::thread::scope(|scope| {
        let mut queues = Vec::new();
        let mut threads = Vec::new();
        for (index, target) in targets.iter().enumerate() {
            let (queue, work) = mpsc::channel();
            let launch = setting.launch(target);
            queues.push(queue);
            threads.push(scope.spawn(move || run_target(index, target, &launch, &work, bars)));
        }
        let model = Model::open(directory, manifests).map_err(model_error)?;
        clock.lap("model");
        let plan = plan(suites, &setting.arguments.selection.cases, &model).map_err(plan_error)?;
        clock.lap("plan");
        let accepted = setting
            .baselines
            .map(|folder| accepted(folder, &model, &plan, suites, targets))
            .transpose()?;
        bars.planned(plan.jobs.len(), plan.sequences.len());
        let (model, plan) = planned.get_or_init(|| (model, plan));
        let float64 = sampled.get_or_init(|| match setting.arguments.no_float64 {
            true => Vec::new(),
            false => plan.sample_jobs(FLOAT64_BATCHES, FLOAT64_TOKENS),
        });
        for (queue, target) in queues.iter().zip(targets) {
            let request = model.load_request(&target.device, target.dtype, setting.threads);
            // A target whose thread is gone has ended; its outcome says why.
            let float64 = match target.dtype {
                Dtype::F64 => &[],
                _ => &float64[..],
            };
            let _ = queue.send(Work {
                request,
                plan,
                float64,
            });
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
        Ok((accepted, truths, outcomes))
    })
    .and_then(|(accepted, truths, outcomes)| {
        let (model, plan) = planned
            .into_inner()
            .ok_or_else(|| Exit::input(anyhow!("the plan is gone")))?;
        Ok(Executed {
            model,
            plan,
            accepted,
            truths,
            outcomes,
        })
    })
}

/// What was accepted for the suites that have a case in the plan.
fn accepted(
    folder: &std::path::Path,
    model: &Model,
    plan: &Plan,
    suites: &[Suite],
    targets: &[Target],
) -> Result<Vec<Accepted>, Exit> {
    let is_planned = |suite: &&Suite| plan.cases.iter().any(|case| case.suite == suite.name);
    let suites: Vec<_> = suites
        .iter()
        .filter(is_planned)
        .map(folder::suite_identity)
        .collect();
    let wanted = Wanted {
        model: &folder::model_identity(model),
        suites: &suites,
        targets,
    };
    folder::open(folder, wanted).map_err(super::accept::refused)
}

/// The folder of accepted baselines; one that was named must be there.
fn baselines(arguments: &RunArguments, install: &Install) -> Result<Option<PathBuf>, Exit> {
    if arguments.no_baselines {
        return Ok(None);
    }
    let Some(named) = &arguments.baselines else {
        return Ok(Some(install.baselines()));
    };
    std::fs::read_dir(named)
        .with_context(|| format!("cannot read the folder of baselines `{}`", named.display()))
        .map_err(|error| Exit::input(error).with_hint("make it, or leave --baselines out"))?;
    Ok(Some(named.clone()))
}

impl Setting<'_> {
    /// Compares every result with the known deviations.
    fn apply_known(&self, record: &mut RunRecord, day: &str) {
        let Some(entries) = self.known else {
            return;
        };
        let chosen = &self.arguments.selection;
        let full = chosen.suites.is_empty() && chosen.targets.is_empty() && chosen.cases.is_empty();
        known::apply(record, entries, day, full);
        record.summary = summary(&record.results, &record.truth, record.targets.len());
    }

    fn launch(&self, target: &Target) -> Launch {
        launch(
            self.install,
            target,
            self.threads,
            self.arguments.selection.timeout,
        )
    }

    /// Judges the stages of every target alone, and looks for the cause where one is bad.
    fn locate(
        &self,
        bench: Bench<'_>,
        outcomes: &[TargetOutcome],
        record: &mut RunRecord,
    ) -> Result<(), Exit> {
        let instances = selftest::known(bench.model);
        for (index, outcome) in outcomes.iter().enumerate() {
            let own = record.results.iter().skip(index).step_by(outcomes.len());
            let is_numeric = |finding: &Finding| {
                matches!(finding.kind, FindingKind::Numeric | FindingKind::Damage)
            };
            let suspects = own
                .enumerate()
                .filter(|(_, result)| result.findings.iter().any(is_numeric));
            let suspects: BTreeSet<usize> = suspects.map(|(case, _)| case).collect();
            let jobs = locate::examine::chosen(bench.model, bench.plan, &suspects);
            let again = || {
                let Repeated {
                    launch, request, ..
                } = self.repeated(outcome, bench.model);
                Again { launch, request }
            };
            let suspicious = !suspects.is_empty();
            let found = locate::examine(
                bench,
                outcome,
                &jobs,
                &instances,
                &Cache::find(),
                suspicious,
                &again,
            );
            let found = found.map_err(|why| Exit::input(anyhow!("{}: {why}", outcome.target)))?;
            if let Some(location) = found {
                locate::enter(record, index, location);
            }
        }
        record.summary = summary(&record.results, &record.truth, outcomes.len());
        Ok(())
    }

    /// What it takes to run a target again as it was run.
    fn repeated<'a>(&self, outcome: &'a TargetOutcome, model: &Model) -> Repeated<'a> {
        let target = &outcome.target;
        let request = model.load_request(&target.device, target.dtype, self.threads);
        Repeated {
            outcome,
            launch: self.launch(target),
            request: LoadRequest {
                options: target.options.clone(),
                ..request
            },
        }
    }
}

/// Seconds of each phase.
pub struct Clock {
    started: u64,
    start: Instant,
    last: Instant,
    laps: BTreeMap<String, f64>,
}

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
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

    /// A phase has ended.
    pub fn lap(&mut self, phase: &str) {
        let now = Instant::now();
        self.laps
            .insert(phase.to_owned(), (now - self.last).as_secs_f64());
        self.last = now;
    }

    /// Everything has ended.
    pub fn finish(mut self) -> RunTime {
        self.laps
            .insert("total".to_owned(), self.start.elapsed().as_secs_f64());
        RunTime {
            day: day::of(self.started),
            started: self.started,
            seconds: self.laps,
        }
    }
}
