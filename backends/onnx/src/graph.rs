//! BERT in ONNX operations, as transformers' eager `BertForMaskedLM` computes it.
//!
//! **Operator set 17**, the first with `LayerNormalization`. Operator set 20 has `Gelu` too, but
//! where a runtime has no kernel for it (`f64`, `f16` on a CPU) the operator is expanded with
//! constants rounded to `f32`; written out, every constant is in the dtype of the graph, and ONNX
//! Runtime fuses the same kernels from it. PyTorch's exporter writes the same operations.
//!
//! **Linear layers are `Gemm` with `transB` over rows** (`[batch · sequence, width]`): a checkpoint
//! stores `[out, in]`, so the weight stays the mapped piece of the file that it is, and only the
//! kernel's own packed copy is in memory. `MatMul` would need a transposed copy of every weight
//! beside it.
//!
//! **Shapes are declared** wherever inference loses them (after `Slice` and `Reshape`). They change
//! no number by themselves, but ONNX Runtime fuses `SkipLayerNormalization` only where both shapes
//! are known, and an output states its shape: undeclared, a graph with more outputs would be fused
//! more. Declared, exposing a hidden state changes neither the optimised graph nor a bit, which
//! `tests/exposure.rs` proves; that is why one session offers them all.
//!
//! **The head is a session of its own**, fed with the last hidden state. ONNX Runtime computes every
//! node of a graph, whatever is fetched, and nobody who wants vectors runs the head: on a small model
//! it is two thirds of the work. The cut changes no bit either, by the same test.

mod activation;
mod bert;
mod writer;

use driftgauge_protocol::{BertConfig, Dtype, Failure, Weights, observation};

use self::bert::Bert;
use self::writer::Writer;
use crate::proto::{GraphProto, ModelProto, OperatorSetIdProto};

/// The operator set of the graph.
pub const OPSET: i64 = 17;
/// The version of the format that came with [`OPSET`].
pub const IR_VERSION: i64 = 8;
/// The inputs: `i64` of `[batch, sequence]`.
pub const INPUTS: [&str; 3] = ["input_ids", "token_type_ids", "attention_mask"];

/// Every observation that the graph can expose: the embeddings, every hidden state, and the logits
/// where there is a head.
pub fn observations(config: &BertConfig, mlm_head: bool) -> Vec<String> {
    let embeddings = std::iter::once(observation::EMBEDDINGS.to_owned());
    let hidden = (1..=config.num_hidden_layers).map(observation::hidden);
    let logits = mlm_head.then(|| observation::LOGITS.to_owned());
    embeddings.chain(hidden).chain(logits).collect()
}

/// Writes the model that computes in `dtype` and offers `outputs`, names of observations. The head
/// is written only where `logits` is among them. The same arguments give the same bytes.
///
/// # Errors
/// For a weight that is missing or of the wrong shape, and for a weights file whose name is not
/// UTF-8.
pub fn write(
    config: &BertConfig,
    weights: &Weights,
    dtype: Dtype,
    outputs: &[String],
) -> Result<ModelProto, Failure> {
    let writer = writer("bert", weights, dtype)?;
    Ok(model(Bert::new(config, writer).write(outputs)?))
}

/// Writes the model of the head alone: from `hidden.N`, the last hidden state, to `logits`.
///
/// # Errors
/// As [`write()`].
pub fn write_head(
    config: &BertConfig,
    weights: &Weights,
    dtype: Dtype,
) -> Result<ModelProto, Failure> {
    let writer = writer("bert_head", weights, dtype)?;
    Ok(model(Bert::new(config, writer).write_head()?))
}

fn writer<'a>(name: &str, weights: &'a Weights, dtype: Dtype) -> Result<Writer<'a>, Failure> {
    let path = weights.path();
    let file = path.file_name().and_then(|name| name.to_str());
    let file = file.ok_or_else(|| {
        Failure::error(format!(
            "`{}` cannot be named in an ONNX model: its name is not UTF-8",
            path.display()
        ))
    })?;
    Ok(Writer::new(name, weights, file, dtype))
}

fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: IR_VERSION,
        producer_name: "driftgauge".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: OPSET,
        }],
    }
}
