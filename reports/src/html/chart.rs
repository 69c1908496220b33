//! Charts as inline SVG.
//!
//! Colours are not fixed in the drawing: it says `var(--series-1)` and `currentColor`, so that the page's style
//! decides, in light and dark. Series are told apart by their marks too.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::escape::escaped;
use crate::RenderError;
use crate::text::plain;

/// Marks of the series, in the order of their colours; the legend shows the same ones.
pub(crate) const MARKS: [&str; 6] = ["●", "▲", "■", "◆", "▼", "○"];

/// Stand-ins that the drawing library can write, and what the page's style calls them.
const TEXT: RGBColor = RGBColor(2, 0, 0);
const LINE: RGBColor = RGBColor(3, 0, 0);
const NAMES: [(&str, &str); 8] = [
    ("#010000", "var(--series-1)"),
    ("#010001", "var(--series-2)"),
    ("#010002", "var(--series-3)"),
    ("#010003", "var(--series-4)"),
    ("#010004", "var(--series-5)"),
    ("#010005", "var(--series-6)"),
    ("#020000", "currentColor"),
    ("#030000", "var(--line)"),
];

/// A line of a chart.
pub(crate) struct Series {
    /// What it is; text.
    pub name: String,
    /// A value at each label, or none.
    pub points: Vec<Option<f64>>,
}

impl Series {
    /// Its mark, and the number of its colour, from 1.
    pub fn mark(index: usize) -> (&'static str, usize) {
        (MARKS[index % MARKS.len()], index % MARKS.len() + 1)
    }
}

/// Values over labels, a line for each series.
pub(crate) struct Lines<'a> {
    /// What a reader who does not see it is told; text.
    pub description: &'a str,
    /// Names along the horizontal axis; text.
    pub labels: &'a [String],
    /// The lines.
    pub series: &'a [Series],
    /// Ends of the vertical axis, the lower one first.
    pub range: [f64; 2],
}

/// Draws lines as SVG.
///
/// # Errors
/// [`RenderError::Chart`] with the drawing library's words.
pub(crate) fn lines(chart: &Lines<'_>) -> Result<String, RenderError> {
    let mut svg = String::new();
    draw_lines(chart, &mut svg).map_err(|error| RenderError::Chart(error.to_string()))?;
    Ok(finished(&svg, chart.description))
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw_lines(chart: &Lines<'_>, svg: &mut String) -> Drawn {
    let [low, high] = chart.range;
    let last = chart.labels.len().saturating_sub(1).max(1) as f64;
    let area = SVGBackend::with_string(svg, (680, 260)).into_drawing_area();
    let mut drawing = ChartBuilder::on(&area)
        .margin_top(12)
        .margin_right(18)
        .set_label_area_size(LabelAreaPosition::Left, 36)
        .set_label_area_size(LabelAreaPosition::Bottom, 34)
        .build_cartesian_2d(-0.15..last + 0.15, low..high)?;
    let font = ("inherit", 15).into_font().color(&TEXT);
    drawing
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(TRANSPARENT)
        .bold_line_style(LINE)
        .axis_style(LINE)
        .y_labels(6)
        .y_label_formatter(&|value| format!("{value:.0}"))
        .label_style(font.clone())
        .draw()?;
    // Names under the axis, as many as there is room for.
    let step = chart.labels.len().div_ceil(12).max(1);
    let below = font.clone().pos(Pos::new(HPos::Center, VPos::Top));
    let plot = drawing.plotting_area();
    for (index, label) in chart.labels.iter().enumerate().step_by(step) {
        let (x, _) = plot.map_coordinate(&(index as f64, low));
        let y = area.get_pixel_range().1.end - 26;
        area.draw(&Text::new(plain(label), (x, y), below.clone()))?;
    }
    for (index, series) in chart.series.iter().enumerate() {
        let (mark, number) = Series::mark(index);
        let colour = RGBColor(1, 0, (number - 1) as u8);
        let inside = |value: &f64| value.is_finite();
        let points: Vec<(f64, f64)> = series
            .points
            .iter()
            .enumerate()
            .filter_map(|(x, y)| Some((x as f64, y.filter(inside)?.clamp(low, high))))
            .collect();
        drawing.draw_series(LineSeries::new(
            points.iter().copied(),
            colour.stroke_width(2),
        ))?;
        let style = ("inherit", 14).into_font().color(&colour);
        let centred = style.pos(Pos::new(HPos::Center, VPos::Center));
        let marks = points
            .iter()
            .map(|point| Text::new(mark, *point, centred.clone()));
        plot_marks(&mut drawing, marks)?;
    }
    area.present()?;
    Ok(())
}

fn plot_marks<'a, DB, CT>(
    drawing: &mut ChartContext<'_, DB, Cartesian2d<CT, CT>>,
    marks: impl Iterator<Item = Text<'a, (f64, f64), &'static str>>,
) -> Drawn
where
    DB: DrawingBackend,
    DB::ErrorType: 'static,
    CT: Ranged<ValueType = f64>,
{
    drawing
        .draw_series(marks)
        .map(|_| ())
        .map_err(|error| error.to_string().into())
}

/// Draws a bar of several parts on a scale that ends at `whole`.
///
/// # Errors
/// [`RenderError::Chart`] with the drawing library's words.
pub(crate) fn bar(parts: &[f64], whole: f64, description: &str) -> Result<String, RenderError> {
    let mut svg = String::new();
    draw_bar(parts, whole, &mut svg).map_err(|error| RenderError::Chart(error.to_string()))?;
    Ok(finished(&svg, description))
}

/// Pixels of a bar.
const BAR: (u32, u32) = (200, 14);

fn draw_bar(parts: &[f64], whole: f64, svg: &mut String) -> Drawn {
    let area = SVGBackend::with_string(svg, BAR).into_drawing_area();
    let mut start = 0.0;
    for (index, part) in parts.iter().enumerate() {
        let end = start + part.max(0.0);
        let pixel =
            |value: f64| (f64::from(BAR.0) * (value / whole).clamp(0.0, 1.0)).round() as i32;
        let colour = RGBColor(1, 0, (index % MARKS.len()) as u8);
        let corners = [(pixel(start), 0), (pixel(end), BAR.1 as i32)];
        area.draw(&Rectangle::new(corners, colour.filled()))?;
        start = end;
    }
    area.present()?;
    Ok(())
}

/// The drawing with the page's colours and a description.
fn finished(svg: &str, description: &str) -> String {
    let mut drawing = svg.to_owned();
    for (colour, name) in NAMES {
        drawing = drawing.replace(colour, name);
    }
    let named = format!("<svg role=\"img\" aria-label=\"{}\" ", escaped(description));
    drawing.replacen("<svg ", &named, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_are_well_formed_whatever_the_names() {
        let hostile = "\"><script>\u{0}#010000";
        let series = Series {
            name: hostile.to_owned(),
            points: vec![Some(1.0), None, Some(f64::NAN), Some(1e9)],
        };
        let labels = vec![hostile.to_owned(); 4];
        let chart = Lines {
            description: hostile,
            labels: &labels,
            series: &[series],
            range: [0.0, 24.0],
        };
        for svg in [
            lines(&chart).unwrap(),
            bar(&[1.0, 2.0], 0.0, hostile).unwrap(),
        ] {
            let document = roxmltree::Document::parse(&svg).unwrap();
            assert_eq!(document.root_element().attribute("role"), Some("img"));
            assert!(!svg.contains("<script") && !svg.contains("\"#0"), "{svg}");
        }
    }
}
