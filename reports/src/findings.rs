//! Findings of a whole run, brought together.

use crate::record::{Finding, FindingKind, ResultRecord, RunRecord, Verdict};

/// One kind of finding of one target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group<'a> {
    /// The origin of the worst of them: the first finding of its result.
    pub finding: &'a Finding,
    /// Where that was found.
    pub result: &'a ResultRecord,
    /// Cases that have such a finding.
    pub cases: usize,
    /// Later findings of the same result, which follow from the origin.
    pub followed: usize,
}

/// The findings, the worst first, without those of known deviations. Findings of one target that say the same, or start at the same
/// observation, are one group.
pub(crate) fn grouped(record: &RunRecord) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    let unknown = record.results.iter();
    for result in unknown.filter(|result| result.verdict != Verdict::Known) {
        let Some((finding, later)) = result.findings.split_first() else {
            continue;
        };
        let new = Group {
            finding,
            result,
            cases: 1,
            followed: later
                .iter()
                .filter(|later| later.kind == finding.kind)
                .count(),
        };
        match groups.iter_mut().find(|group| is_same(group, &new)) {
            Some(group) if severity(finding) > severity(group.finding) => {
                *group = Group {
                    cases: group.cases + 1,
                    ..new
                };
            }
            Some(group) => group.cases += 1,
            None => groups.push(new),
        }
    }
    groups.sort_by(|a, b| {
        let kinds = b.finding.kind.cmp(&a.finding.kind);
        kinds.then(severity(b.finding).total_cmp(&severity(a.finding)))
    });
    groups
}

fn is_same(one: &Group, other: &Group) -> bool {
    let (a, b) = (one.finding, other.finding);
    let starts_alike = a.observation.is_some() && a.observation == b.observation;
    one.result.target == other.result.target
        && a.kind == b.kind
        && (a.message == b.message || starts_alike)
}

/// How far beyond what is allowed.
fn severity(finding: &Finding) -> f64 {
    match (finding.measured_u, finding.allowed_u) {
        (Some(measured), Some(allowed)) => measured / allowed,
        _ if finding.kind == FindingKind::Numeric => f64::INFINITY,
        _ => 0.0,
    }
}
