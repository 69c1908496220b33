//! What a run comes to, in one sentence and one next step.

use crate::Language;
use crate::location::{Location, Origin};
use crate::phrases::{Phrases, fill};
use crate::record::{RunRecord, TargetRecord, Verdict};
use crate::words::{NAME, shown};

/// What a run comes to.
pub(crate) struct Conclusion {
    /// The verdict that the whole run deserves.
    pub verdict: Verdict,
    /// Yes, no, or not known.
    pub answer: &'static str,
    /// Why.
    pub reason: String,
    /// What the reader should do.
    pub next: &'static str,
}

/// Draws the conclusion of a run.
pub(crate) fn of(record: &RunRecord, language: Language) -> Conclusion {
    let t = Phrases::of(language);
    if record.results.is_empty() {
        return Conclusion {
            verdict: Verdict::Broken,
            answer: t.no_verdict,
            reason: t.nothing_run.to_owned(),
            next: t.do_run,
        };
    }
    for (verdict, answer, phrase, next) in [
        (Verdict::Drift, t.other_model, t.drifted, t.do_explain),
        (Verdict::Broken, t.no_verdict, t.broke, t.do_repair),
        (Verdict::Fixed, t.same_model, t.no_longer, t.do_remove),
        (Verdict::Unsupported, t.no_verdict, t.cannot, t.do_choose),
    ] {
        let mut affected = affected(record, verdict);
        // The worst first.
        affected.sort_by_key(|(_, affected, _)| std::cmp::Reverse(*affected));
        let mut affected = affected.into_iter();
        let truth_moved = verdict == Verdict::Drift && record.truth.finding.is_some();
        let Some((target, count, all)) = affected.next() else {
            if truth_moved {
                return Conclusion {
                    verdict,
                    answer,
                    reason: sentence(t.truth_moved, language),
                    next,
                };
            }
            continue;
        };
        let values = [
            ("target", shown(&target.target, NAME, t)),
            ("n", count.to_string()),
            ("all", all.to_string()),
        ];
        let values = values
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        let mut reason = fill(phrase, &values);
        if let Some(location) = target
            .location
            .as_ref()
            .filter(|_| verdict == Verdict::Drift)
        {
            reason.push_str(&origin_in_words(location, t));
        }
        match affected.len() {
            0 => {}
            more => {
                let values = [("first", reason.as_str()), ("n", &more.to_string())];
                reason = fill(t.others_too, &values);
            }
        }
        if truth_moved {
            reason = format!("{}{}{reason}", t.truth_moved, t.comma);
        }
        return Conclusion {
            verdict,
            answer,
            reason: sentence(&reason, language),
            next,
        };
    }
    conforming(record, t)
}

fn conforming(record: &RunRecord, t: &'static Phrases) -> Conclusion {
    let (cases, targets) = (
        record.summary.cases.to_string(),
        record.targets.len().to_string(),
    );
    let mut reason = match nearest(record) {
        Some((target, observation, used)) => {
            let used = format!("{:.0}", used * 100.0);
            let (target, observation) = (shown(target, NAME, t), shown(observation, NAME, t));
            let values = [
                ("targets", targets.as_str()),
                ("cases", &cases),
                ("used", &used),
                ("target", &target),
                ("observation", &observation),
            ];
            fill(t.conforms, &values)
        }
        None => {
            let values = [("targets", targets.as_str()), ("cases", cases.as_str())];
            fill(t.conforms_plainly, &values)
        }
    };
    let is_known = |result: &&crate::record::ResultRecord| result.verdict == Verdict::Known;
    let known = record.results.iter().filter(is_known).count();
    if known > 0 {
        reason.push(' ');
        reason.push_str(&fill(t.deviates_as_known, &[("n", &known.to_string())]));
    }
    let has_baseline = record
        .targets
        .iter()
        .any(|target| target.baseline.is_some());
    Conclusion {
        verdict: Verdict::Pass,
        answer: t.same_model,
        reason,
        next: if has_baseline || !record.truth.baselines {
            t.do_nothing
        } else {
            t.do_accept
        },
    }
}

/// The error nearest its limit, known deviations apart: target, observation, and how much of the limit it is.
pub(crate) fn nearest(record: &RunRecord) -> Option<(&str, &str, f64)> {
    let results = record.results.iter();
    let results = results.filter(|result| result.verdict != Verdict::Known);
    let used = results.flat_map(|result| {
        result.observations.iter().map(|(name, one)| {
            let used = one.in_noise() / record.method.k;
            (result.target.as_str(), name.as_str(), used)
        })
    });
    used.max_by(|a, b| a.2.total_cmp(&b.2))
}

/// The targets that have results with a verdict, in their order: how many, and of how many.
pub(crate) fn affected(record: &RunRecord, verdict: Verdict) -> Vec<(&TargetRecord, usize, usize)> {
    let counted = record.targets.iter().map(|target| {
        let own = record
            .results
            .iter()
            .filter(|result| result.target == target.target);
        let (mut all, mut affected) = (0, 0);
        for result in own {
            all += 1;
            affected += usize::from(result.verdict == verdict);
        }
        (target, affected, all)
    });
    counted.filter(|(_, affected, _)| *affected > 0).collect()
}

/// `; it starts in layer 3, activation; looks like gelu-tanh`, or nothing.
fn origin_in_words(location: &Location, t: &Phrases) -> String {
    let Some(origin) = location.origins.first() else {
        return String::new();
    };
    let place = shown(&place(origin, t), NAME, t);
    let starts = fill(t.it_starts_in, &[("place", &place)]);
    let likeness = origin.causes.first().map_or(String::new(), |cause| {
        let name = shown(&cause.name, NAME, t);
        let cause = fill(t.looks_like, &[("cause", &name)]);
        format!("{}{cause}", t.and)
    });
    format!("{}{starts}{likeness}", t.comma)
}

/// A place in words: `layers 2 to 4, activation`.
pub(crate) fn place(origin: &Origin, t: &Phrases) -> String {
    let numbers = origin.layers();
    let written: Vec<String> = numbers.iter().map(usize::to_string).collect();
    let layers = match &written[..] {
        [] => None,
        [layer] => Some(fill(t.layer, &[("n", layer)])),
        [first, .., last] if numbers.windows(2).all(|pair| pair[1] == pair[0] + 1) => {
            Some(fill(t.layers_to, &[("first", first), ("last", last)]))
        }
        _ => Some(fill(t.layers, &[("list", &written.join(t.comma))])),
    };
    let has = |name: &str| origin.stages.iter().any(|stage| stage == name);
    let parts = [
        has("embeddings").then(|| t.embeddings.to_owned()),
        layers,
        has("head").then(|| t.head.to_owned()),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let stages = match parts.is_empty() {
        true => t.outside.to_owned(),
        false => parts.join(t.and),
    };
    match &origin.step {
        Some(step) => format!("{stages}{}{step}", t.comma),
        None => stages,
    }
}

/// A sentence with a capital letter and a full stop.
fn sentence(words: &str, language: Language) -> String {
    match language {
        Language::Chinese => format!("{words}。"),
        Language::English => format!("{words}."),
    }
}
