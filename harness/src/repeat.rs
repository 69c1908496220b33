//! The flake budget: runs all cases again, each time in a fresh worker, and counts how often the
//! verdict is another one.
//!
//! The first run is the one that is judged and reported; nothing is run again to make a verdict go
//! away. Further outcomes are judged one at a time and dropped.

use std::collections::BTreeMap;

use driftgauge_protocol::{LoadRequest, Loaded};
use driftgauge_reports::record::{Finding, FindingKind, Repeats, RunRecord, Verdict};
use statrs::distribution::{Beta, ContinuousCDF};

use crate::collect::summary;
use crate::judge::{Bench, Judgement, judge};
use crate::plan::Job;
use crate::predict::Predictions;
use crate::run::{JobOutcome, Progress, TargetOutcome, run_again};
use crate::worker::{Launch, Trouble};

/// Confidence of the bound on the rate of differing verdicts.
const CONFIDENCE: f64 = 0.95;

/// What repeating one target needs.
#[derive(Debug)]
pub struct Repeated<'a> {
    /// What the target did in the first run.
    pub outcome: &'a TargetOutcome,
    /// How its worker was started.
    pub launch: Launch,
    /// What it loaded.
    pub request: LoadRequest,
}

/// What further runs of one target gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Repetition {
    /// The counts.
    pub repeats: Repeats,
    /// For each case, by its index in the plan, whose verdict differed: what to say of it.
    pub differing: BTreeMap<usize, Finding>,
}

/// Runs every target `runs` times in all, side by side; `None` for one that never loaded.
pub fn repeat(
    bench: Bench<'_>,
    predictions: &Predictions,
    targets: &[Repeated<'_>],
    runs: usize,
    progress: &dyn Progress,
) -> Vec<Option<Repetition>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = targets
            .iter()
            .enumerate()
            .map(|(index, target)| {
                scope
                    .spawn(move || repeat_target(bench, predictions, target, runs, index, progress))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().ok().flatten())
            .collect()
    })
}

/// Writes the repetitions of each target into the record, in the order of its targets. A verdict that
/// differs is a finding of the case, and no pass.
pub fn enter(record: &mut RunRecord, repetitions: Vec<Option<Repetition>>) {
    if repetitions.iter().all(Option::is_none) {
        return;
    }
    let targets = record.targets.len();
    for (index, repetition) in repetitions.into_iter().enumerate() {
        let Some(Repetition { repeats, differing }) = repetition else {
            continue;
        };
        record.targets[index].repeats = Some(repeats);
        for (case, finding) in differing {
            let result = &mut record.results[case * targets + index];
            result.findings.push(finding);
            if !matches!(result.verdict, Verdict::Broken | Verdict::Unsupported) {
                result.verdict = Verdict::Drift;
            }
        }
    }
    record.summary = summary(&record.results, &record.truth, targets);
}

/// What of a judgement is compared between runs.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    verdict: Verdict,
    /// Digest of the numbers of each observation.
    digests: BTreeMap<String, String>,
    /// What the first finding says.
    reason: Option<String>,
}

impl Seen {
    fn of(judgement: Judgement) -> Self {
        let observations = judgement.observations.into_iter();
        Self {
            verdict: judgement.verdict,
            digests: observations
                .map(|(name, observation)| (name, observation.digest))
                .collect(),
            reason: judgement
                .findings
                .into_iter()
                .next()
                .map(|finding| finding.message),
        }
    }
}

fn repeat_target(
    bench: Bench<'_>,
    predictions: &Predictions,
    target: &Repeated<'_>,
    runs: usize,
    index: usize,
    progress: &dyn Progress,
) -> Option<Repetition> {
    let loaded = target.outcome.loaded.as_ref()?;
    let judged = |job: usize, outcome: Result<&JobOutcome, &Trouble>| {
        judge_job(bench, predictions, loaded, &bench.plan.jobs[job], outcome)
    };
    let first: Vec<Vec<Seen>> = target
        .outcome
        .jobs
        .iter()
        .enumerate()
        .map(|(job, outcome)| judged(job, outcome.as_ref()))
        .collect();
    let mut tally = Tally::default();
    for run in 2..=runs {
        progress.stage(index, &format!("run {run} of {runs}"));
        let mut take = |job: usize, outcome: Result<JobOutcome, Trouble>| {
            let case = bench.plan.jobs[job].cases.start;
            let again = judged(job, outcome.as_ref());
            for (offset, (first, again)) in first[job].iter().zip(&again).enumerate() {
                tally.add(case + offset, run, first, again);
            }
            progress.job_done(index);
        };
        run_again(
            &target.launch,
            &target.request,
            loaded,
            bench.plan,
            &mut take,
        );
    }
    progress.stage(index, "done");
    Some(tally.conclude(runs))
}

fn judge_job(
    bench: Bench<'_>,
    predictions: &Predictions,
    loaded: &Loaded,
    job: &Job,
    outcome: Result<&JobOutcome, &Trouble>,
) -> Vec<Seen> {
    job.cases
        .clone()
        .map(|case| {
            let prediction = predictions.of(loaded, case);
            let planned = &bench.plan.cases[case];
            Seen::of(judge(bench, job, planned, loaded, prediction, outcome))
        })
        .collect()
}

#[derive(Default)]
struct Tally {
    verdicts: usize,
    differing: usize,
    not_bitwise: usize,
    observations: usize,
    findings: BTreeMap<usize, Finding>,
}

impl Tally {
    fn add(&mut self, case: usize, run: usize, first: &Seen, again: &Seen) {
        self.verdicts += 1;
        for (name, digest) in &first.digests {
            self.observations += 1;
            self.not_bitwise += usize::from(again.digests.get(name) != Some(digest));
        }
        if first.verdict == again.verdict {
            return;
        }
        self.differing += 1;
        let (one, other) = (first.verdict.name(), again.verdict.name());
        let finding = self.findings.entry(case).or_insert_with(|| {
            let message = format!("verdict differs between runs: {one}, then {other}");
            Finding::new(FindingKind::Flaky, message)
        });
        let reason = match &again.reason {
            Some(reason) => format!("run {run}: {other}: {reason}"),
            None => format!("run {run}: {other}"),
        };
        finding.evidence.push(reason);
    }

    fn conclude(self, runs: usize) -> Repetition {
        Repetition {
            repeats: Repeats {
                runs,
                verdicts: self.verdicts,
                differing: self.differing,
                rate_below: rate_below(self.differing, self.verdicts),
                not_bitwise: self.not_bitwise,
                observations: self.observations,
            },
            differing: self.findings,
        }
    }
}

/// Upper end of the one-sided 95 % confidence interval of a rate of which `some` of `all` were seen
/// (Clopper and Pearson, 1934): the largest rate at which so few are not rarer than 5 %.
fn rate_below(some: usize, all: usize) -> f64 {
    if some >= all {
        return 1.0;
    }
    match Beta::new(some as f64 + 1.0, (all - some) as f64) {
        Ok(beta) => beta.inverse_cdf(CONFIDENCE),
        Err(_) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_has_known_values() {
        // Of none: 1 - 0.05^(1/n). The others are from tables of the binomial distribution.
        for (some, all, expected) in [
            (0, 0, 1.0),
            (0, 1, 0.95),
            (0, 10, 1.0 - 0.05f64.powf(0.1)),
            (0, 950, 1.0 - 0.05f64.powf(1.0 / 950.0)),
            (1, 1, 1.0),
            (1, 10, 0.394_163),
            (2, 20, 0.282_619),
            (5, 100, 0.102_253),
        ] {
            let found = rate_below(some, all);
            assert!((found - expected).abs() < 2e-6, "{some} of {all}: {found}");
        }
    }

    /// At the bound, `some` or fewer of `all` come with a probability of 5 %.
    #[test]
    fn the_bound_is_that_of_the_binomial_distribution() {
        for (some, all) in [(0, 3), (1, 7), (3, 19), (10, 40)] {
            let rate = rate_below(some, all);
            let mut term = (1.0 - rate).powi(all as i32);
            let mut sum = term;
            for k in 1..=some {
                term *= (all - k + 1) as f64 / k as f64 * rate / (1.0 - rate);
                sum += term;
            }
            assert!((sum - 0.05).abs() < 1e-8, "{some} of {all}: {sum}");
        }
    }

    #[test]
    fn verdicts_and_bits_are_counted_apart() {
        let seen = |verdict, digest: &str, reason: Option<&str>| Seen {
            verdict,
            digests: match digest {
                "" => BTreeMap::new(),
                _ => BTreeMap::from([("cls".to_owned(), digest.to_owned())]),
            },
            reason: reason.map(str::to_owned),
        };
        let pass = |digest| seen(Verdict::Pass, digest, None);
        let mut tally = Tally::default();
        tally.add(0, 2, &pass("a"), &pass("a"));
        tally.add(0, 3, &pass("a"), &pass("b"));
        tally.add(
            1,
            2,
            &pass("a"),
            &seen(Verdict::Drift, "b", Some("far off")),
        );
        tally.add(1, 3, &pass("a"), &seen(Verdict::Broken, "", Some("gone")));
        let Repetition { repeats, differing } = tally.conclude(3);
        assert_eq!(
            (repeats.runs, repeats.verdicts, repeats.differing),
            (3, 4, 2)
        );
        assert_eq!((repeats.not_bitwise, repeats.observations), (3, 4));
        assert!((repeats.rate_below - rate_below(2, 4)).abs() < 1e-12);
        let [(case, finding)] = <[_; 1]>::try_from(Vec::from_iter(differing)).unwrap();
        assert_eq!(case, 1);
        assert_eq!(
            finding.message,
            "verdict differs between runs: pass, then drift"
        );
        assert_eq!(
            finding.evidence,
            ["run 2: drift: far off", "run 3: broken: gone"]
        );
    }
}
