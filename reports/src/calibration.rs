//! The report of `driftgauge calibrate`: measured over predicted errors of clean runs.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};
use tabled::builder::Builder;

use crate::Style;
use crate::layout::{layout, wrap, write_wrapped};
use crate::text::plain;

/// The `format` of every calibration report.
pub const CALIBRATION_FORMAT: &str = "driftgauge-calibration";
/// Raised when a field changes its meaning or disappears.
pub const CALIBRATION_VERSION: u32 = 1;
/// Alarms that are listed.
const SHOWN_ALARMS: usize = 5;

/// What clean runs have shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationReport {
    /// [`CALIBRATION_FORMAT`].
    pub format: String,
    /// [`CALIBRATION_VERSION`].
    pub version: u32,
    /// Version of driftgauge.
    pub driftgauge: String,
    /// The models that were run.
    pub models: Vec<ModelRatios>,
    /// How each was run.
    pub configurations: Vec<String>,
    /// Versions of the libraries, by target.
    pub libraries: BTreeMap<String, String>,
    /// K that was in force.
    pub k: f64,
    /// K that the largest ratio proposes.
    pub proposed_k: f64,
    /// Largest move of an error between two runs that was in force.
    pub move_limit: f64,
    /// Limit that the largest move proposes.
    pub proposed_move_limit: f64,
    /// The machine.
    pub host: BTreeMap<String, String>,
}

/// Ratios of one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRatios {
    /// ID of the model.
    pub model: String,
    /// Encoder layers and their width.
    pub size: [usize; 2],
    /// Cases × targets × configurations.
    pub runs: usize,
    /// Those that did not pass, a sentence each.
    pub alarms: Vec<String>,
    /// Measured over predicted, by target and observation, in the order of the computation.
    pub ratios: Vec<Ratio>,
    /// The largest ratio.
    pub largest: Option<Extreme>,
    /// The largest change of an error between two runs, in predicted errors.
    pub largest_move: Option<Extreme>,
}

/// Measured over predicted errors of one observation on one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ratio {
    /// The target.
    pub target: String,
    /// The observation.
    pub observation: String,
    /// Number of ratios.
    pub count: usize,
    /// The smallest.
    pub smallest: f64,
    /// The one in the middle.
    pub median: f64,
    /// The largest.
    pub largest: f64,
    /// Root of the mean of the squares.
    pub root_mean_square: f64,
}

/// A largest value, and where it was seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extreme {
    /// The value.
    pub value: f64,
    /// Where.
    pub place: String,
}

/// Renders the report as tables.
pub fn render(report: &CalibrationReport, style: Style) -> String {
    let mut text = String::new();
    let how = format!("each case ran {}", report.configurations.join("; "));
    for line in wrap(&plain(&how), style.width) {
        let _ = writeln!(text, "{line}");
    }
    for (target, library) in &report.libraries {
        let _ = writeln!(text, "  {:<20} {}", plain(target), plain(library));
    }
    for model in &report.models {
        text.push('\n');
        text.push_str(&ratios(model, style));
    }
    let runs: usize = report.models.iter().map(|model| model.runs).sum();
    let alarms: usize = report.models.iter().map(|model| model.alarms.len()).sum();
    let _ = write!(
        text,
        "\n{alarms} alarms in {runs} clean runs of a case on a target, with K = {}\n\
         K: {} in force, {} proposed; move limit: {} in force, {} proposed\n",
        report.k, report.k, report.proposed_k, report.move_limit, report.proposed_move_limit
    );
    text
}

fn ratios(model: &ModelRatios, style: Style) -> String {
    let [layers, width] = model.size;
    let mut text = format!(
        "{}: {layers} layers, {width} wide; {} runs, measured / predicted: median (smallest - largest)\n",
        plain(&model.model),
        model.runs
    );
    let mut targets: Vec<&str> = model
        .ratios
        .iter()
        .map(|ratio| ratio.target.as_str())
        .collect();
    targets.sort_unstable();
    targets.dedup();
    let mut table = Builder::default();
    let heads = targets.iter().map(|target| crate::terminal::head(target));
    table.push_record(["observation".to_owned()].into_iter().chain(heads));
    let mut names: Vec<&str> = model
        .ratios
        .iter()
        .map(|ratio| ratio.observation.as_str())
        .collect();
    names.dedup();
    for name in names {
        let cells = targets.iter().map(|target| {
            let is_own = |ratio: &&Ratio| ratio.target == *target && ratio.observation == name;
            model
                .ratios
                .iter()
                .find(is_own)
                .map_or("-".to_owned(), |ratio| {
                    format!(
                        "{:.2} ({:.2} - {:.2})",
                        ratio.median, ratio.smallest, ratio.largest
                    )
                })
        });
        table.push_record([plain(name)].into_iter().chain(cells));
    }
    let _ = writeln!(text, "{}", layout(table, 1));
    for (what, extreme) in [
        ("largest ratio", &model.largest),
        ("largest move", &model.largest_move),
    ] {
        if let Some(Extreme { value, place }) = extreme {
            write_wrapped(
                &mut text,
                &format!("{what} {value:.2}: {}", plain(place)),
                style.width,
            );
        }
    }
    for alarm in model.alarms.iter().take(SHOWN_ALARMS) {
        write_wrapped(&mut text, &format!("alarm: {}", plain(alarm)), style.width);
    }
    text
}
