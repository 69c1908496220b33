//! `driftgauge-worker-onnx`: see the library of this crate.

use std::process::ExitCode;

use driftgauge_onnx::Onnx;

fn main() -> ExitCode {
    driftgauge_protocol::serve::main(Onnx::from_environment())
}
