//! The table: targets × checks, what differs most, what was not run, and the conclusion.

use std::fmt::Write;

use tabled::builder::Builder;

use super::{Check, CheckRecord, ConsistencyRecord, Difference, Outcome, TargetConsistency};
use crate::Style;
use crate::layout::{layout, paint, visible_width, wrap, write_wrapped};
use crate::record::{Finding, Verdict};
use crate::text::{plain, shorten};

/// Reasons and findings of one kind that are shown.
const SHOWN: usize = 8;

/// Renders the record.
pub fn render(record: &ConsistencyRecord, style: Style) -> String {
    let mut text = headline(record, style);
    for part in [
        checks(record, style),
        differences(record, style),
        findings(record, style),
        skipped(record, style),
        conclusion(record, style),
    ] {
        if !part.is_empty() {
            text.push('\n');
            text.push_str(&part);
        }
    }
    text
}

fn headline(record: &ConsistencyRecord, style: Style) -> String {
    let lengths: Vec<String> = record
        .sequences
        .iter()
        .map(|sequence| sequence.tokens.to_string())
        .collect();
    let sentence = format!(
        "model {}: {} of {} tokens; two correct results are no further than {:.1} noise apart",
        plain(&record.model.id),
        counted(record.sequences.len(), "sequence"),
        lengths.join(", "),
        record.method.limit,
    );
    let mut text = String::new();
    for line in wrap(&sentence, style.width) {
        let _ = writeln!(text, "{line}");
    }
    for target in &record.targets {
        let library = match (&target.library, &target.library_version) {
            (Some(library), Some(version)) => format!("{} {}", plain(library), plain(version)),
            _ => "not available".to_owned(),
        };
        let threads = match target.threads {
            Some(1) => ", 1 thread".to_owned(),
            Some(threads) => format!(", {threads} threads"),
            None => String::new(),
        };
        let restarts = match target.restarts {
            0 => String::new(),
            restarts => format!(", restarted {restarts} x"),
        };
        let name = plain(&target.target);
        let line = format!("  {name:<20} {library}{threads}{restarts}");
        let _ = writeln!(text, "{}", shorten(&line, style.width));
    }
    text
}

/// As many targets beside each other as fit, the others below.
fn checks(record: &ConsistencyRecord, style: Style) -> String {
    let mut text = String::new();
    let mut rest = &record.targets[..];
    while !rest.is_empty() {
        let mut count = rest.len();
        loop {
            let block = block(&rest[..count], style);
            if count == 1 || visible_width(&block) <= style.width {
                let _ = writeln!(text, "{block}");
                break;
            }
            count -= 1;
        }
        rest = &rest[count..];
        if !rest.is_empty() {
            text.push('\n');
        }
    }
    text
}

fn block(targets: &[TargetConsistency], style: Style) -> String {
    let mut table = Builder::default();
    let heads = targets.iter().map(|target| head(&target.target));
    table.push_record(["check".to_owned()].into_iter().chain(heads));
    for check in Check::ALL {
        let cells = targets.iter().map(|target| {
            let own = target.checks.iter().find(|own| own.check == check);
            let (outcome, words) = match own {
                Some(own) => (own.outcome, cell(own)),
                None => {
                    let outcome = unusable(target);
                    (outcome, outcome.name().to_owned())
                }
            };
            let painted = words
                .lines()
                .map(|line| paint(line, colour(outcome), style));
            painted.collect::<Vec<_>>().join("\n")
        });
        table.push_record([check.name().to_owned()].into_iter().chain(cells));
    }
    layout(table, targets.len() + 1)
}

/// A target as a heading: the backend, the place, the options.
fn head(target: &str) -> String {
    let (place, options) = target.split_at(target.find('?').unwrap_or(target.len()));
    let (backend, device) = place.split_at(place.find('@').unwrap_or(place.len()));
    let mut text = format!("{}\n{}", plain(backend), plain(device));
    if !options.is_empty() {
        text.push('\n');
        text.push_str(&shorten(&plain(options), 18));
    }
    text
}

/// The outcome of a target that has no checks.
fn unusable(target: &TargetConsistency) -> Outcome {
    use crate::record::FindingKind::Unsupported;
    match &target.finding {
        Some(finding) if finding.kind == Unsupported => Outcome::Unsupported,
        _ => Outcome::Broken,
    }
}

fn cell(check: &CheckRecord) -> String {
    let differ = share(check.differing, check.elements);
    match (check.outcome, &check.largest) {
        (Outcome::Within | Outcome::Drift, Some(largest)) => {
            let noise = noise(largest);
            format!("{} {noise}\n{differ} differ", check.outcome.name())
        }
        (Outcome::Drift, None) => "drift, damaged".to_owned(),
        (outcome, _) => outcome.name().to_owned(),
    }
}

fn counted(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

fn share(part: usize, whole: usize) -> String {
    match 100.0 * part as f64 / whole.max(1) as f64 {
        share if share < 0.1 => "< 0.1 %".to_owned(),
        share => format!("{share:.1} %"),
    }
}

fn noise(difference: &Difference) -> String {
    match difference.noise {
        None => "not finite".to_owned(),
        Some(noise) if noise < 0.1 => "< 0.1 noise".to_owned(),
        Some(noise) if noise < 9999.5 => format!("{noise:.1} noise"),
        Some(noise) => format!("{noise:.1e} noise"),
    }
}

fn colour(outcome: Outcome) -> Verdict {
    match outcome {
        Outcome::Bitwise | Outcome::Within => Verdict::Pass,
        Outcome::Skipped | Outcome::Unsupported => Verdict::Unsupported,
        Outcome::Drift => Verdict::Drift,
        Outcome::Broken => Verdict::Broken,
    }
}

/// What differs most in each check that is not bitwise.
fn differences(record: &ConsistencyRecord, style: Style) -> String {
    let mut text = String::new();
    for target in &record.targets {
        for check in &target.checks {
            let Some(largest) = &check.largest else {
                continue;
            };
            let line = format!(
                "  {} on {}: {} of {} numbers differ",
                check.check.name(),
                plain(&target.target),
                check.differing,
                check.elements
            );
            let _ = writeln!(text, "{}", shorten(&line, style.width));
            write_wrapped(&mut text, &place(record, check, largest), style.width);
        }
    }
    if text.is_empty() {
        text
    } else {
        format!("differences, the largest of each check\n{text}")
    }
}

fn place(record: &ConsistencyRecord, check: &CheckRecord, largest: &Difference) -> String {
    let is_own = |sequence: &&super::SequenceRecord| sequence.case == largest.case;
    let tokens = record.sequences.iter().find(is_own);
    let tokens = tokens.map_or(0, |sequence| sequence.tokens);
    let starts = check
        .variants
        .iter()
        .filter(|variant| variant.variant == largest.variant)
        .flat_map(|variant| &variant.cases)
        .find(|case| case.case == largest.case)
        .and_then(|case| case.starts.as_ref());
    let starts = match starts {
        Some(starts) if *starts != largest.observation => {
            format!("; it starts at {}", plain(starts))
        }
        _ => String::new(),
    };
    let distance = match largest.distance_u {
        Some(distance) if distance < 999.5 => format!("{distance:.2} u, {}", noise(largest)),
        Some(distance) => format!("{distance:.1e} u, {}", noise(largest)),
        None => "not finite".to_owned(),
    };
    format!(
        "{}, {} ({tokens} tokens), {}: up to {:.1e} apart, {distance}{starts}",
        plain(&largest.variant),
        plain(&largest.case),
        plain(&largest.observation),
        largest.max_abs,
    )
}

/// What went wrong otherwise; equal ones of one target are said once.
fn findings(record: &ConsistencyRecord, style: Style) -> String {
    let mut shown: Vec<(&str, String, Outcome, &Finding)> = Vec::new();
    for target in &record.targets {
        let name = target.target.as_str();
        if let Some(finding) = &target.finding {
            shown.push((name, String::new(), unusable(target), finding));
        }
        for check in &target.checks {
            for variant in &check.variants {
                let Some(finding) = &variant.finding else {
                    continue;
                };
                if !shown
                    .iter()
                    .any(|known| (known.0, known.3) == (name, finding))
                {
                    let place = format!(", {}: {}", check.check.name(), plain(&variant.variant));
                    shown.push((name, place, variant.outcome, finding));
                }
            }
        }
    }
    let mut text = String::new();
    for (target, place, outcome, finding) in shown.iter().take(SHOWN) {
        let word = paint(&format!("{:<11}", outcome.name()), colour(*outcome), style);
        let _ = writeln!(text, "  {word} {}{place}", plain(target));
        write_wrapped(&mut text, &plain(&finding.message), style.width);
        for line in &finding.stderr {
            let line = shorten(&plain(line), style.width.saturating_sub(12));
            let _ = writeln!(text, "    stderr: {line}");
        }
        if let Some(hint) = &finding.hint {
            write_wrapped(&mut text, &format!("hint: {}", plain(hint)), style.width);
        }
    }
    more(&mut text, shown.len());
    if text.is_empty() {
        text
    } else {
        format!("findings\n{text}")
    }
}

/// What was not run, and why; what holds for several targets is said once.
fn skipped(record: &ConsistencyRecord, style: Style) -> String {
    let mut reasons: Vec<(String, Vec<String>)> = Vec::new();
    for check in record.targets.iter().flat_map(|target| &target.checks) {
        for variant in &check.variants {
            for reason in variant.skipped.iter().map(|reason| plain(reason)) {
                let name = plain(&variant.variant);
                match reasons.iter_mut().find(|known| known.0 == reason) {
                    None => reasons.push((reason, vec![name])),
                    Some((_, names)) if names.contains(&name) => {}
                    Some((_, names)) => names.push(name),
                }
            }
        }
    }
    let mut text = String::new();
    for (reason, names) in reasons.iter().take(SHOWN) {
        let sentence = format!("{}: {reason}", names.join(", "));
        write_wrapped(&mut text, &sentence, style.width);
    }
    more(&mut text, reasons.len());
    if text.is_empty() {
        text
    } else {
        format!("not run\n{text}")
    }
}

fn more(text: &mut String, count: usize) {
    if count > SHOWN {
        let _ = writeln!(text, "  ... and {} more, all in the record", count - SHOWN);
    }
}

/// One line for each thing to worry about, or one that says there is none.
fn conclusion(record: &ConsistencyRecord, style: Style) -> String {
    let mut text = String::new();
    let mut say = |verdict: Verdict, sentence: &str| {
        for line in wrap(sentence, style.width) {
            let _ = writeln!(text, "{}", paint(&line, verdict, style));
        }
    };
    for (outcome, word, deed) in [
        (Outcome::Broken, "BROKEN", "gave no result for"),
        (Outcome::Drift, "DRIFT", "gives another result in"),
        (Outcome::Unsupported, "INCOMPLETE", "cannot do"),
    ] {
        for target in &record.targets {
            let name = plain(&target.target);
            let own = target.checks.iter().filter(|own| own.outcome == outcome);
            let names: Vec<&str> = own.map(|own| own.check.name()).collect();
            if target.finding.is_some() {
                if unusable(target) == outcome {
                    say(colour(outcome), &format!("{word}: {name} {deed} any check"));
                }
            } else if !names.is_empty() {
                let (some, all) = (names.len(), target.checks.len());
                let names = names.join("; ");
                let sentence = format!("{word}: {name} {deed} {some} of {all} checks: {names}");
                say(colour(outcome), &sentence);
            }
        }
    }
    if record.summary.exit_code == 0 {
        let bitwise = record.summary.outcomes.get(&Outcome::Bitwise).copied();
        let bitwise = bitwise.unwrap_or(0);
        let skipped = record.summary.outcomes.get(&Outcome::Skipped).copied();
        let skipped = skipped.unwrap_or(0);
        let all = record.summary.outcomes.values().sum::<usize>() - skipped;
        let checks = record.targets.iter().flat_map(|target| &target.checks);
        let largest = checks
            .filter_map(|check| check.largest.as_ref())
            .max_by(|a, b| a.in_noise().total_cmp(&b.in_noise()));
        let furthest = match largest {
            Some(largest) => format!(
                ", the others differ by up to {} of {:.1} allowed",
                noise(largest),
                record.method.limit
            ),
            None => String::new(),
        };
        let not_run = match skipped {
            0 => String::new(),
            skipped => format!("; {skipped} were not run"),
        };
        let sentence =
            format!("CONSISTENT: {bitwise} of {all} checks are bitwise{furthest}{not_run}");
        say(Verdict::Pass, &sentence);
    }
    text
}
