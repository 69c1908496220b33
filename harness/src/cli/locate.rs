//! `driftgauge locate`: where does a target start to differ, and what does that look like?

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::anyhow;
use driftgauge::budget::{self, Calibration};
use driftgauge::cache::Cache;
use driftgauge::judge::Bench;
use driftgauge::locate::{self, Again};
use driftgauge::model::manifest;
use driftgauge::{exit, oracle, selftest};
use driftgauge_protocol::LoadRequest;
use driftgauge_reports::location::{
    LOCATE_FORMAT, LOCATE_VERSION, LocateReport, TargetLocation, render,
};

use super::inputs::{self, model_error};
use super::study::{Study, models, open, planned};
use super::{Exit, TableOrJson, print_report};

/// Shown under `driftgauge locate --help`.
pub const EXAMPLES: &str = "\
Judges the embedding stage, every layer and the head of each target alone, each from the hidden state that \
the target itself had before it. In a stage that is beyond its noise the steps are judged in the same way, and \
what is left is compared with every known fault. Where a library can switch its graph optimisers off, the \
one that makes the difference is named. Without --suite and --case, the cases of cases/selftest.toml are run.

Examples:
  driftgauge locate
  driftgauge locate --target onnx@cpu/f32?opt=all --case seed/capital
  driftgauge locate --target onnx@cpu/f32?model=export.onnx --model ./checkpoint
  driftgauge locate --target libtorch@cpu/bf16 --format json

Exit codes:
  0  every stage of every target is within its noise
  1  one is not
  2  wrong usage, or a suite or model that is missing or damaged
  3  a target broke, or cannot do what was asked
  4  nothing was run";

/// Arguments of `driftgauge locate`.
#[derive(Debug, clap::Args)]
pub struct LocateArguments {
    #[command(flatten)]
    selection: inputs::Selection,
    /// Model directory in Hugging Face layout [default: the embedded zh-mini]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// What to print
    #[arg(long, value_enum, default_value_t = TableOrJson::Table)]
    format: TableOrJson,
}

/// Locates and prints.
///
/// # Errors
/// [`Exit`] where nothing could be run.
pub fn locate(arguments: &LocateArguments) -> Result<u8, Exit> {
    let install = super::find_install()?;
    let targets = inputs::targets(&arguments.selection.targets, &install)?;
    let inputs::Selection { suites, cases, .. } = &arguments.selection;
    let named = match suites.is_empty() && cases.is_empty() {
        true => vec![install.cases().join("selftest.toml")],
        false => suites.clone(),
    };
    let suites = inputs::suites(&named, &install)?;
    let calibration = Calibration::read(&install.calibration())
        .map_err(|error| Exit::input(error).with_hint(budget::HINT))?;
    let manifests = manifest::load_all(&install.models()).map_err(model_error)?;
    let timeout = arguments.selection.timeout;
    let study = Study {
        install: &install,
        targets: &targets,
        timeout,
    };
    let directories: Vec<PathBuf> = arguments.model.iter().cloned().collect();
    let model = open(&models(&directories, &install)[0], &manifests)?;
    let plan = planned(&model, &suites, &arguments.selection.cases, None)?;
    let threads = (driftgauge::host::logical_cpus() / targets.len()).max(1);
    let (truths, outcomes) = std::thread::scope(|scope| {
        let outcomes = scope.spawn(|| study.outcomes(&model, &plan, threads));
        let truths = oracle::truths(&model, &plan.sequences);
        outcomes.join().map(|outcomes| (truths, outcomes))
    })
    .map_err(|_| Exit::input(anyhow!("a thread of the harness ended without an outcome")))?;
    let bench = Bench {
        model: &model,
        plan: &plan,
        truths: &truths,
        k: calibration.k,
    };
    let instances = selftest::known(&model);
    let all: BTreeSet<usize> = (0..plan.cases.len()).collect();
    let jobs = locate::examine::chosen(&model, &plan, &all);
    let mut located = Vec::new();
    for outcome in &outcomes {
        let target = &outcome.target;
        let trouble = outcome.trouble.as_ref();
        if let Some(trouble) = trouble.or(outcome.jobs.iter().find_map(|job| job.as_ref().err())) {
            return Err(super::broken(target, trouble));
        }
        let again = || Again {
            launch: inputs::launch(&install, target, threads, timeout),
            request: LoadRequest {
                options: target.options.clone(),
                ..model.load_request(&target.device, target.dtype, threads)
            },
        };
        let location = locate::examine(
            bench,
            outcome,
            &jobs,
            &instances,
            &Cache::find(),
            true,
            &again,
        );
        let location = location.map_err(|why| Exit::input(anyhow!("{target}: {why}")))?;
        located.extend(location.map(|location| TargetLocation {
            target: target.to_string(),
            location,
        }));
    }
    let report = LocateReport {
        format: LOCATE_FORMAT.to_owned(),
        version: LOCATE_VERSION,
        driftgauge: env!("CARGO_PKG_VERSION").to_owned(),
        model: model.id.clone(),
        k: calibration.k,
        targets: located,
    };
    print_report(&report, arguments.format, render)?;
    let is_quiet = report
        .targets
        .iter()
        .all(|target| target.location.origins.is_empty());
    Ok(match is_quiet {
        true => exit::CONFORMS,
        false => exit::DRIFT,
    })
}
