//! The folder of accepted baselines: `<model>/<suite>/truth.safetensors`, and beside it one
//! `<target>.<environment>.json` for each target in each environment.

use std::path::{Path, PathBuf};

use super::file::{self, BaselineError, file_name};
use super::truth::{self, FILE, MadeFor, Sketch};
use super::{Baseline, ModelIdentity, SuiteIdentity};
use crate::model::Model;
use crate::suite::Suite;
use crate::target::Target;

/// What was accepted for one suite, of this version, and the targets that were asked for.
#[derive(Debug)]
pub struct Accepted {
    /// Name of the suite.
    pub name: String,
    /// The truth, by case.
    pub truth: Sketch,
    /// The baselines, of every environment.
    pub baselines: Vec<Baseline>,
}

/// What lies in the folder of a suite, whatever it was made for.
#[derive(Debug)]
pub struct Stored {
    /// The folder; it need not exist.
    pub folder: PathBuf,
    /// The truth and what it was made for.
    pub truth: Option<(Sketch, MadeFor)>,
    /// Baselines of the targets that were asked for, with their files.
    pub baselines: Vec<(PathBuf, Baseline)>,
}

/// What a run is about to compare.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The model.
    pub model: &'a ModelIdentity,
    /// The suites.
    pub suites: &'a [SuiteIdentity],
    /// The targets.
    pub targets: &'a [Target],
}

/// The digests of a model.
pub fn model_identity(model: &Model) -> ModelIdentity {
    let files = model.files.iter().map(|file| {
        let name = file.path.file_name().unwrap_or_default();
        (name.to_string_lossy().into_owned(), file.sha256.clone())
    });
    ModelIdentity {
        id: model.id.clone(),
        files: files.collect(),
    }
}

/// The digest of a suite.
pub fn suite_identity(suite: &Suite) -> SuiteIdentity {
    SuiteIdentity {
        name: suite.name.clone(),
        sha256: suite.sha256.clone(),
    }
}

/// Everything that was accepted for what a run is about to compare.
///
/// # Errors
/// [`BaselineError`] that names the file: for one that is damaged, and where a target has baselines
/// and all of them were made for something else.
pub fn open(folder: &Path, wanted: Wanted<'_>) -> Result<Vec<Accepted>, BaselineError> {
    let mut accepted = Vec::new();
    for suite in wanted.suites {
        let stored = read(folder, &wanted.model.id, &suite.name, wanted.targets)?;
        let mut baselines = Vec::new();
        for target in wanted.targets {
            let identity = target.identity();
            let own = stored
                .baselines
                .iter()
                .filter(|(_, one)| one.target == identity);
            let checked = own.map(|(path, baseline)| {
                let made_for = (&baseline.model, &baseline.suite);
                check_made_for(path, made_for, (wanted.model, suite)).map(|()| baseline)
            });
            let (fitting, others): (Vec<_>, Vec<_>) = checked.partition(Result::is_ok);
            if let (true, Some(Err(error))) = (fitting.is_empty(), others.into_iter().next()) {
                return Err(error);
            }
            for baseline in fitting.into_iter().flatten() {
                // Two targets that differ in the place of their library share their baselines.
                if !baselines.contains(baseline) {
                    baselines.push(baseline.clone());
                }
            }
        }
        let path = stored.folder.join(FILE);
        let truth = match stored.truth {
            None if baselines.is_empty() => Sketch::new(),
            None => {
                let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
                return Err(BaselineError::io(&path)(gone));
            }
            Some((truth, made_for)) => {
                let made_for = (&made_for.model, &made_for.suite);
                check_made_for(&path, made_for, (wanted.model, suite))?;
                truth
            }
        };
        accepted.push(Accepted {
            name: suite.name.clone(),
            truth,
            baselines,
        });
    }
    Ok(accepted)
}

/// Reads what lies in the folder of a suite for some targets, whatever it was made for.
///
/// # Errors
/// [`BaselineError`] for a file that is damaged, or made for another target than its name says.
pub fn read(
    folder: &Path,
    model: &str,
    suite: &str,
    targets: &[Target],
) -> Result<Stored, BaselineError> {
    let folder = folder.join(file_name(model)).join(file_name(suite));
    let mut paths = Vec::new();
    match std::fs::read_dir(&folder) {
        Ok(entries) => {
            for entry in entries {
                paths.push(entry.map_err(BaselineError::io(&folder))?.path());
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(BaselineError::io(&folder)(error)),
    }
    paths.sort();
    let mut baselines: Vec<(PathBuf, Baseline)> = Vec::new();
    for path in &paths {
        let target = targets.iter().find(|target| is_of(path, target));
        if let Some(target) = target {
            let baseline = file::read(path)?;
            check_target(path, &baseline, target)?;
            baselines.push((path.clone(), baseline));
        }
    }
    let path = folder.join(FILE);
    let truth = match paths.contains(&path) {
        true => {
            let bytes = std::fs::read(&path).map_err(BaselineError::io(&path))?;
            let (sketch, made_for) = truth::decode(&path, &bytes)?;
            let nothing = || BaselineError::content(&path, "does not say what it was made for");
            Some((sketch, made_for.ok_or_else(nothing)?))
        }
        false => None,
    };
    Ok(Stored {
        folder,
        truth,
        baselines,
    })
}

/// Whether a file is, by its name, a baseline of a target: `<target>.<8 digits>.json`.
fn is_of(path: &Path, target: &Target) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let digits = name
        .strip_prefix(&file_name(&target.identity()))
        .and_then(|rest| rest.strip_prefix('.'))
        .and_then(|rest| rest.strip_suffix(".json"));
    digits.is_some_and(|digits| digits.len() == 8 && digits.chars().all(|c| c.is_ascii_hexdigit()))
}

fn check_target(path: &Path, baseline: &Baseline, target: &Target) -> Result<(), BaselineError> {
    let (identity, dtype) = (target.identity(), target.dtype.name());
    if (baseline.target.as_str(), baseline.dtype.as_str()) == (&identity, dtype) {
        return Ok(());
    }
    Err(BaselineError::MadeFor {
        path: path.to_owned(),
        made_for: format!("target `{}` in {}", baseline.target, baseline.dtype),
        has: format!("`{identity}` in {dtype}"),
    })
}

/// Checks that what was accepted is for this model and this version of the suite.
///
/// # Errors
/// [`BaselineError::MadeFor`] that names the first file that differs.
fn check_made_for(
    path: &Path,
    (model, suite): (&ModelIdentity, &SuiteIdentity),
    (model_now, suite_now): (&ModelIdentity, &SuiteIdentity),
) -> Result<(), BaselineError> {
    let refused = |made_for, has| {
        Err(BaselineError::MadeFor {
            path: path.to_owned(),
            made_for,
            has,
        })
    };
    let short = |sha256: &str| sha256.chars().take(12).collect::<String>();
    if model.id != model_now.id {
        return refused(
            format!("model `{}`", model.id),
            format!("`{}`", model_now.id),
        );
    }
    let names = model.files.keys().chain(model_now.files.keys());
    for name in names {
        let [old, now] = [model, model_now].map(|model| model.files.get(name));
        if old != now {
            let words = |sha256: Option<&String>| match sha256 {
                Some(sha256) => format!("SHA-256 {}…", short(sha256)),
                None => "none".to_owned(),
            };
            let made_for = format!("model `{}` whose `{name}` has {}", model.id, words(old));
            return refused(made_for, words(now));
        }
    }
    if suite.sha256 != suite_now.sha256 {
        let made_for = format!(
            "another version of suite `{}` (SHA-256 {}…)",
            suite.name,
            short(&suite.sha256)
        );
        return refused(made_for, format!("SHA-256 {}…", short(&suite_now.sha256)));
    }
    Ok(())
}
