//! The command line.

mod accept;
mod bundle;
mod calibrate;
mod consistency;
mod detection;
mod diff;
mod doctor;
mod history;
mod inputs;
mod locate;
mod merge;
mod progress;
mod report;
mod run;
mod selftest;
mod study;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{CommandFactory, Parser, Subcommand};
use driftgauge::exit;
use driftgauge::judge::describe;
use driftgauge::target::Target;
use driftgauge::worker::Trouble;
use driftgauge_reports::{Format, Language};
use sha2::{Digest, Sha256};

/// Is it still the same model?
///
/// Runs the same cases on candle, libtorch and ONNX Runtime, compares every target with a float64
/// truth, and says whether anything drifted.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  every case conforms on every target
  1  something drifted, or a known deviation no longer happens
  2  wrong usage, or a suite or model that is missing or damaged
  3  a target broke, or cannot do what was asked
  4  nothing was run";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run cases on targets: a table, a record, an exit code
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArguments),
    /// Does each target give the same numbers however a case is run?
    #[command(after_help = consistency::EXAMPLES)]
    Consistency(consistency::ConsistencyArguments),
    /// Compare measured with predicted errors of clean runs, and propose K
    #[command(after_help = calibrate::EXAMPLES)]
    Calibrate(calibrate::CalibrateArguments),
    /// Measure how small a change of one layer is noticed
    #[command(after_help = detection::EXAMPLES)]
    Detection(detection::DetectionArguments),
    /// Where does a target start to differ, and what does that look like?
    #[command(after_help = locate::EXAMPLES)]
    Locate(locate::LocateArguments),
    /// Is every known fault found? Injects them all
    #[command(after_help = selftest::EXAMPLES)]
    Selftest(selftest::SelftestArguments),
    /// Compare records or bundles: what moved, and what changed around it
    #[command(after_help = DIFF_HELP)]
    Diff(DiffArguments),
    /// Write the record of an earlier run as a page, a table, or what CI reads
    #[command(after_help = report::EXAMPLES)]
    Report(report::ReportArguments),
    /// Bring shards or matrix legs of one run together in one record
    #[command(after_help = merge::EXAMPLES)]
    Merge(merge::MergeArguments),
    /// What became of each target over time, and when a drift began
    #[command(after_help = history::EXAMPLES)]
    History(history::HistoryArguments),
    /// Make a run's errors the baseline that later runs are compared with
    #[command(after_help = ACCEPT_EXAMPLES)]
    Accept(AcceptArguments),
    /// Show runtimes and versions, and what is missing
    Doctor(DoctorArguments),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

const RUN_EXAMPLES: &str = "\
Examples:
  driftgauge run
  driftgauge run --model ./bert-base-chinese --suite cases/seed.toml
  driftgauge run --target candle@cpu/f32 --target libtorch@cpu/f64 --case 'fill-mask/*'
  driftgauge run --repeat 10
  driftgauge run --bundle before.zip
  driftgauge run --no-baselines
  driftgauge run --known my-deviations --today 2027-01-01
  driftgauge run --format json | jq .summary";

const ACCEPT_EXAMPLES: &str = "\
Nothing else writes baselines, and in CI (where the variable CI is set) this does not either.

Examples:
  driftgauge accept
  driftgauge accept --all --target 'onnx@*' --suite seed
  driftgauge accept --reason 'onnxruntime 1.31 fuses the layer norm, see #12'";

/// Arguments of `driftgauge run`.
#[derive(Debug, clap::Args)]
pub struct RunArguments {
    #[command(flatten)]
    selection: inputs::Selection,
    /// Model directory in Hugging Face layout [default: the embedded zh-mini]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder for record.json
    #[arg(long, value_name = "DIR", default_value = "driftgauge-out")]
    out: PathBuf,
    /// Also write the record with all tensors into one file, for `driftgauge diff` elsewhere
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// What to print
    #[arg(long, value_parser = format(), default_value = Format::Table.name())]
    format: Format,
    /// Language of html, markdown and github-summary [default: that of the locale]
    #[arg(long, value_name = "LANG", value_parser = language())]
    lang: Option<Language>,
    /// Threads of each target [default: the machine's CPUs, shared out]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Budgets are this many times the predicted error [default: what was calibrated]
    #[arg(long, value_name = "K", value_parser = positive)]
    k: Option<f64>,
    /// Do not run a few batches in float64 as well, which tells a wrong formula from rounding
    #[arg(long)]
    no_float64: bool,
    /// Do not judge every stage alone, and do not look for the cause of what is found
    #[arg(long)]
    no_locate: bool,
    /// Run all cases this many times; a verdict that differs from the first run's is a finding
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    repeat: u16,
    /// Folder of accepted baselines [default: snapshots/baselines of the repository]
    #[arg(long, value_name = "DIR")]
    baselines: Option<PathBuf>,
    /// Do not compare with accepted baselines
    #[arg(long, conflicts_with = "baselines")]
    no_baselines: bool,
    /// Folder of known deviations [default: cases/known of the repository]
    #[arg(long, value_name = "DIR")]
    known: Option<PathBuf>,
    /// Call known deviations drift
    #[arg(long, conflicts_with = "known")]
    no_known: bool,
    /// Day by which known deviations expire [default: today, in UTC]
    #[arg(long, value_name = "DATE", value_parser = day, conflicts_with = "no_known")]
    today: Option<String>,
    /// No progress on stderr
    #[arg(long, short)]
    quiet: bool,
}

const DIFF_HELP: &str = "\
Examples:
  driftgauge diff before/record.json after/record.json
  driftgauge diff before.zip after.zip          # bundles: tensors are compared directly
  driftgauge diff a.zip b.zip c.zip             # which one is the odd one out?
  driftgauge diff record.json                   # its targets with each other
  driftgauge diff old.json new.json --target onnx@cpu/f32 --format json

Exit codes:
  0  nothing drifted; the environment may have changed
  1  a verdict got worse, an error grew by more than noise, tensors are further apart than noise
     explains, or observations vanished; of three and more files: verdicts differ, or two files
     are further apart than noise explains
  2  a file that is no record or bundle, or files that have nothing in common";

/// Arguments of `driftgauge diff`.
#[derive(Debug, clap::Args)]
pub struct DiffArguments {
    /// Records or bundles, the earlier one first
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only this target; may be repeated
    #[arg(long = "target", value_name = "TARGET")]
    targets: Vec<Target>,
    /// What to print
    #[arg(long, value_enum, default_value_t = TableOrJson::Table)]
    format: TableOrJson,
}

/// What commands can print whose result is no run record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TableOrJson {
    /// A table for a person.
    Table,
    /// Everything that was found.
    Json,
}

/// Arguments of `driftgauge accept`.
#[derive(Debug, clap::Args)]
pub struct AcceptArguments {
    /// Record to accept; truth.safetensors lies beside it
    #[arg(value_name = "RECORD", default_value = "driftgauge-out/record.json")]
    record: PathBuf,
    /// Only targets that match this pattern; may be repeated
    #[arg(long = "target", value_name = "PATTERN")]
    targets: Vec<String>,
    /// Only suites that match this pattern; may be repeated
    #[arg(long = "suite", value_name = "PATTERN")]
    suites: Vec<String>,
    /// Why errors may move beyond their noise, or cases fail; kept with the baseline
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Accept everything without asking
    #[arg(long)]
    all: bool,
    /// Folder of accepted baselines [default: snapshots/baselines of the repository]
    #[arg(long, value_name = "DIR")]
    baselines: Option<PathBuf>,
}

/// Arguments of `driftgauge doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorArguments {
    /// Seconds a worker gets to introduce itself
    #[arg(long, value_name = "S", default_value_t = 30.0, value_parser = seconds)]
    timeout: f64,
}

/// The formats of the crate `driftgauge-reports`, by their names.
fn format() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::ALL.map(Format::name)).try_map(|name| {
        Format::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or("not a format")
    })
}

/// The languages of the crate `driftgauge-reports`, by their names.
fn language() -> impl TypedValueParser<Value = Language> {
    PossibleValuesParser::new(Language::ALL.map(Language::name))
        .map(|name| Language::of_locale(&name))
}

/// The language of the locale: the first of the variables that is set, as everywhere.
fn locale() -> Language {
    let variables = ["LC_ALL", "LC_MESSAGES", "LANG"];
    let mut values = variables
        .into_iter()
        .filter_map(|name| std::env::var(name).ok());
    let locale = values.find(|value| !value.is_empty()).unwrap_or_default();
    Language::of_locale(&locale)
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err(format!("`{text}` is not a positive number")),
    }
}

fn day(text: &str) -> Result<String, String> {
    match text.parse::<toml::value::Datetime>() {
        Ok(toml::value::Datetime {
            date: Some(day),
            time: None,
            offset: None,
        }) => Ok(day.to_string()),
        _ => Err("expected a day, as in 2026-11-24".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| format!("`{text}` is not a number of seconds"))?;
    if (0.001..=86_400.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("expected between 0.001 and 86400 seconds".to_owned())
    }
}

/// An error that ends the program.
#[derive(Debug)]
pub struct Exit {
    /// Exit code.
    pub code: u8,
    /// What happened.
    pub error: anyhow::Error,
    /// The next step.
    pub hint: Option<String>,
}

impl Exit {
    /// Wrong usage or input.
    pub fn input(error: impl Into<anyhow::Error>) -> Self {
        Self {
            code: exit::INPUT,
            error: error.into(),
            hint: None,
        }
    }

    /// Adds the next step.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Writes the chain of causes to stderr.
    pub fn report(&self) {
        let mut text = format!(
            "error: {}",
            driftgauge_reports::text::plain_lines(&self.error.to_string())
        );
        for cause in self.error.chain().skip(1) {
            text.push_str(&format!(
                "\n  caused by: {}",
                driftgauge_reports::text::plain_lines(&cause.to_string())
            ));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("\n  hint: {hint}"));
        }
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

/// A target that could not be used.
fn broken(target: &Target, trouble: &Trouble) -> Exit {
    let finding = describe(trouble);
    let died = matches!(trouble, Trouble::Broken(_));
    let last_words =
        format!("`driftgauge run --target '{target}'` shows what the worker wrote last");
    Exit {
        code: exit::BROKEN,
        hint: finding.hint.or(died.then_some(last_words)),
        ..Exit::input(anyhow::anyhow!("{target}: {}", finding.message))
    }
}

/// Parses the arguments and carries them out.
///
/// # Errors
/// [`Exit`] with the code and the reason.
pub fn main() -> Result<u8, Exit> {
    match Cli::parse().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Consistency(arguments) => consistency::consistency(&arguments),
        Command::Calibrate(arguments) => calibrate::calibrate(&arguments),
        Command::Detection(arguments) => detection::detection(&arguments),
        Command::Locate(arguments) => locate::locate(&arguments),
        Command::Selftest(arguments) => selftest::selftest(&arguments),
        Command::Diff(arguments) => diff::diff(&arguments),
        Command::Report(arguments) => report::report(&arguments),
        Command::Merge(arguments) => merge::merge(&arguments),
        Command::History(arguments) => history::history(&arguments),
        Command::Accept(arguments) => accept::accept(&arguments),
        Command::Doctor(arguments) => doctor::doctor(&arguments),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "driftgauge", &mut script);
            print(&String::from_utf8_lossy(&script))?;
            Ok(exit::CONFORMS)
        }
    }
}

/// Finds driftgauge's own files.
fn find_install() -> Result<driftgauge::install::Install, Exit> {
    driftgauge::install::Install::find().map_err(|error| {
        Exit::input(error).with_hint("set DRIFTGAUGE_HOME to the folder of the repository")
    })
}

/// Writes to stdout. A reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> Result<(), Exit> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Exit::input(
            anyhow::Error::new(error).context("cannot write to stdout"),
        )),
        _ => Ok(()),
    }
}

/// Prints a report as JSON, or the table that `render` makes of it.
fn print_report<T: serde::Serialize>(
    report: &T,
    format: TableOrJson,
    render: impl FnOnce(&T, driftgauge_reports::Style) -> String,
) -> Result<(), Exit> {
    match format {
        TableOrJson::Table => print(&render(report, style())),
        TableOrJson::Json => {
            let json = serde_json::to_string_pretty(report).map_err(|error| {
                Exit::input(anyhow::Error::new(error).context("cannot write the report as JSON"))
            })?;
            print(&format!("{json}\n"))
        }
    }
}

/// [`print`] of text that holds what a case or a worker says. On GitHub a line that begins with `::` is a
/// command, so that there the text is fenced with a word that it cannot contain.
fn print_fenced(text: &str) -> Result<(), Exit> {
    if std::env::var_os("GITHUB_ACTIONS").is_none_or(|value| value != "true") {
        return print(text);
    }
    let word = hex::encode(Sha256::digest(text));
    print(&format!("::stop-commands::{word}\n{text}\n::{word}::\n"))
}

/// How a report is to look on this terminal.
fn style() -> driftgauge_reports::Style {
    let is_terminal = std::io::stdout().is_terminal();
    let wants_no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    driftgauge_reports::Style {
        width: terminal_width().unwrap_or(80),
        colour: is_terminal && !wants_no_colour,
    }
}

fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    let columns = usize::from(size.ws_col);
    (columns > 0).then_some(columns.clamp(40, 200))
}
