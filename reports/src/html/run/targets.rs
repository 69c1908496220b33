//! Each target at a glance, in pairs, and in time.

use std::collections::BTreeMap;

use super::{Badge, nearest};
use crate::RenderError;
use crate::html::chart;
use crate::phrases::{Phrases, fill};
use crate::record::{BaselineRecord, FindingKind, Pair, Repeats, RunRecord, TargetRecord, Verdict};
use crate::words::{NAME, bare, hidden, in_u, shown};

/// Targets of a matrix.
const MATRIX: usize = 16;

/// A target at a glance.
pub(crate) struct Row {
    pub target: String,
    pub library: String,
    pub runs_on: String,
    pub verdicts: Vec<(Badge, usize)>,
    pub nearest: String,
    pub used: String,
    pub bits: String,
    pub float64: String,
    pub baseline: String,
    pub repeats: String,
}

pub(crate) fn rows(record: &RunRecord, t: &'static Phrases) -> Vec<Row> {
    let row = |target| row(record, target, t);
    record.targets.iter().map(row).collect()
}

fn row(record: &RunRecord, target: &TargetRecord, t: &'static Phrases) -> Row {
    let own = || {
        record
            .results
            .iter()
            .filter(|result| result.target == target.target)
    };
    let mut counts: BTreeMap<Verdict, usize> = BTreeMap::new();
    own().for_each(|result| *counts.entry(result.verdict).or_insert(0) += 1);
    let all = || own().flat_map(|result| &result.observations);
    let worst = nearest(all());
    let bits = all()
        .filter_map(|(_, one)| one.effective_bits)
        .min_by(f64::total_cmp);
    let library = match (&target.library, &target.library_version) {
        (Some(library), Some(version)) => shown(&format!("{library} {version}"), NAME, t),
        _ => t.not_available.to_owned(),
    };
    Row {
        target: shown(&target.target, NAME, t),
        library,
        runs_on: runs_on(target, t),
        verdicts: counts
            .into_iter()
            .map(|(verdict, count)| (Badge::new(verdict, t), count))
            .collect(),
        nearest: worst.map_or(String::new(), |(name, one)| {
            format!("{} {}", shown(name, NAME, t), in_u(one.error_u, t))
        }),
        used: worst.map_or(String::new(), |(_, one)| {
            let used = 100.0 * one.in_noise() / record.method.k;
            match used.is_finite() {
                true => fill(t.of_limit, &[("used", &format!("{used:.0}"))]),
                false => String::new(),
            }
        }),
        bits: bits.map_or(String::new(), |bits| format!("{bits:.1}")),
        float64: float64(target, t),
        baseline: target
            .baseline
            .as_ref()
            .map_or(String::new(), |one| baseline(one, t)),
        repeats: target
            .repeats
            .as_ref()
            .map_or(String::new(), |one| repeats(one, t)),
    }
}

fn runs_on(target: &TargetRecord, t: &Phrases) -> String {
    let threads = match target.threads {
        None => None,
        Some(1) => Some(t.thread.to_owned()),
        Some(threads) => Some(fill(t.threads, &[("n", &threads.to_string())])),
    };
    let restarts = match target.restarts {
        0 => None,
        restarts => Some(fill(t.restarted, &[("n", &restarts.to_string())])),
    };
    let parts = [
        target.device.as_ref().map(|device| shown(device, NAME, t)),
        target.dtype.as_ref().map(|dtype| shown(dtype, NAME, t)),
        threads,
        restarts,
    ];
    parts
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(t.comma)
}

fn float64(target: &TargetRecord, t: &Phrases) -> String {
    if let Some(check) = &target.semantic {
        let error = check
            .error
            .map_or(t.not_finite.to_owned(), |error| format!("{error:.0e}"));
        let limit = format!("{:.0e}", check.limit);
        let phrase = if check.within {
            t.same_formula
        } else {
            t.other_formula
        };
        return fill(phrase, &[("error", &error), ("limit", &limit)]);
    }
    match &target.semantic_missing {
        Some(missing) if missing.kind == FindingKind::Unsupported => t.no_float64.to_owned(),
        Some(missing) => shown(&missing.message, NAME, t),
        None => t.not_asked.to_owned(),
    }
}

fn baseline(one: &BaselineRecord, t: &Phrases) -> String {
    let parts = [
        (one.drifted, t.base_drifted),
        (one.bitwise, t.base_bitwise),
        (one.within, t.base_within),
        (one.improved, t.base_improved),
        (one.unknown, t.base_unknown),
    ];
    let parts = parts.into_iter().filter(|(count, _)| *count > 0);
    let parts = parts.map(|(count, phrase)| fill(phrase, &[("n", &count.to_string())]));
    parts.collect::<Vec<_>>().join(t.comma)
}

fn repeats(one: &Repeats, t: &Phrases) -> String {
    let not_bitwise = one.not_bitwise.to_string();
    let values = [
        ("differing", one.differing.to_string()),
        ("verdicts", one.verdicts.to_string()),
        ("runs", one.runs.to_string()),
        ("rate", format!("{:.2}", 100.0 * one.rate_below)),
        ("bits", not_bitwise),
        ("observations", one.observations.to_string()),
    ];
    let values = values
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    fill(t.repeated_as, &values)
}

/// Every two targets.
pub(crate) struct Pairs {
    pub about: String,
    pub names: Vec<String>,
    pub rows: Vec<(String, Vec<PairCell>)>,
    pub hidden: Option<String>,
}

/// How far two targets are apart.
pub(crate) struct PairCell {
    pub class: &'static str,
    pub text: String,
    pub place: String,
}

pub(crate) fn pairs(record: &RunRecord, t: &'static Phrases) -> Option<Pairs> {
    if record.pairs.is_empty() {
        return None;
    }
    let names: Vec<&String> = record.targets.iter().map(|target| &target.target).collect();
    let named = &names[..names.len().min(MATRIX)];
    let cell = |a: &String, b: &String| {
        let is_it = |pair: &&Pair| (&pair.a == a && &pair.b == b) || (&pair.a == b && &pair.b == a);
        let pair = record.pairs.iter().find(is_it);
        pair.map_or(PairCell::empty(), |pair| PairCell::new(pair, t))
    };
    let row = |a: &&String| {
        let cells = named.iter().map(|b| cell(a, b));
        (shown(a, NAME, t), cells.collect())
    };
    Some(Pairs {
        about: fill(t.pairs_about, &[("k", &record.method.k.to_string())]),
        names: named.iter().map(|name| shown(name, NAME, t)).collect(),
        rows: named.iter().map(row).collect(),
        hidden: hidden(names.len() - named.len(), t),
    })
}

impl PairCell {
    fn empty() -> Self {
        Self {
            class: "empty",
            text: String::new(),
            place: String::new(),
        }
    }

    fn new(pair: &Pair, t: &Phrases) -> Self {
        let Some(furthest) = &pair.furthest else {
            return Self::empty();
        };
        let (class, sign) = match pair.compared == pair.within {
            _ if pair.bitwise == pair.compared => ("pass", "="),
            true => ("pass", "✓"),
            false => ("drift", "✗"),
        };
        let distance =
            furthest
                .noise
                .map_or(t.not_finite.to_owned(), |noise| match noise < 100.0 {
                    true => format!("{noise:.2}"),
                    false => bare(noise, t),
                });
        Self {
            class,
            text: format!("{sign} {distance}"),
            place: shown(&furthest.observation, NAME, t),
        }
    }
}

/// Seconds of a target.
pub(crate) struct Latency {
    pub target: String,
    pub bar: String,
    pub seconds: [String; 4],
}

/// # Errors
/// [`RenderError::Chart`] where a bar cannot be drawn.
pub(crate) fn latency(
    record: &RunRecord,
    t: &'static Phrases,
) -> Result<Vec<Latency>, RenderError> {
    let totals = record.targets.iter().map(|target| target.time.total);
    let whole = totals.fold(0.0, f64::max);
    if whole <= 0.0 {
        return Ok(Vec::new());
    }
    let of_target = |target: &TargetRecord| {
        let time = &target.time;
        let parts = [time.start, time.load, time.forward];
        let seconds = [time.start, time.load, time.forward, time.total];
        let name = shown(&target.target, NAME, t);
        Ok(Latency {
            bar: chart::bar(&parts, whole, &format!("{}: {:.2} s", name, time.total))?,
            target: name,
            seconds: seconds.map(|seconds| format!("{seconds:.2}")),
        })
    };
    record.targets.iter().map(of_target).collect()
}
