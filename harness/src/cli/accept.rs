//! `driftgauge accept`: a person looks at what changed and makes it the baseline.

use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use driftgauge::baseline::SuiteIdentity;
use driftgauge::baseline::accept::{self, Asked, Step, SuitePlan};
use driftgauge::baseline::file::BaselineError;
use driftgauge::baseline::folder;
use driftgauge::baseline::truth::Sketch;
use driftgauge::target::Target;
use driftgauge::{day, exit, output};
use driftgauge_reports::environment::in_words;
use driftgauge_reports::record::TargetRecord;
use driftgauge_reports::text::plain;
use driftgauge_reports::{RunRecord, wrap};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::inputs::record_with_truth;
use super::{AcceptArguments, Exit, print, style};

/// Shows what a record would change among the baselines, and writes what is accepted.
///
/// # Errors
/// [`Exit`] where nothing may or can be accepted; then nothing is written.
pub fn accept(arguments: &AcceptArguments) -> Result<u8, Exit> {
    refuse_machines(arguments)?;
    let (record, sketch) = record_with_truth(&arguments.record)?;
    let folder = match &arguments.baselines {
        Some(folder) => folder.clone(),
        None => super::find_install()?.baselines(),
    };
    let reason = arguments.reason.as_deref().map(str::trim);
    if reason == Some("") {
        let error = anyhow!("the reason is empty");
        return Err(Exit::input(error).with_hint("say in a sentence why the numbers may move"));
    }
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH);
    let date = day::of(seconds.unwrap_or_default().as_secs());
    let asked = Asked {
        date: &date,
        reason,
    };
    let plans = plans(arguments, &record, &sketch, &folder, asked)?;
    let steps = || {
        plans
            .iter()
            .flat_map(|plan| plan.steps.iter().map(move |step| (plan, step)))
    };
    if steps().next().is_none() {
        let error = anyhow!("nothing in `{}` matches", arguments.record.display());
        let hint = "--target and --suite are patterns over the record's targets and suites";
        return Err(Exit {
            code: exit::NOTHING,
            ..Exit::input(error).with_hint(hint)
        });
    }
    let objections: Vec<String> = steps()
        .filter(|(plan, step)| changes(plan, step))
        .filter(|(_, step)| !step.objections.is_empty())
        .map(|(plan, step)| {
            let why = step.objections.join("; ");
            format!("{} on {}: {why}", plain(&step.target), plain(&plan.suite))
        })
        .collect();
    if arguments.all || (reason.is_none() && !objections.is_empty()) {
        for (plan, step) in steps() {
            print(&described(plan, step))?;
        }
    }
    if reason.is_none() && !objections.is_empty() {
        let error = anyhow!(
            "this takes a reason, nothing is written:\n    {}",
            objections.join("\n    ")
        );
        let hint = "find out why first; then --reason TEXT, which is kept with the baseline, or leave \
                    targets out with --target and --suite";
        return Err(Exit::input(error).with_hint(hint));
    }
    let is_accepted = |plan: &SuitePlan, step: &Step| match arguments.all {
        true => Ok(Answer::Yes),
        false => {
            print(&described(plan, step))?;
            if changes(plan, step) {
                ask()
            } else {
                Ok(Answer::No)
            }
        }
    };
    write(&plans, &folder, is_accepted)
}

/// Accepting is a person's step.
fn refuse_machines(arguments: &AcceptArguments) -> Result<(), Exit> {
    let ci = std::env::var("CI").unwrap_or_default();
    if !["", "0", "false"].contains(&ci.as_str()) {
        let error =
            anyhow!("accepting is a person's step, and this is CI (the variable CI is set)");
        let hint = "run `driftgauge accept` on your machine and commit what it writes";
        return Err(Exit::input(error).with_hint(hint));
    }
    let is_seen = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if !is_seen && !arguments.all {
        let error = anyhow!("accepting asks for each target and suite, and this is no terminal");
        return Err(Exit::input(error).with_hint("--all accepts everything without asking"));
    }
    Ok(())
}

fn plans(
    arguments: &AcceptArguments,
    record: &RunRecord,
    sketch: &Sketch,
    folder: &Path,
    asked: Asked<'_>,
) -> Result<Vec<SuitePlan>, Exit> {
    let is_wanted_target = patterns(&arguments.targets)?;
    let is_wanted_suite = patterns(&arguments.suites)?;
    let targets: Vec<&TargetRecord> = record
        .targets
        .iter()
        .filter(|target| {
            is_wanted_target
                .as_ref()
                .is_none_or(|set| set.is_match(&target.target))
        })
        .collect();
    let parsed = targets.iter().map(|target| target.target.parse::<Target>());
    let parsed = parsed.collect::<Result<Vec<_>, _>>().map_err(Exit::input)?;
    let suites = record.suites.iter().filter(|suite| suite.selected > 0);
    let suites = suites.filter(|suite| {
        let is_match = |set: &GlobSet| set.is_match(&suite.name);
        is_wanted_suite.as_ref().is_none_or(is_match)
    });
    suites
        .map(|suite| {
            let identity = SuiteIdentity {
                name: suite.name.clone(),
                sha256: suite.sha256.clone(),
            };
            let model = &record.model.id;
            let stored = folder::read(folder, model, &suite.name, &parsed).map_err(refused)?;
            accept::plan(record, sketch, &identity, &targets, &stored, asked)
                .map_err(|error| Exit::input(error).with_hint("choose one of them with --target"))
        })
        .collect()
}

fn patterns(patterns: &[String]) -> Result<Option<GlobSet>, Exit> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern).build().map_err(|error| {
            Exit::input(anyhow!(error).context(format!("`{pattern}` is not a pattern")))
        })?;
        set.add(glob);
    }
    set.build().map(Some).map_err(Exit::input)
}

/// Whether accepting would change a file.
fn changes(plan: &SuitePlan, step: &Step) -> bool {
    step.content.is_some() || plan.truth.1.is_some()
}

fn described(plan: &SuitePlan, step: &Step) -> String {
    let cases = match step.cases {
        1 => "1 case".to_owned(),
        cases => format!("{cases} cases"),
    };
    let width = style().width.saturating_sub(2);
    let mut text = format!(
        "{} on {}: {cases}\n",
        plain(&step.target),
        plain(&plan.suite)
    );
    let mut say = |line: String| {
        for line in wrap(&line, width) {
            let _ = writeln!(text, "  {line}");
        }
    };
    match &step.compared {
        None => say("nothing was accepted before".to_owned()),
        Some((name, changed)) if changed.is_empty() => say(format!("accepted: {}", plain(name))),
        Some((name, changed)) => {
            let changed = in_words(changed, usize::MAX);
            say(format!("accepted: {} (changed: {changed})", plain(name)));
        }
    }
    if step.compared.is_some() {
        let counts = step.standing.counts;
        let parts = [
            (counts.bitwise, "bitwise equal"),
            (counts.within, "within noise"),
            (counts.drifted, "moved beyond noise"),
            (counts.improved, "nearer the truth by more than noise"),
            (counts.unknown, "not in the baseline"),
        ];
        let parts = parts.iter().filter(|(count, _)| *count > 0);
        let parts: Vec<String> = parts
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if !parts.is_empty() {
            say(parts.join(", "));
        }
    }
    if let Some(largest) = &step.standing.largest {
        let number = |error: Option<f64>| match error {
            Some(error) => format!("{error:.1} u"),
            None => "not finite".to_owned(),
        };
        let noise = largest
            .noise
            .map(|noise| format!(" ({noise:+.1} times the noise)"));
        say(format!(
            "largest move: {} `{}` {} -> {}{}",
            plain(&largest.case),
            plain(&largest.observation),
            number(largest.from_u),
            number(largest.to_u),
            noise.unwrap_or_default()
        ));
    }
    match changes(plan, step) {
        false => say("unchanged".to_owned()),
        true => step
            .objections
            .iter()
            .for_each(|why| say(format!("takes a reason: {why}"))),
    }
    text
}

enum Answer {
    Yes,
    No,
    Quit,
}

/// Asks until the answer is understood. The end of the input is "quit".
fn ask() -> Result<Answer, Exit> {
    loop {
        let _ = write!(std::io::stderr(), "  accept? [y]es, [n]o, [q]uit: ");
        let mut line = String::new();
        let count = std::io::stdin().lock().read_line(&mut line);
        let count = count
            .context("cannot read the answer")
            .map_err(Exit::input)?;
        match line.trim() {
            "y" | "yes" => return Ok(Answer::Yes),
            "n" | "no" => return Ok(Answer::No),
            "q" | "quit" => return Ok(Answer::Quit),
            _ if count == 0 => return Ok(Answer::Quit),
            _ => {}
        }
    }
}

/// Writes what is accepted: of each suite the truth first, which its baselines rest on.
fn write(
    plans: &[SuitePlan],
    folder: &Path,
    is_accepted: impl Fn(&SuitePlan, &Step) -> Result<Answer, Exit>,
) -> Result<u8, Exit> {
    let (mut written, mut unchanged, mut left): (Vec<PathBuf>, usize, usize) = (Vec::new(), 0, 0);
    let store = |path: &Path, bytes: &[u8]| {
        output::write_whole(path, bytes)
            .with_context(|| format!("cannot write `{}`", path.display()))
            .map_err(Exit::input)
    };
    let mut has_quit = false;
    for plan in plans {
        let (truth_path, truth) = &plan.truth;
        for step in &plan.steps {
            let answer = match has_quit {
                true => Answer::Quit,
                false => is_accepted(plan, step)?,
            };
            match answer {
                Answer::Quit => (has_quit, left) = (true, left + 1),
                _ if !changes(plan, step) => unchanged += 1,
                Answer::No => left += 1,
                Answer::Yes => {
                    if let Some(truth) = truth
                        && !written.contains(truth_path)
                    {
                        store(truth_path, truth)?;
                        written.push(truth_path.clone());
                    }
                    match &step.content {
                        None => unchanged += 1,
                        Some(content) => {
                            store(&step.path, content.as_bytes())?;
                            written.push(step.path.clone());
                        }
                    }
                }
            }
        }
    }
    let mut text = match written.len() {
        0 => "nothing written".to_owned(),
        1 => format!("1 file written under `{}`, commit it", folder.display()),
        count => format!(
            "{count} files written under `{}`, commit them",
            folder.display()
        ),
    };
    for (count, what) in [(unchanged, "unchanged"), (left, "not accepted")] {
        if count > 0 {
            let _ = write!(text, "; {what}: {count}");
        }
    }
    print(&format!("{text}\n"))?;
    Ok(exit::CONFORMS)
}

/// A file among the accepted ones that is refused.
pub fn refused(error: BaselineError) -> Exit {
    let hint = error.hint();
    Exit::input(error).with_hint(hint)
}
