//! `driftgauge report`: a record as any report.

use std::path::{Path, PathBuf};

use anyhow::Context;
use driftgauge::evidence::{self, Evidence, EvidenceError};
use driftgauge::{exit, output};
use driftgauge_reports::record::ReadError;
use driftgauge_reports::selftest::{self, SELFTEST_FORMAT, SelftestReport};
use driftgauge_reports::{Format, Language, RunRecord};

use super::{Exit, print, print_fenced, style};

/// Shown under `driftgauge report --help`.
pub const EXAMPLES: &str = "\
Reads the record of a run or of a self-test, or a bundle. A report is a function of the record alone.

Examples:
  driftgauge report
  driftgauge report --format html --out report.html
  driftgauge report --format markdown --lang zh
  driftgauge report --format github-summary >> \"$GITHUB_STEP_SUMMARY\"
  driftgauge selftest --out selftest.json; driftgauge report selftest.json --format html > selftest.html

Exit codes:
  0  the report is written, whatever it says
  2  wrong usage, a file that is no such record, or a format that there is not for it";

/// Arguments of `driftgauge report`.
#[derive(Debug, clap::Args)]
pub struct ReportArguments {
    /// Record of a run or of a self-test, or a bundle
    #[arg(value_name = "RECORD", default_value = "driftgauge-out/record.json")]
    record: PathBuf,
    /// What to write; of a self-test: table, json or html
    #[arg(long, value_parser = super::format(), default_value = Format::Table.name())]
    format: Format,
    /// Language of html, markdown and github-summary [default: that of the locale]
    #[arg(long, value_name = "LANG", value_parser = super::language())]
    lang: Option<Language>,
    /// File to write; `-` is stdout
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,
}

/// Writes the report.
///
/// # Errors
/// [`Exit`] where the record cannot be read, or the report cannot be written.
pub fn report(arguments: &ReportArguments) -> Result<u8, Exit> {
    let language = arguments.lang.unwrap_or_else(super::locale);
    let format = arguments.format;
    let text = match read(&arguments.record)? {
        Record::Run(record) => {
            driftgauge_reports::render(&record, format, style(), language).map_err(Exit::input)?
        }
        Record::Selftest(report) => of_selftest(&report, format, language)?,
    };
    if arguments.out == Path::new("-") {
        match format {
            Format::Table => print_fenced(&text)?,
            _ => print(&text)?,
        }
    } else {
        output::write_whole(&arguments.out, text.as_bytes())
            .with_context(|| format!("cannot write `{}`", arguments.out.display()))
            .map_err(|error| Exit::input(error).with_hint("choose another file with --out"))?;
    }
    Ok(exit::CONFORMS)
}

fn of_selftest(
    report: &SelftestReport,
    format: Format,
    language: Language,
) -> Result<String, Exit> {
    match format {
        Format::Table => Ok(selftest::render(report, false, style())),
        Format::Json => selftest::render_json(report).map_err(Exit::input),
        Format::Html => selftest::render_html(report, language).map_err(Exit::input),
        other => {
            let error = anyhow::anyhow!("there is no `{}` of a self-test", other.name());
            Err(Exit::input(error).with_hint("choose table, json or html"))
        }
    }
}

/// What can be reported.
enum Record {
    Run(Box<RunRecord>),
    Selftest(SelftestReport),
}

fn read(path: &Path) -> Result<Record, Exit> {
    let error = match evidence::read(path) {
        Ok(Evidence { record, .. }) => return Ok(Record::Run(Box::new(record))),
        Err(error) => error,
    };
    if let EvidenceError::Record {
        source: ReadError::Format(format),
        ..
    } = &error
        && format == SELFTEST_FORMAT
    {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read `{}`", path.display()))
            .map_err(Exit::input)?;
        let report = SelftestReport::from_json(&text);
        return report.map(Record::Selftest).map_err(|error| {
            let hint = evidence::record_hint(&error);
            let error = anyhow::Error::new(error);
            Exit::input(error.context(format!("self-test `{}` cannot be read", path.display())))
                .with_hint(hint)
        });
    }
    let hint = error.hint();
    Err(Exit::input(error).with_hint(hint))
}
