//! The history of runs: [`summarise`] says what is kept of a record and is pure, [`store`] keeps it in a
//! SQLite file.

pub mod store;

use driftgauge_reports::RunRecord;
use driftgauge_reports::environment;
use driftgauge_reports::history::{HistoryCase, HistoryError, HistoryRun, HistoryTarget};
use driftgauge_reports::record::{Observation, TargetRecord};
use sha2::{Digest, Sha256};

use crate::{baseline, day};

/// What the history keeps of a record. `digest` is the SHA-256 of its file.
pub fn summarise(record: &RunRecord, digest: String) -> HistoryRun {
    let mut files = Sha256::new();
    for file in &record.model.files {
        files.update(format!("{} {}\n", file.name, file.sha256));
    }
    HistoryRun {
        digest,
        started: record.time.started,
        // The day by which deviations expire may have been set; this is the day it was.
        day: day::of(record.time.started),
        driftgauge: record.driftgauge.clone(),
        model: record.model.id.clone(),
        model_files: hex::encode(files.finalize()),
        exit_code: record.summary.exit_code,
        move_limit: record.method.move_limit,
        targets: record
            .targets
            .iter()
            .map(|target| of_target(record, target))
            .collect(),
    }
}

fn of_target(record: &RunRecord, target: &TargetRecord) -> HistoryTarget {
    let own = record.results.iter();
    let own = own.filter(|result| result.target == target.target);
    let cases = own.map(|result| {
        let errors = result.observations.iter();
        let case = HistoryCase {
            tokens: baseline::input(&result.tokens),
            verdict: result.verdict,
            errors: errors
                .map(|(name, observation)| (name.clone(), error(observation)))
                .collect(),
        };
        (format!("{}/{}", result.suite, result.case), case)
    });
    HistoryTarget {
        target: target.target.clone(),
        environment: environment::of(record, target),
        forward: target.time.forward,
        cases: cases.collect(),
    }
}

fn error(observation: &Observation) -> HistoryError {
    // Five digits of an error say all there is to say.
    let short = |number: f64| format!("{number:.4e}").parse().ok();
    let noise = Some(observation.in_noise()).filter(|noise| noise.is_finite());
    HistoryError(
        noise.and_then(short),
        observation.effective_bits.and_then(short),
    )
}
