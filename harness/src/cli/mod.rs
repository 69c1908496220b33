//! The command line.

mod doctor;
mod progress;
mod run;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{CommandFactory, Parser, Subcommand};
use driftgauge::exit;
use driftgauge::target::Target;
use driftgauge_reports::Format;

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
  1  something drifted
  2  wrong usage, or a suite or model that is missing or damaged
  3  a target broke, or cannot do what was asked
  4  nothing was run";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run cases on targets: a table, a record, an exit code
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArguments),
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
  driftgauge run --format json | jq .summary";

/// Arguments of `driftgauge run`.
#[derive(Debug, clap::Args)]
pub struct RunArguments {
    /// Suite to run; may be repeated [default: every cases/*.toml]
    #[arg(long = "suite", value_name = "FILE")]
    suites: Vec<PathBuf>,
    /// Model directory in Hugging Face layout [default: the embedded zh-mini]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Target, as in onnx@cpu/f32; may be repeated [default: candle, libtorch and onnx on cpu/f32]
    #[arg(long = "target", value_name = "TARGET")]
    targets: Vec<Target>,
    /// Only cases whose name, or suite/name, matches this pattern; may be repeated
    #[arg(long = "case", value_name = "PATTERN")]
    cases: Vec<String>,
    /// Folder for record.json
    #[arg(long, value_name = "DIR", default_value = "driftgauge-out")]
    out: PathBuf,
    /// What to print
    #[arg(long, value_parser = format(), default_value = Format::Table.name())]
    format: Format,
    /// Threads of each target [default: the machine's CPUs, shared out]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Seconds a worker gets for each answer
    #[arg(long, value_name = "S", default_value_t = 300.0, value_parser = seconds)]
    timeout: f64,
    /// No progress on stderr
    #[arg(long, short)]
    quiet: bool,
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

/// Parses the arguments and carries them out.
///
/// # Errors
/// [`Exit`] with the code and the reason.
pub fn main() -> Result<u8, Exit> {
    match Cli::parse().command {
        Command::Run(arguments) => run::run(&arguments),
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
