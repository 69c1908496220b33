//! The table on stdout: what a person understands in ten seconds at 80 columns.
//!
//! From the top: what was run, what the models answer, how far each target is from the truth,
//! what is wrong, and the conclusion. Only characters that are one column wide in every terminal
//! frame the text, because Chinese terminals may draw box characters two columns wide.

mod answers;

use std::collections::BTreeMap;
use std::fmt::Write;

use tabled::builder::Builder;

use crate::Style;
use crate::baselines;
use crate::conclusion::{affected, nearest};
use crate::findings::grouped;
use crate::known;
use crate::layout::{layout, paint, wrap, write_wrapped};
use crate::pairs;
use crate::record::{
    FindingKind, Margin, Observation, Pair, Repeats, ResultRecord, RunRecord, TargetRecord, Verdict,
};
use crate::text::{plain, shorten, shorten_middle, width};
use answers::answers;

/// Columns that a case gets whatever happens.
const NARROWEST_CASE: usize = 12;
/// Columns of a target's options, and of an answer that differs.
const CELL: usize = 14;
/// Findings that are shown.
const SHOWN_FINDINGS: usize = 8;
/// Columns of a target before its library.
const LONGEST_TARGET: usize = 32;
/// Ties that are shown.
const SHOWN_TIES: usize = 3;

/// Renders the record.
pub fn render(record: &RunRecord, style: Style) -> String {
    let mut text = headline(record, style);
    for part in [
        answers(record, style),
        distances(record),
        verdicts(record, style),
        pairs::section(&labelled_pairs(record), record.method.k, style),
        findings(record, style),
        known::section(record, style),
        ties(record, style),
        conclusion(record, style),
    ] {
        if !part.is_empty() {
            text.push('\n');
            text.push_str(&part);
        }
    }
    text
}

fn headline(record: &RunRecord, style: Style) -> String {
    let model = &record.model;
    let state = if model.verified {
        "files verified"
    } else {
        "files not compared with a manifest"
    };
    let mut text = format!(
        "model {}: {:.1} M parameters, {state}; {} on {}\n",
        plain(&model.id),
        model.parameters as f64 / 1e6,
        counted(record.summary.cases, "case"),
        counted(record.summary.targets, "target"),
    );
    // What the model's files do not say changes tokens from one library to the next.
    if let Some(lowercase) = model
        .tokenizer
        .get("lowercase")
        .filter(|how| how.contains("default"))
    {
        let line = format!(
            "  tokenizer: no file sets lower case, it is {}",
            plain(lowercase)
        );
        let _ = writeln!(text, "{}", shorten(&line, style.width));
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
        let line = format!(
            "  {:<20} {library}{threads}{restarts}{}",
            shorten_middle(&plain(&target.target), LONGEST_TARGET),
            float64(target)
        );
        let _ = writeln!(text, "{}", shorten(&line, style.width));
        let missing = target.semantic_missing.as_ref();
        if let Some(broken) = missing.filter(|missing| missing.kind != FindingKind::Unsupported) {
            let sentence = format!("f64 check: {}", plain(&broken.message));
            write_wrapped(&mut text, &sentence, style.width);
        }
        if let Some(repeats) = &target.repeats {
            write_wrapped(&mut text, &repeated(repeats), style.width);
        }
        text.push_str(&baselines::of_target(record, target, style));
    }
    let method = &record.method;
    let from = if method.k_overridden {
        " (from the command line)"
    } else {
        ""
    };
    let sentence = format!(
        "noise is the error that rounding is predicted to make, for each case and observation; \
         allowed are {} times the noise{from}",
        method.k
    );
    for line in wrap(&sentence, style.width.saturating_sub(2)) {
        let _ = writeln!(text, "  {line}");
    }
    text.push_str(&baselines::of_run(record, style));
    if !record.known.applied {
        text.push_str("    known deviations: not applied (--no-known)\n");
    }
    text
}

/// What the library makes of the same formula in float64, in a few words.
fn float64(target: &TargetRecord) -> String {
    match &target.semantic {
        Some(check) if check.within => {
            let error = check.error.unwrap_or(f64::INFINITY);
            format!("; in f64 the truth to {error:.0e}")
        }
        Some(_) => "; in f64 NOT the truth".to_owned(),
        None => match &target.semantic_missing {
            Some(missing) if missing.kind == FindingKind::Unsupported => "; has no f64".to_owned(),
            Some(_) => "; f64 check BROKE".to_owned(),
            None => String::new(),
        },
    }
}

/// What further runs gave, in a sentence.
fn repeated(repeats: &Repeats) -> String {
    let percent = repeats.rate_below * 100.0;
    let bits = match repeats.not_bitwise {
        0 => "all bitwise equal".to_owned(),
        some => format!(
            "{some} of {} observations not bitwise",
            repeats.observations
        ),
    };
    format!(
        "repeats: {} of {} verdicts differ (below {percent:.1} % at 95 %), {bits}",
        repeats.differing, repeats.verdicts
    )
}

/// The worst error of each observation over all cases, worst observation first.
fn distances(record: &RunRecord) -> String {
    let mut worst: BTreeMap<&str, BTreeMap<&str, &Observation>> = BTreeMap::new();
    for result in &record.results {
        for (name, observation) in &result.observations {
            let of_target = worst.entry(name).or_default();
            let old = of_target.get(result.target.as_str());
            if old.is_none_or(|old| observation.in_noise() > old.in_noise()) {
                of_target.insert(&result.target, observation);
            }
        }
    }
    if worst.is_empty() {
        return String::new();
    }
    let mut rows: Vec<(&str, BTreeMap<&str, &Observation>)> = worst.into_iter().collect();
    let severity = |row: &BTreeMap<&str, &Observation>| {
        row.values()
            .map(|worst| worst.in_noise())
            .fold(0.0, f64::max)
    };
    rows.sort_by(|a, b| severity(&b.1).total_cmp(&severity(&a.1)).then(a.0.cmp(b.0)));
    let mut table = Builder::default();
    let heads = record.targets.iter().map(heading);
    table.push_record(["observation".to_owned()].into_iter().chain(heads));
    for (name, of_target) in rows {
        let cells = record.targets.iter().map(|target| {
            let observation = of_target.get(target.target.as_str());
            observation.map_or("-".to_owned(), |observation| measured(observation))
        });
        table.push_record([plain(name)].into_iter().chain(cells));
    }
    format!(
        "largest error over all cases: in units of noise (limit {}), in u, bits left\n{}\n",
        record.method.k,
        layout(table, 1)
    )
}

/// An error in noise, in u, and in bits.
fn measured(observation: &Observation) -> String {
    match (observation.error_u, observation.effective_bits) {
        (Some(error), Some(bits)) => {
            format!(
                "{}  {} u {bits:4.1} b",
                number(observation.in_noise()),
                number(error)
            )
        }
        _ => number(f64::INFINITY),
    }
}

/// Verdicts of each suite on each target.
fn verdicts(record: &RunRecord, style: Style) -> String {
    let mut table = Builder::default();
    let heads = record.targets.iter().map(heading);
    table.push_record(
        ["suite".to_owned(), "cases".to_owned()]
            .into_iter()
            .chain(heads),
    );
    for suite in record.suites.iter().filter(|suite| suite.selected > 0) {
        let cells = record.targets.iter().map(|target| {
            let mut counts: BTreeMap<Verdict, usize> = BTreeMap::new();
            let own = record
                .results
                .iter()
                .filter(|r| r.suite == suite.name && r.target == target.target);
            own.for_each(|result| *counts.entry(result.verdict).or_insert(0) += 1);
            let words = counts.iter().map(|(verdict, count)| {
                let words = format!("{count} {}", verdict.name());
                paint(&words, *verdict, style)
            });
            words.collect::<Vec<_>>().join("\n")
        });
        table.push_record(
            [plain(&suite.name), suite.selected.to_string()]
                .into_iter()
                .chain(cells),
        );
    }
    format!("verdicts\n{}\n", layout(table, 1))
}

/// Findings, the worst first; equal ones of one target are counted, not repeated.
fn findings(record: &RunRecord, style: Style) -> String {
    let groups = grouped(record);
    if groups.is_empty() {
        return String::new();
    }
    let mut text = "findings\n".to_owned();
    for group in groups.iter().take(SHOWN_FINDINGS) {
        let (result, finding) = (group.result, group.finding);
        let word = format!("{:<11}", result.verdict.name());
        let class = finding
            .class
            .map_or(String::new(), |class| format!("{}: ", class.name()));
        let place = format!(
            "{} on {}/{}",
            plain(&result.target),
            plain(&result.suite),
            plain(&result.case)
        );
        let more = match group.cases {
            1 => String::new(),
            2 => " and 1 more case".to_owned(),
            cases => format!(" and {} more cases", cases - 1),
        };
        let free = style
            .width
            .saturating_sub(15 + width(&class) + width(&more));
        let _ = writeln!(
            text,
            "  {} {class}{}{more}",
            paint(&word, result.verdict, style),
            shorten(&place, free.max(NARROWEST_CASE))
        );
        let followed = match group.followed {
            0 => String::new(),
            1 => "; the drift starts there, 1 later observation follows".to_owned(),
            followed => {
                format!("; the drift starts there, {followed} later observations follow")
            }
        };
        let sentence = format!("{}{followed}", plain(&finding.message));
        write_wrapped(&mut text, &sentence, style.width);
        for evidence in &finding.evidence {
            write_wrapped(
                &mut text,
                &format!("because {}", plain(evidence)),
                style.width,
            );
        }
        for line in &finding.stderr {
            let _ = writeln!(
                text,
                "    stderr: {}",
                shorten(&plain(line), style.width.saturating_sub(12))
            );
        }
        if let Some(hint) = &finding.hint {
            write_wrapped(&mut text, &format!("hint: {}", plain(hint)), style.width);
        }
    }
    if groups.len() > SHOWN_FINDINGS {
        let _ = writeln!(
            text,
            "  ... and {} more kinds, all in the record",
            groups.len() - SHOWN_FINDINGS
        );
    }
    text
}

/// What has changed places within its noise, the widest gap first.
fn ties(record: &RunRecord, style: Style) -> String {
    let mut all: Vec<(&ResultRecord, &Margin)> = Vec::new();
    for result in &record.results {
        let ties = result.margins.iter().filter(|margin| margin.tie);
        all.extend(ties.map(|margin| (result, margin)));
    }
    if all.is_empty() {
        return String::new();
    }
    all.sort_by(|a, b| b.1.noise.total_cmp(&a.1.noise));
    let mut text = "ties: changed places, no further apart than noise explains\n".to_owned();
    for (result, margin) in all.iter().take(SHOWN_TIES) {
        let (first, second) = (plain(&margin.first), plain(&margin.second));
        let place = margin
            .position
            .map_or(String::new(), |position| format!(" at token {position}"));
        let (case, target) = (plain(&result.case), plain(&result.target));
        let line = format!(
            "  {:.1} noise  {second} before {first}{place} of {case} on {target}",
            margin.noise
        );
        let _ = writeln!(text, "{}", shorten(&line, style.width));
    }
    if all.len() > SHOWN_TIES {
        let _ = writeln!(
            text,
            "  ... and {} more, all in the record",
            all.len() - SHOWN_TIES
        );
    }
    text
}

/// One line for each thing to worry about, or one that says there is none.
fn conclusion(record: &RunRecord, style: Style) -> String {
    let mut text = String::new();
    let mut say = |verdict: Verdict, sentence: &str| {
        for line in wrap(sentence, style.width) {
            let _ = writeln!(text, "{}", paint(&line, verdict, style));
        }
    };
    let mut conforms = true;
    for (verdict, word, deed) in [
        (Verdict::Broken, "BROKEN", "gave no result for"),
        (Verdict::Drift, "DRIFT", "drifted in"),
        (Verdict::Fixed, "FIXED", "no longer deviates in"),
        (Verdict::Unsupported, "INCOMPLETE", "cannot do"),
    ] {
        for (target, affected, all) in affected(record, verdict) {
            conforms = false;
            let target = plain(&target.target);
            let sentence = format!("{word}: {target} {deed} {affected} of {all} cases");
            say(verdict, &sentence);
        }
    }
    if record.truth.finding.is_some() {
        conforms = false;
        let sentence = "DRIFT: the truth is not the accepted one, see above";
        say(Verdict::Drift, sentence);
    }
    if conforms {
        let apart = match record.summary.verdicts.get(&Verdict::Known) {
            Some(known) => format!(" apart from {}", counted(*known, "known deviation")),
            None => String::new(),
        };
        if let Some((target, name, used)) = nearest(record) {
            let (target, name) = (plain(target), plain(name));
            let used = used * 100.0;
            say(
                Verdict::Pass,
                &format!(
                    "CONFORMS: all targets compute the same model{apart}; the error nearest its limit is \
                     {used:.0} % of it ({target}, {name})"
                ),
            );
        }
    }
    text
}

pub(crate) fn counted(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

/// A target of a run as a heading. A library that is named by its place is shown by its version, which
/// tells two of them apart.
fn heading(target: &TargetRecord) -> String {
    head(&label(target))
}

/// The pairs of a record under the labels of their targets.
fn labelled_pairs(record: &RunRecord) -> Vec<Pair> {
    let labelled = |name: &String| {
        let target = record.targets.iter().find(|target| target.target == *name);
        target.map_or_else(|| name.clone(), label)
    };
    let pairs = record.pairs.iter();
    pairs
        .map(|pair| Pair {
            a: labelled(&pair.a),
            b: labelled(&pair.b),
            ..pair.clone()
        })
        .collect()
}

/// A target with the version of its library in place of the file that the option `lib` names.
fn label(target: &TargetRecord) -> String {
    let (place, options) = target
        .target
        .split_once('?')
        .unwrap_or((&target.target, ""));
    let version = target.library_version.as_deref();
    let shown = options
        .split('&')
        .filter(|option| !option.is_empty())
        .map(|option| match (option.strip_prefix("lib="), version) {
            (Some(_), Some(version)) => format!("lib {version}"),
            _ => option.to_owned(),
        });
    let shown: Vec<String> = shown.collect();
    if shown.is_empty() {
        return place.to_owned();
    }
    format!("{place}?{}", shown.join("&"))
}

/// A target as a heading: the backend, the place, and the options where there are any.
pub(crate) fn head(target: &str) -> String {
    let (place, options) = target.split_at(target.find('?').unwrap_or(target.len()));
    let (backend, device) = place.split_at(place.find('@').unwrap_or(place.len()));
    let mut text = format!("{}\n{}", plain(backend), plain(device));
    if !options.is_empty() {
        text.push('\n');
        text.push_str(&shorten(&plain(options), CELL));
    }
    text
}

/// A number of u: one decimal where that says something.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        "not finite".to_owned()
    } else if value < 9999.5 {
        format!("{value:.1}")
    } else {
        format!("{value:.1e}")
    }
}
