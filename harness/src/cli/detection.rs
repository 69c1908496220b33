//! `driftgauge detection`: how small a change is noticed.

use std::path::PathBuf;

use anyhow::anyhow;
use driftgauge::budget::{self, Calibration};
use driftgauge::cache::Cache;
use driftgauge::detect::{GATES, Subject, Tally, detect};
use driftgauge::judge::{Bench, describe};
use driftgauge::model::manifest;
use driftgauge::predict::Predictions;
use driftgauge::target::Target;
use driftgauge::{exit, oracle};
use driftgauge_reports::detection::{DETECTION_FORMAT, DETECTION_VERSION, DetectionReport, render};

use super::inputs::{self, model_error};
use super::study::{Study, models, open, planned};
use super::{Exit, TableOrJson, print_report};

/// Shown under `driftgauge detection --help`.
pub const EXAMPLES: &str = "\
Runs some cases, then changes the output of one layer at a time by a random relative amount of many \
sizes, and counts how often the budgets notice it, and how often allclose(1e-5), allclose(1e-3) and \
a cosine of 0.999 do on the same numbers.

Examples:
  driftgauge detection
  driftgauge detection --target onnx --batches 40 --format json

Exit codes:
  0  every change of three times the noise or more is noticed, and none where nothing changed
  1  it is not
  2  wrong usage, or a suite or model that is missing or damaged
  3  a target broke, or cannot do what was asked
  4  nothing was run";

/// Size, in noise, from which on everything has to be noticed.
const GOAL: f64 = 3.0;
/// Tokens of the largest batch whose cases are changed.
const MOST_TOKENS: usize = 256;
/// Random changes of each layer of each case.
const DRAWS: usize = 2;

/// Arguments of `driftgauge detection`.
#[derive(Debug, clap::Args)]
pub struct DetectionArguments {
    #[command(flatten)]
    selection: inputs::Selection,
    /// Model directory in Hugging Face layout [default: the embedded zh-mini]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Batches whose cases are changed, spread over all that are not too long
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batches: u16,
    /// What to print
    #[arg(long, value_enum, default_value_t = TableOrJson::Table)]
    format: TableOrJson,
}

/// Measures the detection rate and prints it.
///
/// # Errors
/// [`Exit`] where nothing could be run.
pub fn detection(arguments: &DetectionArguments) -> Result<u8, Exit> {
    let install = super::find_install()?;
    let targets = inputs::targets(&arguments.selection.targets, &install)?;
    let suites = inputs::suites(&arguments.selection.suites, &install)?;
    let calibration = Calibration::read(&install.calibration())
        .map_err(|error| Exit::input(error).with_hint(budget::HINT))?;
    let manifests = manifest::load_all(&install.models()).map_err(model_error)?;
    let study = Study {
        install: &install,
        targets: &targets,
        timeout: arguments.selection.timeout,
    };
    let named: Vec<PathBuf> = arguments.model.iter().cloned().collect();
    let directory = &models(&named, &install)[0];
    let model = open(directory, &manifests)?;
    let mut plan = planned(&model, &suites, &arguments.selection.cases, None)?;
    let chosen = plan.sample_jobs(usize::from(arguments.batches), MOST_TOKENS);
    let mut index = 0;
    plan.jobs.retain(|_| {
        index += 1;
        chosen.contains(&(index - 1))
    });
    let truths = oracle::truths(&model, &plan.sequences);
    let outcomes = study.outcomes(&model, &plan, 1);
    for outcome in &outcomes {
        if let Some(trouble) = &outcome.trouble {
            let error = anyhow!("{}: {}", outcome.target, describe(trouble).message);
            return Err(Exit {
                code: exit::BROKEN,
                ..Exit::input(error).with_hint("driftgauge doctor shows what is missing")
            });
        }
    }
    let loaded = outcomes
        .iter()
        .filter_map(|outcome| outcome.loaded.as_ref());
    let cache = Cache::find();
    let predictions = Predictions::obtain(&model, loaded, |noise| {
        cache.predictions(&model, &plan, noise).cases
    });
    let bench = Bench {
        model: &model,
        plan: &plan,
        truths: &truths,
        k: calibration.k,
    };
    let mut tally = Tally::default();
    let mut cases = 0;
    for outcome in &outcomes {
        let Some(loaded) = &outcome.loaded else {
            continue;
        };
        for (job, tensors) in plan.jobs.iter().zip(&outcome.jobs) {
            let tensors = tensors.as_ref().map_err(|trouble| {
                let error = anyhow!("{}: {}", outcome.target, describe(trouble).message);
                Exit {
                    code: exit::BROKEN,
                    ..Exit::input(error)
                }
            })?;
            for place in job.cases.clone() {
                let subject = Subject {
                    case: &plan.cases[place],
                    job,
                    tensors,
                    loaded,
                    prediction: predictions.of(loaded, place),
                };
                let found = detect(bench, subject, DRAWS)
                    .map_err(|problem| Exit::input(anyhow!("{}: {problem}", outcome.target)))?;
                tally.add(&found);
                cases += 1;
            }
        }
    }
    let report = DetectionReport {
        format: DETECTION_FORMAT.to_owned(),
        version: DETECTION_VERSION,
        driftgauge: env!("CARGO_PKG_VERSION").to_owned(),
        model: model.id.clone(),
        targets: targets.iter().map(Target::to_string).collect(),
        cases: cases / targets.len(),
        layers: model.config.num_hidden_layers,
        draws: DRAWS,
        k: calibration.k,
        gates: GATES.map(str::to_owned).to_vec(),
        points: tally.points(),
    };
    print_report(&report, arguments.format, render)?;
    let is_quiet = report
        .points
        .iter()
        .all(|point| point.noise > 0.0 || point.rates[0] == 0.0);
    let reaches = report.complete_from(0).is_some_and(|noise| noise <= GOAL);
    Ok(if is_quiet && reaches {
        exit::CONFORMS
    } else {
        exit::DRIFT
    })
}
