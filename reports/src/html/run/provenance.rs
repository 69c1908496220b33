//! What exactly was run: model, suites, versions, machine, method.

use chrono::DateTime;

use crate::phrases::{Phrases, fill};
use crate::record::RunRecord;
use crate::words::{NAME, TEXT, hidden, shown};

/// Files, suites and keys of a list.
const SHOWN: usize = 60;

/// Name and value of facts.
pub(crate) type Facts = Vec<(String, String)>;

/// What exactly was run.
pub(crate) struct Provenance {
    pub model: Facts,
    pub files: Vec<[String; 3]>,
    pub hidden_files: Option<String>,
    pub suites: Vec<[String; 3]>,
    pub hidden_suites: Option<String>,
    pub method: Facts,
    pub machine: Facts,
    pub time: Facts,
    /// A heading, and what the worker states.
    pub workers: Vec<(String, Facts)>,
}

pub(crate) fn of(record: &RunRecord, t: &'static Phrases) -> Provenance {
    let files = record.model.files.iter().take(SHOWN).map(|file| {
        let size = file.size.to_string();
        [
            shown(&file.name, NAME, t),
            size,
            shown(&file.sha256, NAME, t),
        ]
    });
    let suites = record.suites.iter().take(SHOWN).map(|suite| {
        let selected = format!("{} / {}", suite.selected, suite.cases);
        [
            shown(&suite.name, NAME, t),
            selected,
            shown(&suite.sha256, NAME, t),
        ]
    });
    let workers = record
        .targets
        .iter()
        .filter(|target| !target.properties.is_empty());
    let workers = workers.take(SHOWN).map(|target| {
        let name = shown(&target.target, NAME, t);
        (
            fill(t.stated, &[("target", &name)]),
            facts(&target.properties, t),
        )
    });
    Provenance {
        model: model(record, t),
        files: files.collect(),
        hidden_files: hidden(record.model.files.len().saturating_sub(SHOWN), t),
        suites: suites.collect(),
        hidden_suites: hidden(record.suites.len().saturating_sub(SHOWN), t),
        method: method(record, t),
        machine: facts(&record.host, t),
        time: time(record, t),
        workers: workers.collect(),
    }
}

/// A map as facts.
fn facts<'a>(map: impl IntoIterator<Item = (&'a String, &'a String)>, t: &Phrases) -> Facts {
    let facts = map.into_iter().take(SHOWN);
    facts
        .map(|(key, value)| (shown(key, NAME, t), shown(value, TEXT, t)))
        .collect()
}

fn model(record: &RunRecord, t: &Phrases) -> Facts {
    let model = &record.model;
    let verified = if model.verified {
        t.verified
    } else {
        t.not_verified
    };
    let mut all = vec![(
        t.model.to_owned(),
        format!("{} ({verified})", shown(&model.id, NAME, t)),
    )];
    for (name, value) in [(t.revision, &model.revision), (t.licence, &model.licence)] {
        let value = value.as_ref();
        all.extend(value.map(|value| (name.to_owned(), shown(value, NAME, t))));
    }
    let architecture = model.architecture.iter();
    let architecture: Vec<(String, String)> = architecture
        .map(|(key, value)| (key.clone(), value.to_string()))
        .collect();
    let pairs = architecture.iter().map(|(key, value)| (key, value));
    all.extend(facts(pairs, t));
    all.extend(facts(&model.tokenizer, t));
    all
}

fn method(record: &RunRecord, t: &Phrases) -> Facts {
    let method = &record.method;
    let mut budget = fill(t.method_k, &[("k", &method.k.to_string())]);
    if method.k_overridden {
        budget.push_str(&format!(" ({})", t.overridden));
    }
    let samples = [
        ("n", method.samples.to_string()),
        ("seed", method.seed.to_string()),
    ];
    let samples = samples
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let samples = fill(t.samples, &samples);
    let mut all = vec![(t.method.to_owned(), format!("{budget}{}{samples}", t.comma))];
    let truth = &record.truth;
    if truth.compared > 0 {
        let difference = truth.difference;
        let difference = difference.map_or(t.not_finite.to_owned(), |one| format!("{one:.1e}"));
        let values = [
            ("n", truth.compared.to_string()),
            ("difference", difference),
            ("limit", format!("{:.0e}", truth.limit)),
        ];
        let values = values
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        all.push((t.truth_digest.to_owned(), fill(t.truth_difference, &values)));
    }
    all.push((
        format!("SHA-256 ({})", t.truth_digest),
        shown(&truth.sha256, NAME, t),
    ));
    all
}

fn time(record: &RunRecord, t: &Phrases) -> Facts {
    let started = i64::try_from(record.time.started)
        .ok()
        .filter(|started| *started > 0);
    let started = started.and_then(|started| DateTime::from_timestamp(started, 0));
    let started = started.map(|started| {
        let written = started.format("%Y-%m-%d %H:%M:%S UTC").to_string();
        (t.started.to_owned(), written)
    });
    let phases = record
        .time
        .seconds
        .iter()
        .take(SHOWN)
        .map(|(phase, seconds)| {
            let seconds = fill(t.seconds, &[("n", &format!("{seconds:.2}"))]);
            (shown(phase, NAME, t), seconds)
        });
    started.into_iter().chain(phases).collect()
}
