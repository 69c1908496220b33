//! From outcomes to verdicts: compares what a target produced with the truth.

pub(crate) mod across;
pub(crate) mod damage;
pub(crate) mod diagnosis;
pub(crate) mod margins;

use std::collections::BTreeMap;

use driftgauge_protocol::{BertConfig, Dtype, Failure, FailureKind, Loaded, observation};
use driftgauge_reports::record::{
    Answer, Class, Finding, FindingKind, Margin, Observation, Verdict,
};
use sha2::{Digest, Sha256};

use crate::answer::{Answering, answer};
use crate::budget;
use crate::extract::{Part, extract};
use crate::measure::{Distance, centre_rows};
use crate::model::Model;
use crate::observed::{self, CLS};
use crate::oracle::Truth;
use crate::plan::{Job, Plan, PlannedCase};
use crate::predict::Prediction;
use crate::run::JobOutcome;
use crate::suite::Task;
use crate::worker::Trouble;
use diagnosis::Residual;
use margins::Mask;

/// Error, in noise or relative to the truth, from which on a pattern of damage is looked for.
const DAMAGED: f64 = 100.0;
const DAMAGED_ERROR: f64 = 0.05;

/// What there is to say about one case on one target.
#[derive(Debug)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// What the target answers.
    pub answer: Option<Answer>,
    /// What has changed places against the truth.
    pub margins: Vec<Margin>,
    /// The comparisons.
    pub observations: BTreeMap<String, Observation>,
    /// What is wrong, the origin first.
    pub findings: Vec<Finding>,
    /// What is left of the first observation that is beyond its budget.
    pub(crate) residual: Option<Residual>,
}

/// Everything that judging needs and that is the same for all targets.
#[derive(Debug, Clone, Copy)]
pub struct Bench<'a> {
    /// The model.
    pub model: &'a Model,
    /// The plan.
    pub plan: &'a Plan,
    /// Truth of each sequence of the plan.
    pub truths: &'a [Truth],
    /// Budgets are this many times the predicted error.
    pub k: f64,
}

impl<'a> Bench<'a> {
    /// Truths of the texts of a case.
    pub fn truths_of(&self, case: &PlannedCase) -> Vec<&'a Truth> {
        self.truths[case.sequences.clone()].iter().collect()
    }
}

/// Judges one case of a job on a target that loaded the model as `loaded`, against what is
/// predicted for it.
pub fn judge(
    bench: Bench<'_>,
    job: &Job,
    case: &PlannedCase,
    loaded: &Loaded,
    prediction: &Prediction,
    outcome: Result<&JobOutcome, &Trouble>,
) -> Judgement {
    let tensors = match outcome {
        Ok(tensors) => tensors,
        Err(trouble) => return no_outcome(trouble),
    };
    // Where there is a head, a target that offers no logits was refused when it loaded.
    if matches!(case.case.task, Task::FillMask { .. }) && !bench.model.weights.has_head() {
        let reason = "the checkpoint has no masked-language-model head";
        return no_outcome(&Trouble::Refused(Failure::unsupported(reason)));
    }
    // Only a model file of the user's own may lack what answers are made of.
    let needed = match case.case.task {
        Task::FillMask { .. } => observation::LOGITS.to_owned(),
        _ => observation::hidden(bench.model.config.num_hidden_layers),
    };
    if !loaded.observations.contains(&needed) {
        let reason = format!("the model file gives no `{needed}`");
        return no_outcome(&Trouble::Refused(Failure::unsupported(reason)));
    }
    let mut judging = Judging {
        bench,
        job,
        case,
        prediction,
        dtype: loaded.dtype,
        observations: BTreeMap::new(),
        findings: Vec::new(),
        residual: None,
        values: BTreeMap::new(),
    };
    for name in offered(&loaded.observations, case) {
        judging.observe(&name, tensors);
    }
    judging.conclude()
}

/// The verdict where a target produced nothing.
pub fn no_outcome(trouble: &Trouble) -> Judgement {
    let finding = describe(trouble);
    let verdict = match finding.kind {
        FindingKind::Unsupported => Verdict::Unsupported,
        _ => Verdict::Broken,
    };
    Judgement {
        verdict,
        answer: None,
        margins: Vec::new(),
        observations: BTreeMap::new(),
        residual: None,
        findings: vec![finding],
    }
}

/// Trouble as a finding.
pub fn describe(trouble: &Trouble) -> Finding {
    let (kind, message, hint, stderr) = match trouble {
        Trouble::Refused(failure) => {
            let kind = match failure.kind {
                FailureKind::Unsupported => FindingKind::Unsupported,
                FailureKind::Error => FindingKind::Broken,
            };
            (
                kind,
                failure.message.clone(),
                failure.hint.clone(),
                Vec::new(),
            )
        }
        Trouble::Broken(broken) => {
            let message = format!("{} (while {})", broken.message, broken.stage);
            (
                FindingKind::Broken,
                message,
                broken.hint.clone(),
                broken.stderr.clone(),
            )
        }
    };
    Finding {
        hint,
        stderr,
        ..Finding::new(kind, message)
    }
}

/// The answer that the truth gives to a case.
pub fn truth_answer(bench: Bench<'_>, case: &PlannedCase) -> Option<Answer> {
    let truths = &bench.truths[case.sequences.clone()];
    let stacked = |name: &str| stack(truths, name);
    let hidden = stacked(&observation::hidden(bench.model.config.num_hidden_layers));
    let logits = stacked(observation::LOGITS);
    let from = answering(&bench.model.config, &hidden, &logits);
    answer(case, from, &bench.model.tokenizer)
}

fn answering<'a>(config: &BertConfig, hidden: &'a [f64], logits: &'a [f64]) -> Answering<'a> {
    Answering {
        hidden,
        hidden_width: config.hidden_size,
        logits,
        logits_width: config.vocab_size,
    }
}

fn stack(truths: &[Truth], name: &str) -> Vec<f64> {
    truths
        .iter()
        .filter_map(|truth| truth.get(name))
        .flat_map(|m| m.values())
        .copied()
        .collect()
}

/// The observations of a case in the order of the computation.
fn offered(offered: &[String], case: &PlannedCase) -> Vec<String> {
    let is_fill_mask = matches!(case.case.task, Task::FillMask { .. });
    let mut names: Vec<String> = offered
        .iter()
        .filter(|name| *name != observation::LOGITS || is_fill_mask)
        .cloned()
        .collect();
    observed::sort(&mut names);
    names
}

struct Judging<'a> {
    bench: Bench<'a>,
    job: &'a Job,
    case: &'a PlannedCase,
    prediction: &'a Prediction,
    dtype: Dtype,
    observations: BTreeMap<String, Observation>,
    findings: Vec<Finding>,
    residual: Option<Residual>,
    /// Numbers of the target that the answer is made of, by observation.
    values: BTreeMap<String, Vec<f64>>,
}

impl Judging<'_> {
    fn observe(&mut self, name: &str, tensors: &JobOutcome) {
        match self.extract(name, tensors) {
            Err(problem) => self.damage(name, problem),
            Ok(values) => {
                self.compare(name, &values);
                self.values.insert(name.to_owned(), values);
            }
        }
    }

    /// The numbers of this case alone, padding dropped.
    fn extract(&self, name: &str, tensors: &JobOutcome) -> Result<Vec<f64>, String> {
        let parts = Part::of(self.job, self.case);
        let config = &self.bench.model.config;
        extract(name, tensors, &self.job.batch, &parts, self.dtype, config)
            .map(|delivered| delivered.to_f64())
    }

    fn compare(&mut self, name: &str, values: &[f64]) {
        let config = &self.bench.model.config;
        if name == observation::LOGITS {
            let mut centred = values.to_vec();
            centre_rows(&mut centred, config.vocab_size);
            self.record(name, values, &centred, config.vocab_size);
            return;
        }
        self.record(name, values, values, config.hidden_size);
        if name == observation::hidden(config.num_hidden_layers) {
            let rows = observed::first_rows(self.case, values, config.hidden_size);
            self.record(CLS, &rows, &rows, config.hidden_size);
        }
    }

    /// Measures `values`, which are the delivered numbers as they are compared.
    fn record(&mut self, name: &str, delivered: &[f64], values: &[f64], width: usize) {
        let truths = self.bench.truths_of(self.case);
        let truth = observed::truth(&truths, name, self.bench.model.config.num_hidden_layers);
        // Of the delivered numbers: centring makes a whole row NaN where one number is.
        let not_finite = delivered.iter().filter(|value| !value.is_finite()).count();
        let distance = Distance::between(values, &truth);
        let finite = |number: f64| (not_finite == 0 && number.is_finite()).then_some(number);
        let unit = self.dtype.unit_roundoff().unwrap_or(f64::NAN);
        let error_u = distance.error / unit;
        let predicted_u = self.predicted_u(name);
        let budget_u = self.bench.k * predicted_u;
        let within = not_finite == 0 && error_u <= budget_u;
        self.observations.insert(
            name.to_owned(),
            Observation {
                shape: vec![values.len() / width, width],
                dtype: self.dtype.name().to_owned(),
                max_abs: finite(distance.max_abs),
                max_rel: finite(distance.max_rel),
                error_u: finite(error_u),
                effective_bits: finite(distance.effective_bits()),
                cosine: finite(distance.cosine),
                predicted_u,
                budget_u,
                within,
                digest: digest(delivered),
                moved: None,
            },
        );
        // What is only beyond its budget may still be an answer that got broken.
        let is_far = error_u > (DAMAGED * predicted_u).min(DAMAGED_ERROR / unit);
        let pattern = if not_finite > 0 {
            Some(damage::not_finite(delivered))
        } else if is_far && !within {
            let noise = predicted_u * unit;
            damage::pattern(values, &truth, width, noise, &self.others(name))
        } else {
            None
        };
        if let Some(problem) = pattern {
            self.damage(name, problem);
        } else if !within {
            self.residual.get_or_insert_with(|| Residual {
                name: name.to_owned(),
                values: values.iter().zip(&truth).map(|(y, t)| y - t).collect(),
                truth: truth.clone(),
                width,
            });
            let noise = error_u / predicted_u;
            let message = format!(
                "`{name}` is {error_u:.1} u from the truth, {noise:.1} times what rounding \
                 explains ({predicted_u:.1} u); {budget_u:.1} u are allowed"
            );
            self.findings.push(Finding {
                observation: Some(name.to_owned()),
                measured_u: finite(error_u),
                allowed_u: Some(budget_u),
                predicted_u: Some(predicted_u),
                ..Finding::new(FindingKind::Numeric, message)
            });
        }
    }

    /// The truths of the other cases of the batch.
    fn others(&self, name: &str) -> Vec<(String, Vec<f64>)> {
        let layers = self.bench.model.config.num_hidden_layers;
        let cases = self.bench.plan.cases[self.job.cases.clone()].iter();
        let others = cases.filter(|case| case.sequences != self.case.sequences);
        let truth = |case: &PlannedCase| {
            let truths = self.bench.truths_of(case);
            (case.id(), observed::truth(&truths, name, layers))
        };
        others.map(truth).collect()
    }

    /// The error that a correct implementation is predicted to have.
    fn predicted_u(&self, name: &str) -> f64 {
        // Every observation of a case is predicted; none may pass for want of a prediction.
        let predicted = self.prediction.error_u(name).unwrap_or(0.0);
        predicted * budget::against_rounded_truth(self.dtype)
    }

    fn damage(&mut self, name: &str, problem: String) {
        let predicted_u = self.predicted_u(name);
        self.findings.push(Finding {
            class: Some(Class::Damage),
            observation: Some(name.to_owned()),
            allowed_u: Some(self.bench.k * predicted_u),
            predicted_u: Some(predicted_u),
            ..Finding::new(FindingKind::Damage, format!("`{name}`: {problem}"))
        });
    }

    /// The tokens of the masks that have changed places.
    fn margins(&mut self) -> Vec<Margin> {
        let Some(logits) = self.values.get(observation::LOGITS) else {
            return Vec::new();
        };
        if !matches!(self.case.case.task, Task::FillMask { .. })
            || logits.iter().any(|logit| !logit.is_finite())
        {
            return Vec::new();
        }
        let truths = self.bench.truths_of(self.case);
        let layers = self.bench.model.config.num_hidden_layers;
        let truth = observed::truth(&truths, observation::LOGITS, layers);
        let width = self.bench.model.config.vocab_size;
        let tokenizer = &self.bench.model.tokenizer;
        let positions = self.case.encoded.iter().flat_map(|encoded| &encoded.masks);
        let rows = logits.chunks(width).zip(truth.chunks(width));
        let masks = positions.zip(rows).zip(&self.prediction.masks);
        let margins: Vec<Margin> = masks
            .flat_map(|((position, (logits, truth)), noise)| {
                let mask = Mask {
                    position: *position,
                    logits,
                    truth,
                    noise,
                };
                margins::of_mask(mask, self.dtype, self.bench.k, &|id| tokenizer.token(id))
            })
            .collect();
        self.findings.extend(order_finding(&margins));
        margins
    }

    fn conclude(mut self) -> Judgement {
        let margins = self.margins();
        let config = &self.bench.model.config;
        let none = Vec::new();
        let hidden = self
            .values
            .get(&observation::hidden(config.num_hidden_layers));
        let logits = self.values.get(observation::LOGITS);
        let from = answering(config, hidden.unwrap_or(&none), logits.unwrap_or(&none));
        let verdict = if self.findings.is_empty() {
            Verdict::Pass
        } else {
            Verdict::Drift
        };
        Judgement {
            verdict,
            margins,
            residual: self.residual,
            answer: answer(self.case, from, &self.bench.model.tokenizer),
            observations: self.observations,
            findings: self.findings,
        }
    }
}

/// The finding for what has changed places beyond noise, if anything has.
pub(crate) fn order_finding(margins: &[Margin]) -> Option<Finding> {
    let beyond = margins.iter().filter(|margin| !margin.tie).count();
    let worst = margins.iter().find(|margin| !margin.tie)?;
    let Margin {
        first,
        second,
        noise,
        ..
    } = worst;
    let more = match beyond {
        1 => String::new(),
        beyond => format!(", and {} more have changed places", beyond - 1),
    };
    let (place, observation) = match worst.position {
        Some(position) => (format!(" at token {position}"), observation::LOGITS),
        None => (" as the more similar".to_owned(), CLS),
    };
    let message = format!(
        "`{second}` comes before `{first}`{place}: the truth has them {noise:.1} times the noise apart{more}"
    );
    Some(Finding {
        observation: Some(observation.to_owned()),
        ..Finding::new(FindingKind::Order, message)
    })
}

/// Identifies numbers to the bit; widening them to f64 loses nothing.
pub fn digest(values: &[f64]) -> String {
    let mut hash = Sha256::new();
    for values in values.chunks(512) {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        hash.update(bytes);
    }
    hex::encode(&hash.finalize()[..16])
}
