//! The ONNX Runtime worker: writes BERT as an ONNX graph and runs it.
//!
//! [`Onnx`] is the backend. It reads nothing but `config.json`'s numbers and the weights' header:
//! the graph is written here, operation by operation, and its initialisers are *external data* that
//! point straight into `model.safetensors`, so no converted copy of a model exists and nothing but
//! the hashed file can be loaded.
//!
//! | module | what it knows |
//! |---|---|
//! | [`runtime`] | which shared library is ONNX Runtime, and whether it can be used |
//! | [`graph`] | BERT in ONNX operations |
//! | [`proto`] | how an ONNX model is encoded |
//! | [`session`] | the options that a session is created with |
//!
//! What it does not do: fall back to another device or dtype, leave out the head for a batch that
//! wants no logits (ONNX Runtime runs every node, whatever is fetched; a session without a head is
//! one that was loaded without), or read a user's own `.onnx`.

mod backend;
pub mod graph;
mod model;
mod options;
pub mod proto;
pub mod runtime;
pub mod session;

pub use backend::Onnx;
