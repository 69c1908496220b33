//! The control group: runs without a fault, each on texts of its own.

use std::collections::BTreeMap;

use driftgauge_reports::selftest::Control as Checked;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

use super::gates::{Gates, NAMES};
use super::{Ground, Subject, predicted};
use crate::extract::compared;
use crate::judge::{Bench, judge};
use crate::locate::{Look, Sample, stage_noise, stage_noise_of};
use crate::model::{Encoded, Model};
use crate::observed;
use crate::oracle::{self, Noise, Sequence, Truth};
use crate::plan::{Job, Plan, PlannedCase, longest, pad};
use crate::predict::Prediction;
use crate::run::{start_loaded, wanted};
use crate::suite::{Case, Task};
use crate::worker::{Trouble, Worker};

/// A run without a fault.
pub struct Control<'a> {
    /// Its texts, one batch.
    pub plan: &'a Plan,
    /// Their truth.
    pub truths: &'a [Truth],
    /// What is predicted for them.
    pub predictions: &'a [Prediction],
    /// Noise of each stage alone.
    pub noise: &'a BTreeMap<String, f64>,
}

/// Runs one control on a worker that has the model without a fault, and looks for faults that are not there.
pub(super) fn check(
    ground: &Ground<'_>,
    subject: &Subject<'_>,
    control: &Control<'_>,
    slot: &mut Option<Worker>,
    checked: &mut Checked,
) -> Result<(), Trouble> {
    let mut worker = match slot.take() {
        Some(worker) => worker,
        None => start_loaded(subject.launch, subject.request)?.0,
    };
    let loaded = ground.loaded.clone();
    let job = &control.plan.jobs[0];
    let names = wanted(&loaded, &job.batch);
    let (_, tensors) = worker.run(&job.batch, &names, "a control")?;
    let (_, again) = worker.run(&job.batch, &names, "a control")?;
    *slot = Some(worker);

    let bench = Bench {
        plan: control.plan,
        truths: control.truths,
        ..ground.bench
    };
    let mut alarms = Vec::new();
    let mut gates = Gates::default();
    let config = &bench.model.config;
    for (case, prediction) in control.plan.cases.iter().zip(control.predictions) {
        let judgement = judge(bench, job, case, &loaded, prediction, Ok(&tensors));
        alarms.extend(
            judgement
                .findings
                .into_iter()
                .map(|finding| finding.message),
        );
        let truths = bench.truths_of(case);
        for name in prediction.errors.keys() {
            let truth = observed::truth(&truths, name, config.num_hidden_layers);
            if let Ok(values) = compared(name, &tensors, job, case, loaded.dtype, config) {
                gates.join(Gates::of(&values, &truth));
            }
        }
    }
    if tensors != again {
        alarms.push("two runs differ".to_owned());
    }
    let samples = [Sample {
        batch: &job.batch,
        tensors: &tensors,
        predicted: control.noise,
    }];
    let look = Look {
        model: bench.model,
        loaded: &loaded,
        k: bench.k,
        samples: &samples,
    };
    match stage_alarms(&look, checked) {
        Ok(more) => alarms.extend(more),
        Err(why) => alarms.push(why),
    }
    checked.runs += 1;
    checked.alarms.extend(alarms.into_iter().take(1));
    checked.gates.resize(NAMES.len(), 0);
    let counts = checked.gates.iter_mut().zip(gates.0);
    counts.for_each(|(count, noticed)| *count += usize::from(noticed));
    Ok(())
}

fn stage_alarms(look: &Look<'_>, checked: &mut Checked) -> Result<Vec<String>, String> {
    let checks = look.stages()?;
    let reached = checks.iter().filter(|check| check.reached);
    let largest = reached.clone().map(|check| check.noise());
    checked.largest = largest.fold(checked.largest, f64::max);
    let beyond = reached.filter(|check| !check.within(look.k));
    let alarms =
        beyond.map(|check| format!("{} is {:.1} times its noise", check.stage, check.noise()));
    Ok(alarms.collect())
}

/// Adds what was checked elsewhere.
pub(super) fn join(all: &mut Checked, other: Checked) {
    all.runs += other.runs;
    all.alarms.extend(other.alarms);
    all.gates.resize(NAMES.len(), 0);
    let counts = all.gates.iter_mut().zip(&other.gates);
    counts.for_each(|(one, other)| *one += other);
    all.largest = all.largest.max(other.largest);
}

/// A group of controls with everything that belongs to them.
pub struct Group {
    plans: Vec<Plan>,
    truths: Vec<Truth>,
    predictions: Vec<Prediction>,
    noises: Vec<BTreeMap<String, f64>>,
}

impl Group {
    /// What is run, one after the other.
    pub fn controls(&self) -> Vec<Control<'_>> {
        let parts = self.plans.iter().zip(&self.noises).enumerate();
        parts
            .map(|(index, (plan, noise))| {
                let own = index * LENGTHS.len()..(index + 1) * LENGTHS.len();
                Control {
                    plan,
                    truths: &self.truths[own.clone()],
                    predictions: &self.predictions[own],
                    noise,
                }
            })
            .collect()
    }
}

/// So many controls: each has texts of three lengths, made of tokens of the suite's own texts in a random order.
pub fn group(ground: &Ground<'_>, count: usize) -> Group {
    let bench = ground.bench;
    let sequences = bench.plan.sequences.iter();
    let tokens: Vec<u32> = sequences
        .flat_map(|sequence| sequence.ids.clone())
        .collect();
    // All in one plan, so that every weight is widened once.
    let all = shuffled(bench.model, &tokens, count);
    let stages = stage_noise(&ground.loaded);
    let whole = Noise {
        by_stage: false,
        ..stages
    };
    let stage_predictions = predicted(bench.model, &all, &stages);
    let jobs = all.jobs.iter();
    Group {
        truths: oracle::truths(bench.model, &all.sequences),
        predictions: predicted(bench.model, &all, &whole),
        noises: jobs
            .map(|job| stage_noise_of(job, &stage_predictions))
            .collect(),
        plans: (0..count).map(|job| all.only(&[job])).collect(),
    }
}

/// Tokens of each text of a control.
const LENGTHS: [usize; 3] = [14, 9, 5];

fn shuffled(model: &Model, tokens: &[u32], count: usize) -> Plan {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(0);
    let mut below = |limit: usize| (random.next_u64() % limit as u64) as usize;
    let has_head = model.weights.has_head();
    let mut plan = Plan {
        cases: Vec::new(),
        sequences: Vec::new(),
        jobs: Vec::new(),
    };
    for _ in 0..count {
        let first = plan.cases.len();
        for length in LENGTHS {
            let ids: Vec<u32> = (0..length).map(|_| tokens[below(tokens.len())]).collect();
            let masks = if has_head {
                vec![below(length)]
            } else {
                Vec::new()
            };
            let place = plan.sequences.len();
            plan.cases.push(case(place, has_head, &ids, &masks));
            plan.sequences.push(Sequence {
                type_ids: vec![0; length],
                logit_positions: masks,
                ids,
            });
        }
        let own = first..plan.cases.len();
        let sequences = &plan.sequences[own.clone()];
        let batch = pad(sequences, longest(sequences), model.config.pad_token_id);
        plan.jobs.push(Job {
            cases: own.clone(),
            sequences: own,
            batch,
        });
    }
    plan
}

fn case(place: usize, has_head: bool, ids: &[u32], masks: &[usize]) -> PlannedCase {
    let (text, text_pair) = (String::new(), None);
    PlannedCase {
        suite: "control".to_owned(),
        case: Case {
            name: place.to_string(),
            task: match has_head {
                true => Task::FillMask { text, text_pair },
                false => Task::Features { text, text_pair },
            },
            note: None,
        },
        encoded: vec![Encoded {
            ids: ids.to_vec(),
            type_ids: vec![0; ids.len()],
            tokens: Vec::new(),
            masks: masks.to_vec(),
            untruncated: ids.len(),
        }],
        sequences: place..place + 1,
    }
}
