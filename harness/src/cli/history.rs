//! `driftgauge history`: what became of each target over time.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Subcommand;
use driftgauge::evidence;
use driftgauge::exit;
use driftgauge::history::store::{Store, StoreError};
use driftgauge::history::summarise;
use driftgauge_reports::RunRecord;
use driftgauge_reports::history::{self, HistoryRun};
use globset::Glob;
use sha2::{Digest, Sha256};

use super::{Exit, print, style};

pub const EXAMPLES: &str = "\
Examples:
  driftgauge history add driftgauge-out/record.json
  driftgauge history show --target 'onnx@*'
  driftgauge history show --format json --db team.sqlite

Adding a record again changes nothing. The exit code of `show` is 1 where the last run of a target
does not conform.";

/// Arguments of `driftgauge history`.
#[derive(Debug, clap::Args)]
pub struct HistoryArguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Add the summary of records
    Add {
        /// Records to add
        #[arg(required = true, value_name = "RECORD")]
        records: Vec<PathBuf>,
        #[command(flatten)]
        place: Place,
    },
    /// Show trends of effective bits and latency, and when a drift began
    Show {
        /// Only targets that match this pattern
        #[arg(long, value_name = "PATTERN")]
        target: Option<String>,
        /// What to print
        #[arg(long, value_enum, default_value_t = ShowFormat::Table)]
        format: ShowFormat,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The file that keeps the history
    #[arg(
        long,
        value_name = "FILE",
        default_value = "driftgauge-out/history.sqlite"
    )]
    db: PathBuf,
}

/// What `driftgauge history show` can print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ShowFormat {
    /// Charts and tables for a person.
    Table,
    /// The trends.
    Json,
}

/// Adds to a history, or shows it.
///
/// # Errors
/// [`Exit`] where the history or a record cannot be used.
pub fn history(arguments: &HistoryArguments) -> Result<u8, Exit> {
    match &arguments.action {
        Action::Add { records, place } => add(records, place),
        Action::Show {
            target,
            format,
            place,
        } => show(target.as_deref(), *format, place),
    }
}

fn add(records: &[PathBuf], place: &Place) -> Result<u8, Exit> {
    // All of them are read before any is added.
    let runs = records
        .iter()
        .map(|path| summary(path))
        .collect::<Result<Vec<_>, _>>()?;
    let mut store = Store::create(&place.db).map_err(store_error)?;
    for (path, run) in records.iter().zip(&runs) {
        let is_added = store.add(run).map_err(store_error)?;
        let word = if is_added { "added" } else { "there already" };
        print(&format!("{word}: {}\n", path.display()))?;
    }
    print(&format!("history: {}\n", place.db.display()))?;
    Ok(exit::CONFORMS)
}

fn summary(path: &std::path::Path) -> Result<HistoryRun, Exit> {
    let bytes = std::fs::read(path)
        .with_context(|| format!("cannot read `{}`", path.display()))
        .map_err(|error| Exit::input(error).with_hint("name a record.json"))?;
    let text = String::from_utf8_lossy(&bytes);
    let record = RunRecord::from_json(&text).map_err(|source| {
        let hint = evidence::record_hint(&source);
        let context = format!("record `{}` cannot be read", path.display());
        Exit::input(anyhow!(source).context(context)).with_hint(hint)
    })?;
    Ok(summarise(&record, hex::encode(Sha256::digest(&bytes))))
}

fn show(target: Option<&str>, format: ShowFormat, place: &Place) -> Result<u8, Exit> {
    let pattern = target.map(Glob::new).transpose().map_err(|error| {
        Exit::input(anyhow!(error).context("--target takes a pattern"))
            .with_hint("patterns are globs: --target 'onnx@*'")
    })?;
    let pattern = pattern.map(|glob| glob.compile_matcher());
    let runs = Store::open(&place.db)
        .and_then(|store| store.runs())
        .map_err(store_error)?;
    let mut trends = history::trends(&runs);
    if let Some(pattern) = &pattern {
        trends.retain(|trend| pattern.is_match(&trend.target));
    }
    if trends.is_empty() {
        let error = match target {
            Some(target) => anyhow!("no target in the history matches `{target}`"),
            None => anyhow!("the history `{}` holds no run", place.db.display()),
        };
        return Err(Exit {
            code: exit::NOTHING,
            ..Exit::input(error).with_hint("`driftgauge history add RECORD` adds a run")
        });
    }
    let text = match format {
        ShowFormat::Table => history::render(&trends, style()),
        ShowFormat::Json => history::render_json(&trends).map_err(Exit::input)?,
    };
    print(&text)?;
    Ok(match trends.iter().any(|trend| trend.since.is_some()) {
        true => exit::DRIFT,
        false => exit::CONFORMS,
    })
}

fn store_error(error: StoreError) -> Exit {
    let hint = error.hint();
    Exit::input(error).with_hint(hint)
}
