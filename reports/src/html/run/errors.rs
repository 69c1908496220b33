//! Errors over targets and layers: heat maps, and effective bits.

use std::collections::BTreeMap;

use crate::RenderError;
use crate::html::chart::{self, Lines, Series};
use crate::location::StageRecord;
use crate::phrases::Phrases;
use crate::record::{Observation, RunRecord};
use crate::terminal::number;
use crate::words::{NAME, shown};

/// Upper ends of the steps of the colour scale in u; half decades, then decades.
const STEPS: [f64; 8] = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 10_000.0];
/// Targets and stages of a heat map.
const MOST_TARGETS: usize = 40;
const MOST_STAGES: usize = 80;

/// A heat map.
pub(crate) struct Heat {
    pub about: &'static str,
    pub stages: Vec<String>,
    pub rows: Vec<(String, Vec<Cell>)>,
}

/// An error of a target at a stage.
pub(crate) struct Cell {
    pub class: String,
    pub text: String,
    pub is_beyond: bool,
}

/// A step of the colour scale.
pub(crate) struct Step {
    pub class: String,
    pub text: String,
}

pub(crate) fn legend(t: &Phrases) -> Vec<Step> {
    let number = |value: f64| format!("{value:.0}");
    let mut steps = vec![format!("≤ {}", number(STEPS[0]))];
    steps.extend(
        STEPS
            .windows(2)
            .map(|ends| format!("{}–{}", number(ends[0]), number(ends[1]))),
    );
    steps.push(format!("> {}", number(STEPS[STEPS.len() - 1])));
    let steps = steps.into_iter().enumerate();
    let mut steps: Vec<Step> = steps
        .map(|(index, text)| Step {
            class: format!("h{index}"),
            text,
        })
        .collect();
    steps.push(Step {
        class: "hx".to_owned(),
        text: t.not_finite.to_owned(),
    });
    steps
}

fn class(error: Option<f64>) -> String {
    match error.filter(|error| error.is_finite()) {
        None => "hx".to_owned(),
        Some(error) => format!("h{}", STEPS.iter().filter(|end| error > **end).count()),
    }
}

/// What accumulates along the production path, and what each stage does alone.
pub(crate) fn heats(record: &RunRecord, t: &'static Phrases) -> Vec<Heat> {
    let worst = worst(record);
    let stages = stages(&worst);
    let after = record.targets.iter().take(MOST_TARGETS).map(|target| {
        let of_target = worst.get(target.target.as_str());
        let cells = stages.iter().map(|stage| {
            let one = of_target.and_then(|of_target| of_target.get(stage.as_str()));
            one.map_or_else(Cell::empty, |one| Cell::new(one.error_u, one.within, t))
        });
        (shown(&target.target, NAME, t), cells.collect())
    });
    let after = Heat {
        about: t.heat_after,
        stages: stages.iter().map(|stage| shown(stage, NAME, t)).collect(),
        rows: after.collect(),
    };
    [Some(after), alone(record, t)]
        .into_iter()
        .flatten()
        .filter(|heat| !heat.stages.is_empty())
        .collect()
}

fn alone(record: &RunRecord, t: &'static Phrases) -> Option<Heat> {
    let located = record.targets.iter().filter_map(|target| {
        let location = target.location.as_ref()?;
        Some((&target.target, &location.stages))
    });
    let located: Vec<(&String, &Vec<StageRecord>)> = located.take(MOST_TARGETS).collect();
    let longest = located
        .iter()
        .map(|(_, stages)| *stages)
        .max_by_key(|stages| stages.len())?;
    let names: Vec<&String> = longest
        .iter()
        .take(MOST_STAGES)
        .map(|one| &one.stage)
        .collect();
    let rows = located.iter().map(|(target, stages)| {
        let cells = names.iter().map(|name| {
            let stage = stages.iter().find(|stage| stage.stage == **name);
            match stage {
                Some(stage) if stage.reached => Cell::new(stage.error_u, stage.within, t),
                _ => Cell::empty(),
            }
        });
        (shown(target, NAME, t), cells.collect())
    });
    Some(Heat {
        about: t.heat_alone,
        rows: rows.collect(),
        stages: names.into_iter().map(|name| shown(name, NAME, t)).collect(),
    })
}

impl Cell {
    fn new(error: Option<f64>, within: bool, t: &Phrases) -> Self {
        Self {
            class: class(error),
            text: error.map_or(t.not_finite.to_owned(), number),
            is_beyond: !within,
        }
    }

    fn empty() -> Self {
        Self {
            class: "empty".to_owned(),
            text: "–".to_owned(),
            is_beyond: false,
        }
    }
}

type Worst<'a> = BTreeMap<&'a str, BTreeMap<&'a str, &'a Observation>>;

/// The largest error of each target in each observation.
fn worst(record: &RunRecord) -> Worst<'_> {
    let mut worst: Worst<'_> = BTreeMap::new();
    for result in &record.results {
        let of_target = worst.entry(&result.target).or_default();
        for (name, one) in &result.observations {
            let size = |one: &Observation| one.error_u.unwrap_or(f64::INFINITY);
            let old = of_target.get(name.as_str());
            // What is beyond its budget outweighs a larger error that is not.
            let rank = |one: &Observation| (!one.within, size(one));
            if old.is_none_or(|old| {
                rank(one).partial_cmp(&rank(old)) == Some(std::cmp::Ordering::Greater)
            }) {
                of_target.insert(name, one);
            }
        }
    }
    worst
}

/// Observations in the order of the model.
fn stages(worst: &Worst<'_>) -> Vec<String> {
    let mut names: Vec<&str> = worst
        .values()
        .flat_map(|of_target| of_target.keys().copied())
        .collect();
    let order = |name: &str| match name.strip_prefix("hidden.").map(str::parse::<usize>) {
        _ if name == "embeddings" => (0, 0),
        Some(Ok(layer)) => (1, layer),
        _ => (2, 0),
    };
    names.sort_by_key(|name| (order(name), *name));
    names.dedup();
    names.truncate(MOST_STAGES);
    names.into_iter().map(str::to_owned).collect()
}

/// Effective bits as a chart and in numbers.
pub(crate) struct Bits {
    pub chart: String,
    /// Mark, number of the colour, name and values of each target.
    pub rows: Vec<BitsRow>,
    pub stages: Vec<String>,
}

/// Effective bits of a target.
pub(crate) struct BitsRow {
    pub mark: &'static str,
    pub series: usize,
    pub target: String,
    pub values: Vec<String>,
}

/// # Errors
/// [`RenderError::Chart`] where the chart cannot be drawn.
pub(crate) fn bits(record: &RunRecord, t: &'static Phrases) -> Result<Option<Bits>, RenderError> {
    let worst = worst(record);
    let stages: Vec<String> = stages(&worst);
    if stages.is_empty() {
        return Ok(None);
    }
    let targets = record.targets.iter().take(chart::MARKS.len());
    let series: Vec<Series> = targets
        .map(|target| Series {
            name: shown(&target.target, NAME, t),
            points: stages
                .iter()
                .map(|stage| {
                    worst
                        .get(target.target.as_str())?
                        .get(stage.as_str())?
                        .effective_bits
                })
                .collect(),
        })
        .collect();
    let values = series
        .iter()
        .flat_map(|series| series.points.iter().flatten());
    let top = values.fold(8.0_f64, |top, bits| top.max(*bits));
    let labels: Vec<String> = stages
        .iter()
        .map(|stage| shown(stage, NAME / 8, t))
        .collect();
    let chart = chart::lines(&Lines {
        description: t.bits_chart,
        labels: &labels,
        series: &series,
        range: [0.0, (top / 4.0).ceil() * 4.0],
    })?;
    let rows = series.into_iter().enumerate().map(|(index, series)| {
        let (mark, number) = Series::mark(index);
        let value = |bits: &Option<f64>| bits.map_or("–".to_owned(), |bits| format!("{bits:.1}"));
        BitsRow {
            mark,
            series: number,
            values: series.points.iter().map(value).collect(),
            target: series.name,
        }
    });
    Ok(Some(Bits {
        chart,
        rows: rows.collect(),
        stages: stages.iter().map(|stage| shown(stage, NAME, t)).collect(),
    }))
}
