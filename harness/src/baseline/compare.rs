//! How a run stands to what was accepted.

use std::collections::BTreeMap;

use driftgauge_reports::environment::{self, Changed, in_words};
use driftgauge_reports::record::{
    BaselineRecord, Finding, FindingKind, Moved, Observation, ResultRecord, RunRecord, Verdict,
};

use super::folder::Accepted;
use super::standing::Counts;
use super::truth::{self, Sketch};
use super::{AcceptedError, Baseline, TRUTH_LIMIT, file, identity, input};
use crate::observed;

/// How a measured error stands to the accepted one; it may grow by `limit` times the noise.
pub fn moved(accepted: &AcceptedError, now: &Observation, limit: f64) -> Moved {
    let AcceptedError(accepted_u, _, digest) = accepted;
    let bitwise = *digest == now.digest;
    let grown = match (accepted_u, now.error_u) {
        // The accepted error was rounded to be written down.
        _ if bitwise => Some(0.0),
        (Some(accepted), Some(now)) => Some(now - accepted),
        _ => None,
    };
    let within = match grown {
        Some(grown) => grown <= limit * now.predicted_u,
        // From nonsense to numbers is no drift; from numbers to nonsense is.
        None => now.error_u.is_some(),
    };
    let noise = match grown {
        Some(0.0) => Some(0.0),
        grown => grown.map(|grown| grown / now.predicted_u),
    };
    Moved {
        accepted_u: *accepted_u,
        bitwise,
        noise: noise.filter(|noise| noise.is_finite()),
        within,
    }
}

/// The baseline whose environment differs least, and in what; of equals that of the latest day.
pub fn nearest<'a>(
    baselines: impl IntoIterator<Item = &'a Baseline>,
    environment: &BTreeMap<String, String>,
) -> Option<(&'a Baseline, Changed)> {
    let changed = |one: &'a Baseline| {
        let changed = environment::changed(&one.environment, environment);
        (one, changed)
    };
    let all = baselines.into_iter().map(changed);
    all.min_by(|(a, in_a), (b, in_b)| {
        let fewest = in_a.len().cmp(&in_b.len());
        fewest.then_with(|| b.accepted.cmp(&a.accepted))
    })
}

/// Compares a run with what was accepted: fills in [`Observation::moved`] and
/// [`baseline`](driftgauge_reports::record::TargetRecord::baseline), and adds findings to cases that drifted and to the truth.
pub fn compare(record: &mut RunRecord, accepted: &[Accepted], sketch: &Sketch) {
    record.truth.baselines = true;
    record.truth.limit = TRUTH_LIMIT;
    compare_truth(record, accepted, sketch);
    for index in 0..record.targets.len() {
        let target = &record.targets[index];
        let Some(identity) = identity(target) else {
            continue;
        };
        let (name, environment) = (target.target.clone(), environment::of(record, target));
        let mut compared: Option<BaselineRecord> = None;
        let mut latest = None;
        for suite in accepted {
            let own = suite.baselines.iter().filter(|one| one.target == identity);
            let Some((baseline, changed)) = nearest(own, &environment) else {
                continue;
            };
            let limit = record.method.move_limit;
            let results = record.results.iter_mut();
            let results =
                results.filter(|result| result.suite == suite.name && result.target == name);
            let counts = compare_results(results, baseline, &changed, limit);
            // The day as text sorts as the day does.
            latest = latest.max(
                baseline
                    .history
                    .last()
                    .map(|last| (&last.date, &last.reason)),
            );
            merge(&mut compared, baseline, counts, changed);
        }
        // A suite without a baseline is as unknown as a case without one.
        if let Some(compared) = &mut compared {
            compared.reason = latest.map(|(_, reason)| reason.clone());
            let results = record.results.iter().filter(|result| result.target == name);
            let observations = results.map(|result| result.observations.len());
            let known = compared.bitwise + compared.within + compared.drifted + compared.improved;
            // Lost observations are among the drifted ones, and not among the results.
            compared.unknown = observations.sum::<usize>().saturating_sub(known);
        }
        record.targets[index].baseline = compared;
    }
}

fn compare_truth(record: &mut RunRecord, accepted: &[Accepted], sketch: &Sketch) {
    let mut differing = 0;
    let mut largest = 0.0;
    let truth = &mut record.truth;
    for suite in accepted {
        for (case, old) in &suite.truth {
            let id = format!("{}/{case}", suite.name);
            let Some(now) = sketch.get(&id) else { continue };
            let difference = truth::difference(old, now);
            truth.compared += 1;
            differing += usize::from(difference > TRUTH_LIMIT);
            if truth.place.is_empty() || difference > largest {
                (largest, truth.place) = (difference, id);
            }
        }
    }
    truth.difference = largest.is_finite().then_some(largest);
    if differing > 0 {
        let message = format!(
            "the truth of {differing} of {} cases is not the accepted one: `{}` differs by \
             {largest:.1e} of its size, {TRUTH_LIMIT:.0e} is allowed; the model's files are the \
             same, so what computes the truth has changed",
            truth.compared, truth.place
        );
        truth.finding = Some(Finding::new(FindingKind::Moved, message));
    }
}

fn compare_results<'a>(
    results: impl Iterator<Item = &'a mut ResultRecord>,
    baseline: &Baseline,
    changed: &Changed,
    limit: f64,
) -> Counts {
    let mut counts = Counts::default();
    for result in results {
        let known = baseline.cases.get(&result.case);
        let known = known.filter(|case| case.input == input(&result.tokens));
        for (name, observation) in &mut result.observations {
            let accepted = known.and_then(|case| case.observations.get(name));
            observation.moved = accepted.map(|accepted| moved(accepted, observation, limit));
            counts.add(observation.moved.as_ref(), limit);
        }
        report(result, changed, limit);
        let accepted = known.map(|case| case.observations.keys());
        counts.drifted += report_lost(result, accepted.into_iter().flatten());
    }
    counts
}

/// Says in a finding which accepted observations a result does not have any more, and counts them. A
/// result without any has findings of its own.
fn report_lost<'a>(result: &mut ResultRecord, accepted: impl Iterator<Item = &'a String>) -> usize {
    let lost: Vec<&str> = accepted
        .filter(|name| !result.observations.contains_key(*name))
        .map(String::as_str)
        .collect();
    if lost.is_empty() || result.observations.is_empty() {
        return 0;
    }
    let message = format!(
        "`{}` was accepted and is not delivered any more",
        lost.join("`, `")
    );
    result
        .findings
        .push(Finding::new(FindingKind::Moved, message));
    if result.verdict == Verdict::Pass {
        result.verdict = Verdict::Drift;
    }
    lost.len()
}

/// Says in a finding that a case drifted, from the observation on where it starts. Where the case has
/// a finding already, it says there what was accepted.
fn report(result: &mut ResultRecord, changed: &Changed, limit: f64) {
    let mut names: Vec<String> = result.observations.keys().cloned().collect();
    observed::sort(&mut names);
    let first = names.into_iter().find_map(|name| {
        let observation = &result.observations[&name];
        let moved = observation.moved.as_ref()?;
        (!moved.within).then_some((name, observation, moved))
    });
    let Some((name, observation, moved)) = first else {
        return;
    };
    let finding = finding(&name, observation, moved, changed, limit);
    match result.findings.first_mut() {
        Some(origin) => origin.evidence.push(finding.message),
        None => {
            result.findings.push(finding);
            result.verdict = Verdict::Drift;
        }
    }
}

fn finding(
    name: &str,
    observation: &Observation,
    moved: &Moved,
    changed: &Changed,
    limit: f64,
) -> Finding {
    let number = |error: Option<f64>| match error {
        Some(error) => format!("{error:.1} u"),
        None => "not finite".to_owned(),
    };
    let predicted_u = observation.predicted_u;
    let by = moved.noise.map(|noise| {
        format!(", by {noise:.1} times the noise of {predicted_u:.1} u, {limit:.1} are allowed")
    });
    let budget = match observation.within {
        true => format!("; within its budget of {:.1} u", observation.budget_u),
        false => String::new(),
    };
    let cause = match changed.is_empty() {
        true => "nothing in the environment changed".to_owned(),
        false => format!("changed: {}", in_words(changed, usize::MAX)),
    };
    let message = format!(
        "`{name}` has moved from {} (accepted) to {}{}{budget}; {cause}",
        number(moved.accepted_u),
        number(observation.error_u),
        by.unwrap_or_default(),
    );
    let allowed_u = moved
        .accepted_u
        .map(|accepted| accepted + limit * predicted_u);
    let hint = "find out why; where it is wanted, `driftgauge accept --reason TEXT` accepts it";
    Finding {
        observation: Some(name.to_owned()),
        measured_u: observation.error_u,
        allowed_u,
        predicted_u: Some(predicted_u),
        hint: Some(hint.to_owned()),
        ..Finding::new(FindingKind::Moved, message)
    }
}

/// Adds what one suite showed to what the target's other suites showed.
fn merge(all: &mut Option<BaselineRecord>, baseline: &Baseline, counts: Counts, changed: Changed) {
    let name = file::stem(&baseline.target, &baseline.environment);
    let all = all.get_or_insert_with(|| BaselineRecord {
        name: name.clone(),
        changed: Changed::new(),
        bitwise: 0,
        within: 0,
        drifted: 0,
        improved: 0,
        unknown: 0,
        reason: None,
    });
    if !all.name.split(", ").any(|other| other == name) {
        all.name = format!("{}, {name}", all.name);
    }
    for (key, values) in changed {
        all.changed.entry(key).or_insert(values);
    }
    all.bitwise += counts.bitwise;
    all.within += counts.within;
    all.drifted += counts.drifted;
    all.improved += counts.improved;
}

#[cfg(test)]
mod tests {
    use super::super::{ModelIdentity, SuiteIdentity};
    use super::*;

    fn observation(error_u: Option<f64>, digest: &str) -> Observation {
        Observation {
            shape: vec![1, 1],
            dtype: "f32".to_owned(),
            max_abs: None,
            max_rel: None,
            error_u,
            effective_bits: error_u.map(|error| 24.0 - error.log2()),
            cosine: None,
            predicted_u: 4.0,
            budget_u: 10.0,
            within: true,
            digest: digest.to_owned(),
            moved: None,
        }
    }

    #[test]
    fn what_is_not_delivered_any_more_is_drift() {
        let result = |names: &[&str]| ResultRecord {
            suite: "s".to_owned(),
            case: "c".to_owned(),
            task: "features".to_owned(),
            target: "t".to_owned(),
            verdict: Verdict::Pass,
            texts: Vec::new(),
            tokens: Vec::new(),
            answer: None,
            truth_answer: None,
            margins: Vec::new(),
            observations: names
                .iter()
                .map(|name| ((*name).to_owned(), observation(Some(1.0), "d")))
                .collect(),
            findings: Vec::new(),
            known: None,
        };
        let accepted = ["cls".to_owned(), "hidden.1".to_owned()];
        for (names, lost) in [
            (&["cls", "hidden.1", "logits"][..], 0),
            (&["cls"], 1),
            // Nothing at all: the result says itself why.
            (&[], 0),
        ] {
            let mut result = result(names);
            assert_eq!(report_lost(&mut result, accepted.iter()), lost, "{names:?}");
            assert_eq!(result.verdict == Verdict::Drift, lost > 0);
            assert_eq!(result.findings.len(), usize::from(lost > 0));
        }
    }

    /// Accepted error, error of the run, whether the digests are equal; what it counts as, and by
    /// how many units of noise it moved. The limit is 1.5.
    #[test]
    fn errors_that_move() {
        let counts = |field: fn(&mut Counts) -> &mut usize| {
            let mut counts = Counts::default();
            *field(&mut counts) = 1;
            counts
        };
        let bitwise = counts(|c| &mut c.bitwise);
        let within = counts(|c| &mut c.within);
        let drifted = counts(|c| &mut c.drifted);
        let improved = counts(|c| &mut c.improved);
        for (accepted, now, equal, expected, noise) in [
            (Some(1.0), Some(1.00004), true, bitwise, Some(0.0)),
            (Some(1.0), Some(1.0), false, within, Some(0.0)),
            (Some(1.0), Some(7.0), false, within, Some(1.5)),
            (Some(1.0), Some(7.5), false, drifted, Some(1.625)),
            (Some(7.0), Some(1.0), false, within, Some(-1.5)),
            (Some(9.0), Some(1.0), false, improved, Some(-2.0)),
            (None, Some(9.0), false, improved, None),
            (Some(9.0), None, false, drifted, None),
            (None, None, false, drifted, None),
            (None, None, true, bitwise, Some(0.0)),
        ] {
            let now = observation(now, if equal { "a" } else { "b" });
            let accepted = AcceptedError(accepted, None, "a".to_owned());
            let moved = moved(&accepted, &now, 1.5);
            let mut found = Counts::default();
            found.add(Some(&moved), 1.5);
            let case = format!("{accepted:?} to {:?}", now.error_u);
            assert_eq!((found, moved.noise), (expected, noise), "{case}");
        }
    }

    #[test]
    fn the_nearest_environment_is_taken() {
        let baseline = |version: &str, threads: &str, accepted: &str| Baseline {
            driftgauge: String::new(),
            accepted: accepted.to_owned(),
            model: ModelIdentity {
                id: String::new(),
                files: BTreeMap::new(),
            },
            suite: SuiteIdentity {
                name: String::new(),
                sha256: String::new(),
            },
            target: String::new(),
            dtype: String::new(),
            environment: [("version", version), ("threads", threads)]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            history: Vec::new(),
            cases: BTreeMap::new(),
        };
        let all = [
            baseline("1", "1", "2026-01-01"),
            baseline("2", "1", "2026-01-03"),
            baseline("2", "8", "2026-01-02"),
        ];
        for (version, threads, expected, changed) in [
            ("1", "1", "2026-01-01", ""),
            ("2", "8", "2026-01-02", ""),
            ("3", "8", "2026-01-02", "version 2 -> 3"),
            // Two of them differ in one key: the later one.
            ("3", "1", "2026-01-03", "version 2 -> 3"),
        ] {
            let environment = baseline(version, threads, "").environment;
            let (found, keys) = nearest(&all, &environment).unwrap();
            assert_eq!(
                (found.accepted.as_str(), in_words(&keys, 9).as_str()),
                (expected, changed)
            );
        }
        assert!(nearest(&[], &BTreeMap::new()).is_none());
    }
}
