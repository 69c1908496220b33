//! BERT in libtorch operations, through the `tch` crate.
//!
//! | module | what it holds |
//! |---|---|
//! | [`LibTorch`] | the backend: what is loaded where, what is refused, what is reported |
//! | `model` | the forward pass, in the order of the paper |
//! | `tensors` | numbers between the protocol and libtorch, and libtorch's errors |
//! | `runtime` | the loaded library itself: version, build, settings; the only `unsafe` code |
//!
//! Everything here uses tch's fallible `f_` functions: what libtorch refuses is an answer to the
//! harness and never a panic.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

mod backend;
mod model;
mod runtime;
mod tensors;

pub use backend::LibTorch;
