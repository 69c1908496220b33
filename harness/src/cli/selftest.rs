//! `driftgauge selftest`: is every known fault found?

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use driftgauge::budget::{self, Calibration};
use driftgauge::catalogue::{self, Instance};
use driftgauge::install::Install;
use driftgauge::judge::Bench;
use driftgauge::model::{Model, manifest};
use driftgauge::oracle;
use driftgauge::plan::{Plan, plan};
use driftgauge::selftest::{self, Ground, Subject, control, gates};
use driftgauge::target::Target;
use driftgauge::worker::{Launch, Trouble};
use driftgauge::{exit, run::start_loaded};
use driftgauge_reports::selftest::{
    SELFTEST_FORMAT, SELFTEST_VERSION, SelftestReport, TargetTrials, render,
};
use globset::GlobMatcher;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::inputs::{self, model_error, plan_error};
use super::study::{models, open};
use super::{Exit, TableOrJson, print, print_report};

/// Shown under `driftgauge selftest --help`.
pub const EXAMPLES: &str = "\
Injects every known fault into each backend, at several layers, runs a suite that reaches all of them, and \
says which are detected, and whether class, layer, step and cause are right; beside it what allclose, \
NMSE and cosine notice of the same results. As many runs without a fault stand against it.

Examples:
  driftgauge selftest
  driftgauge selftest --backend candle
  driftgauge selftest --backend onnx --fault 'gelu-*' --fault 'eps-*'
  driftgauge selftest --list
  driftgauge selftest --model ./bert-base-chinese --format json

Exit codes:
  0  every fault that shows at all is detected, and nothing where there is no fault
  1  one is missed, or there is a false alarm
  2  wrong usage, or a suite or model that is missing or damaged
  3  a target broke, or cannot be made to deviate
  4  nothing was run";

/// Arguments of `driftgauge selftest`.
#[derive(Debug, clap::Args)]
pub struct SelftestArguments {
    /// Backend or whole target, repeatable [default: candle, libtorch, onnx]
    #[arg(long = "backend", value_name = "BACKEND", visible_alias = "target")]
    targets: Vec<Target>,
    /// Faults to inject, by a pattern of their names; repeatable [default: all]
    #[arg(long = "fault", value_name = "PATTERN")]
    faults: Vec<String>,
    /// List the faults and end
    #[arg(long)]
    list: bool,
    /// Model directory in Hugging Face layout [default: the embedded zh-mini]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Suite that every fault is run on [default: cases/selftest.toml]
    #[arg(long = "suite", value_name = "FILE")]
    suites: Vec<PathBuf>,
    /// Look for each fault as if the catalogue did not have it: then nothing should be named
    #[arg(long)]
    unknown: bool,
    /// Runs without a fault, for each target [default: as many as with one]
    #[arg(long, value_name = "N")]
    controls: Option<usize>,
    /// Seconds that a worker gets for each answer
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0, value_parser = super::positive)]
    timeout: f64,
    /// What to print
    #[arg(long, value_enum, default_value_t = TableOrJson::Table)]
    format: TableOrJson,
    /// Also write the result as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print every trial, not only those that were not quite right
    #[arg(long)]
    all: bool,
    /// No progress on stderr
    #[arg(long, short)]
    quiet: bool,
}

/// Runs the self-test and prints it.
///
/// # Errors
/// [`Exit`] where nothing could be run.
pub fn selftest(arguments: &SelftestArguments) -> Result<u8, Exit> {
    let wanted = Patterns::new(&arguments.faults)?;
    if arguments.list {
        print(&list(&wanted))?;
        return Ok(exit::CONFORMS);
    }
    // Now, and not after trials whose results would be lost.
    if let Some(file) = &arguments.out {
        super::bundle::check(file)?;
    }
    let start = Instant::now();
    let install = super::find_install()?;
    let targets = inputs::targets(&arguments.targets, &install)?;
    let named = match arguments.suites.is_empty() {
        true => vec![install.cases().join("selftest.toml")],
        false => arguments.suites.clone(),
    };
    let suites = inputs::suites(&named, &install)?;
    let calibration = Calibration::read(&install.calibration())
        .map_err(|error| Exit::input(error).with_hint(budget::HINT))?;
    let manifests = manifest::load_all(&install.models()).map_err(model_error)?;
    let directories: Vec<PathBuf> = arguments.model.iter().cloned().collect();
    let model = open(&models(&directories, &install)[0], &manifests)?;
    let plan = plan(&suites, &[], &model).map_err(plan_error)?;
    let truths = oracle::truths(&model, &plan.sequences);
    let bench = Bench {
        model: &model,
        plan: &plan,
        truths: &truths,
        k: calibration.k,
    };
    let instances = selftest::known(&model);
    let injections = selftest::injections(&model, &|name| wanted.selects(name));
    if injections.is_empty() && !wanted.selects_tokens() {
        return Err(none_selected(&arguments.faults));
    }
    let count = arguments.controls.unwrap_or(injections.len());
    let mut tried = Vec::new();
    // A fault of the tokenizer alone takes no target.
    let targets = match injections.is_empty() {
        true => &targets[..0],
        false => &targets[..],
    };
    for target in targets {
        let bar = bar(target, arguments.quiet);
        let launch = Launch {
            selftest: true,
            ..inputs::launch(&install, target, 1, arguments.timeout)
        };
        let setting = Setting {
            model: &model,
            target,
            launch: &launch,
            bar: &bar,
            unknown: arguments.unknown,
        };
        let trials = setting.run(bench, &instances, &injections, count);
        bar.finish_and_clear();
        tried.push(trials.map_err(|trouble| super::broken(target, &trouble))?);
    }
    let report = SelftestReport {
        format: SELFTEST_FORMAT.to_owned(),
        version: SELFTEST_VERSION,
        driftgauge: env!("CARGO_PKG_VERSION").to_owned(),
        model: model.id.clone(),
        layers: model.config.num_hidden_layers,
        cases: plan.cases.len(),
        k: calibration.k,
        unknown: arguments.unknown,
        gates: gates::NAMES.map(str::to_owned).to_vec(),
        targets: tried,
        tokens: tokens(&model, &install, &arguments.suites, &wanted)?,
        time: start.elapsed().as_secs_f64(),
    };
    finish(arguments, &report)
}

fn finish(arguments: &SelftestArguments, report: &SelftestReport) -> Result<u8, Exit> {
    print_report(report, arguments.format, |report, style| {
        render(report, arguments.all, style)
    })?;
    if let Some(file) = &arguments.out {
        let json = driftgauge_reports::selftest::render_json(report).map_err(Exit::input)?;
        driftgauge::output::write_whole(file, json.as_bytes())
            .with_context(|| format!("cannot write `{}`", file.display()))
            .map_err(|error| Exit::input(error).with_hint("choose another file with --out"))?;
    }
    Ok(report.exit_code())
}

struct Setting<'a> {
    model: &'a Model,
    target: &'a Target,
    launch: &'a Launch,
    bar: &'a ProgressBar,
    unknown: bool,
}

impl Setting<'_> {
    fn run(
        &self,
        bench: Bench<'_>,
        instances: &[Instance],
        injections: &[Instance],
        controls: usize,
    ) -> Result<TargetTrials, Trouble> {
        let Self { model, target, .. } = *self;
        self.bar.set_message("preparing");
        self.bar.enable_steady_tick(Duration::from_millis(250));
        let mut request = model.load_request(&target.device, target.dtype, 1);
        request.options.clone_from(&target.options);
        let (worker, _, loaded) = start_loaded(self.launch, &request)?;
        drop(worker);
        let predict = |noise: &oracle::Noise| selftest::predicted(model, bench.plan, noise);
        let ground =
            Ground::prepare(bench, instances, loaded, &predict, self.unknown).map_err(refused)?;
        let group = control::group(&ground, controls);
        let controls = group.controls();
        self.bar.set_message("");
        let subject = Subject {
            target,
            launch: self.launch,
            request: &request,
        };
        let workers = driftgauge::host::logical_cpus().clamp(1, 4);
        selftest::run(
            &ground,
            &subject,
            injections,
            &controls,
            workers,
            &Told(self.bar),
        )
    }
}

fn refused(why: String) -> Trouble {
    Trouble::Refused(driftgauge_protocol::Failure::error(why))
}

struct Told<'a>(&'a ProgressBar);

impl selftest::Progress for Told<'_> {
    fn total(&self, trials: usize) {
        self.0.set_length(trials as u64);
        self.0.set_style(
            ProgressStyle::with_template("{prefix:24} {bar:24} {pos:>4}/{len:4} {eta:>4}")
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
    }

    fn done(&self) {
        self.0.inc(1);
    }
}

/// The patterns of `--fault`; without any, every fault is selected.
struct Patterns(Vec<GlobMatcher>);

impl Patterns {
    fn new(patterns: &[String]) -> Result<Self, Exit> {
        let compile = |pattern: &String| {
            let glob = globset::Glob::new(pattern)
                .with_context(|| format!("`{pattern}` is not a pattern for --fault"))
                .map_err(|error| {
                    Exit::input(error).with_hint("patterns are globs: --fault 'mask-*'")
                })?;
            let matcher = glob.compile_matcher();
            let mut names = catalogue::all().map(|entry| entry.name);
            let mut tokens = catalogue::tokenizer::TokenizerFault::ALL.iter();
            let selects = |name: &str| matcher.is_match(name);
            let is_known = names.any(selects) || tokens.any(|fault| selects(fault.name()));
            match is_known {
                true => Ok(matcher),
                false => Err(none_selected(std::slice::from_ref(pattern))),
            }
        };
        patterns
            .iter()
            .map(compile)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn selects(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| pattern.is_match(name))
    }

    fn selects_tokens(&self) -> bool {
        let mut all = catalogue::tokenizer::TokenizerFault::ALL.iter();
        all.any(|fault| self.selects(fault.name()))
    }
}

fn none_selected(patterns: &[String]) -> Exit {
    let names = catalogue::all().map(|entry| entry.name);
    let tokens = catalogue::tokenizer::TokenizerFault::ALL.iter();
    let names: Vec<&str> = names.chain(tokens.map(|fault| fault.name())).collect();
    let error = anyhow!(
        "no fault is selected by --fault {}",
        patterns.join(" --fault ")
    );
    Exit {
        code: exit::NOTHING,
        ..Exit::input(error).with_hint(format!("there are: {}", names.join(", ")))
    }
}

/// The catalogue, a line each.
fn list(wanted: &Patterns) -> String {
    let numeric = catalogue::all().map(|entry| (entry.name, entry.title));
    let tokens = catalogue::tokenizer::TokenizerFault::ALL.iter();
    let tokens = tokens.map(|fault| (fault.name(), fault.title()));
    let lines = numeric
        .chain(tokens)
        .filter(|(name, _)| wanted.selects(name));
    lines
        .map(|(name, title)| format!("{name:28} {title}\n"))
        .collect()
}

fn bar(target: &Target, quiet: bool) -> ProgressBar {
    let bar = match quiet {
        true => ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
        false => ProgressBar::no_length(),
    };
    bar.set_style(
        ProgressStyle::with_template("{prefix:24} {msg:.dim} {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    bar.set_prefix(target.to_string());
    bar
}

/// The faults of the tokenizer, on the suites that are named or all of the repository: no target computes them.
fn tokens(
    model: &Model,
    install: &Install,
    named: &[PathBuf],
    wanted: &Patterns,
) -> Result<Vec<driftgauge_reports::selftest::TokenTrial>, Exit> {
    let faults = catalogue::tokenizer::TokenizerFault::ALL.iter().copied();
    let faults: Vec<_> = faults
        .filter(|fault| wanted.selects(fault.name()))
        .collect();
    if faults.is_empty() {
        return Ok(Vec::new());
    }
    let suites = inputs::suites(named, install)?;
    let plan: Plan = plan(&suites, &[], model).map_err(plan_error)?;
    Ok(selftest::tokens::try_all(model, &plan, &faults))
}
