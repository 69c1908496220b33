//! Whether a target gives the same results again, and where it first does not.

use driftgauge_protocol::{Stage, Tensor};
use driftgauge_reports::location::Origin;

use super::causes::cause;
use crate::catalogue::{Instance, Kind};
use crate::measure::{apart, norm};
use crate::run::JobOutcome;

/// Where two runs of one batch first differ, if they do; `again` is the second one.
pub fn unsteady(
    first: &JobOutcome,
    again: &JobOutcome,
    layers: usize,
    instances: &[Instance],
) -> Option<Origin> {
    let stages = Stage::all(layers, true).into_iter();
    let (stage, distance) = stages
        .filter_map(|stage| {
            let name = stage.observation();
            let (one, other) = (first.get(&name)?, again.get(&name)?);
            (one != other).then(|| (stage, relative(one, other)))
        })
        .next()?;
    // Two runs are √2 times as far apart as each is from the truth.
    let size = distance / std::f64::consts::SQRT_2;
    let known = instances
        .iter()
        .filter(|instance| instance.entry.kind == Kind::Unsteady && instance.stage == Some(stage));
    let far = |instance: &&Instance| (size / instance.size().unwrap_or(1.0)).ln().abs();
    let nearest = known.min_by(|a, b| far(a).total_cmp(&far(b)));
    let causes = nearest.map(|instance| {
        let coefficient = size / instance.size().unwrap_or(1.0);
        cause(instance.entry, instance.stage, coefficient, 0.0, 1.0)
    });
    Some(Origin {
        stages: vec![stage.to_string()],
        step: None,
        more_steps: Vec::new(),
        noise: None,
        causes: causes.into_iter().collect(),
    })
}

fn relative(one: &Tensor, other: &Tensor) -> f64 {
    let (one, other) = (one.to_f64(), other.to_f64());
    match one.len() == other.len() {
        true => apart(&one, &other, norm(&one)),
        false => f64::INFINITY,
    }
}
