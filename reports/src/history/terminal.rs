//! Trends as a chart for a person, at most as wide as the terminal.

use std::collections::BTreeMap;
use std::fmt::Write;

use tabled::builder::Builder;
use textplots::{Chart, LabelBuilder, LabelFormat, Plot, Shape};

use super::{Change, Point, Trend};
use crate::Style;
use crate::environment::in_words;
use crate::layout::{layout, paint, write_wrapped};
use crate::record::Verdict;
use crate::text::{plain, shorten};

/// Runs that are listed.
const SHOWN_RUNS: usize = 10;
/// Changes that are told.
const SHOWN_CHANGES: usize = 6;
/// Keys of an environment that are named.
const SHOWN_KEYS: usize = 4;
/// Columns beside a chart for the numbers of its axis, and its indentation.
const AXIS: usize = 14;
/// Rows of a chart; each has four dots.
const ROWS: u32 = 6;

/// Renders the trends. A chart takes only characters that are one column wide in every terminal.
pub fn render(trends: &[Trend], style: Style) -> String {
    let parts: Vec<String> = trends.iter().map(|trend| section(trend, style)).collect();
    parts.join("\n")
}

fn section(trend: &Trend, style: Style) -> String {
    let (points, mut text) = (&trend.points, String::new());
    let days = match (points.first(), points.last()) {
        (Some(first), Some(last)) if first.day != last.day => {
            format!("{} to {}", first.day, last.day)
        }
        (Some(first), _) => first.day.clone(),
        _ => String::new(),
    };
    let runs = crate::terminal::counted(points.len(), "run");
    let head = format!(
        "{} on {}: {runs}, {}",
        plain(&trend.target),
        plain(&trend.model),
        plain(&days)
    );
    let _ = writeln!(text, "{}", shorten(&head, style.width));
    type Of = fn(&Point) -> Option<f64>;
    let series: [(&str, Of); 2] = [
        ("effective bits of the worst observation", |point| {
            point.bits
        }),
        ("milliseconds of forward passes for each case", |point| {
            point.milliseconds
        }),
    ];
    for (name, of) in series {
        let values: Vec<(usize, f64)> = points
            .iter()
            .enumerate()
            .filter_map(|(index, point)| Some((index + 1, of(point)?)))
            .collect();
        if let Some(chart) = chart(&values, points.len(), style) {
            let _ = write!(text, "  {name}, run by run\n{chart}");
        }
    }
    text.push_str(&listed(points));
    let hidden = trend.changes.len().saturating_sub(SHOWN_CHANGES);
    if hidden > 0 {
        let _ = writeln!(text, "  {hidden} earlier changes are not shown");
    }
    for change in trend.changes.iter().skip(hidden) {
        text.push_str(&told(change, points, style));
    }
    let (verdict, sentence) = match trend
        .since
        .and_then(|since| Some((since, points.get(since)?)))
    {
        Some((since, point)) => {
            let days = plain(&point.day);
            let run = since + 1;
            let sentence = format!("DRIFT since {days} (run {run})");
            (Verdict::Drift, sentence)
        }
        None => (Verdict::Pass, "the last run conforms".to_owned()),
    };
    let _ = writeln!(text, "  {}", paint(&sentence, verdict, style));
    text
}

/// A line over the runs; nothing where there are not two values to draw a line between.
fn chart(values: &[(usize, f64)], runs: usize, style: Style) -> Option<String> {
    let numbers = || values.iter().map(|(_, value)| *value);
    let (low, high) = (numbers().reduce(f64::min)?, numbers().reduce(f64::max)?);
    if values.len() < 2 {
        return None;
    }
    // A line that stays where it is stands in the middle.
    let margin = if high - low < 0.1 {
        0.5
    } else {
        (high - low) * 0.05
    };
    let (low, high) = ((low - margin).max(0.0), high + margin);
    let columns = style.width.saturating_sub(AXIS).clamp(20, 100);
    let points: Vec<(f32, f32)> = values
        .iter()
        .map(|(run, value)| (*run as f32, *value as f32))
        .collect();
    let shape = Shape::Lines(&points);
    let width = u32::try_from(columns * 2).ok()?;
    let ranges = (1.0, runs as f32, low as f32, high as f32);
    let mut chart =
        Chart::new_with_y_range(width, ROWS * 4, ranges.0, ranges.1, ranges.2, ranges.3);
    let drawn = chart
        .lineplot(&shape)
        .x_label_format(LabelFormat::Custom(Box::new(|run| format!("run {run:.0}"))))
        .y_label_format(LabelFormat::Custom(Box::new(|value| format!("{value:.1}"))));
    drawn.axis();
    drawn.figures();
    let mut text = String::new();
    for line in drawn.to_string().lines() {
        let line = format!("  {}", line.replace('\u{2800}', " "));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    Some(text)
}

/// The last runs.
fn listed(points: &[Point]) -> String {
    let mut table = Builder::default();
    table.push_record(["run", "day", "library", "bits", "ms", "verdicts"]);
    let hidden = points.len().saturating_sub(SHOWN_RUNS);
    for (index, point) in points.iter().enumerate().skip(hidden) {
        let number =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
        let version = point.library_version.as_deref().unwrap_or("-");
        table.push_record([
            (index + 1).to_string(),
            plain(&point.day),
            shorten(&plain(version), 12),
            number(point.bits),
            number(point.milliseconds),
            verdicts(&point.verdicts),
        ]);
    }
    let mut text = layout(table, 6);
    text.push('\n');
    if hidden > 0 {
        let _ = writeln!(text, " {hidden} earlier runs are not listed");
    }
    text
}

fn verdicts(counts: &BTreeMap<Verdict, usize>) -> String {
    let words = counts
        .iter()
        .map(|(verdict, count)| format!("{count} {}", verdict.name()));
    words.collect::<Vec<_>>().join(", ")
}

fn told(change: &Change, points: &[Point], style: Style) -> String {
    let day = points.get(change.point).map_or("", |point| &point.day);
    let (verdict, word) = match change.worse {
        true => (Verdict::Drift, "worse"),
        false => (Verdict::Pass, "better"),
    };
    let run = change.point + 1;
    let line = format!("  {} (run {run}): {word}", plain(day));
    let mut text = paint(&line, verdict, style);
    text.push('\n');
    if let Some(first) = change.verdicts.first() {
        let more = match change.verdicts.len() {
            1 => String::new(),
            all => format!(" and {} more", all - 1),
        };
        let sentence = format!("the verdict of {}{more}", plain(first));
        write_wrapped(&mut text, &sentence, style.width);
    }
    if let Some(furthest) = &change.furthest {
        let by = match furthest.noise {
            Some(noise) => format!("by {:.1} times its noise", noise.abs()),
            None => "to or from what is not finite".to_owned(),
        };
        let errors = crate::terminal::counted(change.errors, "error");
        let (observation, case) = (plain(&furthest.observation), plain(&furthest.case));
        let sentence = format!("{errors} beyond noise, furthest {observation} of {case} {by}");
        write_wrapped(&mut text, &sentence, style.width);
    }
    let around = match change.environment.is_empty() {
        true => "nothing that is known of changed around it".to_owned(),
        false => format!(
            "changed then: {}",
            in_words(&change.environment, SHOWN_KEYS)
        ),
    };
    write_wrapped(&mut text, &around, style.width);
    text
}
