//! CTRF, the Common Test Report Format: JSON that many dashboards read.
//!
//! A record has no time of a single case, so that durations of tests are 0; those of targets are under `extra`.

use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat};
use serde::Serialize;

use crate::RenderError;
use crate::record::{FindingKind, ResultRecord, RunRecord, Verdict};
use crate::text::{plain, shorten};
use crate::words::{NAME, TEXT};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    report_format: &'static str,
    spec_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<String>,
    generated_by: String,
    results: Results,
}

#[derive(Serialize)]
struct Results {
    tool: Tool,
    summary: Summary,
    tests: Vec<Test>,
    environment: Environment,
}

#[derive(Serialize)]
struct Tool {
    name: &'static str,
    version: String,
}

#[derive(Serialize, Default)]
struct Summary {
    tests: usize,
    passed: usize,
    failed: usize,
    skipped: usize,
    pending: usize,
    other: usize,
    /// Milliseconds since 1970.
    start: u64,
    stop: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Test {
    name: String,
    status: &'static str,
    /// Milliseconds.
    duration: u64,
    suite: [String; 2],
    raw_status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<String>,
    flaky: bool,
    stderr: Vec<String>,
    parameters: BTreeMap<&'static str, String>,
    extra: BTreeMap<&'static str, Option<f64>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Environment {
    app_name: String,
    os_platform: String,
    extra: BTreeMap<String, String>,
}

/// Renders the record.
///
/// # Errors
/// [`RenderError::Json`] where JSON cannot say it.
pub(crate) fn render(record: &RunRecord) -> Result<String, RenderError> {
    let tests: Vec<Test> = record.results.iter().map(test).collect();
    let count = |status| tests.iter().filter(|test| test.status == status).count();
    let start = record.time.started.saturating_mul(1000);
    let total = record.time.seconds.get("total").copied().unwrap_or(0.0);
    let summary = Summary {
        tests: tests.len(),
        passed: count("passed"),
        failed: count("failed"),
        other: count("other"),
        start,
        stop: start.saturating_add((total * 1000.0) as u64),
        ..Summary::default()
    };
    let started = i64::try_from(record.time.started)
        .ok()
        .filter(|started| *started > 0);
    let started = started.and_then(|started| DateTime::from_timestamp(started, 0));
    let host = record.host.iter();
    let report = Report {
        report_format: "CTRF",
        spec_version: "0.0.0",
        timestamp: started.map(|time| time.to_rfc3339_opts(SecondsFormat::Secs, true)),
        generated_by: format!("driftgauge {}", name(&record.driftgauge)),
        results: Results {
            tool: Tool {
                name: "driftgauge",
                version: name(&record.driftgauge),
            },
            summary,
            tests,
            environment: Environment {
                app_name: name(&record.model.id),
                os_platform: record.host.get("os").map_or(String::new(), |os| name(os)),
                extra: host.map(|(key, value)| (name(key), name(value))).collect(),
            },
        },
    };
    let mut text = serde_json::to_string_pretty(&report)?;
    text.push('\n');
    Ok(text)
}

fn test(result: &ResultRecord) -> Test {
    let first = result.findings.first();
    let evidence = first.iter().flat_map(|finding| &finding.evidence);
    let evidence: Vec<String> = evidence.map(|one| short(one)).collect();
    let all = result.observations.iter();
    let nearest = all.max_by(|a, b| a.1.in_noise().total_cmp(&b.1.in_noise()));
    let mut parameters = BTreeMap::from([
        ("target", name(&result.target)),
        ("task", name(&result.task)),
    ]);
    let mut extra = BTreeMap::new();
    if let Some((observation, one)) = nearest {
        parameters.insert("observation", name(observation));
        extra.insert("error_u", one.error_u);
        extra.insert("budget_u", Some(one.budget_u));
        extra.insert("effective_bits", one.effective_bits);
    }
    Test {
        name: format!("{} on {}", name(&result.case), name(&result.target)),
        status: match result.verdict {
            Verdict::Pass | Verdict::New => "passed",
            Verdict::Known => "other",
            Verdict::Drift | Verdict::Fixed | Verdict::Unsupported | Verdict::Broken => "failed",
        },
        duration: 0,
        suite: [name(&result.suite), name(&result.target)],
        raw_status: result.verdict.name(),
        message: first.map(|finding| short(&finding.message)),
        trace: (!evidence.is_empty()).then(|| evidence.join("\n")),
        flaky: result
            .findings
            .iter()
            .any(|finding| finding.kind == FindingKind::Flaky),
        stderr: first
            .iter()
            .flat_map(|finding| &finding.stderr)
            .map(|line| short(line))
            .collect(),
        parameters,
        extra,
    }
}

fn name(text: &str) -> String {
    shorten(&plain(text), NAME)
}

fn short(text: &str) -> String {
    shorten(&plain(text), 4 * TEXT)
}
