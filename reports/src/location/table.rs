//! Where targets start to differ, as tables for a person.

use std::fmt::Write as _;

use tabled::builder::Builder;

use super::{Cause, LocateReport, Origin, StageRecord, TargetLocation};
use crate::Style;
use crate::layout::{layout, visible_width, write_wrapped};
use crate::text::plain;

/// Cases that are named.
const NAMED_CASES: usize = 4;

/// Renders the report.
pub fn render(report: &LocateReport, style: Style) -> String {
    let mut text = String::new();
    let seen = |target: &TargetLocation| target.location.stages.iter().any(|stage| stage.reached);
    let shown: Vec<&TargetLocation> = report.targets.iter().filter(|one| seen(one)).collect();
    let what = match shown.is_empty() {
        true => "from the logits alone".to_owned(),
        false => format!(
            "every stage alone, from the hidden state that the target itself had before it; error in units of \
             its noise, {} are allowed, and in u",
            report.k
        ),
    };
    let sentence = format!("{}: {what}", plain(&report.model));
    write_wrapped(&mut text, &sentence, style.width);
    write_stages(&mut text, &shown, style.width);
    for target in &report.targets {
        text.push('\n');
        let location = &target.location;
        let mut cases = location
            .cases
            .iter()
            .take(NAMED_CASES)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        if location.cases.len() > NAMED_CASES {
            let _ = write!(cases, " and {} more", location.cases.len() - NAMED_CASES);
        }
        let head = match location.sentence() {
            None => {
                let what = match seen(target) {
                    true => "every stage is within its noise",
                    false => "the logits are within their noise",
                };
                format!("{}: {what} (on {cases})", target.target)
            }
            Some(sentence) => format!("{}: {sentence} (on {cases})", target.target),
        };
        write_wrapped(&mut text, &plain(&head), style.width);
        for origin in &location.origins {
            write_origin(&mut text, origin, style.width);
        }
        for note in &location.notes {
            write_wrapped(&mut text, &plain(note), style.width);
        }
    }
    text.push('\n');
    let drifting = report.targets.iter();
    let drifting = drifting.filter(|target| !target.location.origins.is_empty());
    let sentence = match drifting.count() {
        0 => "CONFORMS: nothing is beyond its noise".to_owned(),
        1 => "DRIFT: 1 target".to_owned(),
        many => format!("DRIFT: {many} targets"),
    };
    write_wrapped(&mut text, &sentence, style.width);
    text
}

/// The stages of as many targets side by side as there is room for, below each other those of the others.
fn write_stages(text: &mut String, targets: &[&TargetLocation], columns: usize) {
    let mut rest = targets;
    while !rest.is_empty() {
        let tables = (1..=rest.len()).rev();
        let mut tables = tables.map(|count| (count, layout(stages(&rest[..count]), 1)));
        let fitting = tables.find(|(count, table)| *count == 1 || visible_width(table) <= columns);
        let Some((count, table)) = fitting else {
            break;
        };
        let _ = writeln!(text, "\n{table}");
        rest = &rest[count..];
    }
}

fn stages(targets: &[&TargetLocation]) -> Builder {
    let mut table = Builder::default();
    let names = targets.iter().map(|target| plain(&target.target));
    table.push_record(["stage".to_owned()].into_iter().chain(names));
    let longest = targets
        .iter()
        .max_by_key(|target| target.location.stages.len());
    let names = longest.iter().flat_map(|target| &target.location.stages);
    for name in names.map(|stage| &stage.stage) {
        let cells = targets.iter().map(|target| {
            let mut own = target.location.stages.iter();
            let own = own.find(|stage| stage.stage == *name);
            own.map_or(String::new(), cell)
        });
        table.push_record([plain(name)].into_iter().chain(cells));
    }
    table
}

fn cell(stage: &StageRecord) -> String {
    if !stage.reached {
        return "-".to_owned();
    }
    match stage.error_u.zip(stage.predicted_u) {
        None => "NOT FINITE".to_owned(),
        Some((error, predicted)) => {
            let mark = match stage.within {
                true => "",
                false => " BEYOND",
            };
            format!("{:.2}  {error:.1} u{mark}", error / predicted)
        }
    }
}

fn write_origin(text: &mut String, origin: &Origin, width: usize) {
    let mut place = format!("  {}", origin.place());
    if !origin.more_steps.is_empty() {
        let _ = write!(place, " (and {})", origin.more_steps.join(", "));
    }
    let Some(Cause { .. }) = origin.causes.first() else {
        write_wrapped(
            text,
            &plain(&format!("{place}: none of the known faults")),
            width,
        );
        return;
    };
    write_wrapped(text, &plain(&format!("{place} looks like")), width);
    for cause in &origin.causes {
        let explained = 100.0 * cause.explained;
        let line = format!("  {}; explains {explained:.1}\u{a0}%", cause.sentence());
        write_wrapped(text, &plain(&line), width);
    }
    if let Some(cause) = origin.causes.first() {
        let known = match &cause.evidence[..] {
            [] => String::new(),
            threads => format!(" ({})", threads.join(", ")),
        };
        write_wrapped(
            text,
            &plain(&format!("  usually {}{known}", cause.means)),
            width,
        );
        write_wrapped(text, &plain(&format!("  try: {}", cause.advice)), width);
    }
}
