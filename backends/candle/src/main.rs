//! The candle worker: candle-transformers' own BERT, as its users run it, behind the protocol.

mod backend;
#[cfg(test)]
mod fixture;
mod loaded;
mod model;
#[cfg(test)]
mod tests;
mod threads;
mod weights;

use std::process::ExitCode;

fn main() -> ExitCode {
    driftgauge_protocol::serve::main(backend::Candle)
}
