//! The `driftgauge` program: maps outcomes to exit codes and prints errors, once.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::main() {
        Ok(code) => code.into(),
        Err(exit) => {
            exit.report();
            exit.code.into()
        }
    }
}
