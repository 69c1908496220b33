//! `driftgauge calibrate`: measured against predicted errors of clean runs, and the K they propose.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::anyhow;
use driftgauge::budget::Calibration;
use driftgauge::calibrate::{Gathered, proposed, proposed_k};
use driftgauge::collect::{Surroundings, collect};
use driftgauge::judge::Bench;
use driftgauge::model::manifest;
use driftgauge::oracle;
use driftgauge::predict::{self, Predictions, predict};
use driftgauge::run::TargetOutcome;
use driftgauge::suite::Suite;
use driftgauge::{exit, host, output};
use driftgauge_reports::calibration::{
    CALIBRATION_FORMAT, CALIBRATION_VERSION, CalibrationReport, ModelRatios, render,
};
use driftgauge_reports::record::{Method, RunTime, TruthRecord};

use super::inputs::{self, model_error};
use super::study::{Study, models, open, planned};
use super::{Exit, TableOrJson, print, print_report};

/// Shown under `driftgauge calibrate --help`.
pub const EXAMPLES: &str = "\
Runs every case on every target with 1 and 2 threads, in batches of 1, of the suites' own size and of \
8, and with other random numbers for each prediction. All of it must be clean: calibrate with \
libraries that you trust.

Examples:
  driftgauge calibrate
  driftgauge calibrate --model cases/models/zh-mini --model ./bert-base-chinese
  driftgauge calibrate --target onnx --target 'onnx?lib=other/libonnxruntime.so'
  driftgauge calibrate --write

Exit codes:
  0  no alarm
  1  a run that should be clean was not within its budget
  2  wrong usage, or a suite or model that is missing or damaged
  3  a target broke, or cannot do what was asked
  4  nothing was run";

/// Threads and batch sizes of each configuration.
const CONFIGURATIONS: [(usize, Option<usize>); 6] = [
    (1, None),
    (2, None),
    (1, Some(1)),
    (2, Some(1)),
    (1, Some(8)),
    (2, Some(8)),
];

/// Arguments of `driftgauge calibrate`.
#[derive(Debug, clap::Args)]
pub struct CalibrateArguments {
    #[command(flatten)]
    selection: inputs::Selection,
    /// Model directory; may be repeated [default: the embedded zh-mini]
    #[arg(long = "model", value_name = "DIR")]
    models: Vec<PathBuf>,
    /// Write the proposed numbers to snapshots/calibration.toml
    #[arg(long, conflicts_with = "cases")]
    write: bool,
    /// What to print
    #[arg(long, value_enum, default_value_t = TableOrJson::Table)]
    format: TableOrJson,
}

/// Calibrates and prints what was found.
///
/// # Errors
/// [`Exit`] where nothing could be run, or where the proposal cannot be written.
pub fn calibrate(arguments: &CalibrateArguments) -> Result<u8, Exit> {
    let install = super::find_install()?;
    let targets = inputs::targets(&arguments.selection.targets, &install)?;
    let suites = inputs::suites(&arguments.selection.suites, &install)?;
    let manifests = manifest::load_all(&install.models()).map_err(model_error)?;
    // The first calibration ever has nothing to start from.
    let file = install.calibration();
    let in_force = Calibration::read(&file).unwrap_or(Calibration {
        k: driftgauge::calibrate::LARGEST_K,
        move_limit: 1.0,
        evidence: String::new(),
    });
    let study = Study {
        install: &install,
        targets: &targets,
        timeout: arguments.selection.timeout,
    };
    let mut report = CalibrationReport {
        format: CALIBRATION_FORMAT.to_owned(),
        version: CALIBRATION_VERSION,
        driftgauge: env!("CARGO_PKG_VERSION").to_owned(),
        models: Vec::new(),
        configurations: CONFIGURATIONS.map(describe).to_vec(),
        libraries: BTreeMap::new(),
        k: in_force.k,
        proposed_k: in_force.k,
        move_limit: in_force.move_limit,
        proposed_move_limit: in_force.move_limit,
        host: host::describe(),
    };
    let mut broken = false;
    for directory in models(&arguments.models, &install) {
        let model = open(&directory, &manifests)?;
        let mut gathered = Gathered::default();
        let mut truths = None;
        for (index, (threads, batch)) in CONFIGURATIONS.into_iter().enumerate() {
            let plan = planned(&model, &suites, &arguments.selection.cases, batch)?;
            // Sequences are the same in every configuration; only their batches differ.
            let truths = truths.get_or_insert_with(|| oracle::truths(&model, &plan.sequences));
            let outcomes = study.outcomes(&model, &plan, threads);
            broken |= outcomes.iter().any(|outcome| {
                outcome.trouble.is_some() || outcome.jobs.iter().any(Result::is_err)
            });
            let loaded = outcomes
                .iter()
                .filter_map(|outcome| outcome.loaded.as_ref());
            let cases: Vec<_> = plan.cases.iter().collect();
            let predictions = Predictions::obtain(&model, loaded, |noise| {
                let noise = oracle::Noise {
                    seed: noise.seed + index as u64,
                    ..*noise
                };
                predict(&model, &plan, &cases, &noise)
            });
            let bench = Bench {
                model: &model,
                plan: &plan,
                truths,
                k: in_force.k,
            };
            let method = Method {
                k: in_force.k,
                k_overridden: false,
                move_limit: in_force.move_limit,
                samples: predict::SAMPLES,
                seed: predict::SEED + index as u64,
            };
            let surroundings = Surroundings {
                truth: TruthRecord::default(),
                host: BTreeMap::new(),
                paths: BTreeMap::new(),
                time: RunTime::default(),
            };
            let record = collect(
                bench,
                method,
                &suites,
                &outcomes,
                &predictions,
                surroundings,
            );
            gathered.add(&record, &describe(CONFIGURATIONS[index]));
            report.libraries.extend(outcomes.iter().filter_map(library));
        }
        report.models.push(ModelRatios {
            model: model.id.clone(),
            size: [model.config.num_hidden_layers, model.config.hidden_size],
            runs: gathered.runs,
            ratios: gathered.ratios(),
            largest_move: gathered.largest_move(),
            largest: gathered.largest,
            alarms: gathered.alarms,
        });
    }
    let largest = |of: fn(&ModelRatios) -> Option<f64>| {
        report.models.iter().filter_map(of).fold(0.0, f64::max)
    };
    report.proposed_k = proposed_k(largest(|model| Some(model.largest.as_ref()?.value)));
    report.proposed_move_limit =
        proposed(largest(|model| Some(model.largest_move.as_ref()?.value)));
    let has_alarms = report.models.iter().any(|model| !model.alarms.is_empty());
    print_report(&report, arguments.format, render)?;
    if broken {
        return Ok(exit::BROKEN);
    }
    if arguments.write && has_alarms {
        let error = anyhow!("nothing is written: not every run was clean");
        let hint = "find out why first: K must come from runs that nobody doubts";
        return Err(Exit {
            code: exit::DRIFT,
            ..Exit::input(error).with_hint(hint)
        });
    }
    if arguments.write {
        write(&file, &report, &suites)?;
        let here = std::env::current_dir().unwrap_or_default();
        let shown = file.strip_prefix(here).unwrap_or(&file);
        print(&format!("written: {}\n", shown.display()))?;
    }
    Ok(if has_alarms {
        exit::DRIFT
    } else {
        exit::CONFORMS
    })
}

fn describe((threads, batch): (usize, Option<usize>)) -> String {
    let threads = if threads == 1 {
        "1 thread".to_owned()
    } else {
        format!("{threads} threads")
    };
    match batch {
        None => format!("{threads}, the suites' batches"),
        Some(batch) => format!("{threads}, batches of {batch}"),
    }
}

fn library(outcome: &TargetOutcome) -> Option<(String, String)> {
    let hello = outcome.hello.as_ref()?;
    let library = format!("{} {}", hello.library, hello.version);
    Some((outcome.target.to_string(), library))
}

/// Writes what is proposed, with what it rests on.
fn write(file: &std::path::Path, report: &CalibrationReport, suites: &[Suite]) -> Result<(), Exit> {
    let runs: usize = report.models.iter().map(|model| model.runs).sum();
    let models: Vec<&str> = report
        .models
        .iter()
        .map(|model| model.model.as_str())
        .collect();
    let libraries: Vec<String> = report
        .libraries
        .iter()
        .map(|(target, library)| format!("{target} ({library})"))
        .collect();
    let unknown = "an unknown CPU".to_owned();
    let calibration = Calibration {
        k: report.proposed_k,
        move_limit: report.proposed_move_limit,
        evidence: format!(
            "{runs} clean runs of a case on a target, suites {}: {}; models {}; {}",
            suites
                .iter()
                .map(|suite| suite.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
            libraries.join(", "),
            models.join(", "),
            report.host.get("cpu").unwrap_or(&unknown),
        ),
    };
    let text = toml::to_string_pretty(&calibration).map_err(|error| Exit::input(anyhow!(error)))?;
    let text = format!(
        "# Written by `driftgauge calibrate --write`; ARCHITECTURE.md says what it means.\n\n{text}"
    );
    output::write_whole(file, text.as_bytes()).map_err(|error| {
        Exit::input(anyhow!(error).context(format!("cannot write `{}`", file.display())))
    })
}
