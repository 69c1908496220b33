//! The targets of records that are merged: which are one, and what each is called.

use std::collections::{BTreeMap, BTreeSet};

use driftgauge_reports::environment;
use driftgauge_reports::record::{ResultRecord, TargetRecord};

use super::{Input, MergeError};

/// A case: its suite and its name.
pub(super) type Case = (String, String);

/// The targets so far.
#[derive(Default)]
pub(super) struct Targets(Vec<Variant>);

/// A target in one environment.
struct Variant {
    record: TargetRecord,
    /// What is said of it less the machine.
    environment: BTreeMap<String, String>,
    label: Option<String>,
    results: BTreeMap<Case, ResultRecord>,
    /// Indices of the records that it comes from.
    inputs: BTreeSet<String>,
}

/// Names of targets in the merged record, by record and name there.
pub(super) type Names = BTreeMap<(String, String), String>;

/// The targets of a merged record, and what became of their names.
pub(super) struct Named {
    pub(super) targets: Vec<TargetRecord>,
    /// The results of each case and target.
    pub(super) results: BTreeMap<(Case, String), ResultRecord>,
    pub(super) names: Names,
}

impl Targets {
    pub(super) fn add(
        &mut self,
        input: &Input,
        common_host: &BTreeMap<String, String>,
    ) -> Result<(), MergeError> {
        let record = &input.record;
        for target in &record.targets {
            let mut target = target.clone();
            let environment: BTreeMap<String, String> = environment::of(record, &target)
                .into_iter()
                .filter(|(key, _)| !key.starts_with("host."))
                .collect();
            // Machines differ: what is not common to all stands beside the target.
            let own = record.host.iter();
            let own = own.filter(|(key, _)| !common_host.contains_key(*key));
            let own = own.map(|(key, value)| (format!("host.{key}"), value.clone()));
            target.properties.extend(own);
            let results = record.results.iter();
            let results: BTreeMap<Case, ResultRecord> = results
                .filter(|result| result.target == target.target)
                .map(|result| ((result.suite.clone(), result.case.clone()), result.clone()))
                .collect();
            let same = self.0.iter_mut().find(|known| {
                known.record.target == target.target
                    && known.label == input.label
                    && known.environment == environment
            });
            match same {
                None => self.0.push(Variant {
                    record: target,
                    environment,
                    label: input.label.clone(),
                    results,
                    inputs: BTreeSet::from([input.name.clone()]),
                }),
                Some(known) => known.join(input, target, results)?,
            }
        }
        Ok(())
    }

    /// The targets under names that tell them apart.
    ///
    /// # Errors
    /// Where no name tells two apart.
    pub(super) fn named(self) -> Result<Named, MergeError> {
        let mut names = Names::new();
        let mut seen: BTreeMap<String, (String, BTreeMap<String, String>)> = BTreeMap::new();
        let (mut targets, mut results) = (Vec::new(), BTreeMap::new());
        let alike = |variant: &Variant| {
            let others = self.0.iter();
            others
                .filter(|other| other.record.target == variant.record.target)
                .count()
        };
        let suffixes: Vec<Option<String>> = self
            .0
            .iter()
            .map(|variant| match &variant.label {
                Some(label) => Some(label.clone()),
                None if alike(variant) > 1 => variant.record.library_version.clone(),
                None => None,
            })
            .collect();
        for (variant, suffix) in self.0.into_iter().zip(suffixes) {
            let name = match suffix {
                Some(suffix) => format!("{} ({suffix})", variant.record.target),
                None => variant.record.target.clone(),
            };
            let from = variant
                .inputs
                .iter()
                .next_back()
                .cloned()
                .unwrap_or_default();
            let known = seen.insert(name.clone(), (from.clone(), variant.environment.clone()));
            if let Some((_, known)) = known {
                let changed = environment::changed(&known, &variant.environment);
                return Err(MergeError::Environment {
                    other: from,
                    target: name,
                    changed: environment::in_words(&changed, 3),
                });
            }
            for input in &variant.inputs {
                let old = (input.clone(), variant.record.target.clone());
                names.insert(old, name.clone());
            }
            for (case, result) in variant.results {
                let result = ResultRecord {
                    target: name.clone(),
                    ..result
                };
                results.insert((case, name.clone()), result);
            }
            targets.push(TargetRecord {
                target: name,
                ..variant.record
            });
        }
        Ok(Named {
            targets,
            results,
            names,
        })
    }
}

impl Variant {
    /// Takes in what another record has of the same target.
    fn join(
        &mut self,
        input: &Input,
        target: TargetRecord,
        results: BTreeMap<Case, ResultRecord>,
    ) -> Result<(), MergeError> {
        if let Some((suite, case)) = results.keys().find(|case| self.results.contains_key(*case)) {
            return Err(MergeError::Twice {
                other: input.name.clone(),
                case: format!("{suite}/{case}"),
                target: target.target,
            });
        }
        self.results.extend(results);
        self.inputs.insert(input.name.clone());
        let record = &mut self.record;
        for (key, value) in target.properties {
            match record.properties.get_mut(&key) {
                Some(known) if *known != value => known.push_str(&format!("; {value}")),
                Some(_) => {}
                None => {
                    record.properties.insert(key, value);
                }
            }
        }
        record.restarts += target.restarts;
        record.finding = record.finding.take().or(target.finding);
        record.semantic_missing = record.semantic_missing.take().or(target.semantic_missing);
        // Of several checks the worst one speaks: one that found something, or the larger error.
        let rank = |check: &driftgauge_reports::record::SemanticCheck| {
            (!check.within, check.error.unwrap_or(f64::INFINITY))
        };
        record.semantic = match (record.semantic.take(), target.semantic) {
            (Some(one), Some(other)) if rank(&other) > rank(&one) => Some(other),
            (one, other) => one.or(other),
        };
        record.location = match (record.location.take(), target.location) {
            (Some(one), Some(other)) if one.origins.is_empty() && !other.origins.is_empty() => {
                Some(other)
            }
            (one, other) => one.or(other),
        };
        record.baseline = match (record.baseline.take(), target.baseline) {
            (Some(mut one), Some(other)) => {
                one.bitwise += other.bitwise;
                one.within += other.within;
                one.drifted += other.drifted;
                one.improved += other.improved;
                one.unknown += other.unknown;
                one.changed.extend(other.changed);
                Some(one)
            }
            (one, other) => one.or(other),
        };
        // The rates of two samples are not that of one; both stay in their own records.
        record.repeats = None;
        let (all, time) = (&mut record.time, target.time);
        all.start += time.start;
        all.load += time.load;
        all.forward += time.forward;
        all.total += time.total;
        Ok(())
    }
}
