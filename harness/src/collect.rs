//! From verdicts to the record.

use std::collections::BTreeMap;

use driftgauge_protocol::{Arithmetic, Bias, Variance, property};
use driftgauge_reports::record::{
    Answer, FileRecord, KnownDeviations, Method, ModelRecord, RECORD_FORMAT, RECORD_VERSION,
    ResultRecord, RunRecord, RunTime, SemanticCheck, SuiteRecord, Summary, TargetRecord,
    TargetTime, Tokens, TruthRecord, Verdict,
};
use rayon::prelude::*;

use crate::exit;
use crate::judge::across::Across;
use crate::judge::diagnosis::Residual;
use crate::judge::{Bench, Judgement, describe, judge, no_outcome, truth_answer};
use crate::model::Model;
use crate::pairs::pairs;
use crate::plan::{Job, Plan, PlannedCase};
use crate::predict::Predictions;
use crate::run::TargetOutcome;
use crate::suite::Suite;

/// What a record holds that no outcome says.
#[derive(Debug)]
pub struct Surroundings {
    /// The truth, not compared with anything yet.
    pub truth: TruthRecord,
    /// The machine.
    pub host: BTreeMap<String, String>,
    /// Where things were on it.
    pub paths: BTreeMap<String, String>,
    /// When, and how long.
    pub time: RunTime,
}

/// Judges every outcome and writes everything down.
pub fn collect(
    bench: Bench<'_>,
    method: Method,
    suites: &[Suite],
    outcomes: &[TargetOutcome],
    predictions: &Predictions,
    surroundings: Surroundings,
) -> RunRecord {
    let judged: Vec<(ResultRecord, Option<Residual>)> = bench
        .plan
        .jobs
        .par_iter()
        .enumerate()
        .flat_map_iter(|(index, job)| {
            let cases = &bench.plan.cases[job.cases.clone()];
            cases.iter().enumerate().flat_map(move |(offset, case)| {
                let place = Place {
                    job: index,
                    case: job.cases.start + offset,
                };
                results_of(bench, place, job, case, outcomes, predictions)
            })
        })
        .collect();
    let (mut results, residuals): (Vec<_>, Vec<_>) = judged.into_iter().unzip();
    let across = Across {
        bench,
        outcomes,
        predictions,
    };
    let checks = across.complete(&mut results, &residuals);
    RunRecord {
        format: RECORD_FORMAT.to_owned(),
        version: RECORD_VERSION,
        driftgauge: env!("CARGO_PKG_VERSION").to_owned(),
        summary: summary(&results, &surroundings.truth, outcomes.len()),
        method,
        truth: surroundings.truth,
        model: model_record(bench.model),
        suites: suites
            .iter()
            .map(|suite| suite_record(suite, bench.plan))
            .collect(),
        targets: outcomes
            .iter()
            .zip(checks)
            .map(|(outcome, check)| target_record(outcome, check))
            .collect(),
        pairs: pairs(bench, outcomes, &results),
        results,
        known: KnownDeviations::default(),
        host: surroundings.host,
        paths: surroundings
            .paths
            .into_iter()
            .chain(library_paths(outcomes))
            .collect(),
        time: surroundings.time,
    }
}

/// The outcome in numbers.
pub fn summary(results: &[ResultRecord], truth: &TruthRecord, targets: usize) -> Summary {
    let mut verdicts = BTreeMap::new();
    for result in results {
        *verdicts.entry(result.verdict).or_insert(0) += 1;
    }
    let exit_code = match exit_code(&verdicts) {
        exit::CONFORMS if truth.finding.is_some() => exit::DRIFT,
        code => code,
    };
    Summary {
        exit_code,
        cases: results.len() / targets.max(1),
        targets,
        verdicts,
    }
}

/// A target that cannot do what was asked of it has not conformed either: what was declared and
/// not tested must never look like a pass. A deviation that no longer happens must be noticed, because
/// an entry that outlives it would hide the next one.
fn exit_code(verdicts: &BTreeMap<Verdict, usize>) -> u8 {
    if verdicts.is_empty() {
        exit::NOTHING
    } else if verdicts.contains_key(&Verdict::Broken)
        || verdicts.contains_key(&Verdict::Unsupported)
    {
        exit::BROKEN
    } else if verdicts.contains_key(&Verdict::Drift) || verdicts.contains_key(&Verdict::Fixed) {
        exit::DRIFT
    } else {
        exit::CONFORMS
    }
}

/// Indices of a case and of its batch in the plan.
#[derive(Clone, Copy)]
struct Place {
    job: usize,
    case: usize,
}

fn results_of(
    bench: Bench<'_>,
    place: Place,
    job: &Job,
    case: &PlannedCase,
    outcomes: &[TargetOutcome],
    predictions: &Predictions,
) -> Vec<(ResultRecord, Option<Residual>)> {
    let expected = truth_answer(bench, case);
    outcomes
        .iter()
        .map(|outcome| {
            let mut judgement = match (&outcome.trouble, &outcome.loaded) {
                (None, Some(loaded)) => {
                    let prediction = predictions.of(loaded, place.case);
                    let outcome = outcome.jobs[place.job].as_ref();
                    judge(bench, job, case, loaded, prediction, outcome)
                }
                (Some(trouble), _) => no_outcome(trouble),
                (None, None) => unreachable!("a target has either loaded or failed to"),
            };
            let residual = judgement.residual.take();
            let record = result_record(case, outcome, judgement, expected.clone());
            (record, residual)
        })
        .collect()
}

fn result_record(
    case: &PlannedCase,
    outcome: &TargetOutcome,
    judgement: Judgement,
    truth_answer: Option<Answer>,
) -> ResultRecord {
    let tokens = case.encoded.iter().map(|encoded| Tokens {
        ids: encoded.ids.clone(),
        text: encoded.tokens.join(" "),
        truncated: encoded.untruncated - encoded.ids.len(),
    });
    ResultRecord {
        suite: case.suite.clone(),
        case: case.case.name.clone(),
        task: case.case.task.name().to_owned(),
        target: outcome.target.to_string(),
        verdict: judgement.verdict,
        texts: case
            .case
            .task
            .texts()
            .into_iter()
            .map(str::to_owned)
            .collect(),
        tokens: tokens.collect(),
        answer: judgement.answer,
        truth_answer,
        margins: judgement.margins,
        observations: judgement.observations,
        findings: judgement.findings,
        known: None,
    }
}

/// What the record says of a model.
pub fn model_record(model: &Model) -> ModelRecord {
    let architecture = match serde_json::to_value(&model.config) {
        Ok(serde_json::Value::Object(keys)) => keys.into_iter().collect(),
        _ => BTreeMap::new(),
    };
    let naming = model.weights.naming();
    let naming = [
        ("prefix", naming.prefix),
        ("layer_norm", naming.layer_norm),
        ("decoder", naming.decoder),
    ];
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let identity = model.manifest.as_ref().map(|manifest| &manifest.model);
    ModelRecord {
        id: model.id.clone(),
        verified: model.manifest.is_some(),
        revision: identity.and_then(|identity| identity.revision.clone()),
        licence: identity.map(|identity| identity.licence.clone()),
        architecture,
        parameters: model.weights.parameters(),
        weights_dtypes: model
            .weights
            .dtypes()
            .iter()
            .map(|dtype| dtype.name().to_owned())
            .collect(),
        naming: naming.map(owned).into(),
        tokenizer: model
            .tokenizer
            .facts
            .iter()
            .map(|(key, value)| owned((key, value)))
            .collect(),
        files: model
            .files
            .iter()
            .map(|file| FileRecord {
                name: file
                    .path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                size: file.size(),
                sha256: file.sha256.clone(),
            })
            .collect(),
    }
}

fn suite_record(suite: &Suite, plan: &Plan) -> SuiteRecord {
    SuiteRecord {
        name: suite.name.clone(),
        description: suite.description.clone(),
        sha256: suite.sha256.clone(),
        batch: suite.batch,
        selected: plan
            .cases
            .iter()
            .filter(|case| case.suite == suite.name)
            .count(),
        cases: suite.cases.len(),
    }
}

/// Which library each target loaded, where it says so.
fn library_paths(outcomes: &[TargetOutcome]) -> impl Iterator<Item = (String, String)> {
    outcomes.iter().filter_map(|outcome| {
        let path = outcome
            .hello
            .as_ref()?
            .properties
            .get(property::LIBRARY_PATH)?;
        Some((format!("library of {}", outcome.target), path.clone()))
    })
}

fn target_record(outcome: &TargetOutcome, semantic: Option<SemanticCheck>) -> TargetRecord {
    let (hello, loaded) = (outcome.hello.as_ref(), outcome.loaded.as_ref());
    let mut properties = hello
        .map(|hello| hello.properties.clone())
        .unwrap_or_default();
    if let Some(loaded) = loaded {
        properties.extend(loaded.properties.clone());
        properties.extend(arithmetic_properties(loaded.arithmetic));
    }
    TargetRecord {
        target: outcome.target.to_string(),
        library: hello.map(|hello| hello.library.clone()),
        library_version: hello.map(|hello| hello.version.clone()),
        device: loaded.map(|loaded| loaded.device.clone()),
        dtype: loaded.map(|loaded| loaded.dtype.name().to_owned()),
        threads: loaded.map(|loaded| loaded.threads),
        observations: loaded
            .map(|loaded| loaded.observations.clone())
            .unwrap_or_default(),
        properties,
        finding: outcome.trouble.as_ref().map(describe),
        restarts: outcome.restarts,
        semantic,
        semantic_missing: outcome
            .float64
            .as_ref()
            .and_then(|run| run.as_ref().err())
            .map(describe),
        location: None,
        baseline: None,
        repeats: None,
        time: TargetTime {
            start: outcome.start_seconds,
            load: loaded.map_or(0.0, |loaded| loaded.seconds),
            forward: outcome.forward_seconds,
            total: outcome.total_seconds,
        },
    }
}

/// How a library adds up, among its properties.
fn arithmetic_properties(arithmetic: Arithmetic) -> [(String, String); 4] {
    let bias = match arithmetic.bias {
        Bias::First => "first",
        Bias::Last => "last",
    };
    let variance = match arithmetic.variance {
        Variance::TwoPass => "two passes",
        Variance::OnePass => "one pass",
    };
    [
        ("adds_bias", bias.to_owned()),
        (
            "adds_products_in_runs_of",
            arithmetic.product_run.to_string(),
        ),
        ("adds_rows_in_lanes", arithmetic.reduction_lanes.to_string()),
        ("variance", variance.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
}
