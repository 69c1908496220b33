//! The steps inside a stage, each judged from the steps before it, in what a worker shows of it.

use std::collections::BTreeMap;

use driftgauge_protocol::{Batch, Dtype, Stage, Step, Tensor};
use driftgauge_reports::location::Cause;

use super::causes::{self, Known, Residual};
use super::seen::{Seen, stage_rows};
use super::{Look, Probe, Sample, at_stage, stage_noise};
use crate::catalogue::Instance;
use crate::oracle::{Matrix, Steps, Stepwise};

/// A stage that was opened on one batch.
pub(super) struct Opened {
    batch: Batch,
    input: Option<Matrix>,
    got: Steps,
    steps: Vec<(Step, Residual)>,
}

impl Look<'_> {
    /// The residuals of all steps of a stage.
    pub(super) fn opened(
        &self,
        stage: Stage,
        probe: &mut dyn Probe,
    ) -> Result<Vec<Opened>, String> {
        let unit = self.loaded.dtype.unit_roundoff().unwrap_or(f64::NAN);
        let mut all = Vec::new();
        for sample in self.samples {
            let Some((input, output)) = self.ends(sample, stage)? else {
                continue;
            };
            let fed = self.input_tensor(sample, stage);
            let steps = probe.probe(stage, sample.batch, fed)?;
            let got = matrices(stage, &steps)?;
            self.check_reproduced(sample, stage, &output, &got)?;
            let noise = stage_noise(self.loaded);
            let stepwise = Stepwise::new(self.model, sample.batch, &noise, None)?;
            let mut steps = Vec::new();
            for step in stage.steps() {
                let truth = stepwise.step(stage, *step, input.as_ref(), &got);
                let deviation = stepwise.step_noise(stage, *step, input.as_ref(), &got, &truth);
                let seen = Seen::new(self.model, sample.batch, stage, *step);
                let deviation = unit * seen.deviation(&deviation);
                let residual = Residual::new(&seen.of(&got[step]), seen.of(&truth), deviation);
                steps.push((*step, residual));
            }
            all.push(Opened {
                batch: sample.batch.clone(),
                input,
                got,
                steps,
            });
        }
        match all.is_empty() {
            true => Err("no batch reaches it".to_owned()),
            false => Ok(all),
        }
    }

    fn input_tensor<'s>(&self, sample: &Sample<'s>, stage: Stage) -> Option<&'s Tensor> {
        let before = stage.before(self.model.config.num_hidden_layers)?;
        sample.tensors.get(&before.observation())
    }

    /// An opened stage must be the production stage, or its steps say nothing about it.
    fn check_reproduced(
        &self,
        sample: &Sample<'_>,
        stage: Stage,
        output: &Matrix,
        got: &Steps,
    ) -> Result<(), String> {
        let production = stage_rows(stage, sample.batch, output);
        let opened = stage_rows(stage, sample.batch, &got[&stage.last_step()]);
        let unit = self.loaded.dtype.unit_roundoff().unwrap_or(f64::NAN);
        let norm = production.iter().map(|x| x * x).sum::<f64>().sqrt();
        if !norm.is_finite() {
            // What is not finite in one must be in the other.
            let alike = production.iter().zip(&opened);
            let mut alike = alike.map(|(a, b)| a.is_finite() == b.is_finite());
            return match alike.all(|alike| alike) {
                true => Ok(()),
                false => Err("its steps, opened, do not give what the whole model gave".to_owned()),
            };
        }
        if production == opened {
            return Ok(());
        }
        let apart = production.iter().zip(&opened);
        let apart = apart.map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt() / norm / unit;
        let noise = sample.predicted.get(&stage.observation()).copied();
        let limit = std::f64::consts::SQRT_2 * self.k * noise.unwrap_or(f64::NAN);
        match apart <= limit {
            true => Ok(()),
            false => Err(format!(
                "its steps, opened, do not give what the whole model gave ({apart:.0} u apart, \
                 {limit:.0} u are noise): it appears only in the whole graph"
            )),
        }
    }

    /// The steps that are wrong by themselves, in order.
    pub(super) fn bad_steps(&self, opened: &[Opened]) -> Vec<Step> {
        let Some(first) = opened.first() else {
            return Vec::new();
        };
        let noise = |step: &Step| {
            let (mut squares, mut variances) = (0.0, 0.0);
            for one in opened {
                let residual = one.steps.iter().find(|(name, _)| name == step);
                if let Some((_, residual)) = residual {
                    squares += residual.squares();
                    variances += residual.count() as f64;
                }
            }
            (squares / variances).sqrt()
        };
        let steps = first.steps.iter().map(|(step, _)| *step);
        let measured: Vec<(Step, f64)> = steps.map(|step| (step, noise(&step))).collect();
        // A single step's noise scatters more than that of a stage.
        let limit = 2.0 * self.k;
        let bad = measured.into_iter().filter(|(_, noise)| *noise > limit);
        bad.map(|(step, _)| step).collect()
    }

    pub(super) fn causes_of_steps(
        &self,
        stage: Stage,
        opened: &[Opened],
        instances: &[Instance],
        uncertainty: causes::Uncertainty<'_>,
    ) -> Result<Vec<Cause>, String> {
        let bad = self.bad_steps(opened);
        // What is one fault touches every step that is wrong by itself; several need not.
        let touches = |instance: &&Instance| {
            let affected = causes::affected(&instance.fault, stage);
            bad.iter().all(|step| affected.contains(step))
        };
        let one = at_stage(instances, stage).filter(touches);
        let causes = self.likeliest_of_steps(stage, opened, &bad, one, uncertainty);
        if !causes.is_empty() {
            return Ok(causes);
        }
        let touches = |instance: &&Instance| {
            let affected = causes::affected(&instance.fault, stage);
            bad.iter().any(|step| affected.contains(step))
        };
        let several = at_stage(instances, stage).filter(touches);
        Ok(self.likeliest_of_steps(stage, opened, &bad, several, uncertainty))
    }

    fn likeliest_of_steps<'i>(
        &self,
        stage: Stage,
        opened: &[Opened],
        bad: &[Step],
        instances: impl Iterator<Item = &'i Instance>,
        uncertainty: causes::Uncertainty<'_>,
    ) -> Vec<Cause> {
        let noise = stage_noise(self.loaded);
        let mut known = Vec::new();
        for instance in instances {
            let affected = causes::affected(&instance.fault, stage);
            let fault = Some(&instance.fault);
            let faulty = opened
                .first()
                .map(|first| Stepwise::new(self.model, &first.batch, &noise, fault));
            // A fault that does not fit the model is not in it.
            let Some(Ok(faulty)) = faulty else {
                continue;
            };
            let mut signature = Known::of(instance);
            for one in opened {
                let stepwise = faulty.on(&one.batch);
                for (step, residual) in &one.steps {
                    if !bad.contains(step) && !affected.contains(step) {
                        continue;
                    }
                    let seen = Seen::new(self.model, &one.batch, stage, *step);
                    let variant = affected.contains(step).then(|| {
                        let variant = stepwise.step(stage, *step, one.input.as_ref(), &one.got);
                        seen.of(&variant)
                    });
                    signature.add(residual, variant);
                }
            }
            known.push(signature);
        }
        causes::likeliest(known, uncertainty)
    }
}

/// The steps of a stage as they were delivered, each of the shape that it must have.
fn matrices(stage: Stage, steps: &BTreeMap<String, Tensor>) -> Result<Steps, String> {
    let matrix = |step: &Step| {
        let tensor = steps
            .get(step.name())
            .ok_or_else(|| format!("the worker does not show `{step}`"))?;
        let width = tensor.shape().last().copied().filter(|width| *width > 0);
        let width = width.ok_or_else(|| format!("`{step}` is empty"))?;
        if tensor.dtype() == Dtype::I64 {
            return Err(format!("`{step}` is of integers"));
        }
        Ok((*step, Matrix::new(width, tensor.to_f64())))
    };
    stage.steps().iter().map(matrix).collect()
}
