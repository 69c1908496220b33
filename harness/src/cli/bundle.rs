//! The bundle of `driftgauge run --bundle`.

use std::io;
use std::path::Path;

use anyhow::anyhow;
use driftgauge::bundle;
use driftgauge::judge::Bench;
use driftgauge::output;
use driftgauge::pairs::norms;
use driftgauge::run::TargetOutcome;
use driftgauge_reports::RunRecord;

use super::Exit;

/// Finds out before the run whether the bundle can be written.
///
/// # Errors
/// [`Exit`] that names the file.
pub fn check(path: &Path) -> Result<(), Exit> {
    if path.is_dir() {
        let problem = io::Error::new(io::ErrorKind::IsADirectory, "it is a folder");
        return Err(cannot_write(path, problem));
    }
    output::check_writable(output::folder_of(path)).map_err(|error| cannot_write(path, error))
}

/// Writes the bundle of a run whose record is `record`, written as `json`.
///
/// # Errors
/// [`Exit`] that names the file.
pub fn write(
    path: &Path,
    bench: Bench<'_>,
    record: &RunRecord,
    json: &str,
    outcomes: &[TargetOutcome],
) -> Result<(), Exit> {
    let norms = norms(bench, &record.results);
    let targets = outcomes.iter().map(|outcome| {
        let delivered = bundle::delivered(bench, outcome);
        (outcome.target.to_string(), delivered)
    });
    bundle::write(path, json, &norms, targets).map_err(|error| cannot_write(path, error))
}

fn cannot_write(path: &Path, error: io::Error) -> Exit {
    let error = anyhow!(error).context(format!("cannot write `{}`", path.display()));
    Exit::input(error).with_hint("choose another file with --bundle")
}
