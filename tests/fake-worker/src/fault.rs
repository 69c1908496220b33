//! The faults, and what those do that strike the process or its pipes.

use std::fs::File;
use std::io::{self, Write};
use std::process::Command;

use driftgauge_protocol::{Failure, PROTOCOL_VERSION, Ran, Reply, frame};
use rustix::process::{Signal, getpid, kill_process};
use serde::Deserialize;
use serde::de::{IntoDeserializer, value};

/// What goes wrong. A target names it in kebab-case: `garbage-frame`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Aborts, as a failed assertion in C++ does.
    Abort,
    /// Dies of SIGSEGV.
    Segfault,
    /// Dies of SIGKILL, as when memory runs out.
    Kill,
    /// Exits with status 7, as a library that calls `exit` does.
    Exit,
    /// Panics.
    Panic,
    /// Never answers.
    Hang,
    /// Starts a child that holds all pipes, and never answers.
    Grandchild,
    /// Starts a child that holds all pipes, and aborts.
    GrandchildAbort,

    /// Prints to descriptor 1, as native code does; otherwise well.
    StdoutNoise,
    /// Writes 10 MB to stderr; otherwise well.
    StderrFlood,

    /// Puts text between two frames.
    GarbageFrame,
    /// Claims a payload, writes half of it, exits with status 0.
    TruncatedFrame,
    /// Claims a payload of 2^64 - 1 bytes.
    HugeLength,
    /// Answers with a header of an unknown kind.
    WrongHeader,
    /// Answers with a payload that is not safetensors.
    GarbagePayload,
    /// Answers a message that was not asked for.
    OutOfTurn,
    /// Answers an earlier request once more.
    StaleAnswer,

    /// Says that it cannot do this, with a message meant to break a terminal.
    Refuse,
    /// Says that it failed.
    Fail,
    /// Before the first message: speaks another version of the protocol.
    ProtocolVersion,
    /// While loading: says that it used another device.
    WrongDevice,
    /// While loading: offers an observation that the model does not have.
    UnknownObservation,

    /// NaN from `hidden.1` on.
    Nan,
    /// `hidden.1` has another shape.
    WrongShape,
    /// `hidden.1` is of another dtype.
    WrongDtype,
    /// `hidden.2` is missing.
    MissingObservation,
    /// `hidden.2` comes under another name.
    WrongName,
    /// The logits are too large by a thousandth.
    Drift,
    /// Sequences that are not the first in their batch are off, all numbers of them.
    Position,
    /// Sequences that are padded are off.
    Padding,
    /// Sequences that are not alone in their batch are off.
    Batch,
    /// Sequences of a batch whose first is longer than its last are off.
    Order,
    /// With the option `first=PATH`: off in every process but the one that makes this file.
    Process,
    /// Off with more than one thread.
    Threads,
    /// The sequences of a batch come in reverse.
    SwappedRows,

    /// As `lib` alone: states another version of its library.
    NewVersion,
    /// As `lib` alone: the embeddings are off, in f32 by about half of what rounding explains.
    SlightlyOff,
    /// As `lib` alone: the embeddings are off, in f32 by more than that and still within the budget.
    Off,
    /// As `lib` alone: [`Fault::Off`], in another version of the library.
    OffInNewVersion,
}

impl Fault {
    /// The fault of a name.
    ///
    /// # Errors
    /// For an unknown name; the message lists the known ones.
    pub fn named(name: &str) -> Result<Self, Failure> {
        Self::deserialize(name.into_deserializer())
            .map_err(|error: value::Error| Failure::unsupported(error.to_string()))
    }

    /// Does what the fault does to the process or to its pipes; nothing where it is another kind
    /// of fault.
    ///
    /// # Errors
    /// What the worker answers where it refuses.
    pub fn strike(self, mut pipe: &File) -> Result<(), Failure> {
        eprintln!("fake worker: {self:?}");
        let written = match self {
            Fault::Abort => std::process::abort(),
            Fault::Segfault => die(Signal::SEGV),
            Fault::Kill => die(Signal::KILL),
            Fault::Exit => std::process::exit(7),
            Fault::Panic => panic!("the fake worker was asked to panic"),
            Fault::Hang => hang(),
            Fault::Grandchild => {
                start_child();
                hang()
            }
            Fault::GrandchildAbort => {
                start_child();
                std::process::abort()
            }
            Fault::StdoutNoise => {
                rustix::io::write(io::stdout(), b"Intel MKL WARNING: DGF1 is no frame\n")
                    .map(drop)
                    .map_err(io::Error::from)
            }
            Fault::StderrFlood => io::stderr().write_all(&b"flood flood flood\n".repeat(600_000)),
            Fault::GarbageFrame => pipe.write_all(b"Intel MKL WARNING: support ends\n"),
            Fault::TruncatedFrame => {
                let mut frame = ran_frame(&[0; 64]);
                frame.truncate(frame.len() - 32);
                let _ = pipe.write_all(&frame);
                std::process::exit(0)
            }
            Fault::HugeLength => {
                let mut frame = ran_frame(b"");
                frame[8..16].fill(0xff);
                pipe.write_all(&frame)
            }
            Fault::WrongHeader => {
                let header = serde_json::json!({"reply": "nonsense"});
                frame::write_frame(&mut pipe, &header, b"")
            }
            Fault::GarbagePayload => pipe.write_all(&ran_frame(b"no tensors")),
            Fault::StaleAnswer => pipe.write_all(&ran_frame(b"")),
            Fault::OutOfTurn => {
                let header = serde_json::json!({"reply": "hello", "protocol": PROTOCOL_VERSION,
                    "backend": "fake", "library": "", "version": "", "properties": {}});
                frame::write_frame(&mut pipe, &header, b"")
            }
            Fault::Refuse => {
                return Err(Failure::unsupported("no \u{1b}[31mfake\u{7} can do this"));
            }
            Fault::Fail => return Err(Failure::error("the fake failed")),
            _ => Ok(()),
        };
        written.map_err(|error| Failure::error(format!("cannot strike: {error}")))
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

fn die(signal: Signal) -> ! {
    loop {
        // Twice for SIGSEGV: the first one ends in Rust's own handler, which only puts the default
        // action back and expects the fault to happen again.
        let _ = kill_process(getpid(), signal);
    }
}

/// Starts a child that inherits descriptors 0 to 2 and the pipe, and says which process it is.
#[expect(
    clippy::disallowed_methods,
    reason = "the harness must cope with workers that start processes"
)]
fn start_child() {
    match Command::new("sleep").arg("1000").spawn() {
        Ok(child) => eprintln!("fake worker: child {}", child.id()),
        Err(error) => eprintln!("fake worker: no child: {error}"),
    }
}

/// An answer to request 0, which nobody asked.
fn ran_frame(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let ran = Ran {
        number: 0,
        seconds: 0.0,
    };
    // Writing into memory does not fail.
    let _ = frame::write_frame(&mut bytes, &Reply::Ran(ran), payload);
    bytes
}
