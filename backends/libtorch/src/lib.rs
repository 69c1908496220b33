//! BERT in libtorch operations, through the `tch` crate.
//!
//! | module | what it holds |
//! |---|---|
//! | [`LibTorch`] | the backend: what is loaded where, what is refused, what is reported |
//! | `model` | the forward pass, and one stage of it |
//! | `blocks`, `nn`, `mask` | what it is made of, in the order of the paper |
//! | `steps` | its steps: what a fault changes in them, what a probe keeps of them |
//! | `fault` | which faults mean something to a model |
//! | `tensors` | numbers between the protocol and libtorch, and libtorch's errors |
//! | `runtime` | the loaded library itself: version, build, settings; the only `unsafe` code |
//!
//! Everything here uses tch's fallible `f_` functions: what libtorch refuses is an answer to the
//! harness and never a panic.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

mod backend;
mod blocks;
mod fault;
mod mask;
mod model;
mod nn;
mod runtime;
mod steps;
mod tensors;

pub use backend::LibTorch;
