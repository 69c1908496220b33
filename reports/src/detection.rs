//! The report of `driftgauge detection`: how small a change is noticed, beside what common gates notice.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use tabled::builder::Builder;

use crate::Style;
use crate::layout::{layout, write_wrapped};
use crate::text::plain;

/// The `format` of every detection report.
pub const DETECTION_FORMAT: &str = "driftgauge-detection";
/// Raised when a field changes its meaning or disappears.
pub const DETECTION_VERSION: u32 = 1;

/// Detection rates of changes of many sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectionReport {
    /// [`DETECTION_FORMAT`].
    pub format: String,
    /// [`DETECTION_VERSION`].
    pub version: u32,
    /// Version of driftgauge.
    pub driftgauge: String,
    /// ID of the model.
    pub model: String,
    /// The targets whose results were changed.
    pub targets: Vec<String>,
    /// Cases, layers and random directions that each target's results were changed with.
    pub cases: usize,
    /// Encoder layers whose output was changed, one at a time.
    pub layers: usize,
    /// Random changes of each.
    pub draws: usize,
    /// K of the budgets.
    pub k: f64,
    /// The gates, in the order of each point's rates.
    pub gates: Vec<String>,
    /// The sizes, ascending.
    pub points: Vec<Point>,
}

/// Detection rates of one size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Size of the change, in the noise of the layer's output.
    pub noise: f64,
    /// Mean size of the change in units of roundoff.
    pub u: f64,
    /// Changes that were tried.
    pub tried: usize,
    /// Share of them that each gate noticed.
    pub rates: Vec<f64>,
}

impl DetectionReport {
    /// The smallest size, in noise, from which on a gate notices every change; `None` where it never
    /// does.
    pub fn complete_from(&self, gate: usize) -> Option<f64> {
        let all = self.points.iter().rev();
        let noticed = all.take_while(|point| point.rates[gate] >= 1.0);
        noticed.last().map(|point| point.noise)
    }
}

/// Renders the report as a table.
pub fn render(report: &DetectionReport, style: Style) -> String {
    let mut text = String::new();
    let sentence = format!(
        "{}: the output of one layer, changed at random by a relative amount, in {} cases x {} layers x \
         {} draws on {}; share of the changes that is noticed in any observation, with K = {}",
        plain(&report.model),
        report.cases,
        report.layers,
        report.draws,
        report
            .targets
            .iter()
            .map(|target| plain(target))
            .collect::<Vec<_>>()
            .join(", "),
        report.k
    );
    for line in crate::layout::wrap(&sentence, style.width) {
        let _ = writeln!(text, "{line}");
    }
    text.push('\n');
    let mut table = Builder::default();
    let gates = report.gates.iter().map(|gate| plain(gate));
    table.push_record(
        ["x noise".to_owned(), "in u".to_owned()]
            .into_iter()
            .chain(gates),
    );
    for point in &report.points {
        let rates = point
            .rates
            .iter()
            .map(|rate| format!("{:.1} %", 100.0 * rate));
        table.push_record(
            [short(point.noise), short(point.u)]
                .into_iter()
                .chain(rates),
        );
    }
    let _ = writeln!(text, "{}\n", layout(table, 0));
    for (index, gate) in report.gates.iter().enumerate() {
        let from = report
            .complete_from(index)
            .map_or("no size".to_owned(), |noise| {
                format!("{} times the noise", short(noise))
            });
        write_wrapped(
            &mut text,
            &format!("{} notices every change from {from} on", plain(gate)),
            style.width,
        );
    }
    text
}

fn short(value: f64) -> String {
    if value < 9.95 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_complete_from_where_it_misses_nothing_any_more() {
        let point = |noise, rates: [f64; 2]| Point {
            noise,
            u: 5.0 * noise,
            tried: 10,
            rates: rates.to_vec(),
        };
        let report = DetectionReport {
            format: DETECTION_FORMAT.to_owned(),
            version: DETECTION_VERSION,
            driftgauge: "0".to_owned(),
            model: "m".to_owned(),
            targets: vec!["candle@cpu/f32".to_owned()],
            cases: 1,
            layers: 1,
            draws: 10,
            k: 2.5,
            gates: vec!["driftgauge".to_owned(), "cosine 0.999".to_owned()],
            points: vec![
                point(1.0, [0.5, 0.0]),
                point(3.0, [1.0, 0.0]),
                point(10.0, [1.0, 0.9]),
            ],
        };
        assert_eq!(
            (report.complete_from(0), report.complete_from(1)),
            (Some(3.0), None)
        );
        let style = Style {
            width: 80,
            colour: false,
        };
        let table = render(&report, style);
        assert!(
            table.contains("notices every change from 3.00 times the noise on"),
            "{table}"
        );
    }
}
