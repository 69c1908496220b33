//! What surrounds the numbers of a run, beside each target's [environment](crate::environment).

use std::collections::BTreeMap;

use crate::record::RunRecord;

/// What a record says of its model.
pub(super) fn model(record: &RunRecord) -> BTreeMap<String, String> {
    let model = &record.model;
    let mut facts = files(record);
    facts.insert("id".to_owned(), model.id.clone());
    facts.insert("verified".to_owned(), model.verified.to_string());
    facts.insert("weights_dtypes".to_owned(), model.weights_dtypes.join(" "));
    if let Some(revision) = &model.revision {
        facts.insert("revision".to_owned(), revision.clone());
    }
    let architecture = model.architecture.iter();
    facts.extend(
        architecture.map(|(key, value)| (format!("architecture.{key}"), value.to_string())),
    );
    for (group, values) in [("naming", &model.naming), ("tokenizer", &model.tokenizer)] {
        let values = values.iter();
        facts.extend(values.map(|(key, value)| (format!("{group}.{key}"), value.clone())));
    }
    facts
}

/// SHA-256 of the files of a record's model.
pub(super) fn files(record: &RunRecord) -> BTreeMap<String, String> {
    let files = record.model.files.iter();
    files
        .map(|file| (format!("file {}", file.name), file.sha256.clone()))
        .collect()
}

/// What a record's errors are judged by.
pub(super) fn method(record: &RunRecord) -> BTreeMap<String, String> {
    let method = &record.method;
    let how = if method.k_overridden { " (--k)" } else { "" };
    [
        ("driftgauge", record.driftgauge.clone()),
        ("k", format!("{}{how}", method.k)),
        ("move_limit", method.move_limit.to_string()),
        ("samples", method.samples.to_string()),
        ("seed", method.seed.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// The suites of a record.
pub(super) fn suites(record: &RunRecord) -> BTreeMap<String, String> {
    let suites = record.suites.iter().filter(|suite| suite.selected > 0);
    suites
        .flat_map(|suite| {
            [
                (format!("{} file", suite.name), suite.sha256.clone()),
                (format!("{} batch", suite.name), suite.batch.to_string()),
            ]
        })
        .collect()
}
