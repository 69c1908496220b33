//! Enters what an examination found into the record of the run.

use driftgauge_reports::location::Location;
use driftgauge_reports::record::{Class, Finding, FindingKind, RunRecord, Verdict};

use crate::catalogue::{self, Kind};

/// Enters where target `index` of the record starts to differ: beside its findings, or, where no budget was exceeded,
/// as a finding of the cases that were looked at.
pub fn enter(record: &mut RunRecord, index: usize, mut location: Location) {
    let target = record.targets[index].target.clone();
    let own = |result: &&mut driftgauge_reports::record::ResultRecord| result.target == target;
    let beyond = record
        .results
        .iter()
        .filter(|result| result.target == target);
    let beyond = beyond.flat_map(|result| &result.observations);
    let names: std::collections::BTreeSet<&String> = beyond
        .filter(|(_, one)| !one.within)
        .map(|(name, _)| name)
        .collect();
    let origins = location
        .origins
        .iter()
        .map(|origin| origin.stages.len().max(1));
    location.followers = names.len().saturating_sub(origins.sum());
    let evidence = evidence(&location);
    let cause = location
        .origins
        .first()
        .and_then(|origin| origin.causes.first());
    let class = cause.and_then(|cause| class(&cause.name));
    let hint = cause.map(|cause| cause.advice.clone());
    let hidden = names.is_empty() && !location.origins.is_empty();
    if !evidence.is_empty() {
        for result in record.results.iter_mut().filter(own) {
            let looked_at = location
                .cases
                .contains(&format!("{}/{}", result.suite, result.case));
            if hidden && looked_at && result.verdict == Verdict::Pass {
                let message = format!(
                    "the model {}, which hides under the noise of the whole",
                    location.sentence().unwrap_or_default()
                );
                result.verdict = Verdict::Drift;
                result.findings.push(Finding {
                    class: Some(class.unwrap_or(Class::Semantic)),
                    evidence: evidence.clone(),
                    hint: hint.clone(),
                    ..Finding::new(FindingKind::Numeric, message)
                });
                continue;
            }
            let numeric = |finding: &&mut Finding| finding.kind == FindingKind::Numeric;
            for finding in result.findings.iter_mut().filter(numeric) {
                if let Some(class) = class {
                    finding.class = Some(class);
                }
                // What is known for certain comes first.
                finding.evidence.splice(0..0, evidence.iter().cloned());
                if finding.hint.is_none() {
                    finding.hint.clone_from(&hint);
                }
            }
        }
    }
    record.targets[index].location = Some(location);
}

/// What speaks for the place and the cause, a sentence each.
fn evidence(location: &Location) -> Vec<String> {
    let Some(sentence) = location.sentence() else {
        return Vec::new();
    };
    let mut evidence = vec![format!("it {sentence}")];
    for origin in &location.origins {
        let place = match location.origins.len() {
            1 => String::new(),
            _ => format!(" in {}", origin.place()),
        };
        evidence.push(match origin.causes.first() {
            None => format!("the difference{place} is none of the known ones"),
            Some(cause) => {
                let known = match &cause.evidence[..] {
                    [] => String::new(),
                    threads => format!(" ({})", threads.join(", ")),
                };
                format!(
                    "the difference{place} is that of {}: {}{known}",
                    cause.sentence(),
                    cause.means
                )
            }
        });
    }
    evidence.extend(location.notes.iter().cloned());
    evidence
}

/// The class of a known fault.
fn class(name: &str) -> Option<Class> {
    let entry = catalogue::all().find(|entry| entry.name == name)?;
    match entry.kind {
        Kind::Semantic => Some(Class::Semantic),
        Kind::Precision => Some(Class::Precision),
        Kind::Damage => Some(Class::Damage),
        Kind::Unsteady | Kind::Benign(_) => None,
    }
}
