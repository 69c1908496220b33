//! The matched filter on the logits alone: what can be said of a model whose inside is not seen.

use std::collections::BTreeMap;
use std::ops::Range;

use driftgauge_protocol::fault::{Edit, Fault};
use driftgauge_protocol::{Batch, Loaded, Stage, Step, Tensor, observation};
use driftgauge_reports::location::Cause;
use rayon::prelude::*;

use super::causes::{affected, cause, dot, left};
use super::clean::fed;
use super::seen::bounded;
use super::stage_noise;
use crate::catalogue::{self, Instance};
use crate::judge::Bench;
use crate::measure::centre_rows;
use crate::model::Model;
use crate::oracle::{self, Matrix, Noise, Sequence, Steps, Stepwise, linear};
use crate::plan::Job;
use crate::run::JobOutcome;

/// Samples of the noise along a signature: their root mean square is within 13 % of the true one.
const SAMPLES: usize = 32;
/// Multiplications of weights with tokens, padding included, of the batches that are looked at: every signature is a
/// pass over them.
const WORK: f64 = 1.2e9;
/// Columns of a row of logits that are compared, in widths of the model. A row of logits is a linear
/// function of one hidden state, so that more columns hold nothing new.
const COLUMNS: usize = 4;
/// Standard deviations from which on a coefficient near 1 is a fault.
const SIGNIFICANT: f64 = 8.0;
/// How far from 1 it may be.
const NEAR: f64 = 0.35;
/// Share of a difference, squared, that its cause must explain.
const EXPLAINED: f64 = 0.9;
/// Causes that are named.
const NAMED: usize = 3;

/// What every known fault leaves in the logits of some batches.
#[derive(Debug)]
pub struct Blind {
    /// Batches, by their index in the plan.
    jobs: Vec<usize>,
    columns: Vec<usize>,
    truth: Vec<f64>,
    /// Mean of the squares of what rounding leaves.
    noise: f64,
    known: Vec<Signature>,
}

#[derive(Debug)]
struct Signature {
    instance: Instance,
    values: Vec<f32>,
    squares: f64,
    /// Standard deviation of its coefficient.
    deviation: f64,
}

/// What the logits show.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Error in units of its noise.
    pub noise: f64,
    /// Whether something is wrong.
    pub detected: bool,
    /// What it looks like, the likeliest first.
    pub causes: Vec<Cause>,
}

impl Verdict {
    /// As an origin; nothing where nothing is wrong.
    pub fn origin(&self) -> Option<driftgauge_reports::location::Origin> {
        self.detected.then(|| driftgauge_reports::location::Origin {
            stages: self
                .causes
                .first()
                .and_then(|cause| cause.stage.clone())
                .into_iter()
                .collect(),
            step: None,
            more_steps: Vec::new(),
            noise: self.noise.is_finite().then_some(self.noise),
            causes: self.causes.clone(),
        })
    }
}

impl Blind {
    /// Computes the signatures of all instances, and of what usually sits everywhere.
    ///
    /// # Errors
    /// Where the model does not fit the batches.
    pub fn compute(
        bench: Bench<'_>,
        loaded: &Loaded,
        instances: &[Instance],
    ) -> Result<Self, String> {
        let model = bench.model;
        let jobs = chosen(model, &bench.plan.jobs);
        let layers = model.config.num_hidden_layers;
        let width = model.config.vocab_size;
        let wanted = (COLUMNS * model.config.hidden_size).min(width);
        // Spread evenly, by a step that the vocabulary's own order does not know.
        let columns = (0..wanted).map(|index| (index * width / wanted + index % 7) % width);
        let mut blind = Self {
            jobs,
            columns: columns.collect(),
            truth: Vec::new(),
            noise: 0.0,
            known: Vec::new(),
        };
        let Some(first) = blind.jobs.first() else {
            return Ok(blind);
        };
        let first = &bench.plan.jobs[*first].batch;
        let correct = Stepwise::new(model, first, &stage_noise(loaded), None)?;
        let decoder = Decoder::new(&correct, &blind.columns);
        let bases: Vec<Base<'_>> = blind
            .jobs
            .iter()
            .map(|job| Base::new(&correct.on(&bench.plan.jobs[*job].batch), layers))
            .collect::<Result<_, _>>()?;
        blind.truth = blind.row_values(bases.iter().map(|base| base.logits.clone()));
        let decoded: Vec<f64> = bases
            .iter()
            .flat_map(|base| decoder.decode(&base.norm))
            .collect();
        let samples = blind.samples(bench, loaded);
        let squares = samples.iter().map(|sample| dot(sample, sample));
        blind.noise = squares.sum::<f64>() / samples.len().max(1) as f64;
        let head = model.weights.has_head();
        let everywhere = catalogue::all().filter_map(|entry| entry.everywhere(&model.config, head));
        let all: Vec<Instance> = instances.iter().cloned().chain(everywhere).collect();
        let signature = |instance: Instance| {
            let first = bases.first()?;
            let noise = stage_noise(loaded);
            // A fault that does not fit the model leaves nothing in it.
            let faulty = Stepwise::new(model, first.batch, &noise, Some(&instance.fault)).ok()?;
            let is_opaque = changes_logits(&instance.fault);
            let variants = bases.iter().map(|base| match is_opaque {
                true => {
                    let logits = base.logits(&faulty, &instance)?;
                    Some(blind.row_values(std::iter::once(logits)))
                }
                false => Some(decoder.decode(&base.norm(&faulty, &instance))),
            });
            let variants: Vec<f64> = variants.collect::<Option<Vec<_>>>()?.concat();
            let truth = match is_opaque {
                true => &blind.truth,
                false => &decoded,
            };
            let pairs = variants.iter().zip(truth);
            let values: Vec<f32> = pairs.map(|(v, t)| bounded(v - t) as f32).collect();
            let squares = dot(&values, &values);
            let projections = samples.iter().map(|sample| dot(sample, &values) / squares);
            let mean = projections.map(|c| c * c).sum::<f64>() / samples.len().max(1) as f64;
            Some(Signature {
                instance,
                values,
                squares,
                deviation: mean.sqrt(),
            })
        };
        let known = all.into_par_iter().filter_map(signature).collect();
        blind.known = known;
        Ok(blind)
    }

    /// What the logits of a target show; `outcomes` are those of all batches of the plan.
    ///
    /// # Errors
    /// Where logits are missing or of another shape.
    pub fn look(&self, bench: Bench<'_>, outcomes: &[JobOutcome]) -> Result<Verdict, String> {
        let width = bench.model.config.vocab_size;
        let mut all = Vec::new();
        for job in &self.jobs {
            let logits = outcomes
                .get(*job)
                .and_then(|job| job.get(observation::LOGITS));
            let logits = logits.ok_or("the logits are missing")?;
            let rows = bench.plan.jobs[*job].batch.logit_rows.len();
            if logits.shape() != [rows, width] {
                return Err(format!("`logits` has shape {:?}", logits.shape()));
            }
            all.push(Matrix::new(width, logits.to_f64()));
        }
        let values = self.row_values(all.into_iter());
        let pairs = values.iter().zip(&self.truth);
        let residual: Vec<f32> = pairs.map(|(v, t)| bounded(v - t) as f32).collect();
        Ok(self.verdict(&residual, bench.k))
    }

    fn verdict(&self, residual: &[f32], k: f64) -> Verdict {
        let squares = dot(residual, residual);
        let noise = (squares / self.noise.max(f64::MIN_POSITIVE)).sqrt();
        let beyond = noise > k;
        let mut found: Vec<(f64, [f64; 2], &Signature)> = self
            .known
            .iter()
            .filter(|one| one.squares > 0.0)
            .filter_map(|one| {
                let c = dot(residual, &one.values) / one.squares;
                let left = left(residual, 1.0, &one.values);
                let explained =
                    1.0 - (left - self.noise).max(0.0) / (squares - self.noise).max(1e-300);
                let is_there = match beyond {
                    true => explained >= EXPLAINED,
                    false => c / one.deviation >= SIGNIFICANT && (c - 1.0).abs() < NEAR,
                };
                is_there.then_some((left, [c, explained], one))
            })
            .collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        let causes = found.iter().take(NAMED).map(|(_, [c, explained], one)| {
            let Instance { entry, stage, .. } = &one.instance;
            cause(entry, *stage, *c, one.deviation, *explained)
        });
        Verdict {
            noise,
            detected: beyond || !found.is_empty(),
            causes: causes.collect(),
        }
    }

    /// How long a signature is in standard deviations of the noise along it.
    pub fn size(&self, instance: &Instance) -> f64 {
        let same = |one: &&Signature| {
            one.instance.entry.name == instance.entry.name
                && (one.instance.stage, one.instance.step) == (instance.stage, instance.step)
        };
        let signature = self.known.iter().find(same);
        signature.map_or(0.0, |one| match one.squares > 0.0 {
            true => 1.0 / one.deviation,
            false => 0.0,
        })
    }

    /// Rows of logits as they are compared: centred, some columns of each.
    fn row_values(&self, logits: impl Iterator<Item = Matrix>) -> Vec<f64> {
        let mut all = Vec::new();
        for logits in logits {
            let width = logits.width();
            let mut values = logits.into_values();
            centre_rows(&mut values, width);
            let rows = values.chunks(width);
            all.extend(rows.flat_map(|row| self.columns.iter().map(|column| row[*column])));
        }
        all
    }

    /// What rounding adds to the compared numbers, in each sample.
    fn samples(&self, bench: Bench<'_>, loaded: &Loaded) -> Vec<Vec<f32>> {
        let noise = Noise {
            by_stage: false,
            samples: SAMPLES,
            ..stage_noise(loaded)
        };
        let unit = noise.dtype.unit_roundoff().unwrap_or(f64::NAN);
        let jobs = self.jobs.iter().map(|job| &bench.plan.jobs[*job]);
        let sequences: Vec<Sequence> = jobs
            .flat_map(|job| bench.plan.sequences[job.sequences.clone()].to_vec())
            .collect();
        let sampled = oracle::sampled(bench.model, &sequences, &noise);
        (0..SAMPLES)
            .map(|sample| {
                let errors = sampled.iter().filter_map(|one| {
                    let errors = one.errors[sample].get(observation::LOGITS)?;
                    let values = errors.values().iter().map(|x| f64::from(*x) * unit);
                    Some(Matrix::new(errors.width(), values.collect()))
                });
                let values = self.row_values(errors);
                values.into_iter().map(|x| x as f32).collect()
            })
            .collect()
    }
}

/// The batches that are looked at: the smallest that want logits.
fn chosen(model: &Model, jobs: &[Job]) -> Vec<usize> {
    let room = (WORK / model.weights.parameters() as f64) as usize;
    let size = |job: &usize| jobs[*job].batch.input_ids.len();
    let with_logits = (0..jobs.len()).filter(|job| !jobs[*job].batch.logit_rows.is_empty());
    let mut with_logits: Vec<usize> = with_logits.collect();
    with_logits.sort_by_key(size);
    let mut tokens = 0;
    let mut chosen: Vec<usize> = with_logits
        .into_iter()
        .enumerate()
        .take_while(|(place, job)| {
            tokens += size(job);
            *place == 0 || tokens <= room
        })
        .map(|(_, job)| job)
        .collect();
    chosen.sort_unstable();
    chosen
}

/// Whether a fault changes how the logits come from the head's last hidden state, or what is made of them.
fn changes_logits(fault: &Fault) -> bool {
    let answers = |edit: &Edit| matches!(edit, Edit::Output(_));
    fault.edits.iter().any(answers) || affected(fault, Stage::Head).contains(&Step::Logits)
}

/// The decoder, for the columns that are compared alone.
struct Decoder {
    /// A row for each column, less the mean over the vocabulary.
    weight: Vec<f64>,
    bias: Vec<f64>,
}

impl Decoder {
    fn new(correct: &Stepwise<'_>, columns: &[usize]) -> Self {
        let (weight, bias) = correct.decoder();
        let width = weight.len() / bias.len();
        let mut mean = vec![0.0; width];
        for row in weight.chunks(width) {
            mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        let count = bias.len() as f64;
        mean.iter_mut().for_each(|sum| *sum /= count);
        let mean_bias = bias.iter().sum::<f64>() / count;
        let rows = columns.iter().flat_map(|column| {
            let row = &weight[column * width..(column + 1) * width];
            row.iter().zip(&mean).map(|(x, mean)| x - mean)
        });
        Self {
            weight: rows.collect(),
            bias: columns.iter().map(|c| bias[*c] - mean_bias).collect(),
        }
    }

    /// The compared numbers of the rows whose last hidden state, after the head's layer norm, is `norm`.
    fn decode(&self, norm: &Matrix) -> Vec<f64> {
        let width = norm.width();
        let rows = |rows: Range<usize>| self.weight[rows.start * width..rows.end * width].to_vec();
        linear(norm, &rows, &self.bias).into_values()
    }
}

/// A correct pass over one batch, from which variants branch off.
struct Base<'a> {
    batch: &'a Batch,
    /// What each stage starts from.
    inputs: BTreeMap<Stage, Option<Matrix>>,
    /// What the head makes its logits from.
    norm: Matrix,
    logits: Matrix,
}

impl<'a> Base<'a> {
    fn new(correct: &Stepwise<'a>, layers: usize) -> Result<Self, String> {
        let mut inputs = BTreeMap::new();
        let mut hidden: Option<Matrix> = None;
        for stage in Stage::all(layers, false) {
            let output = correct.output(stage, hidden.as_ref());
            inputs.insert(stage, hidden.take());
            hidden = Some(output);
        }
        let mut head = correct.stage(Stage::Head, hidden.as_ref());
        inputs.insert(Stage::Head, hidden);
        let mut result = |step| head.remove(&step).ok_or("the head lacks a step");
        Ok(Self {
            batch: correct.batch(),
            inputs,
            norm: result(Step::Norm)?,
            logits: result(Step::Logits)?,
        })
    }

    /// What the head makes its logits from under a fault, computed from the first stage that it changes.
    fn norm(&self, faulty: &Stepwise<'_>, instance: &Instance) -> Matrix {
        let batch = fed(self.batch, &instance.fault);
        let stepwise = faulty.on(&batch);
        let hidden = self.hidden(&stepwise, instance);
        let mut done = Steps::new();
        let mut norm = Matrix::zeros(0, 1);
        for step in [Step::Transform, Step::Activation, Step::Norm] {
            norm = stepwise.step(Stage::Head, step, hidden.as_ref(), &done);
            done.insert(step, norm.clone());
        }
        norm
    }

    /// The logits under a fault; `None` where it answers none.
    fn logits(&self, faulty: &Stepwise<'_>, instance: &Instance) -> Option<Matrix> {
        let batch = fed(self.batch, &instance.fault);
        let stepwise = faulty.on(&batch);
        let hidden = self.hidden(&stepwise, instance);
        let logits = stepwise.output(Stage::Head, hidden.as_ref());
        let shape = vec![logits.height(), logits.width()];
        let name = observation::LOGITS.to_owned();
        let tensor = Tensor::from_f64(shape, logits.values()).ok()?;
        let computed = BTreeMap::from([(name.clone(), tensor)]);
        let wanted = std::slice::from_ref(&name);
        let answered = instance.fault.answer(self.batch, wanted, computed);
        Some(Matrix::new(logits.width(), answered.get(&name)?.to_f64()))
    }

    /// The hidden state that the head starts from under a fault.
    fn hidden(&self, stepwise: &Stepwise<'_>, instance: &Instance) -> Option<Matrix> {
        let answers = |edit: &Edit| matches!(edit, Edit::Output(_));
        let first = match instance.stage {
            Some(stage) => stage,
            None if instance.fault.edits.iter().any(answers) => Stage::Head,
            None => Stage::Embeddings,
        };
        let mut hidden = self.inputs[&first].clone();
        let layers = self.inputs.keys().filter(|stage| **stage != Stage::Head);
        for stage in layers.skip_while(|stage| **stage != first) {
            hidden = Some(stepwise.output(*stage, hidden.as_ref()));
        }
        hidden
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locate::clean::tests::{loaded, prepared};

    /// Of most faults only some columns are computed: those of all.
    #[test]
    fn the_compared_columns_alone_are_those_of_all_logits() {
        let ((model, plan), loaded) = (prepared(), loaded());
        let truths = oracle::truths(&model, &plan.sequences);
        let bench = Bench {
            model: &model,
            plan: &plan,
            truths: &truths,
            k: 2.5,
        };
        let blind = Blind::compute(bench, &loaded, &[]).unwrap();
        let first = &plan.jobs[blind.jobs[0]].batch;
        let correct = Stepwise::new(&model, first, &stage_noise(&loaded), None).unwrap();
        let decoder = Decoder::new(&correct, &blind.columns);
        let base = Base::new(&correct, model.config.num_hidden_layers).unwrap();
        let few = decoder.decode(&base.norm);
        let all = blind.row_values(std::iter::once(base.logits.clone()));
        assert_eq!(few.len(), all.len());
        let largest = all.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        for (few, all) in few.iter().zip(&all) {
            assert!((few - all).abs() < 1e-13 * largest, "{few} and {all}");
        }
    }
}
