//! The self-test as tables for a person.

use std::fmt::Write as _;

use tabled::builder::Builder;

use super::{SelftestReport, Share, Status, TargetTrials, Totals, Trial};
use crate::Style;
use crate::layout::{layout, visible_width, write_wrapped};
use crate::text::plain;

/// Renders a self-test; with `all`, every trial is shown, and otherwise one line for each fault.
pub fn render(report: &SelftestReport, all: bool, style: Style) -> String {
    let mut text = String::new();
    let sentence = format!(
        "{} ({} layers), {} cases under every fault, K = {}",
        plain(&report.model),
        report.layers,
        report.cases,
        report.k
    );
    write_wrapped(&mut text, &sentence, style.width);
    if report.unknown {
        let sentence = "each fault as if the catalogue did not have it: the right cause is none";
        write_wrapped(&mut text, sentence, style.width);
    }
    for target in &report.targets {
        let _ = writeln!(
            text,
            "\n{} ({})\n",
            plain(&target.target),
            plain(&target.library)
        );
        match all {
            true => {
                let _ = writeln!(text, "{}", layout(every_trial(target), 1));
            }
            false => by_fault_within(&mut text, target, style.width),
        }
        if !all {
            let beside = gates_by_fault(report, target);
            let _ = writeln!(text, "\n{}", layout(beside, 1));
        }
        notes(&mut text, target, style.width);
    }
    tokens(&mut text, report, style.width);
    legend(&mut text, report, style.width);
    if !report.targets.is_empty() {
        let _ = writeln!(text, "\n{}", layout(totals(report), 1));
        let _ = writeln!(text, "\n{}", layout(gates(report), 1));
    }
    text.push('\n');
    write_wrapped(&mut text, &verdict(report), style.width);
    if report
        .targets
        .iter()
        .any(|target| !target.control.alarms.is_empty())
    {
        let sentence = "a false alarm is the gauge's, or the target drifts without any fault: `driftgauge locate` on \
                        it tells";
        write_wrapped(&mut text, sentence, style.width);
    }
    text
}

/// A line for each fault; what the logits alone show is left out where there is no room for it.
fn by_fault_within(text: &mut String, target: &TargetTrials, columns: usize) {
    let whole = layout(by_fault(target, true), 1);
    let needed = visible_width(&whole);
    if needed <= columns {
        let _ = writeln!(text, "{whole}");
        return;
    }
    let _ = writeln!(text, "{}\n", layout(by_fault(target, false), 1));
    let sentence = format!(
        "what the logits alone show of each fault takes {needed} columns, and stands in the totals below"
    );
    write_wrapped(text, &sentence, columns);
}

/// The words for what does not count, where they occur.
fn legend(text: &mut String, report: &SelftestReport, width: usize) {
    let of_model = report.targets.iter().flat_map(|target| &target.trials);
    let statuses = of_model.map(|trial| trial.status);
    let statuses: Vec<Status> = statuses
        .chain(report.tokens.iter().map(|trial| trial.status))
        .collect();
    let words = [
        (Status::Void, "void: changes nothing in this model"),
        (
            Status::NotExercised,
            "not exercised: changes nothing with these cases",
        ),
        (
            Status::BelowNoise,
            "below noise: leaves less than the dtype can show",
        ),
        (
            Status::Unsupported,
            "unsupported: the target cannot be given it",
        ),
    ];
    let words: Vec<&str> = words
        .iter()
        .filter(|(status, _)| statuses.contains(status))
        .map(|(_, words)| *words)
        .collect();
    if !words.is_empty() {
        text.push('\n');
        write_wrapped(
            text,
            &format!("{}; none of it counts", words.join("; ")),
            width,
        );
    }
}

/// A line for each fault: how many of its places were found, and as what.
fn by_fault(target: &TargetTrials, with_blind: bool) -> Builder {
    let mut table = Builder::default();
    let blind = ["logits only", "cause"];
    let names = [
        "fault", "places", "found", "class", "layer", "step", "cause",
    ]
    .into_iter();
    table.push_record(names.chain(blind.into_iter().filter(|_| with_blind)));
    for (fault, trials) in faults(target) {
        let tried: Vec<&Trial> = trials
            .iter()
            .copied()
            .filter(|trial| trial.counts())
            .collect();
        let mut row = vec![plain(fault), trials.len().to_string()];
        if tried.is_empty() {
            let mut words: Vec<&str> = trials.iter().map(|trial| trial.status.name()).collect();
            words.dedup();
            row.push(words.join(", "));
            row.extend(vec![String::new(); if with_blind { 6 } else { 4 }]);
        } else {
            let found = tried
                .iter()
                .filter(|trial| trial.status == Status::Detected)
                .count();
            row.push(share(found, tried.len()));
            for right in [
                |trial: &Trial| trial.class_right,
                |trial: &Trial| trial.stage_right,
                |trial: &Trial| trial.step_right,
                |trial: &Trial| trial.cause_right,
            ] {
                row.push(rate(tried.iter().map(|trial| right(trial))));
            }
            let blind = || tried.iter().filter_map(|trial| trial.seen_in_logits());
            if with_blind {
                row.push(rate(blind().map(|blind| Some(blind.detected))));
                row.push(rate(blind().map(|blind| blind.cause_right)));
            }
        }
        table.push_record(row);
    }
    table
}

/// What the common gates notice of each fault that shows.
fn gates_by_fault(report: &SelftestReport, target: &TargetTrials) -> Builder {
    let mut table = Builder::default();
    // Two lines each, so that all fit beside the longest name.
    let names = report
        .gates
        .iter()
        .map(|gate| plain(gate).replace(' ', "\n"));
    table.push_record(["noticed by".to_owned()].into_iter().chain(names));
    for (fault, trials) in faults(target) {
        let tried: Vec<&Trial> = trials.into_iter().filter(|trial| trial.counts()).collect();
        if tried.is_empty() {
            continue;
        }
        let cells = (0..report.gates.len()).map(|gate| {
            let noticed = tried
                .iter()
                .filter(|trial| trial.gates.get(gate) == Some(&true));
            share(noticed.count(), tried.len())
        });
        table.push_record([plain(fault)].into_iter().chain(cells));
    }
    table
}

/// The trials of each fault, in the order of the first.
pub(crate) fn faults(target: &TargetTrials) -> Vec<(&str, Vec<&Trial>)> {
    let mut faults: Vec<(&str, Vec<&Trial>)> = Vec::new();
    for trial in &target.trials {
        match faults.iter_mut().find(|(name, _)| *name == trial.fault) {
            Some((_, trials)) => trials.push(trial),
            None => faults.push((&trial.fault, vec![trial])),
        }
    }
    faults
}

/// A line for each trial.
fn every_trial(target: &TargetTrials) -> Builder {
    let mut table = Builder::default();
    table.push_record([
        "fault", "place", "x noise", "", "class", "layer", "step", "cause",
    ]);
    for trial in &target.trials {
        let word = |right: Option<bool>| match right {
            Some(true) => "right",
            Some(false) => "WRONG",
            None => "",
        };
        table.push_record([
            plain(&trial.fault),
            trial.place(),
            trial
                .signal
                .map_or(String::new(), |signal| format!("{signal:.3e}")),
            trial.status.name().to_owned(),
            word(trial.class_right).to_owned(),
            word(trial.stage_right).to_owned(),
            word(trial.step_right).to_owned(),
            word(trial.cause_right).to_owned(),
        ]);
    }
    table
}

/// [`noted`], and the false alarms.
fn notes(text: &mut String, target: &TargetTrials, width: usize) {
    let mut lines = noted(target);
    let alarms = target.control.alarms.iter().take(5);
    lines.extend(alarms.map(|alarm| format!("FALSE ALARM: {alarm}")));
    if !lines.is_empty() {
        text.push('\n');
    }
    for line in lines {
        write_wrapped(text, &plain(&line), width);
    }
}

/// What was not quite right, and what could not be tried, a line each.
pub(crate) fn noted(target: &TargetTrials) -> Vec<String> {
    let mut lines = Vec::new();
    let wrong = |trial: &&Trial| {
        let parts = [
            trial.class_right,
            trial.stage_right,
            trial.step_right,
            trial.cause_right,
        ];
        trial.counts() && (trial.status == Status::Missed || parts.contains(&Some(false)))
    };
    for trial in target.trials.iter().filter(wrong) {
        let mut line = format!("{}: {}", at_place(trial), trial.status.name());
        if !trial.note.is_empty() {
            let _ = write!(line, " as {}", trial.note);
        }
        lines.push(line);
    }
    let untried = |trial: &&Trial| {
        matches!(
            trial.status,
            Status::BelowNoise | Status::NotExercised | Status::Unsupported | Status::Broken
        )
    };
    for trial in target.trials.iter().filter(untried) {
        let line = match trial.status {
            Status::BelowNoise => format!(
                "{}: below noise, {:.2} times that of its own stage",
                at_place(trial),
                trial.signal.unwrap_or_default()
            ),
            status if trial.note.is_empty() => format!("{}: {}", at_place(trial), status.name()),
            status => format!("{}: {}. {}", at_place(trial), status.name(), trial.note),
        };
        lines.push(line);
    }
    lines
}

/// A fault and its place.
fn at_place(trial: &Trial) -> String {
    match trial.stage {
        Some(_) => format!("{} in {}", trial.fault, trial.place()),
        None => format!("{} {}", trial.fault, trial.place()),
    }
}

fn tokens(text: &mut String, report: &SelftestReport, width: usize) {
    if report.tokens.is_empty() {
        return;
    }
    let mut table = Builder::default();
    table.push_record(["fault of the tokenizer", "", "cases changed", "cause"]);
    for trial in &report.tokens {
        let cause = match trial.cause_right {
            Some(true) => "right",
            Some(false) => "WRONG",
            None => "",
        };
        table.push_record([
            plain(&trial.fault),
            trial.status.name().to_owned(),
            trial.cases.to_string(),
            cause.to_owned(),
        ]);
    }
    let _ = writeln!(text, "\n{}\n", layout(table, 1));
    for trial in report.tokens.iter().filter(|trial| !trial.note.is_empty()) {
        write_wrapped(
            text,
            &plain(&format!("{}: {}", trial.fault, trial.note)),
            width,
        );
    }
}

/// A column for each target: detected, and what of it was right.
fn totals(report: &SelftestReport) -> Builder {
    let mut table = Builder::default();
    let targets = report.targets.iter().map(|target| plain(&target.target));
    table.push_record(
        ["right, of what shows".to_owned()]
            .into_iter()
            .chain(targets),
    );
    type Part = fn(&Totals) -> Share;
    let rows: [(&str, Part); 7] = [
        ("detected", |totals| totals.detected),
        ("class", |totals| totals.class),
        ("layer", |totals| totals.stage),
        ("step", |totals| totals.step),
        ("cause", |totals| totals.cause),
        ("detected from logits only", |totals| totals.blind_detected),
        ("cause from logits only", |totals| totals.blind_cause),
    ];
    for (name, part) in rows {
        let cells = report.targets.iter().map(|target| {
            let (right, of) = part(&target.totals());
            share(right, of)
        });
        table.push_record([name.to_owned()].into_iter().chain(cells));
    }
    table
}

/// What the common gates notice of the same results.
fn gates(report: &SelftestReport) -> Builder {
    let mut table = Builder::default();
    let targets = report.targets.iter().map(|target| plain(&target.target));
    table.push_record(
        ["detected, and false alarms".to_owned()]
            .into_iter()
            .chain(targets),
    );
    let ours = report.targets.iter().map(|target| {
        let (found, of) = target.totals().detected;
        let alarms = target.control.alarms.len();
        format!("{}, {alarms} of {}", share(found, of), target.control.runs)
    });
    table.push_record(["driftgauge".to_owned()].into_iter().chain(ours));
    for (index, gate) in report.gates.iter().enumerate() {
        let cells = report.targets.iter().map(|target| {
            let tried = target.trials.iter().filter(|trial| trial.counts());
            let noticed = tried
                .clone()
                .filter(|trial| trial.gates.get(index) == Some(&true));
            let alarms = target.control.gates.get(index).copied().unwrap_or(0);
            let share = share(noticed.count(), tried.count());
            format!("{share}, {alarms} of {}", target.control.runs)
        });
        table.push_record([plain(gate)].into_iter().chain(cells));
    }
    table
}

fn verdict(report: &SelftestReport) -> String {
    let sum = |of: fn(&TargetTrials) -> usize| report.targets.iter().map(of).sum::<usize>();
    let missed = sum(|target| target.count(Status::Missed)) + report.tokens_missed();
    let alarms = sum(|target| target.control.alarms.len());
    let idle = sum(|target| target.count(Status::NotExercised));
    let below = sum(|target| target.count(Status::BelowNoise));
    let mut parts = vec![match missed {
        0 if report.counted() == 0 => {
            "NOTHING was tested: no fault that was tried shows".to_owned()
        }
        0 => "every fault that shows was detected".to_owned(),
        missed => format!("{missed} MISSED"),
    }];
    match report.wrong_causes() {
        0 => {}
        wrong if report.unknown => parts.push(format!("{wrong} NAMED as another one")),
        wrong => parts.push(format!("the cause of {wrong} WRONG")),
    }
    parts.push(match alarms {
        0 => "no false alarm".to_owned(),
        1 => "1 FALSE ALARM".to_owned(),
        alarms => format!("{alarms} FALSE ALARMS"),
    });
    let of_trials = |is_so: fn(&Trial) -> bool| {
        let trials = report.targets.iter().flat_map(|target| &target.trials);
        trials.filter(|trial| is_so(trial)).count()
    };
    let benign = of_trials(Trial::is_benign_alarm);
    if benign > 0 {
        parts.push(format!("{benign} that change nothing DETECTED"));
    }
    let broken = of_trials(|trial| trial.status == Status::Broken);
    if broken > 0 {
        parts.push(format!("{broken} BROKEN"));
    }
    if idle > 0 {
        parts.push(format!("{idle} not exercised by these cases"));
    }
    if below > 0 {
        parts.push(format!("{below} below what the dtype can show"));
    }
    format!("{}; {:.0} s", parts.join(", "), report.time)
}

pub(crate) fn share(part: usize, of: usize) -> String {
    match of {
        0 => "-".to_owned(),
        of => format!("{part}/{of}"),
    }
}

pub(crate) fn rate(all: impl Iterator<Item = Option<bool>>) -> String {
    let known: Vec<bool> = all.flatten().collect();
    share(known.iter().filter(|right| **right).count(), known.len())
}
