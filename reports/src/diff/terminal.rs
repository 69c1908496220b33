//! A diff on stdout: what got worse first, then what moved, then what changed around it, and the
//! conclusion last.

use std::fmt::Write;

use tabled::builder::Builder;

use super::target::{Move, TargetDiff, VerdictChange, size};
use super::two::TwoWay;
use super::{Comparison, Diff, SideRecord};
use crate::Style;
use crate::layout::{layout, paint, wrap, write_wrapped};
use crate::pairs;
use crate::record::{Pair, Verdict};
use crate::terminal::{counted, number};
use crate::text::{plain, shorten, shorten_middle, width};

mod changes;
mod matrix;

use changes::{cases, environment, more};

/// Kinds of changed verdicts that are shown.
const SHOWN_VERDICTS: usize = 6;
/// Errors that are shown.
const SHOWN_MOVES: usize = 10;

/// Renders a diff.
pub(super) fn render(diff: &Diff, style: Style) -> String {
    let mut text = headline(diff, style);
    let parts = match &diff.comparison {
        Comparison::Two(two) => {
            let labels = [&*diff.sides[0].label, &*diff.sides[1].label];
            vec![
                verdicts(two, style),
                moves(two, labels, style),
                apart(two, labels, style),
                cases(two, labels, style),
                environment(two, style),
                conclusion(two, labels, style),
            ]
        }
        Comparison::Many(matrices) => {
            let parts = matrices.iter().map(|one| matrix::render(diff, one, style));
            parts.collect()
        }
    };
    for part in parts {
        if !part.is_empty() {
            text.push('\n');
            text.push_str(&part);
        }
    }
    text
}

fn headline(diff: &Diff, style: Style) -> String {
    let labels = diff.sides.iter().map(|side| side.label.len());
    let label_width = labels.max().unwrap_or(0);
    let facts = |side: &SideRecord| {
        let target = match &side.targets[..] {
            [target] if *target != side.name => format!("{}, ", shorten_middle(&plain(target), 24)),
            _ => String::new(),
        };
        let (model, cases) = (plain(&side.model), counted(side.cases, "case"));
        format!(
            "{target}{model}, {cases}, driftgauge {}",
            plain(&side.driftgauge)
        )
    };
    let facts: Vec<String> = diff.sides.iter().map(facts).collect();
    let used = facts.iter().map(|facts| width(facts)).max().unwrap_or(0) + label_width + 4;
    let free = style.width.saturating_sub(used).max(12);
    let names = diff
        .sides
        .iter()
        .map(|side| shorten_middle(&plain(&side.name), free));
    let names: Vec<String> = names.collect();
    let name_width = names.iter().map(|name| width(name)).max().unwrap_or(0);
    let mut text = String::new();
    for ((side, name), facts) in diff.sides.iter().zip(&names).zip(&facts) {
        let gap = " ".repeat(name_width - width(name));
        let line = format!("{:label_width$}  {name}{gap}  {facts}", side.label);
        let _ = writeln!(text, "{}", shorten(&line, style.width));
    }
    if diff.other_model {
        let sentence = "OTHER MODEL: the runs are of models whose files differ. Each error is the \
                        distance from the truth of its own model; only cases with equal tokens \
                        are compared.";
        for line in wrap(sentence, style.width) {
            let _ = writeln!(text, "{}", paint(&line, Verdict::Drift, style));
        }
    }
    text
}

/// Verdicts that changed; equal changes of one target are counted, not repeated.
fn verdicts(two: &TwoWay, style: Style) -> String {
    let mut groups: Vec<(&TargetDiff, &VerdictChange, usize)> = Vec::new();
    for target in &two.targets {
        for change in &target.verdicts {
            let is_same = |(of, known, _): &&mut (&TargetDiff, &VerdictChange, usize)| {
                of.after == target.after
                    && (known.before, known.after) == (change.before, change.after)
            };
            match groups.iter_mut().find(is_same) {
                Some((_, _, count)) => *count += 1,
                None => groups.push((target, change, 1)),
            }
        }
    }
    if groups.is_empty() {
        return String::new();
    }
    groups.sort_by_key(|(_, change, _)| !change.worse);
    let mut text = "verdicts that changed\n".to_owned();
    for (target, change, count) in groups.iter().take(SHOWN_VERDICTS) {
        let words = format!("{} -> {}", change.before.name(), change.after.name());
        let more = match count {
            1 => String::new(),
            count => format!(" and {}", counted(count - 1, "more case")),
        };
        let place = format!("{} on {}{more}", plain(&target.after), plain(&change.case));
        let _ = writeln!(text, "  {}  {place}", paint(&words, change.after, style));
        if let Some(finding) = change.finding.as_ref().filter(|_| change.worse) {
            write_wrapped(&mut text, &plain(finding), style.width);
        }
    }
    more(&mut text, groups.len(), SHOWN_VERDICTS, "kinds");
    text
}

/// The errors that moved most.
fn moves(two: &TwoWay, [before, after]: [&str; 2], style: Style) -> String {
    let all = two.targets.iter();
    let mut moves: Vec<(&TargetDiff, &Move)> = all
        .flat_map(|target| target.moves.iter().map(move |one| (target, one)))
        .filter(|(_, one)| one.noise != Some(0.0))
        .collect();
    if moves.is_empty() {
        return String::new();
    }
    moves.sort_by(|one, other| size(other.1.noise).total_cmp(&size(one.1.noise)));
    let with_target = two.targets.len() > 1;
    let rows: Vec<[String; 5]> = moves
        .iter()
        .take(SHOWN_MOVES)
        .map(|(_, one)| {
            [
                plain(&one.observation),
                number(one.before_u.unwrap_or(f64::INFINITY)),
                number(one.after_u.unwrap_or(f64::INFINITY)),
                moved(one),
                format!("{} of {}", one.grown, one.cases),
            ]
        })
        .collect();
    let heads = ["observation", before, after, "moved", "grew"];
    let used = (0..heads.len()).map(|column| {
        let cells = rows.iter().map(|row| width(&row[column]));
        cells.chain([heads[column].len()]).max().unwrap_or(0) + 2
    });
    let used = used.sum::<usize>() + 2;
    let free = style.width.saturating_sub(used).max(10);
    // Targets and cases share what is left.
    let of_target = if with_target { (free / 2).min(24) } else { 0 };
    let of_case = free
        .saturating_sub(of_target + usize::from(with_target) * 2)
        .max(8);
    let mut table = Builder::default();
    let row = |target: String, case: String, cells: [String; 5]| {
        let [observation, numbers @ ..] = cells;
        let target = with_target.then_some(target);
        target.into_iter().chain([observation, case]).chain(numbers)
    };
    let title = heads.map(str::to_owned);
    table.push_record(row("target".to_owned(), "worst case".to_owned(), title));
    for (cells, (target, one)) in rows.into_iter().zip(&moves) {
        let target = shorten_middle(&plain(&target.after), of_target);
        let case = shorten_middle(&plain(&one.case), of_case);
        table.push_record(row(target, case, cells));
    }
    let mut text = format!(
        "errors that moved most, in u, and their move in units of noise (limit {})\n{}\n",
        two.move_limit,
        layout(table, 2 + usize::from(with_target))
    );
    more(&mut text, moves.len(), SHOWN_MOVES, "observations");
    text
}

fn moved(one: &Move) -> String {
    match one.noise {
        Some(noise) if noise.abs() < 9999.5 => format!("{noise:+.2}"),
        Some(noise) => format!("{noise:+.1e}"),
        None if one.after_u.is_none() => "+inf".to_owned(),
        None => "-inf".to_owned(),
    }
}

/// How far the numbers themselves are apart.
fn apart(two: &TwoWay, labels: [&str; 2], style: Style) -> String {
    let mut text = String::new();
    for exact in [true, false] {
        let targets = two.targets.iter().filter(|target| target.exact == exact);
        let pairs: Vec<_> = targets.map(|target| target.apart.clone()).collect();
        if pairs.is_empty() {
            continue;
        }
        let title = if exact {
            format!(
                "tensors compared directly, in units of noise (limit {})",
                two.k
            )
        } else {
            format!("least distances, in units of noise (limit {})", two.k)
        };
        let table = pairs::table(&pairs, labels, exact, style);
        let _ = write!(text, "{title}\n{table}");
        if !exact {
            text.push_str(&bound_note(&pairs, style));
        }
    }
    text
}

/// What distances without tensors are worth; nothing where all are the same to the bit.
fn bound_note(pairs: &[Pair], style: Style) -> String {
    if pairs.iter().all(|pair| pair.bitwise == pair.compared) {
        return String::new();
    }
    let note = "no tensors on both sides: two results are at least as far apart as their errors differ \
                (triangle inequality). Bundles (run --bundle) give the distances.";
    wrap(note, style.width).join("\n") + "\n"
}

fn conclusion(two: &TwoWay, labels: [&str; 2], style: Style) -> String {
    // Targets of one run have no before and after.
    let are_runs = labels == ["before", "after"];
    let mut text = String::new();
    let mut say = |verdict: Verdict, sentence: &str| {
        for line in wrap(sentence, style.width) {
            let _ = writeln!(text, "{}", paint(&line, verdict, style));
        }
    };
    for target in two.targets.iter().filter(|target| target.drifted) {
        let sentence = format!(
            "DRIFT: {}: {}",
            plain(&target.after),
            reasons(target, are_runs)
        );
        say(Verdict::Drift, &sentence);
    }
    let other_tokens = two.cases.other_tokens.len();
    if two.drifted && other_tokens > 0 {
        let cases = counted(other_tokens, "case");
        say(
            Verdict::Drift,
            &format!("DRIFT: {cases} became other tokens"),
        );
    }
    if two.drifted {
        return text;
    }
    let compared: usize = two.targets.iter().map(|target| target.apart.compared).sum();
    let bitwise: usize = two.targets.iter().map(|target| target.apart.bitwise).sum();
    let changed = two.targets.iter().any(|target| !target.verdicts.is_empty());
    let compared_cases = counted(two.cases.compared, "case");
    if bitwise == compared && !changed {
        let sentence = format!(
            "NO DIFFERENCE: all {compared} observations of {compared_cases} are the same to the bit"
        );
        say(Verdict::Pass, &sentence);
    } else {
        let largest = two.targets.iter().flat_map(|target| &target.moves);
        let largest = largest.map(|one| size(one.noise)).fold(0.0, f64::max);
        let sentence = format!(
            "NO DRIFT: {bitwise} of {compared} observations of {compared_cases} are the same to the \
             bit; the largest move of an error is {largest:.2} x noise"
        );
        say(Verdict::Pass, &sentence);
    }
    text
}

/// Why a target has drifted.
fn reasons(target: &TargetDiff, are_runs: bool) -> String {
    let mut reasons = Vec::new();
    let worse = target.verdicts.iter().filter(|change| change.worse).count();
    if worse > 0 {
        reasons.push(format!("{} got worse", counted(worse, "verdict")));
    }
    let grown: usize = target.moves.iter().map(|one| one.grown).sum();
    if are_runs && grown > 0 {
        reasons.push(format!(
            "{} grew by more than noise",
            counted(grown, "error")
        ));
    }
    let beyond = target.apart.compared - target.apart.within;
    if target.exact && beyond > 0 {
        let compared = target.apart.compared;
        reasons.push(format!(
            "{beyond} of {compared} observations are further apart than noise explains"
        ));
    }
    let vanished: usize = target.vanished.values().sum();
    if vanished > 0 {
        reasons.push(format!("{} vanished", counted(vanished, "observation")));
    }
    let mut text = reasons.join(", ");
    if are_runs && worse == 0 && grown == 0 {
        text.push_str("; no error grew by more than noise");
    }
    text
}
