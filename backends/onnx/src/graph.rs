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

//!
//! **A fault is written into the graph**, as nodes where it asks for them and as tensors that stand in
//! the graph and not in the file. Without one the graph is the same to the byte. A layer whose mask a
//! fault changes has an input of its own for it ([`mask_input`]).

mod activation;
mod attention;
mod bert;
mod fault;
mod operations;
mod writer;

use driftgauge_protocol::fault::{Change, Fault};
use driftgauge_protocol::{BertConfig, Dtype, Failure, Stage, Step, Weights, observation};

use self::bert::Bert;
use self::writer::Writer;
use crate::proto::{GraphProto, ModelProto, OperatorSetIdProto};

/// The operator set of the graph.
pub const OPSET: i64 = 17;
/// The version of the format that came with [`OPSET`].
pub const IR_VERSION: i64 = 8;
/// The inputs: `i64` of `[batch, sequence]`.
pub const INPUTS: [&str; 3] = ["input_ids", "token_type_ids", "attention_mask"];

/// What a graph is written from. The same source gives the same bytes.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The architecture.
    pub config: &'a BertConfig,
    /// The weights, under the fault.
    pub weights: &'a Weights,
    /// What the graph computes in.
    pub dtype: Dtype,
    /// What is different.
    pub fault: Option<&'a Fault>,
}

/// The graph of one stage, whose steps are outputs.
#[derive(Debug)]
pub struct StageModel {
    /// The model. Its inputs are those of [`INPUTS`] and [`mask_input`] that the stage uses, and the
    /// hidden state before it by its name.
    pub model: ModelProto,
    /// The steps, in order, and the output that holds each. Dense steps are rows,
    /// `[batch · sequence, width]`, and the context has its heads side by side.
    pub steps: Vec<(Step, String)>,
}

/// Every observation that the graph can expose: the embeddings, every hidden state, and the logits
/// where there is a head.
pub fn observations(config: &BertConfig, mlm_head: bool) -> Vec<String> {
    let embeddings = std::iter::once(observation::EMBEDDINGS.to_owned());
    let hidden = (1..=config.num_hidden_layers).map(observation::hidden);
    let logits = mlm_head.then(|| observation::LOGITS.to_owned());
    embeddings.chain(hidden).chain(logits).collect()
}

/// The input for the attention mask of a layer that has its own: `i64` of `[batch, sequence]`.
pub fn mask_input(layer: usize) -> String {
    format!("attention_mask.{layer}")
}

/// The layers that have a mask of their own under a fault.
pub fn masked_layers(config: &BertConfig, fault: Option<&Fault>) -> Vec<usize> {
    let has_own = |layer: &usize| {
        let changes = fault.iter();
        let mut changes =
            changes.flat_map(|fault| fault.changes(Stage::Layer(*layer), Step::Scores));
        changes.any(|change| matches!(change, Change::Mask(_)))
    };
    (1..=config.num_hidden_layers).filter(has_own).collect()
}

/// Writes the model that offers `outputs`, names of observations. The head is written only where
/// `logits` is among them.
///
/// # Errors
/// For a weight that is missing or of the wrong shape, and for a weights file whose name is not
/// UTF-8.
pub fn write(source: Source<'_>, outputs: &[String]) -> Result<ModelProto, Failure> {
    Ok(model(source.bert("bert")?.write(outputs)?))
}

/// Writes the model of the head alone: from `hidden.N`, the last hidden state, to `logits`.
///
/// # Errors
/// As [`write()`].
pub fn write_head(source: Source<'_>) -> Result<ModelProto, Failure> {
    Ok(model(source.bert("bert_head")?.write_head()?))
}

/// Writes the model of one stage.
///
/// # Errors
/// As [`write()`].
pub fn write_stage(source: Source<'_>, stage: Stage) -> Result<StageModel, Failure> {
    let (graph, steps) = source.bert("bert_stage")?.write_stage(stage)?;
    Ok(StageModel {
        model: model(graph),
        steps,
    })
}

impl<'a> Source<'a> {
    fn bert(self, name: &str) -> Result<Bert<'a>, Failure> {
        let path = self.weights.path();
        let file = path.file_name().and_then(|name| name.to_str());
        let file = file.ok_or_else(|| {
            Failure::error(format!(
                "`{}` cannot be named in an ONNX model: its name is not UTF-8",
                path.display()
            ))
        })?;
        let writer = Writer::new(name, self.weights, file, self.dtype);
        Ok(Bert::new(self.config, self.fault, writer))
    }
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
