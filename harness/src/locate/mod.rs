//! Where a target starts to differ, and what that looks like.
//!
//! Each stage is judged alone: the oracle computes it in float64 from the hidden state that the target
//! itself had before it, and compares. So one bad layer is one origin, whatever the later layers make of
//! it; the production graph is judged, not a copy of it; and since the noise of one stage is small, so is
//! what can be hidden in it. Where the worker can open a stage, its steps are judged in the same way, each
//! from the steps before it. What is left over is compared with what every known fault
//! would leave there ([`causes`]).

pub mod causes;
mod clean;
mod enter;
pub mod examine;
mod logits;
mod noise;
mod optimiser;
mod seen;
mod steadiness;
mod steps;
mod whole;

use std::collections::BTreeMap;

use driftgauge_protocol::{Batch, Loaded, Stage, Step, Tensor};
use driftgauge_reports::location::{Cause, Location, Origin, StageRecord};

use crate::catalogue::Instance;
use crate::measure::root_mean_square;
use crate::model::Model;
use crate::oracle::{Matrix, Noise, Steps, Stepwise};
use crate::predict::{SAMPLES, SEED};
use crate::run::JobOutcome;
use causes::{Known, Residual};

pub use clean::{Clean, Signal};
pub use enter::enter;
pub use examine::{Again, examine};
pub use logits::{Blind, Verdict};
pub use noise::stage_noise_of;
use seen::stage_rows;
pub use steadiness::unsteady;

/// Stages whose steps are looked at; of more it is asked first whether they have the cause of these.
const OPENED_STAGES: usize = 2;

/// What is looked at: what a target made of some batches.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// The model.
    pub model: &'a Model,
    /// How the target loaded it.
    pub loaded: &'a Loaded,
    /// Budgets are this many times the predicted error.
    pub k: f64,
    /// The batches.
    pub samples: &'a [Sample<'a>],
}

/// One batch.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// What was fed.
    pub batch: &'a Batch,
    /// What the target made of it.
    pub tensors: &'a JobOutcome,
    /// Relative error of each stage alone that is predicted for this batch, in u, by observation.
    pub predicted: &'a BTreeMap<String, f64>,
}

/// Opens a stage of a target: what [`crate::worker::Worker::probe`] does.
pub trait Probe {
    /// The steps of a stage, by name.
    ///
    /// # Errors
    /// Why they cannot be seen.
    fn probe(
        &mut self,
        stage: Stage,
        batch: &Batch,
        input: Option<&Tensor>,
    ) -> Result<BTreeMap<String, Tensor>, String>;
}

/// One stage, judged alone over all samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageCheck {
    /// The stage.
    pub stage: Stage,
    /// Error in u; infinite where the result is not finite.
    pub error_u: f64,
    /// Error that a correct stage is predicted to have, in u.
    pub predicted_u: f64,
    /// Whether the target offers what the stage starts from and ends with, and the former is finite.
    pub reached: bool,
}

impl StageCheck {
    /// The error in noise.
    pub fn noise(&self) -> f64 {
        match self.error_u == 0.0 {
            true => 0.0,
            false => self.error_u / self.predicted_u,
        }
    }

    /// Whether it is within its budget; a stage that cannot be judged is.
    pub fn within(&self, k: f64) -> bool {
        // A stage whose truth is all zeros has no noise.
        !self.reached || self.error_u == 0.0 || self.error_u <= k * self.predicted_u
    }

    /// For the record.
    pub fn record(&self, k: f64) -> StageRecord {
        let is_finite = self.reached && self.error_u.is_finite();
        StageRecord {
            stage: self.stage.to_string(),
            error_u: is_finite.then_some(self.error_u),
            predicted_u: self.predicted_u.is_finite().then_some(self.predicted_u),
            reached: self.reached,
            within: self.within(k),
        }
    }
}

/// The noise of a target whose stages are judged alone.
pub fn stage_noise(loaded: &Loaded) -> Noise {
    Noise {
        dtype: loaded.dtype,
        arithmetic: loaded.arithmetic,
        shortcut: None,
        by_stage: true,
        samples: SAMPLES,
        seed: SEED,
    }
}

impl<'a> Look<'a> {
    /// Judges every stage alone.
    ///
    /// # Errors
    /// Where a delivered tensor is not of the shape that it must have.
    pub fn stages(&self) -> Result<Vec<StageCheck>, String> {
        let config = &self.model.config;
        let head = self.model.weights.has_head();
        let stages = Stage::all(config.num_hidden_layers, head);
        stages.into_iter().map(|stage| self.check(stage)).collect()
    }

    fn check(&self, stage: Stage) -> Result<StageCheck, String> {
        let unit = self.loaded.dtype.unit_roundoff().unwrap_or(f64::NAN);
        let (mut squares, mut truths, mut noise) = (0.0, 0.0, 0.0);
        let mut reached = false;
        for sample in self.samples {
            let Some(pair) = self.pair(sample, stage)? else {
                continue;
            };
            reached = true;
            let truth: f64 = pair.truth.iter().map(|x| x * x).sum();
            let differences = pair.got.iter().zip(&pair.truth);
            squares += differences
                .map(|(got, truth)| (got - truth).powi(2))
                .sum::<f64>();
            truths += truth;
            let predicted = sample.predicted.get(&stage.observation());
            noise += predicted.copied().unwrap_or(f64::NAN).powi(2) * truth;
        }
        let error_u = match squares == 0.0 {
            true => 0.0,
            false => (squares / truths).sqrt() / unit,
        };
        Ok(StageCheck {
            stage,
            error_u: if error_u.is_nan() {
                f64::INFINITY
            } else {
                error_u
            },
            predicted_u: (noise / truths).sqrt(),
            reached,
        })
    }

    /// What the target made of a stage, and what it should have made of what it had.
    fn pair(&self, sample: &Sample<'_>, stage: Stage) -> Result<Option<Pair>, String> {
        let Some((input, output)) = self.ends(sample, stage)? else {
            return Ok(None);
        };
        let stepwise = Stepwise::new(self.model, sample.batch, &stage_noise(self.loaded), None)?;
        let steps = stepwise.stage(stage, input.as_ref());
        Ok(Some(Pair {
            got: stage_rows(stage, sample.batch, &output),
            truth: stage_rows(stage, sample.batch, &steps[&stage.last_step()]),
            input,
            steps,
        }))
    }

    /// What a stage starts from and ends with in the target; nothing where one is not there or the former
    /// not finite.
    fn ends(
        &self,
        sample: &Sample<'_>,
        stage: Stage,
    ) -> Result<Option<(Option<Matrix>, Matrix)>, String> {
        if stage == Stage::Head && sample.batch.logit_rows.is_empty() {
            return Ok(None);
        }
        let config = &self.model.config;
        let width = |stage| match stage {
            Stage::Head => config.vocab_size,
            _ => config.hidden_size,
        };
        let matrix = |stage: Stage| -> Result<Option<Matrix>, String> {
            let name = stage.observation();
            let Some(tensor) = sample.tensors.get(&name) else {
                return Ok(None);
            };
            let rows = match stage {
                Stage::Head => sample.batch.logit_rows.len(),
                _ => sample.batch.sequences * sample.batch.length,
            };
            let values = tensor.to_f64();
            if values.len() != rows * width(stage) {
                return Err(format!("`{name}` has shape {:?}", tensor.shape()));
            }
            Ok(Some(Matrix::new(width(stage), values)))
        };
        let before = stage.before(config.num_hidden_layers);
        let Some(output) = matrix(stage)? else {
            return Ok(None);
        };
        let Some(before) = before else {
            return Ok(Some((None, output)));
        };
        let input = matrix(before)?;
        let is_finite = |input: &Matrix| {
            let rows = stage_rows(before, sample.batch, input);
            rows.iter().all(|value| value.is_finite())
        };
        Ok(input.filter(is_finite).map(|input| (Some(input), output)))
    }

    /// Where it starts, and what that looks like. `checks` are those of [`Look::stages`]; `clean` are correct passes over
    /// the same batches.
    ///
    /// # Errors
    /// As [`Look::stages`].
    pub fn origins(
        &self,
        checks: &[StageCheck],
        clean: &Clean<'_>,
        instances: &[Instance],
        mut probe: Option<&mut dyn Probe>,
    ) -> Result<Location, String> {
        let bad: Vec<&StageCheck> = checks
            .iter()
            .filter(|check| !check.within(self.k))
            .collect();
        let mut location = Location {
            stages: checks.iter().map(|check| check.record(self.k)).collect(),
            ..Location::default()
        };
        // One bad layer is no fault of what is fed or answered.
        let is_whole = match bad[..] {
            [] => false,
            [check] => !matches!(check.stage, Stage::Layer(_)),
            _ => true,
        };
        if is_whole {
            location.origins.extend(self.whole(clean, instances)?);
        }
        if !location.origins.is_empty() {
            return Ok(location);
        }
        for (index, check) in bad.iter().enumerate() {
            let probe = match &mut probe {
                Some(probe) if index < OPENED_STAGES => Some(&mut **probe as &mut dyn Probe),
                _ => None,
            };
            let familiar = match index < OPENED_STAGES {
                true => Vec::new(),
                false => familiar(&location.origins, instances),
            };
            if !familiar.is_empty() {
                let origin = self.origin(check, clean, &familiar, None, &mut location.notes)?;
                if !origin.causes.is_empty() {
                    join(&mut location.origins, origin);
                    continue;
                }
            }
            let origin = self.origin(check, clean, instances, probe, &mut location.notes)?;
            join(&mut location.origins, origin);
        }
        Ok(location)
    }

    /// One bad stage.
    fn origin(
        &self,
        check: &StageCheck,
        clean: &Clean<'_>,
        instances: &[Instance],
        probe: Option<&mut dyn Probe>,
        notes: &mut Vec<String>,
    ) -> Result<Origin, String> {
        let stage = check.stage;
        let opened = match probe {
            None => Err(None),
            Some(probe) => self.opened(stage, probe).map_err(Some),
        };
        let mut origin = Origin {
            stages: vec![stage.to_string()],
            step: None,
            more_steps: Vec::new(),
            noise: check.error_u.is_finite().then(|| check.noise()),
            causes: Vec::new(),
        };
        match opened {
            Ok(residuals) => {
                let mut bad = self.bad_steps(&residuals).into_iter();
                origin.step = bad.next().map(|step| step.to_string());
                origin.more_steps = bad.map(|step| step.to_string()).collect();
                let uncertainty = &|one: &Instance| clean.uncertainty(one);
                origin.causes = self.causes_of_steps(stage, &residuals, instances, uncertainty)?;
            }
            Err(why) => {
                notes.extend(why.filter(|why| !notes.contains(why)));
                let uncertainty = &|one: &Instance| clean.uncertainty(one);
                origin.causes = self.causes_of_stage(stage, check, instances, uncertainty)?;
            }
        }
        Ok(origin)
    }

    fn causes_of_stage(
        &self,
        stage: Stage,
        check: &StageCheck,
        instances: &[Instance],
        uncertainty: causes::Uncertainty<'_>,
    ) -> Result<Vec<Cause>, String> {
        let noise = stage_noise(self.loaded);
        let unit = self.loaded.dtype.unit_roundoff().unwrap_or(f64::NAN);
        let mut pairs = Vec::new();
        for sample in self.samples {
            let Some(pair) = self.pair(sample, stage)? else {
                continue;
            };
            let Pair {
                input,
                got,
                truth,
                steps,
            } = pair;
            let norm = root_mean_square(truth.iter().copied());
            let residual = Residual::new(&got, truth, check.predicted_u * unit * norm);
            pairs.push((sample.batch, input, steps, residual));
        }
        let Some((batch, ..)) = pairs.first() else {
            return Ok(Vec::new());
        };
        let mut known = Vec::new();
        for instance in at_stage(instances, stage) {
            let fault = Some(&instance.fault);
            // A fault that does not fit the model is not in it.
            let Ok(faulty) = Stepwise::new(self.model, batch, &noise, fault) else {
                continue;
            };
            // Up to the first step that it changes, a fault changes nothing.
            let affected = causes::affected(&instance.fault, stage);
            let before = stage.steps().iter().copied();
            let before: Vec<Step> = before.take_while(|step| !affected.contains(step)).collect();
            let mut signature = Known::of(instance);
            for (batch, input, steps, residual) in &pairs {
                let done = before.iter().map(|step| (*step, steps[step].clone()));
                let done = done.collect();
                let variant = faulty.on(batch).go_on(stage, input.as_ref(), done);
                let variant = stage_rows(stage, batch, &variant[&stage.last_step()]);
                signature.add(residual, Some(variant));
            }
            known.push(signature);
        }
        Ok(causes::likeliest(known, uncertainty))
    }
}

struct Pair {
    input: Option<Matrix>,
    got: Vec<f64>,
    truth: Vec<f64>,
    /// The right steps.
    steps: Steps,
}

/// The instances of what earlier origins look like.
fn familiar(origins: &[Origin], instances: &[Instance]) -> Vec<Instance> {
    let causes = origins.iter().flat_map(|origin| &origin.causes);
    let names: Vec<&str> = causes.map(|cause| cause.name.as_str()).collect();
    let is_familiar = |one: &&Instance| names.contains(&one.entry.name);
    instances.iter().filter(is_familiar).cloned().collect()
}

/// The instances that sit in a stage.
fn at_stage(instances: &[Instance], stage: Stage) -> impl Iterator<Item = &Instance> {
    let at = move |instance: &&Instance| instance.stage == Some(stage);
    instances.iter().filter(at)
}

/// Adds an origin, or joins it with the one before it where both are the same fault.
fn join(origins: &mut Vec<Origin>, next: Origin) {
    let name = |origin: &Origin| origin.causes.first().map(|cause| cause.name.clone());
    if let Some(last) = origins.last_mut()
        && name(last) == name(&next)
        && (name(last).is_some() || last.step == next.step)
    {
        last.stages.extend(next.stages);
        last.noise = match (last.noise, next.noise) {
            (Some(one), Some(other)) => Some(one.max(other)),
            _ => None,
        };
        return;
    }
    origins.push(next);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error_u: f64, predicted_u: f64, reached: bool) -> StageCheck {
        StageCheck {
            stage: Stage::Layer(1),
            error_u,
            predicted_u,
            reached,
        }
    }

    #[test]
    fn what_is_not_reached_is_not_judged_and_can_be_read_again() {
        for (check, within, error_u, predicted_u) in [
            (check(5.0, 2.0, true), true, Some(5.0), Some(2.0)),
            (check(5.1, 2.0, true), false, Some(5.1), Some(2.0)),
            (check(f64::INFINITY, 2.0, true), false, None, Some(2.0)),
            // Nothing is predicted for what is not there.
            (check(f64::INFINITY, f64::NAN, false), true, None, None),
        ] {
            let record = check.record(2.5);
            assert_eq!(record.within, within, "{check:?}");
            assert_eq!((record.error_u, record.predicted_u), (error_u, predicted_u));
            let json = serde_json::to_string(&record).unwrap();
            let read: StageRecord = serde_json::from_str(&json).unwrap();
            assert_eq!(read, record);
        }
    }

    fn origin(stage: &str, noise: Option<f64>, cause: Option<&str>) -> Origin {
        let entry = |name: &str| {
            crate::catalogue::all()
                .find(|entry| entry.name == name)
                .unwrap()
        };
        let cause = cause.map(|name| causes::cause(entry(name), None, 1.0, 0.0, 1.0));
        Origin {
            stages: vec![stage.to_owned()],
            step: None,
            more_steps: Vec::new(),
            noise,
            causes: cause.into_iter().collect(),
        }
    }

    /// The same fault in several stages is one origin; two that are unknown need not be one.
    #[test]
    fn origins_of_one_cause_or_of_none_are_joined() {
        let mut origins = Vec::new();
        for next in [
            origin("layer.1", Some(7.0), Some("relu")),
            origin("layer.2", Some(9.0), Some("relu")),
            origin("layer.3", Some(8.0), Some("silu")),
            origin("layer.4", None, None),
            origin("head", None, None),
        ] {
            join(&mut origins, next);
        }
        let stages: Vec<_> = origins.iter().map(|one| one.stages.join(" ")).collect();
        assert_eq!(stages, ["layer.1 layer.2", "layer.3", "layer.4 head"]);
        assert_eq!(origins[0].noise, Some(9.0));
    }
}
