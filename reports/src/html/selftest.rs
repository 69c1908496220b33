//! The page of a self-test.

use askama::Template;

use super::Page;
use super::run::Badge;
use crate::phrases::{Phrases, fill};
use crate::record::Verdict;
use crate::selftest::table::{faults, noted, rate, share};
use crate::selftest::{SelftestReport, Share, Status, TargetTrials, Totals, Trial};
use crate::words::{NAME, TEXT, bare, hidden, shown};
use crate::{Language, RenderError};

/// Notes of a target, and rows of a table.
const SHOWN: usize = 200;

#[derive(Template)]
#[template(path = "selftest.html")]
struct SelftestPage {
    page: Page,
    t: &'static Phrases,
    verdict: Badge,
    answer: String,
    sentences: Vec<String>,
    facts: Vec<String>,
    targets: Vec<String>,
    /// A row for each part of what is found.
    totals: Vec<(&'static str, Vec<String>)>,
    gates: Vec<(String, Vec<String>)>,
    faults: Vec<TargetFaults>,
    tokens: Vec<TokenRow>,
    hidden_tokens: Option<String>,
}

/// Every fault on one target.
struct TargetFaults {
    target: String,
    library: String,
    rows: Vec<FaultRow>,
    hidden: Option<String>,
    notes: Vec<String>,
    hidden_notes: Option<String>,
    alarms: Vec<String>,
}

/// One fault on one target.
struct FaultRow {
    fault: String,
    title: String,
    places: usize,
    badge: Badge,
    /// Found, class, layer, step, cause; from the logits alone detected and cause.
    shares: [String; 7],
    signal: String,
}

/// One fault of the tokenizer.
struct TokenRow {
    fault: String,
    title: String,
    badge: Badge,
    cases: usize,
    note: String,
}

/// Renders the page.
///
/// # Errors
/// [`RenderError`] where the template fails.
pub(crate) fn render(report: &SelftestReport, language: Language) -> Result<String, RenderError> {
    let t = Phrases::of(language);
    let model = shown(&report.model, NAME, t);
    let title = fill(t.selftest_title, &[("model", &model)]);
    let (verdict, answer, sentences) = conclusion(report, t);
    let tokens = report.tokens.iter().take(SHOWN).map(|trial| TokenRow {
        fault: shown(&trial.fault, NAME, t),
        title: shown(&trial.title, NAME, t),
        badge: badge(trial.status, t),
        cases: trial.cases,
        note: shown(&trial.note, TEXT, t),
    });
    let about = [
        ("layers", report.layers.to_string()),
        ("cases", report.cases.to_string()),
        ("k", report.k.to_string()),
    ];
    let about = about
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let mut page = SelftestPage {
        page: Page::new(title, &report.driftgauge, language),
        t,
        verdict: Badge::new(verdict, t),
        answer,
        sentences,
        facts: vec![
            model,
            fill(t.selftest_about, &about),
            fill(t.seconds, &[("n", &format!("{:.0}", report.time))]),
            fill(t.exit_code, &[("code", &report.exit_code().to_string())]),
        ],
        targets: report
            .targets
            .iter()
            .map(|target| shown(&target.target, NAME, t))
            .collect(),
        totals: totals(report, t),
        gates: gates(report, t),
        faults: report
            .targets
            .iter()
            .map(|target| of_target(target, t))
            .collect(),
        tokens: tokens.collect(),
        hidden_tokens: hidden(report.tokens.len().saturating_sub(SHOWN), t),
    };
    let sections = [
        (!page.targets.is_empty(), "totals", t.selftest_totals),
        (!page.targets.is_empty(), "gates", t.selftest_gates),
        (!page.targets.is_empty(), "faults", t.selftest_faults),
        (!page.tokens.is_empty(), "tokens", t.selftest_tokens),
    ];
    let there = sections.into_iter().filter(|(is_there, ..)| *is_there);
    page.page.sections = there.map(|(_, id, heading)| (id, heading)).collect();
    Ok(page.render()?)
}

/// What came of a fault, in the signs of verdicts.
fn badge(status: Status, t: &'static Phrases) -> Badge {
    let (verdict, word) = match status {
        Status::Detected => (Verdict::Pass, t.status_detected),
        Status::Missed => (Verdict::Drift, t.status_missed),
        Status::BelowNoise => (Verdict::New, t.status_below_noise),
        Status::Void => (Verdict::New, t.status_void),
        Status::NotExercised => (Verdict::New, t.status_not_exercised),
        Status::Unsupported => (Verdict::Unsupported, t.status_unsupported),
        Status::Broken => (Verdict::Broken, t.status_broken),
    };
    let sign = match status {
        Status::BelowNoise | Status::Void | Status::NotExercised => "·",
        _ => verdict.sign(),
    };
    Badge {
        sign,
        word,
        ..Badge::new(verdict, t)
    }
}

/// The verdict, the sentence that says it, and others that go with it.
fn conclusion(report: &SelftestReport, t: &'static Phrases) -> (Verdict, String, Vec<String>) {
    let trials = || report.targets.iter().flat_map(|target| &target.trials);
    let count = |status| trials().filter(|trial| trial.status == status).count();
    let alarms = report
        .targets
        .iter()
        .map(|target| target.control.alarms.len())
        .sum();
    let benign = trials().filter(|trial| trial.is_benign_alarm()).count();
    let bad = [
        (count(Status::Broken), t.selftest_broken),
        (
            count(Status::Missed) + report.tokens_missed(),
            t.selftest_missed,
        ),
        (alarms, t.selftest_alarms),
        (benign, t.selftest_benign),
    ];
    let aside = [
        (count(Status::BelowNoise), t.selftest_below),
        (count(Status::NotExercised), t.selftest_idle),
    ];
    let said = |all: &[(usize, &str)]| -> Vec<String> {
        let all = all.iter().filter(|(count, _)| *count > 0);
        all.map(|(count, phrase)| fill(phrase, &[("n", &count.to_string())]))
            .collect()
    };
    let tried = trials().any(Trial::counts) || !report.tokens.is_empty();
    let (verdict, answer) = match report.exit_code() {
        _ if !tried => (Verdict::Broken, t.selftest_nothing.to_owned()),
        0 => (Verdict::Pass, t.selftest_clean.to_owned()),
        3 => (Verdict::Broken, said(&bad).join(" ")),
        _ => (Verdict::Drift, said(&bad).join(" ")),
    };
    let answer = match answer.is_empty() {
        true => t.status_unsupported.to_owned(),
        false => answer,
    };
    let mut sentences = said(&aside);
    if report.unknown {
        sentences.push(t.selftest_unknown.to_owned());
    }
    (verdict, answer, sentences)
}

fn totals(report: &SelftestReport, t: &'static Phrases) -> Vec<(&'static str, Vec<String>)> {
    type Part = fn(&Totals) -> Share;
    let rows: [(&'static str, Part); 7] = [
        (t.selftest_detected, |totals| totals.detected),
        (t.selftest_class, |totals| totals.class),
        (t.selftest_stage, |totals| totals.stage),
        (t.selftest_step, |totals| totals.step),
        (t.selftest_cause, |totals| totals.cause),
        (t.selftest_blind, |totals| totals.blind_detected),
        (t.selftest_blind_cause, |totals| totals.blind_cause),
    ];
    let row = |(name, part): (&'static str, Part)| {
        let cells = report.targets.iter().map(|target| {
            let (right, of) = part(&target.totals());
            share(right, of)
        });
        (name, cells.collect())
    };
    rows.map(row).into()
}

fn gates(report: &SelftestReport, t: &Phrases) -> Vec<(String, Vec<String>)> {
    let cell = |found: String, alarms: usize, runs: usize| {
        let (alarms, runs) = (alarms.to_string(), runs.to_string());
        let values = [
            ("found", found.as_str()),
            ("alarms", &alarms),
            ("runs", &runs),
        ];
        fill(t.selftest_alarm, &values)
    };
    let ours = report.targets.iter().map(|target| {
        let (found, of) = target.totals().detected;
        cell(
            share(found, of),
            target.control.alarms.len(),
            target.control.runs,
        )
    });
    let mut rows = vec![("driftgauge".to_owned(), ours.collect())];
    for (index, gate) in report.gates.iter().enumerate() {
        let cells = report.targets.iter().map(|target| {
            let tried: Vec<&Trial> = target
                .trials
                .iter()
                .filter(|trial| trial.counts())
                .collect();
            let noticed = tried
                .iter()
                .filter(|trial| trial.gates.get(index) == Some(&true));
            let alarms = target.control.gates.get(index).copied().unwrap_or(0);
            cell(
                share(noticed.count(), tried.len()),
                alarms,
                target.control.runs,
            )
        });
        rows.push((shown(gate, NAME, t), cells.collect()));
    }
    rows
}

fn of_target(target: &TargetTrials, t: &'static Phrases) -> TargetFaults {
    let faults = faults(target);
    let notes = noted(target);
    let alarms = target.control.alarms.iter().take(SHOWN);
    TargetFaults {
        target: shown(&target.target, NAME, t),
        library: shown(&target.library, NAME, t),
        rows: faults
            .iter()
            .take(SHOWN)
            .map(|(name, trials)| row(name, trials, t))
            .collect(),
        hidden: hidden(faults.len().saturating_sub(SHOWN), t),
        notes: notes
            .iter()
            .take(SHOWN)
            .map(|note| shown(note, TEXT, t))
            .collect(),
        hidden_notes: hidden(notes.len().saturating_sub(SHOWN), t),
        alarms: alarms.map(|alarm| shown(alarm, TEXT, t)).collect(),
    }
}

fn row(name: &str, trials: &[&Trial], t: &'static Phrases) -> FaultRow {
    let tried: Vec<&Trial> = trials
        .iter()
        .copied()
        .filter(|trial| trial.counts())
        .collect();
    let found = tried
        .iter()
        .filter(|trial| trial.status == Status::Detected)
        .count();
    let blind = || tried.iter().filter_map(|trial| trial.seen_in_logits());
    let of = |right: fn(&Trial) -> Option<bool>| rate(tried.iter().map(|trial| right(trial)));
    // What is worst is said.
    let worst = trials
        .iter()
        .map(|trial| trial.status)
        .max_by_key(|status| match status {
            Status::Broken => 6,
            Status::Missed => 5,
            Status::Unsupported => 4,
            Status::Detected => 3,
            Status::BelowNoise => 2,
            Status::NotExercised => 1,
            Status::Void => 0,
        });
    let signals = tried.iter().filter_map(|trial| trial.signal);
    FaultRow {
        fault: shown(name, NAME, t),
        title: trials
            .first()
            .map_or(String::new(), |trial| shown(&trial.title, NAME, t)),
        places: trials.len(),
        badge: badge(worst.unwrap_or(Status::Void), t),
        shares: [
            share(found, tried.len()),
            of(|trial| trial.class_right),
            of(|trial| trial.stage_right),
            of(|trial| trial.step_right),
            of(|trial| trial.cause_right),
            rate(blind().map(|blind| Some(blind.detected))),
            rate(blind().map(|blind| blind.cause_right)),
        ],
        signal: signals
            .min_by(f64::total_cmp)
            .map_or(String::new(), |signal| bare(signal, t)),
    }
}
