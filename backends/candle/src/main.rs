//! The candle worker: candle-transformers' own BERT, as its users run it, behind the protocol.

mod backend;
mod changes;
#[cfg(test)]
mod fixture;
mod loaded;
mod mask;
mod model;
mod opened;
mod steps;
#[cfg(test)]
mod tests;
mod threads;
mod weights;

use std::process::ExitCode;

fn main() -> ExitCode {
    driftgauge_protocol::serve::main(backend::Candle)
}
