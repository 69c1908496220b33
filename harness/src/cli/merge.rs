//! `driftgauge merge`: shards or matrix legs of one run into one record.

use std::path::PathBuf;

use anyhow::anyhow;
use driftgauge::baseline::truth;
use driftgauge::merge::{self, Input};
use driftgauge::output;
use driftgauge_reports::Format;
use sha2::{Digest, Sha256};

use super::inputs::record_with_truth;
use super::{Exit, format, print, print_fenced, style};

pub const EXAMPLES: &str = "\
One target in two versions of its library becomes two targets, with the version behind their names;
where the version is the same, --label tells them apart. Shards of one target become one.

Examples:
  driftgauge merge shard-1/record.json shard-2/record.json --out merged
  driftgauge merge a/record.json b/record.json --label old-driver --label new-driver --out merged

The exit code is that of a run with all these results.";

/// Arguments of `driftgauge merge`.
#[derive(Debug, clap::Args)]
pub struct MergeArguments {
    /// Records to merge; truth.safetensors lies beside each
    #[arg(required = true, value_name = "RECORD")]
    records: Vec<PathBuf>,
    /// Folder for record.json
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What to add to the names of a record's targets; once for each record, in their order
    #[arg(long = "label", value_name = "TEXT", value_parser = label)]
    labels: Vec<String>,
    /// What to print
    #[arg(long, value_parser = format(), default_value = Format::Table.name())]
    format: Format,
}

/// Merges records, writes the result and prints it.
///
/// # Errors
/// [`Exit`] where a record cannot be read, or where they do not belong together; then nothing is
/// written.
pub fn merge(arguments: &MergeArguments) -> Result<u8, Exit> {
    let (records, labels) = (&arguments.records, &arguments.labels);
    if !labels.is_empty() && labels.len() != records.len() {
        let error = anyhow!("{} labels for {} records", labels.len(), records.len());
        return Err(Exit::input(error).with_hint("give --label once for each record, or never"));
    }
    let cannot_write = |error: std::io::Error| {
        let context = format!("cannot write into `{}`", arguments.out.display());
        Exit::input(anyhow!(error).context(context)).with_hint("choose another folder with --out")
    };
    output::check_writable(&arguments.out).map_err(cannot_write)?;
    let mut inputs: Vec<Input> = Vec::new();
    for (index, path) in records.iter().enumerate() {
        let name = path.display().to_string();
        if inputs.iter().any(|input| input.name == name) {
            let error = anyhow!("`{name}` is given twice");
            return Err(Exit::input(error).with_hint("leave one of them out"));
        }
        let (record, truth) = record_with_truth(path)?;
        inputs.push(Input {
            name,
            label: labels.get(index).cloned(),
            record,
            truth,
        });
    }
    let (mut record, sketch) = merge::merge(&inputs).map_err(|error| {
        let hint = error.hint();
        Exit::input(error).with_hint(hint)
    })?;
    let truth_file = truth::encode(&sketch, None).map_err(|error| Exit::input(anyhow!(error)))?;
    record.truth.sha256 = hex::encode(Sha256::digest(&truth_file));
    let rendered = |format| {
        driftgauge_reports::render(&record, format, style(), super::locale()).map_err(Exit::input)
    };
    let json = rendered(Format::Json)?;
    let file = arguments.out.join("record.json");
    // The record last: it says which truth belongs to it.
    output::write_whole(&arguments.out.join(truth::FILE), &truth_file).map_err(cannot_write)?;
    output::write_whole(&file, json.as_bytes()).map_err(cannot_write)?;
    match arguments.format {
        Format::Json => print(&json)?,
        Format::Table => {
            let report = rendered(Format::Table)?;
            print_fenced(&format!("{report}\nrecord: {}\n", file.display()))?;
        }
        format => print(&rendered(format)?)?,
    }
    Ok(record.summary.exit_code)
}

/// Labels become part of the names of targets.
fn label(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
    if text.trim().is_empty() || text.len() > 64 || !text.chars().all(allowed) {
        return Err("a label consists of letters, digits, `-`, `_`, `.` and spaces".to_owned());
    }
    Ok(text.trim().to_owned())
}
