//! From outcomes to verdicts: compares what a target produced with the truth.

use std::collections::BTreeMap;
use std::ops::Range;

use driftgauge_protocol::{
    BertConfig, Dtype, Failure, FailureKind, Loaded, Tensor, observation, widen,
};
use driftgauge_reports::record::{Answer, Finding, FindingKind, Observation, Verdict};

use crate::answer::{Answering, answer};
use crate::budget::{CLS, budget_u};
use crate::measure::{Distance, centre_rows};
use crate::model::Model;
use crate::oracle::Truth;
use crate::plan::{Job, Plan, PlannedCase};
use crate::run::JobOutcome;
use crate::suite::Task;
use crate::worker::Trouble;

/// What there is to say about one case on one target.
#[derive(Debug)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// What the target answers.
    pub answer: Option<Answer>,
    /// The comparisons.
    pub observations: BTreeMap<String, Observation>,
    /// What is wrong, the origin first.
    pub findings: Vec<Finding>,
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
}

/// Judges one case of a job on a target that loaded the model as `loaded`.
pub fn judge(
    bench: Bench<'_>,
    job: &Job,
    case: &PlannedCase,
    loaded: &Loaded,
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
    let mut judging = Judging {
        bench,
        job,
        case,
        dtype: loaded.dtype,
        observations: BTreeMap::new(),
        findings: Vec::new(),
        values: BTreeMap::new(),
    };
    for name in in_order(&loaded.observations, case) {
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
        observations: BTreeMap::new(),
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
        kind,
        observation: None,
        measured_u: None,
        allowed_u: None,
        message,
        hint,
        stderr,
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
fn in_order(offered: &[String], case: &PlannedCase) -> Vec<String> {
    let is_fill_mask = matches!(case.case.task, Task::FillMask { .. });
    let mut names: Vec<String> = offered
        .iter()
        .filter(|name| *name != observation::LOGITS || is_fill_mask)
        .cloned()
        .collect();
    names.sort_by_key(|name| match name.as_str() {
        observation::EMBEDDINGS => 0,
        observation::LOGITS => usize::MAX,
        other => observation::hidden_layer(other).unwrap_or(usize::MAX - 1),
    });
    names
}

struct Judging<'a> {
    bench: Bench<'a>,
    job: &'a Job,
    case: &'a PlannedCase,
    dtype: Dtype,
    observations: BTreeMap<String, Observation>,
    findings: Vec<Finding>,
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
        let tensor = tensors
            .get(name)
            .ok_or("the observation is missing from the answer")?;
        if tensor.dtype() != self.dtype {
            return Err(format!(
                "is of dtype {}, the target is declared {}",
                tensor.dtype(),
                self.dtype
            ));
        }
        let (config, batch) = (&self.bench.model.config, &self.job.batch);
        let expected = if name == observation::LOGITS {
            vec![batch.logit_rows.len(), config.vocab_size]
        } else {
            vec![batch.sequences, batch.length, config.hidden_size]
        };
        if tensor.shape() != expected {
            return Err(format!(
                "has shape {:?}, expected {expected:?}",
                tensor.shape()
            ));
        }
        let mut values = Vec::new();
        for rows in self.rows(name) {
            values.extend(rows_of(tensor, rows));
        }
        Ok(values)
    }

    /// Ranges of rows of the flattened tensor that belong to this case.
    fn rows(&self, name: &str) -> Vec<Range<usize>> {
        let first = self.job.sequences.start;
        let own = self.case.sequences.start - first..self.case.sequences.end - first;
        if name == observation::LOGITS {
            let rows = &self.job.batch.logit_rows;
            let is_own = |row: &usize| own.contains(&rows[*row].0);
            return (0..rows.len())
                .filter(is_own)
                .map(|row| row..row + 1)
                .collect();
        }
        own.zip(&self.case.encoded)
            .map(|(sequence, encoded)| {
                let start = sequence * self.job.batch.length;
                start..start + encoded.ids.len()
            })
            .collect()
    }

    fn compare(&mut self, name: &str, values: &[f64]) {
        let truths = &self.bench.truths[self.case.sequences.clone()];
        let config = &self.bench.model.config;
        let mut truth = stack(truths, name);
        let width = if name == observation::LOGITS {
            config.vocab_size
        } else {
            config.hidden_size
        };
        if name == observation::LOGITS {
            let mut values = values.to_vec();
            centre_rows(&mut values, width);
            centre_rows(&mut truth, width);
            self.record(name, &values, &truth, width);
        } else {
            self.record(name, values, &truth, width);
        }
        if name == observation::hidden(config.num_hidden_layers) {
            let (values, truth) = (self.cls(values), self.cls(&truth));
            self.record(CLS, &values, &truth, width);
        }
    }

    /// The first row of each text.
    fn cls(&self, values: &[f64]) -> Vec<f64> {
        let width = self.bench.model.config.hidden_size;
        let mut start = 0;
        let mut rows = Vec::new();
        for encoded in &self.case.encoded {
            rows.extend_from_slice(&values[start * width..(start + 1) * width]);
            start += encoded.ids.len();
        }
        rows
    }

    fn record(&mut self, name: &str, values: &[f64], truth: &[f64], width: usize) {
        let not_finite = values.iter().filter(|value| !value.is_finite()).count();
        let distance = Distance::between(values, truth);
        let finite = |number: f64| (not_finite == 0 && number.is_finite()).then_some(number);
        let unit = self.dtype.unit_roundoff().unwrap_or(f64::NAN);
        let error_u = distance.error / unit;
        let budget_u = budget_u(name, self.bench.model.config.num_hidden_layers);
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
                budget_u,
                within,
            },
        );
        if not_finite > 0 {
            let problem = format!(
                "{not_finite} of {} numbers are NaN or infinite",
                values.len()
            );
            self.damage(name, problem);
        } else if !within {
            self.findings.push(Finding {
                kind: FindingKind::Numeric,
                observation: Some(name.to_owned()),
                measured_u: finite(error_u),
                allowed_u: Some(budget_u),
                message: format!(
                    "`{name}` is {error_u:.1} u from the truth, {budget_u:.1} u are allowed"
                ),
                hint: None,
                stderr: Vec::new(),
            });
        }
    }

    fn damage(&mut self, name: &str, problem: String) {
        self.findings.push(Finding {
            kind: FindingKind::Damage,
            observation: Some(name.to_owned()),
            measured_u: None,
            allowed_u: Some(budget_u(name, self.bench.model.config.num_hidden_layers)),
            message: format!("`{name}`: {problem}"),
            hint: None,
            stderr: Vec::new(),
        });
    }

    fn conclude(self) -> Judgement {
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
            answer: answer(self.case, from, &self.bench.model.tokenizer),
            observations: self.observations,
            findings: self.findings,
        }
    }
}

/// Rows of a tensor, flattened to two dimensions, as `f64`.
fn rows_of(tensor: &Tensor, rows: Range<usize>) -> Vec<f64> {
    let width = tensor.shape().last().copied().unwrap_or(0) * tensor.dtype().size();
    widen(
        tensor.dtype(),
        &tensor.bytes()[rows.start * width..rows.end * width],
    )
}
