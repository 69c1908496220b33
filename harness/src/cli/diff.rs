//! `driftgauge diff`: two or more runs compared.

use std::collections::BTreeMap;

use anyhow::anyhow;
use driftgauge::evidence::{self, Evidence};
use driftgauge::exit;
use driftgauge_reports::RunRecord;
use driftgauge_reports::diff::{self, Direct, Place, Side};
use driftgauge_reports::record::Verdict;

use super::{DiffArguments, Exit, TableOrJson, print, style};

/// Compares files and prints what is different.
///
/// # Errors
/// [`Exit`] where a file cannot be read, or where there is nothing to compare.
pub fn diff(arguments: &DiffArguments) -> Result<u8, Exit> {
    let mut files = Vec::new();
    for path in &arguments.files {
        let evidence = evidence::read(path).map_err(|error| {
            let hint = error.hint();
            Exit::input(error).with_hint(hint)
        })?;
        files.push((path.display().to_string(), evidence));
    }
    let wanted: Vec<String> = arguments.targets.iter().map(ToString::to_string).collect();
    check_targets(&files, &wanted)?;
    let runs = runs(&files, &wanted);
    let sides: Vec<Side> = runs
        .iter()
        .map(|run| Side {
            name: &run.name,
            file: run.file,
            record: &run.record,
        })
        .collect();
    let direct = |a: Place<'_>, b: Place<'_>| {
        let (one, other) = (runs[a.0].file, runs[b.0].file);
        if let Some(distances) = evidence::distances((&files[one].1, a.1), (&files[other].1, b.1)) {
            return Some(Direct::Each(distances));
        }
        let is_pair = |known: [&str; 2]| known == [a.1, b.1] || known == [b.1, a.1];
        let mut pairs = files[one].1.record.pairs.iter();
        let pair = pairs.find(|pair| is_pair([&pair.a, &pair.b]));
        pair.filter(|_| one == other).cloned().map(Direct::Summary)
    };
    let found = diff::compare(&sides, &direct).map_err(|error| {
        let hint = error.hint();
        Exit::input(error).with_hint(hint)
    })?;
    let text = match arguments.format {
        TableOrJson::Table => diff::render(&found, style()),
        TableOrJson::Json => diff::render_json(&found).map_err(Exit::input)?,
    };
    print(&text)?;
    Ok(if found.drifted {
        exit::DRIFT
    } else {
        exit::CONFORMS
    })
}

/// One side of the comparison.
struct Run {
    name: String,
    /// Index of its file.
    file: usize,
    record: RunRecord,
}

/// A target that no file has is a mistake.
fn check_targets(files: &[(String, Evidence)], wanted: &[String]) -> Result<(), Exit> {
    for target in wanted {
        let has = |(_, evidence): &(String, Evidence)| {
            evidence
                .record
                .targets
                .iter()
                .any(|known| known.target == *target)
        };
        if !files.iter().any(has) {
            let mut known: Vec<&str> = files
                .iter()
                .flat_map(|(_, evidence)| &evidence.record.targets)
                .map(|known| known.target.as_str())
                .collect();
            known.sort_unstable();
            known.dedup();
            let error = anyhow!("no file has the target `{target}`");
            return Err(Exit::input(error).with_hint(format!("there are: {}", known.join(", "))));
        }
    }
    Ok(())
}

/// The sides: each file with the targets that are wanted, or each target of the only file.
fn runs(files: &[(String, Evidence)], wanted: &[String]) -> Vec<Run> {
    let is_wanted = |target: &str| wanted.is_empty() || wanted.iter().any(|one| one == target);
    if let [(_, evidence)] = files {
        let targets = evidence
            .record
            .targets
            .iter()
            .map(|target| target.target.clone());
        return targets
            .filter(|target| is_wanted(target))
            .map(|target| Run {
                record: only(&evidence.record, |name| name == target),
                file: 0,
                name: target,
            })
            .collect();
    }
    files
        .iter()
        .enumerate()
        .map(|(file, (name, evidence))| Run {
            name: name.clone(),
            file,
            record: only(&evidence.record, is_wanted),
        })
        .collect()
}

/// A record with some of its targets.
fn only(record: &RunRecord, is_wanted: impl Fn(&str) -> bool) -> RunRecord {
    let mut record = record.clone();
    record.targets.retain(|target| is_wanted(&target.target));
    record.results.retain(|result| is_wanted(&result.target));
    let mut verdicts: BTreeMap<Verdict, usize> = BTreeMap::new();
    for result in &record.results {
        *verdicts.entry(result.verdict).or_insert(0) += 1;
    }
    record.summary.targets = record.targets.len();
    record.summary.verdicts = verdicts;
    record
}
