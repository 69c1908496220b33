//! The ONNX Runtime worker: writes BERT as an ONNX graph and runs it.
//!
//! [`Onnx`] is the backend. It reads nothing but `config.json`'s numbers and the weights' header:
//! the graph is written here, operation by operation, and its initialisers are *external data* that
//! point straight into `model.safetensors`, so no converted copy of a model exists and nothing but
//! the hashed file can be loaded.
//!
//! A fault is written into that graph, and the steps of a stage are the outputs of a graph of that stage
//! alone, in a session that is made when it is asked for.
//!
//! | module | what it knows |
//! |---|---|
//! | [`runtime`] | which shared library is ONNX Runtime, and whether it can be used |
//! | [`graph`] | BERT in ONNX operations |
//! | [`proto`] | how an ONNX model is encoded |
//! | [`session`] | the options that a session is created with |
//! | [`optimisers`] | what ONNX Runtime may make of a graph, and how each of it is switched off |
//!
//! A user's own `.onnx` file takes the place of that graph where the target's option `model` names one.
//!
//! What it does not do: fall back to another device or dtype, leave out the head for a batch that
//! wants no logits (ONNX Runtime runs every node, whatever is fetched; a session without a head is
//! one that was loaded without), or change anything in a user's own model.

mod backend;
mod exported;
pub mod graph;
mod model;
pub mod optimisers;
mod options;
pub mod proto;
pub mod runtime;
pub mod session;
mod values;

pub use backend::Onnx;
