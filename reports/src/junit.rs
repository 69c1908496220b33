//! JUnit XML in Jenkins' flavour, which GitLab reads too: a test suite for each target, a test case for each
//! case and target.
//!
//! What drifted, and a known deviation that no longer happens, is a failure; what broke or is not supported, and so was not tested, is an error; a known
//! deviation is skipped, with its reason. A run without results is one error, not an empty success.

use std::time::Duration;

use chrono::DateTime;
use quick_junit::{NonSuccessKind, Property, Report, TestCase, TestCaseStatus, TestSuite};

use crate::record::{Finding, ResultRecord, RunRecord, TargetRecord, Verdict};
use crate::text::plain;
use crate::words::{NAME, TEXT};
use crate::{RenderError, command};

/// Renders the record.
///
/// # Errors
/// [`RenderError::Junit`] with the library's words.
pub(crate) fn render(record: &RunRecord) -> Result<String, RenderError> {
    let mut report = Report::new("driftgauge");
    if let Some(total) = record
        .time
        .seconds
        .get("total")
        .and_then(|total| seconds(*total))
    {
        report.set_time(total);
    }
    for target in &record.targets {
        report.add_test_suite(suite(record, target));
    }
    let about_run = about_run(record);
    if !about_run.is_empty() {
        let mut suite = TestSuite::new("driftgauge");
        suite.add_test_cases(about_run);
        report.add_test_suite(suite);
    }
    let xml = report.to_string();
    let xml = xml.map_err(|error| RenderError::Junit(error.to_string()))?;
    Ok(without_skipped_total(&xml))
}

/// The report without the total of skipped test cases, which the schema has for each suite only.
fn without_skipped_total(xml: &str) -> String {
    // The first one is that of the outermost element.
    let rest = xml.split_once(" skipped=\"");
    let rest = rest.and_then(|(before, after)| Some((before, after.split_once('"')?.1)));
    rest.map_or_else(
        || xml.to_owned(),
        |(before, after)| format!("{before}{after}"),
    )
}

/// What is wrong with the run as a whole.
fn about_run(record: &RunRecord) -> Vec<TestCase> {
    let mut cases = Vec::new();
    if let Some(finding) = &record.truth.finding {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
        status
            .set_type("truth")
            .set_message(short(&finding.message));
        let mut case = TestCase::new("the accepted truth", status);
        case.set_classname("driftgauge");
        cases.push(case);
    }
    if record.results.is_empty() {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status
            .set_type("empty")
            .set_message("the record holds no result: nothing was compared");
        let mut case = TestCase::new("any result", status);
        case.set_classname("driftgauge");
        cases.push(case);
    }
    cases
}

fn suite(record: &RunRecord, target: &TargetRecord) -> TestSuite {
    let mut suite = TestSuite::new(name(&target.target));
    if let Some(total) = seconds(target.time.total) {
        suite.set_time(total);
    }
    let started = i64::try_from(record.time.started)
        .ok()
        .filter(|started| *started > 0);
    if let Some(started) = started.and_then(|started| DateTime::from_timestamp(started, 0)) {
        suite.set_timestamp(started.fixed_offset());
    }
    let facts = [
        ("model", Some(&record.model.id)),
        ("library", target.library.as_ref()),
        ("library_version", target.library_version.as_ref()),
        ("device", target.device.as_ref()),
        ("dtype", target.dtype.as_ref()),
    ];
    for (key, value) in facts {
        suite.add_properties(value.map(|value| Property::new(key, name(value))));
    }
    let own = record
        .results
        .iter()
        .filter(|result| result.target == target.target);
    suite.add_test_cases(own.map(|result| case(record, result)));
    suite
}

fn case(record: &RunRecord, result: &ResultRecord) -> TestCase {
    // GitLab tells test cases apart by these two alone.
    let called = format!("{} on {}", name(&result.case), name(&result.target));
    let mut case = TestCase::new(called, status(record, result));
    case.set_classname(name(&result.suite));
    let mut lines = vec![format!("verdict: {}", result.verdict.name())];
    let all = result.observations.iter();
    let nearest = all.max_by(|a, b| a.1.in_noise().total_cmp(&b.1.in_noise()));
    if let Some((observation, one)) = nearest {
        lines.push(format!("observation: {}", name(observation)));
        for (key, value) in [
            ("error_u", one.error_u),
            ("budget_u", Some(one.budget_u)),
            ("effective_bits", one.effective_bits),
        ] {
            let value = value.map_or("not finite".to_owned(), |value| format!("{value:.3}"));
            lines.push(format!("{key}: {value}"));
        }
    }
    // The schema has properties for suites only.
    case.set_system_out(lines.join("\n"));
    let stderr = result.findings.iter().flat_map(|finding| &finding.stderr);
    let stderr: Vec<String> = stderr.map(|line| plain(line)).collect();
    if !stderr.is_empty() {
        case.set_system_err(stderr.join("\n"));
    }
    case
}

fn status(record: &RunRecord, result: &ResultRecord) -> TestCaseStatus {
    let known = result.known.as_ref().map(|known| {
        let entry = format!("{}:{}", known.file, known.line);
        let (reason, expires) = (short(&known.reason), name(&known.expires));
        format!("{reason} (until {expires}, {})", name(&entry))
    });
    let kind = match result.verdict {
        Verdict::Pass | Verdict::New => return TestCaseStatus::success(),
        Verdict::Known => {
            let mut status = TestCaseStatus::skipped();
            let reason = known.unwrap_or_default();
            status.set_description(format!("known deviation: {reason}"));
            return status;
        }
        // The run does not succeed either, until the entry is gone.
        Verdict::Drift | Verdict::Fixed => NonSuccessKind::Failure,
        Verdict::Unsupported | Verdict::Broken => NonSuccessKind::Error,
    };
    let mut status = TestCaseStatus::non_success(kind);
    let message = match result.findings.first() {
        Some(finding) => short(&finding.message),
        None if result.verdict == Verdict::Fixed => {
            "a known deviation no longer happens".to_owned()
        }
        None => result.verdict.name().to_owned(),
    };
    status.set_message(message).set_type(class(result));
    let mut lines: Vec<String> = result.findings.iter().flat_map(lines).collect();
    lines.extend(known.map(|known| format!("known deviation: {known}")));
    lines.push(format!(
        "reproduce: {}",
        plain(&command::reproducing(record, result))
    ));
    status.set_description(lines.join("\n"));
    status
}

/// Kind of violation: the verdict, and the way in which the numbers are wrong.
fn class(result: &ResultRecord) -> String {
    match result.findings.first().and_then(|finding| finding.class) {
        Some(class) => format!("{}.{}", result.verdict.name(), class.name()),
        None => result.verdict.name().to_owned(),
    }
}

fn lines(finding: &Finding) -> Vec<String> {
    let evidence = finding
        .evidence
        .iter()
        .map(|one| format!("because {}", short(one)));
    let hint = finding
        .hint
        .iter()
        .map(|hint| format!("hint: {}", short(hint)));
    std::iter::once(short(&finding.message))
        .chain(evidence)
        .chain(hint)
        .collect()
}

fn name(text: &str) -> String {
    crate::text::shorten(&plain(text), NAME)
}

fn short(text: &str) -> String {
    crate::text::shorten(&plain(text), 4 * TEXT)
}

/// A time, if it is one.
fn seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| !time.is_zero())
}
