//! The command that reproduces a result.

use crate::record::{ResultRecord, RunRecord, suite_key};

/// Where the embedded model lies, which is run where none is named.
const EMBEDDED_MODEL: &str = "cases/models/zh-mini";

/// The command line that runs the case of a result on its target again, quoted for a shell.
pub(crate) fn reproducing(record: &RunRecord, result: &ResultRecord) -> String {
    let mut words = vec!["driftgauge".to_owned(), "run".to_owned()];
    let mut add = |option: &str, value: &str| words.extend([option.to_owned(), quoted(value)]);
    let model = record.paths.get("model");
    if let Some(model) = model.filter(|model| !model.ends_with(EMBEDDED_MODEL)) {
        add("--model", model);
    }
    if let Some(suite) = record.paths.get(&suite_key(&result.suite)) {
        add("--suite", suite);
    }
    add("--target", &result.target);
    add("--case", &format!("{}/{}", result.suite, result.case));
    let mut targets = record.targets.iter();
    let target = targets.find(|target| target.target == result.target);
    if let Some(threads) = target.and_then(|target| target.threads) {
        add("--threads", &threads.to_string());
    }
    if record.method.k_overridden {
        add("--k", &record.method.k.to_string());
    }
    words.join(" ")
}

/// A word as a shell takes it; NUL, which none can take, is left out.
fn quoted(word: &str) -> String {
    let word = word.replace('\0', "");
    shlex::try_quote(&word).map_or_else(|_| word.clone(), Into::into)
}
