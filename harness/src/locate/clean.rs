//! What a correct implementation makes of some batches, stage by stage, and what a fault would leave of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use driftgauge_protocol::fault::{Edit, Fault, InputChange};
use driftgauge_protocol::{Batch, Loaded, Stage, Tensor};

use super::causes::dot;
use super::seen::bounded;
use super::{stage_noise, stage_rows};
use crate::catalogue::Instance;
use crate::measure::{centre_rows, root_mean_square};
use crate::model::Model;
use crate::oracle::{self, Matrix, Noise, Sequence, Stepwise};

/// Correct passes over some batches.
#[derive(Debug)]
pub struct Clean<'a> {
    model: &'a Model,
    noise: Noise,
    batches: Vec<(&'a Batch, States)>,
    /// What was answered under the faults of the whole, by their names, and under none.
    answered: Mutex<BTreeMap<String, Arc<Answers>>>,
    /// What rounding adds, for each batch.
    rounding: OnceLock<Vec<Rounding>>,
}

/// What rounding adds to the result of each stage alone, as it is compared, in u: for each sample.
type Rounding = BTreeMap<Stage, Vec<Vec<f32>>>;

/// Samples of it: their root mean square is within 18 % of the true one.
const SAMPLES: usize = 16;
/// How much more coefficients scatter in clean runs than samples say: 1.3 (candle), 1.4 (libtorch) and 1.7 (ONNX Runtime)
/// times, the root mean square over every fault in 40 runs of each.
const SCATTER: f64 = 1.7;

/// Every observation, for each batch.
type Answers = Vec<BTreeMap<String, Tensor>>;

/// What each stage starts from and ends with.
type States = BTreeMap<Stage, (Option<Matrix>, Matrix)>;

/// How much a fault leaves at its own stage.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Signal {
    /// Sum of the squares of what it leaves, each number in units of its noise.
    pub squares: f64,
    /// Numbers.
    pub count: usize,
}

impl Signal {
    /// In units of the noise of the whole stage: what is above K exceeds its budget.
    pub fn noise(self) -> f64 {
        (self.squares / self.count.max(1) as f64).sqrt()
    }
}

impl<'a> Clean<'a> {
    /// Passes over some batches, as a target computes that loaded the model so.
    ///
    /// # Errors
    /// Where the model does not fit the batches.
    pub fn compute(
        model: &'a Model,
        loaded: &Loaded,
        batches: impl Iterator<Item = &'a Batch>,
    ) -> Result<Self, String> {
        let noise = stage_noise(loaded);
        let pass = |batch: &'a Batch| {
            let stepwise = Stepwise::new(model, batch, &noise, None)?;
            let mut states = States::new();
            let mut hidden: Option<Matrix> = None;
            for stage in stages(model, batch) {
                let output = stepwise.output(stage, hidden.as_ref());
                states.insert(stage, (hidden.take(), output.clone()));
                hidden = Some(output);
            }
            Ok((batch, states))
        };
        Ok(Self {
            model,
            noise,
            batches: batches.map(pass).collect::<Result<_, String>>()?,
            answered: Mutex::default(),
            rounding: OnceLock::new(),
        })
    }

    /// The standard deviation of the coefficient of an instance in the result of its stage, as far as rounding goes: what
    /// rounding adds there along the instance's signature. Rounding is not the same in all directions, so that
    /// the noise of the stage does not say it. NaN for an instance that has no stage or leaves nothing there.
    pub fn uncertainty(&self, instance: &Instance) -> f64 {
        let rounding = self.rounding.get_or_init(|| self.rounded());
        let coefficients = self.coefficients(instance, rounding);
        coefficients.map_or(f64::NAN, |all| SCATTER * root_mean_square(all.into_iter()))
    }

    /// The coefficient of an instance in each sample of rounding.
    fn coefficients(&self, instance: &Instance, rounding: &[Rounding]) -> Option<Vec<f64>> {
        let stage = instance.stage?;
        let (batch, _) = self.batches.first()?;
        let fault = Some(&instance.fault);
        let faulty = Stepwise::new(self.model, batch, &self.noise, fault).ok()?;
        let unit = self.noise.dtype.unit_roundoff().unwrap_or(f64::NAN);
        let (mut squares, mut along) = (0.0, vec![0.0; SAMPLES]);
        for ((batch, states), rounding) in self.batches.iter().zip(rounding) {
            let Some((input, truth)) = states.get(&stage) else {
                continue;
            };
            let variant = faulty.on(batch).output(stage, input.as_ref());
            let variant = stage_rows(stage, batch, &variant);
            let truth = stage_rows(stage, batch, truth);
            // As differences are weighed: in units of the noise, which is proportional to this.
            let norm = root_mean_square(truth.iter().copied());
            let differences = variant.iter().zip(&truth);
            let signature = differences.map(|(v, t)| ((bounded(*v) - t) / norm) as f32);
            let signature: Vec<f32> = signature.collect();
            squares += dot(&signature, &signature);
            for (along, sample) in along.iter_mut().zip(&rounding[&stage]) {
                *along += unit * dot(&signature, sample) / norm;
            }
        }
        Some(along.into_iter().map(|along| along / squares).collect())
    }

    fn rounded(&self) -> Vec<Rounding> {
        let noise = Noise {
            samples: SAMPLES,
            ..self.noise
        };
        let sequences: Vec<Vec<Sequence>> = self
            .batches
            .iter()
            .map(|(batch, _)| Sequence::of(batch))
            .collect();
        let sampled = oracle::sampled(self.model, &sequences.concat(), &noise);
        let mut rest = &sampled[..];
        let of_batch = |((_, states), sequences): (&(&Batch, States), &Vec<Sequence>)| {
            let (own, others) = rest.split_at(sequences.len());
            rest = others;
            let of_stage = |stage: Stage| {
                let name = stage.observation();
                let of_sample = |sample: usize| {
                    let errors = own.iter().filter_map(|one| one.errors[sample].get(&name));
                    let errors = errors.flat_map(|errors| errors.values());
                    let mut errors: Vec<f64> = errors.map(|error| f64::from(*error)).collect();
                    if stage == Stage::Head {
                        centre_rows(&mut errors, self.model.config.vocab_size);
                    }
                    errors.into_iter().map(|error| error as f32).collect()
                };
                (stage, (0..SAMPLES).map(of_sample).collect())
            };
            states.keys().map(|stage| of_stage(*stage)).collect()
        };
        self.batches.iter().zip(&sequences).map(of_batch).collect()
    }

    /// What an instance leaves at its own stage; `noises` are the noise of each stage alone, in u, for each
    /// batch. Nothing for an instance that has no stage.
    pub fn signal(&self, instance: &Instance, noises: &[BTreeMap<String, f64>]) -> Option<Signal> {
        let stage = instance.stage?;
        let unit = self.noise.dtype.unit_roundoff().unwrap_or(f64::NAN);
        let mut signal = Signal::default();
        let (batch, _) = self.batches.first()?;
        let fault = Some(&instance.fault);
        let Ok(faulty) = Stepwise::new(self.model, batch, &self.noise, fault) else {
            return Some(signal);
        };
        for ((batch, states), noise) in self.batches.iter().zip(noises) {
            let Some((input, truth)) = states.get(&stage) else {
                continue;
            };
            let variant = faulty.on(batch).output(stage, input.as_ref());
            let variant = stage_rows(stage, batch, &variant);
            let truth = stage_rows(stage, batch, truth);
            let noise = noise.get(&stage.observation()).copied().unwrap_or(f64::NAN);
            let deviation = noise * unit * root_mean_square(truth.iter().copied());
            let differences = variant.iter().zip(&truth);
            let differences = differences.map(|(v, t)| ((bounded(*v) - t) / deviation).powi(2));
            signal.squares += differences.sum::<f64>();
            signal.count += truth.len();
        }
        Some(signal)
    }

    /// Whether a fault of the whole changes anything of what is answered for these batches.
    ///
    /// # Errors
    /// Where the fault does not fit the model.
    pub fn changes(&self, fault: &Fault) -> Result<bool, String> {
        Ok(self.answers(Some(fault))? != self.answers(None)?)
    }

    /// Every observation of every batch under a fault of the whole.
    ///
    /// # Errors
    /// Where the fault does not fit the model.
    pub(super) fn answers(&self, fault: Option<&Fault>) -> Result<Arc<Answers>, String> {
        let name = fault.map_or("", |fault| &fault.name);
        let known = || self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answers) = known().get(name) {
            return Ok(Arc::clone(answers));
        }
        let answers = Arc::new(self.computed_answers(fault)?);
        known().insert(name.to_owned(), Arc::clone(&answers));
        Ok(answers)
    }

    fn computed_answers(&self, fault: Option<&Fault>) -> Result<Answers, String> {
        let answers = self.batches.iter().map(|(batch, states)| {
            let wanted: Vec<String> = states.keys().map(|stage| stage.observation()).collect();
            let Some(fault) = fault else {
                return self.tensors(batch, states.iter().map(|(stage, (_, end))| (*stage, end)));
            };
            let computed = self.computed(batch, states, fault)?;
            let computed = computed.iter().map(|(stage, end)| (*stage, end));
            Ok(fault.answer(batch, &wanted, self.tensors(batch, computed)?))
        });
        answers.collect()
    }

    fn computed(
        &self,
        batch: &Batch,
        states: &States,
        fault: &Fault,
    ) -> Result<BTreeMap<Stage, Matrix>, String> {
        let fed = fed(batch, fault);
        let is_output = |edit: &Edit| matches!(edit, Edit::Output(_));
        let only_answers = fault.edits.iter().all(is_output);
        let stepwise = Stepwise::new(self.model, &fed, &self.noise, Some(fault))?;
        let mut computed = BTreeMap::new();
        let mut hidden: Option<Matrix> = None;
        for stage in stages(self.model, batch) {
            let is_same = only_answers && (stage != Stage::Head || fed == *batch);
            let output = match is_same {
                true => states[&stage].1.clone(),
                false => stepwise.output(stage, hidden.as_ref()),
            };
            computed.insert(stage, output.clone());
            hidden = Some(output);
        }
        Ok(computed)
    }

    fn tensors<'m>(
        &self,
        batch: &Batch,
        ends: impl Iterator<Item = (Stage, &'m Matrix)>,
    ) -> Result<BTreeMap<String, Tensor>, String> {
        let tensor = |(stage, end): (Stage, &Matrix)| {
            let shape = match stage {
                Stage::Head => vec![end.height(), end.width()],
                _ => vec![batch.sequences, batch.length, end.width()],
            };
            let tensor = Tensor::from_f64(shape, end.values());
            Ok((
                stage.observation(),
                tensor.map_err(|error| error.to_string())?,
            ))
        };
        ends.map(tensor).collect()
    }
}

/// A batch as a pass under a fault computes it: with left padding only the positions move, and the rows stay.
pub(super) fn fed(batch: &Batch, fault: &Fault) -> Batch {
    let mut fed = batch.clone();
    if !fault.edits.contains(&Edit::Input(InputChange::LeftPadding)) {
        fed.logit_rows = fault.feed(batch, &[]).batch.logit_rows;
    }
    fed
}

/// The stages that a batch goes through.
fn stages(model: &Model, batch: &Batch) -> Vec<Stage> {
    let head = model.weights.has_head() && !batch.logit_rows.is_empty();
    Stage::all(model.config.num_hidden_layers, head)
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use driftgauge_protocol::fault::{Change, StepEdit};
    use driftgauge_protocol::{Arithmetic, Dtype, Step};

    use super::*;
    use crate::catalogue::{self, Kind};
    use crate::locate::stage_noise_of;
    use crate::plan::{Plan, plan};
    use crate::selftest::{known, predicted};
    use crate::suite;

    const HOME: &str = env!("CARGO_MANIFEST_DIR");

    pub(in crate::locate) fn prepared() -> (Model, Plan) {
        let model = Model::open(&Path::new(HOME).join("cases/models/zh-mini"), &[]).unwrap();
        let suite = suite::load(&Path::new(HOME).join("cases/selftest.toml")).unwrap();
        let plan = plan(&[suite], &[], &model).unwrap();
        (model, plan)
    }

    pub(in crate::locate) fn loaded() -> Loaded {
        Loaded {
            device: "cpu".to_owned(),
            dtype: Dtype::F32,
            threads: 1,
            observations: Vec::new(),
            arithmetic: Arithmetic::default(),
            float64_options: BTreeMap::new(),
            properties: BTreeMap::new(),
            seconds: 0.0,
        }
    }

    /// What no case reaches cannot be found. Weights in f16 lose nothing in a model that is stored in f16.
    #[test]
    fn the_cases_of_the_self_test_reach_every_fault() {
        let (model, plan) = prepared();
        let loaded = loaded();
        let batches = plan.jobs.iter().map(|job| &job.batch);
        let clean = Clean::compute(&model, &loaded, batches).unwrap();
        let predictions = predicted(&model, &plan, &stage_noise(&loaded));
        let jobs = plan.jobs.iter();
        let noises: Vec<_> = jobs.map(|job| stage_noise_of(job, &predictions)).collect();
        let right = clean.answers(None).unwrap();
        let mut checked = 0;
        for instance in known(&model) {
            let name = &instance.fault.name;
            let changes = match clean.signal(&instance, &noises) {
                Some(signal) => signal.squares != 0.0,
                None => clean.answers(Some(&instance.fault)).unwrap() != right,
            };
            match instance.entry.kind {
                // The expectation of random numbers is 0.
                Kind::Unsteady => assert!(!changes, "{name}"),
                Kind::Benign(_) => {}
                _ if instance.entry.name == "weights-f16" => assert!(!changes, "{name}"),
                _ => assert!(changes, "no case reaches {name}"),
            }
            checked += 1;
        }
        assert!(checked > catalogue::all().count(), "{checked}");
    }

    /// A signal is in units of the noise: twice the deviation is twice the signal, in its own stage only.
    /// Samples of another seed scatter along every signature as it is said.
    #[test]
    fn coefficients_scatter_as_their_uncertainty_says() {
        let (model, plan) = prepared();
        let loaded = loaded();
        let plan = plan.only(&[0, 1]);
        let batches = || plan.jobs.iter().map(|job| &job.batch);
        let clean = Clean::compute(&model, &loaded, batches()).unwrap();
        let mut other = Clean::compute(&model, &loaded, batches()).unwrap();
        other.noise.seed += 1;
        let rounding = other.rounded();
        for name in ["gelu-tanh", "eps-1e-5", "no-decoder-bias", "types-all-1"] {
            let entry = catalogue::all().find(|entry| entry.name == name).unwrap();
            for instance in entry.instances(&model.config, true) {
                let found = clean.coefficients(&instance, &rounding).unwrap();
                let said = clean.uncertainty(&instance) / SCATTER;
                let ratio = root_mean_square(found.into_iter()) / said;
                assert!((0.4..2.5).contains(&ratio), "{name}: {ratio}");
            }
        }
    }

    #[test]
    fn a_signal_is_measured_in_noise() {
        let (model, plan) = prepared();
        let loaded = loaded();
        let plan = plan.only(&[0]);
        let batches = plan.jobs.iter().map(|job| &job.batch);
        let clean = Clean::compute(&model, &loaded, batches).unwrap();
        let gelu = catalogue::all().find(|entry| entry.name == "gelu-tanh");
        let instances = gelu.unwrap().instances(&model.config, true);
        let noises = |noise: f64| {
            let stages = Stage::all(model.config.num_hidden_layers, true).into_iter();
            [stages
                .map(|stage| (stage.observation(), noise))
                .collect::<BTreeMap<_, _>>()]
        };
        let one = clean.signal(&instances[0], &noises(1.0)).unwrap();
        let two = clean.signal(&instances[0], &noises(2.0)).unwrap();
        assert!(one.count > 0 && one.noise() > 100.0, "{one:?}");
        assert!((one.noise() / two.noise() - 2.0).abs() < 1e-12);
        // An instance of a later stage that does what an earlier one does leaves nothing where it is not.
        let mut nothing = instances[1].clone();
        let stage = Stage::Layer(2);
        nothing.fault.edits = vec![Edit::Step(StepEdit {
            stage: Stage::Layer(1),
            step: Step::Norm,
            change: Change::Epsilon(0.1),
        })];
        assert_eq!(nothing.stage, Some(stage));
        assert_eq!(clean.signal(&nothing, &noises(1.0)).unwrap().squares, 0.0);
        assert_eq!(Signal::default().noise(), 0.0);
    }

    /// What is answered under a fault of the whole is what is said of it.
    #[test]
    fn answers_under_a_fault_of_the_whole() {
        let (model, plan) = prepared();
        let loaded = loaded();
        let plan = plan.only(&[0]);
        let batches = plan.jobs.iter().map(|job| &job.batch);
        let clean = Clean::compute(&model, &loaded, batches).unwrap();
        let right = clean.answers(None).unwrap();
        let find = |name: &str| {
            let entry = catalogue::all().find(|entry| entry.name == name).unwrap();
            entry.instances(&model.config, true).remove(0).fault
        };
        let earlier = clean.answers(Some(&find("previous-layer"))).unwrap();
        assert_eq!(earlier[0]["hidden.2"], right[0]["hidden.1"]);
        assert_eq!(earlier[0]["logits"], right[0]["logits"]);
        let softmax = clean.answers(Some(&find("log-softmax"))).unwrap();
        assert_eq!(softmax[0]["hidden.4"], right[0]["hidden.4"]);
        let logits = softmax[0]["logits"].to_f64();
        let sum: f64 = logits[..model.config.vocab_size]
            .iter()
            .map(|x| x.exp())
            .sum();
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
    }
}
