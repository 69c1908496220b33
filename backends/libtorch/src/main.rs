//! The worker that runs BERT in libtorch. Started by the harness, never by hand.

use std::process::ExitCode;

fn main() -> ExitCode {
    driftgauge_protocol::serve::main(driftgauge_libtorch::LibTorch)
}
