//! Self-consistency: does a target give the same numbers however a case is run?
//!
//! No truth is needed: a target is compared with itself. [`choose()`] takes a handful of sequences,
//! [`variants()`] says in which ways each is run and what each way is compared with, [`drive()`] runs
//! them in one target's workers, [`compare`](compare::compare) counts and measures, and
//! [`assess`] holds the differences against the noise that is predicted for the same sequence. Only
//! `drive` touches the world outside.

pub mod choose;
pub mod compare;
pub mod drive;
pub mod variants;

use std::collections::BTreeMap;

use driftgauge_protocol::Loaded;
use driftgauge_reports::consistency::{
    CaseRecord, Check, CheckRecord, Difference, Outcome, TargetConsistency, VariantRecord,
};
use driftgauge_reports::record::{Class, Finding, FindingKind};

use crate::budget;
use crate::exit;
use crate::judge::describe;
use crate::plan::Plan;
use crate::predict::{Prediction, Predictions};

use compare::Compared;

pub use choose::choose;
pub use drive::{Driven, Setup, drive};
pub use variants::{Variant, variants};

/// Everything that assessing needs and that is the same for all targets.
#[derive(Debug, Clone, Copy)]
pub struct Scale<'a> {
    /// The chosen sequences.
    pub plan: &'a Plan,
    /// What rounding does to them.
    pub predictions: &'a Predictions,
    /// Budgets are this many times the noise.
    pub k: f64,
}

/// Holds what one target did against the noise.
pub fn assess(scale: Scale<'_>, variants: &[Variant], driven: &Driven) -> TargetConsistency {
    let (hello, loaded) = (driven.hello.as_ref(), driven.loaded.as_ref());
    let mut properties = hello
        .map(|hello| hello.properties.clone())
        .unwrap_or_default();
    properties.extend(loaded.into_iter().flat_map(|own| own.properties.clone()));
    let mut checks = Vec::new();
    if let (None, Some(loaded)) = (&driven.trouble, loaded) {
        let records: Vec<Option<VariantRecord>> = variants
            .iter()
            .zip(&driven.variants)
            .map(|(variant, outcome)| {
                let against = &variants[variant.against?].name;
                Some(variant_record(scale, loaded, variant, against, outcome))
            })
            .collect();
        for check in Check::ALL {
            let own = variants.iter().zip(&records);
            let own = own.filter(|(variant, _)| variant.check == Some(check));
            let own = own.filter_map(|(_, record)| record.clone());
            checks.push(check_record(check, own.collect()));
        }
    }
    TargetConsistency {
        target: driven.target.to_string(),
        library: hello.map(|hello| hello.library.clone()),
        library_version: hello.map(|hello| hello.version.clone()),
        threads: loaded.map(|loaded| loaded.threads),
        properties,
        finding: driven.trouble.as_ref().map(describe),
        restarts: driven.restarts,
        checks,
    }
}

fn check_record(check: Check, variants: Vec<VariantRecord>) -> CheckRecord {
    let cases = || variants.iter().flat_map(|variant| &variant.cases);
    let differences = cases().filter_map(|case| case.largest.clone());
    CheckRecord {
        check,
        outcome: worst(variants.iter().map(|variant| variant.outcome)),
        elements: cases().map(|case| case.elements).sum(),
        differing: cases().map(|case| case.differing).sum(),
        largest: differences.reduce(larger),
        variants,
    }
}

fn worst(outcomes: impl Iterator<Item = Outcome>) -> Outcome {
    outcomes.max().unwrap_or(Outcome::Skipped)
}

/// The larger of two differences, the first one of two that are equal.
fn larger(a: Difference, b: Difference) -> Difference {
    if b.in_noise() > a.in_noise() { b } else { a }
}

fn variant_record(
    scale: Scale<'_>,
    loaded: &Loaded,
    variant: &Variant,
    against: &str,
    outcome: &drive::Ran,
) -> VariantRecord {
    let mut record = VariantRecord {
        variant: variant.name.clone(),
        against: against.to_owned(),
        outcome: Outcome::Skipped,
        finding: None,
        skipped: variant.skipped.clone(),
        cases: Vec::new(),
    };
    match outcome {
        drive::Ran::Skipped(reason) => record.skipped.push(reason.clone()),
        drive::Ran::Lost(trouble) => {
            let finding = describe(trouble);
            record.outcome = match finding.kind {
                FindingKind::Unsupported => Outcome::Unsupported,
                _ => Outcome::Broken,
            };
            record.finding = Some(finding);
        }
        drive::Ran::Compared(cases) => {
            for (case, compared) in cases {
                let prediction = scale.predictions.of(loaded, *case);
                let id = scale.plan.cases[*case].id();
                let problems = compared.iter().filter_map(|one| {
                    let problem = one.problem.as_ref()?;
                    Some(format!("{id}, `{}`: {problem}", one.observation))
                });
                if let (None, Some(problem)) = (&record.finding, problems.into_iter().next()) {
                    record.finding = Some(Finding {
                        class: Some(Class::Damage),
                        ..Finding::new(FindingKind::Damage, problem)
                    });
                }
                let case = case_record(scale.k, loaded, prediction, &variant.name, id, compared);
                record.cases.push(case);
            }
            record.outcome = worst(record.cases.iter().map(|case| case.outcome));
        }
    }
    record
}

fn case_record(
    k: f64,
    loaded: &Loaded,
    prediction: &Prediction,
    variant: &str,
    case: String,
    compared: &[Compared],
) -> CaseRecord {
    let unit = loaded.dtype.unit_roundoff().unwrap_or(f64::NAN);
    let differing = compared
        .iter()
        .filter(|one| one.differing > 0 || one.problem.is_some());
    let mut outcome = Outcome::Bitwise;
    let mut largest: Option<Difference> = None;
    for one in differing.clone() {
        let finite = |number: f64| number.is_finite().then_some(number);
        let distance_u = one.relative / unit;
        // Every observation is predicted; none may pass for want of a prediction.
        let noise = match prediction.error_u(&one.observation).unwrap_or(0.0) {
            _ if distance_u == 0.0 => 0.0,
            predicted => distance_u / predicted,
        };
        let within = one.problem.is_none() && noise <= budget::pair_budget(k);
        outcome = outcome.max(if within {
            Outcome::Within
        } else {
            Outcome::Drift
        });
        if one.problem.is_some() {
            continue;
        }
        let difference = Difference {
            variant: variant.to_owned(),
            case: case.clone(),
            observation: one.observation.clone(),
            max_abs: one.max_abs,
            distance_u: finite(distance_u),
            noise: finite(noise),
        };
        largest = Some(match largest {
            Some(largest) => larger(largest, difference),
            None => difference,
        });
    }
    let counted = || compared.iter().filter(|one| one.counts);
    CaseRecord {
        case,
        outcome,
        elements: counted().map(|one| one.elements).sum(),
        differing: counted().map(|one| one.differing).sum(),
        starts: differing.clone().map(|one| one.observation.clone()).next(),
        largest,
    }
}

/// Outcomes over all targets, each check for itself; a target without checks counts once.
pub fn outcomes(targets: &[TargetConsistency]) -> BTreeMap<Outcome, usize> {
    let mut outcomes = BTreeMap::new();
    for target in targets {
        if let Some(finding) = &target.finding {
            let outcome = match finding.kind {
                FindingKind::Unsupported => Outcome::Unsupported,
                _ => Outcome::Broken,
            };
            *outcomes.entry(outcome).or_insert(0) += 1;
        }
        for check in &target.checks {
            *outcomes.entry(check.outcome).or_insert(0) += 1;
        }
    }
    outcomes
}

/// The exit code for some outcomes; what was asked for and not done is no consistency.
pub fn exit_code(outcomes: &BTreeMap<Outcome, usize>) -> u8 {
    let has = |outcome| outcomes.contains_key(&outcome);
    if has(Outcome::Broken) || has(Outcome::Unsupported) {
        exit::BROKEN
    } else if has(Outcome::Drift) {
        exit::DRIFT
    } else if has(Outcome::Bitwise) || has(Outcome::Within) {
        exit::CONFORMS
    } else {
        exit::NOTHING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        use Outcome::{Bitwise, Broken, Drift, Skipped, Unsupported, Within};
        for (outcomes, expected) in [
            (&[Bitwise, Within, Skipped][..], exit::CONFORMS),
            (&[Within], exit::CONFORMS),
            (&[Bitwise, Drift], exit::DRIFT),
            (&[Drift, Unsupported], exit::BROKEN),
            (&[Bitwise, Broken], exit::BROKEN),
            (&[Skipped], exit::NOTHING),
            (&[], exit::NOTHING),
        ] {
            let counted = outcomes.iter().map(|outcome| (*outcome, 1)).collect();
            assert_eq!(exit_code(&counted), expected, "{outcomes:?}");
        }
    }

    /// A difference of `relative` where 2 u are predicted, with K = 1: 2√2 u are allowed.
    #[test]
    fn differences_are_held_against_the_noise_of_two_results() {
        let loaded = Loaded {
            device: "cpu".to_owned(),
            dtype: driftgauge_protocol::Dtype::F32,
            threads: 1,
            observations: Vec::new(),
            arithmetic: Default::default(),
            float64_options: Default::default(),
            properties: Default::default(),
            seconds: 0.0,
        };
        let prediction = Prediction {
            errors: BTreeMap::from([("embeddings".to_owned(), vec![2.0, -2.0])]),
            rows: BTreeMap::from([("embeddings".to_owned(), usize::MAX)]),
            masks: Vec::new(),
            cosine: Vec::new(),
        };
        let u = 0.5f64.powi(24);
        for (relative, differing, problem, expected, noise) in [
            (0.0, 0, None, Outcome::Bitwise, None),
            // Zeros of another sign.
            (0.0, 1, None, Outcome::Within, Some(0.0)),
            (2.5 * u, 3, None, Outcome::Within, Some(1.25)),
            (2.83 * u, 3, None, Outcome::Drift, Some(1.415)),
            (f64::INFINITY, 3, None, Outcome::Drift, None),
            (0.0, 0, Some("2 numbers are NaN"), Outcome::Drift, None),
        ] {
            let compared = Compared {
                observation: "embeddings".to_owned(),
                counts: true,
                elements: 4,
                differing,
                max_abs: 0.0,
                relative,
                problem: problem.map(str::to_owned),
            };
            let record = case_record(1.0, &loaded, &prediction, "v", "c".to_owned(), &[compared]);
            assert_eq!(record.outcome, expected, "{relative}");
            let found = record.largest.and_then(|largest| largest.noise);
            let close = |(a, b): (f64, f64)| (a - b).abs() < 1e-9;
            assert!(
                found.is_some() == noise.is_some() && found.zip(noise).is_none_or(close),
                "{found:?} {noise:?}"
            );
        }
    }
}
