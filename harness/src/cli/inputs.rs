//! What several commands take from the command line and make of it: targets, suites, workers to start,
//! predictions; and the errors that are said in the same words everywhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use driftgauge::baseline::truth::{self, Sketch};
use driftgauge::cache::Cache;
use driftgauge::exit;
use driftgauge::install::{DEFAULT_BACKENDS, Install};
use driftgauge::known;
use driftgauge::model::Model;
use driftgauge::plan::{Plan, PlanError};
use driftgauge::predict::Predictions;
use driftgauge::suite::{self, Suite};
use driftgauge::target::Target;
use driftgauge::worker::Launch;
use driftgauge_protocol::{Loaded, environment};
use driftgauge_reports::RunRecord;
use driftgauge_reports::text::plain;
use sha2::{Digest, Sha256};

use super::Exit;
use super::progress::Bars;

/// What to run, in every command that runs cases.
#[derive(Debug, clap::Args)]
pub struct Selection {
    /// Suite to run, or to choose from; may be repeated [default: every cases/*.toml]
    #[arg(long = "suite", value_name = "FILE")]
    pub suites: Vec<PathBuf>,
    /// Target, as in onnx@cpu/f32; may be repeated [default: candle, libtorch and onnx on cpu/f32]
    #[arg(long = "target", value_name = "TARGET")]
    pub targets: Vec<Target>,
    /// Only cases whose name, or suite/name, matches this pattern; may be repeated
    #[arg(long = "case", value_name = "PATTERN")]
    pub cases: Vec<String>,
    /// Seconds a worker gets for each answer
    #[arg(long, value_name = "S", default_value_t = 300.0, value_parser = super::seconds)]
    pub timeout: f64,
}

/// The model that is run where none is named.
pub const EMBEDDED_MODEL: &str = "zh-mini";

/// Predictions for every way in which a model was loaded, from the cache as far as they are there.
pub fn predictions_of<'a>(
    cache: &Cache,
    model: &Model,
    plan: &Plan,
    loaded: impl Iterator<Item = &'a Loaded>,
    bars: &Bars,
) -> Predictions {
    Predictions::obtain(model, loaded, |noise| {
        bars.predicting();
        let predicted = cache.predictions(model, plan, noise);
        if let Some(problem) = predicted.not_kept {
            bars.warn(&format!(
                "warning: predictions are not kept for the next run: {problem}"
            ));
        }
        predicted.cases
    })
}

/// How to start the worker of a target that is to use `threads` threads.
pub fn launch(install: &Install, target: &Target, threads: usize, timeout: f64) -> Launch {
    let mut launch = install.launch(&target.backend, Duration::from_secs_f64(timeout));
    let threads = threads.to_string();
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

/// The targets that are named, or the usual ones.
pub fn targets(named: &[Target], install: &Install) -> Result<Vec<Target>, Exit> {
    let targets = if named.is_empty() {
        let parse = |backend: &&str| backend.parse::<Target>();
        DEFAULT_BACKENDS
            .iter()
            .map(parse)
            .collect::<Result<_, _>>()
            .map_err(Exit::input)?
    } else {
        named.to_vec()
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

/// The suites that are named, or those of the repository.
pub fn suites(named: &[PathBuf], install: &Install) -> Result<Vec<Suite>, Exit> {
    let paths = if named.is_empty() {
        suites_of(&install.cases())
            .with_context(|| format!("cannot list `{}`", install.cases().display()))
            .map_err(Exit::input)?
    } else {
        named.to_vec()
    };
    suite::load_all(&paths).map_err(|error| {
        let hint = error.hint();
        Exit::input(error).with_hint(hint)
    })
}

/// The suites of the repository: `seed`, which a reader knows, first.
fn suites_of(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
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

/// Why there is no plan, with the exit code for it.
pub fn plan_error(error: PlanError) -> Exit {
    let hint = error.hint();
    let code = match error {
        PlanError::NothingSelected { .. } => exit::NOTHING,
        _ => exit::INPUT,
    };
    Exit {
        code,
        ..Exit::input(error).with_hint(hint)
    }
}

/// Why a model cannot be used.
pub fn model_error(error: driftgauge::model::ModelError) -> Exit {
    let hint = error.hint();
    Exit::input(error).with_hint(hint)
}

/// The known deviations; a folder that was named must be there.
pub fn known_deviations(
    named: Option<&Path>,
    install: &Install,
) -> Result<Vec<known::Entry>, Exit> {
    let loaded = match named {
        Some(folder) => known::load(folder, &folder.display().to_string()),
        None if !install.known().exists() => Ok(Vec::new()),
        None => known::load(&install.known(), "cases/known"),
    };
    loaded.map_err(|error| {
        let hint = error.hint();
        Exit::input(error).with_hint(hint)
    })
}

/// The record, and the truth beside it.
///
/// # Errors
/// [`Exit`] that names the file which is missing, damaged or not of the same run.
pub fn record_with_truth(path: &Path) -> Result<(RunRecord, Sketch), Exit> {
    let again = "`driftgauge run` writes the record and the truth beside it";
    let cannot_read = |path: &Path| format!("cannot read `{}`", path.display());
    let text = std::fs::read_to_string(path)
        .with_context(|| cannot_read(path))
        .map_err(|error| Exit::input(error).with_hint(again))?;
    let record = RunRecord::from_json(&text)
        .with_context(|| format!("record `{}`", path.display()))
        .map_err(|error| Exit::input(error).with_hint(again))?;
    let beside = path.with_file_name(truth::FILE);
    let bytes = std::fs::read(&beside)
        .with_context(|| cannot_read(&beside))
        .map_err(|error| Exit::input(error).with_hint(again))?;
    let sha256 = hex::encode(Sha256::digest(&bytes));
    if sha256 != record.truth.sha256 {
        let error = anyhow!(
            "`{}` has SHA-256 {sha256}, the record beside it says {}",
            beside.display(),
            plain(&record.truth.sha256)
        );
        return Err(Exit::input(error).with_hint("they are not of one run: run again"));
    }
    let (sketch, _) = truth::decode(&beside, &bytes).map_err(super::accept::refused)?;
    Ok((record, sketch))
}
