//! GitLab's code quality report: one entry for each result that deviates.

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::RenderError;
use crate::record::{Class, Finding, ResultRecord, RunRecord, Verdict, suite_key};
use crate::text::{plain, shorten};
use crate::words::{NAME, TEXT};

#[derive(Serialize)]
struct Entry {
    description: String,
    check_name: String,
    /// The same for the same finding of every run.
    fingerprint: String,
    severity: &'static str,
    location: Location,
}

#[derive(Serialize)]
struct Location {
    path: String,
    lines: Lines,
}

#[derive(Serialize)]
struct Lines {
    begin: u32,
}

/// Renders the record.
///
/// # Errors
/// [`RenderError::Json`] where JSON cannot say it.
pub(crate) fn render(record: &RunRecord) -> Result<String, RenderError> {
    let mut entries = Vec::new();
    if let Some(finding) = &record.truth.finding {
        let id = ["truth", &finding.message];
        entries.push(entry(
            "truth",
            "critical",
            "truth",
            &id,
            finding,
            String::new(),
        ));
    }
    for result in &record.results {
        let Some(finding) = result.findings.first() else {
            continue;
        };
        let path = path(record, result);
        let observation = finding.observation.as_deref().unwrap_or_default();
        let kind = format!("{:?}", finding.kind).to_lowercase();
        let id = [
            &result.suite,
            &result.case,
            &result.target,
            &kind,
            observation,
        ];
        let place = format!("{}/{} on {}: ", result.suite, result.case, result.target);
        let severity = severity(result, finding);
        entries.push(entry(&kind, severity, &path, &id, finding, place));
    }
    if record.results.is_empty() {
        let finding = Finding::new(
            crate::record::FindingKind::Broken,
            "the record holds no result: nothing was compared",
        );
        entries.push(entry(
            "empty",
            "blocker",
            "record.json",
            &["empty"],
            &finding,
            String::new(),
        ));
    }
    let mut text = serde_json::to_string_pretty(&entries)?;
    text.push('\n');
    Ok(text)
}

fn entry(
    kind: &str,
    severity: &'static str,
    path: &str,
    id: &[&str],
    finding: &Finding,
    place: String,
) -> Entry {
    let mut digest = Sha256::new();
    for part in id {
        digest.update(part);
        digest.update([0]);
    }
    let digest: String = digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Entry {
        description: shorten(&plain(&format!("{place}{}", finding.message)), 4 * TEXT),
        check_name: format!("driftgauge/{kind}"),
        fingerprint: digest,
        severity,
        location: Location {
            path: path.to_owned(),
            lines: Lines { begin: 1 },
        },
    }
}

fn severity(result: &ResultRecord, finding: &Finding) -> &'static str {
    match (result.verdict, finding.class) {
        (Verdict::Broken, _) => "blocker",
        (Verdict::Drift, Some(Class::Semantic | Class::Damage)) => "critical",
        (Verdict::Drift, _) => "major",
        (Verdict::Unsupported, _) => "minor",
        _ => "info",
    }
}

/// The suite as a path inside the repository.
fn path(record: &RunRecord, result: &ResultRecord) -> String {
    let known = record.paths.get(&suite_key(&result.suite));
    let known = known.map(|path| path.trim_start_matches("./"));
    match known.filter(|path| !path.starts_with('/') && !path.is_empty()) {
        Some(path) => shorten(&plain(path), 2 * TEXT),
        None => format!("{}.toml", shorten(&plain(&result.suite), NAME)),
    }
}
