//! `driftgauge doctor`: what is there, and what is missing, with the command that mends it.

use std::fmt::Write;
use std::time::Duration;

use driftgauge::install::DEFAULT_BACKENDS;
use driftgauge::judge::describe;
use driftgauge::worker::Worker;
use driftgauge::{exit, host};
use driftgauge_reports::text::plain;

use super::{DoctorArguments, Exit, print};

/// Starts every worker once and prints what it says of itself.
///
/// # Errors
/// [`Exit`] where the installation cannot be found.
pub fn doctor(arguments: &DoctorArguments) -> Result<u8, Exit> {
    let install = super::find_install()?;
    let deadline = Duration::from_secs_f64(arguments.timeout);
    let mut backends: Vec<String> = DEFAULT_BACKENDS.map(str::to_owned).to_vec();
    backends.extend(install.backends());
    backends.sort();
    backends.dedup();

    let mut text = format!("driftgauge {}\n\nmachine\n", env!("CARGO_PKG_VERSION"));
    for (name, value) in host::describe() {
        let _ = writeln!(text, "  {name}: {}", plain(&value));
    }
    let mut missing = 0;
    for backend in backends {
        match Worker::start(install.launch(&backend, deadline)) {
            Ok((_, hello)) => {
                let (library, version) = (plain(&hello.library), plain(&hello.version));
                let _ = writeln!(text, "\n{backend}: {library} {version}");
                for (name, value) in hello.properties {
                    let _ = writeln!(text, "  {}: {}", plain(&name), plain(&value));
                }
            }
            Err(trouble) => {
                missing += 1;
                let finding = describe(&trouble);
                let _ = writeln!(
                    text,
                    "\n{backend}: not usable\n  {}",
                    plain(&finding.message)
                );
                for line in &finding.stderr {
                    let _ = writeln!(text, "  stderr: {}", plain(line));
                }
                if let Some(hint) = finding.hint {
                    let _ = writeln!(text, "  to mend it: {}", plain(&hint));
                }
            }
        }
    }
    print(&text)?;
    Ok(if missing == 0 {
        exit::CONFORMS
    } else {
        exit::BROKEN
    })
}
