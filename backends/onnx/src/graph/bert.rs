//! The architecture: which operation follows which.

use driftgauge_protocol::{BertConfig, Dtype, Failure, observation};
use half::{bf16, f16};

use super::INPUTS;
use super::writer::{Dim, Writer};
use crate::proto::{AttributeProto, GraphProto};

const BATCH: Dim = Dim::Named("batch");
const SEQUENCE: Dim = Dim::Named("sequence");
/// Heads and positions change places.
const HEADS_FIRST: [i64; 4] = [0, 2, 1, 3];
/// As [`HEADS_FIRST`], and transposed for the product with the queries.
const HEADS_FIRST_TRANSPOSED: [i64; 4] = [0, 2, 3, 1];

/// Reads top to bottom in the order of the computation. A value is named after the module that
/// makes it, an observation by its own name.
pub(super) struct Bert<'a> {
    pub(super) config: &'a BertConfig,
    pub(super) writer: Writer<'a>,
}

impl<'a> Bert<'a> {
    pub(super) fn new(config: &'a BertConfig, writer: Writer<'a>) -> Self {
        Self { config, writer }
    }

    /// Writes the model, with the head where `logits` is among the outputs.
    pub(super) fn write(mut self, outputs: &[String]) -> Result<GraphProto, Failure> {
        for name in INPUTS {
            self.writer.input(name, Dtype::I64, &[BATCH, SEQUENCE]);
        }
        self.writer
            .node("Shape", &["input_ids"], "shape", Vec::new());
        let mask = self.mask();
        let mut hidden = self.embeddings()?;
        for layer in 0..self.config.num_hidden_layers {
            hidden = self.layer(layer, &hidden, &mask)?;
        }
        if outputs.iter().any(|name| name == observation::LOGITS) {
            self.head(&hidden)?;
        }
        for name in outputs {
            let width = match name.as_str() {
                observation::LOGITS => self.config.vocab_size,
                _ => self.config.hidden_size,
            };
            self.writer
                .output(name, &[BATCH, SEQUENCE, Dim::Fixed(width)]);
        }
        Ok(self.writer.finish())
    }

    /// Writes the head alone: from the last hidden state to the logits.
    pub(super) fn write_head(mut self) -> Result<GraphProto, Failure> {
        let hidden = observation::hidden(self.config.num_hidden_layers);
        let width = Dim::Fixed(self.config.hidden_size);
        let dtype = self.writer.dtype();
        self.writer.input(&hidden, dtype, &[BATCH, SEQUENCE, width]);
        let rank = AttributeProto::int("end", 2);
        self.writer.node("Shape", &[&hidden], "shape", vec![rank]);
        self.head(&hidden)?;
        let vocabulary = Dim::Fixed(self.config.vocab_size);
        self.writer
            .output(observation::LOGITS, &[BATCH, SEQUENCE, vocabulary]);
        Ok(self.writer.finish())
    }

    /// `(1 - mask) * finfo.min`, of shape `[batch, 1, 1, sequence]`.
    fn mask(&mut self) -> String {
        let minimum = match self.writer.dtype() {
            Dtype::F64 => f64::MIN,
            Dtype::F32 => f32::MIN.into(),
            Dtype::F16 => f16::MIN.into(),
            Dtype::Bf16 => bf16::MIN.into(),
            Dtype::I64 => i64::MIN as f64,
        };
        let writer = &mut self.writer;
        let axes = writer.integers("mask.axes", &[1, 2]);
        let mask = writer.node(
            "Unsqueeze",
            &["attention_mask", &axes],
            "mask.wide",
            Vec::new(),
        );
        let mask = writer.cast(&mask, "mask.cast");
        let one = writer.scalar("one", 1.0);
        let mask = writer.node("Sub", &[&one, &mask], "mask.inverted", Vec::new());
        let minimum = writer.scalar("mask.minimum", minimum);
        writer.node("Mul", &[&mask, &minimum], "mask", Vec::new())
    }

    fn embeddings(&mut self) -> Result<String, Failure> {
        let BertConfig {
            vocab_size,
            type_vocab_size,
            max_position_embeddings,
            hidden_size,
            ..
        } = *self.config;
        let words = self.weight(
            "bert.embeddings.word_embeddings.weight",
            &[vocab_size, hidden_size],
        )?;
        let types = self.weight(
            "bert.embeddings.token_type_embeddings.weight",
            &[type_vocab_size, hidden_size],
        )?;
        let positions = self.weight(
            "bert.embeddings.position_embeddings.weight",
            &[max_position_embeddings, hidden_size],
        )?;
        let words = self.node("Gather", &[&words, "input_ids"], "bert.embeddings.words");
        let types = self.node(
            "Gather",
            &[&types, "token_type_ids"],
            "bert.embeddings.token_types",
        );
        let sum = self.node("Add", &[&words, &types], "bert.embeddings.sum");
        let positions = self.first_positions(&positions);
        let sum = self.node("Add", &[&sum, &positions], "bert.embeddings");
        self.layer_norm("bert.embeddings.LayerNorm", &sum, observation::EMBEDDINGS)
    }

    /// The embeddings of positions 0 to the length of the batch.
    fn first_positions(&mut self, positions: &str) -> String {
        let start = AttributeProto::int("start", 1);
        let length = self
            .writer
            .node("Shape", &["input_ids"], "sequence", vec![start]);
        let zero = self.writer.integers("zero", &[0]);
        let value = "bert.embeddings.positions";
        self.node("Slice", &[positions, &zero, &length, &zero], value);
        let width = Dim::Fixed(self.config.hidden_size);
        self.writer.declare(value, &[SEQUENCE, width]);
        value.to_owned()
    }

    fn layer(&mut self, layer: usize, hidden: &str, mask: &str) -> Result<String, Failure> {
        let hidden_size = self.config.hidden_size;
        let module = format!("bert.encoder.layer.{layer}");
        let context = self.attention(&module, hidden, mask)?;
        let output = format!("{module}.attention.output");
        let dense = self.linear(
            &format!("{output}.dense"),
            &context,
            hidden_size,
            hidden_size,
        )?;
        let attended =
            self.add_and_norm(&output, &dense, hidden, &format!("{output}.LayerNorm"))?;

        let inner = self.config.intermediate_size;
        let rows = self.rows(&attended);
        let dense = format!("{module}.intermediate.dense");
        let dense = self.linear(&dense, &rows, hidden_size, inner)?;
        let activated = self.activation(&dense);
        let output = format!("{module}.output");
        let dense = self.linear(&format!("{output}.dense"), &activated, inner, hidden_size)?;
        self.add_and_norm(&output, &dense, &attended, &observation::hidden(layer + 1))
    }

    /// `softmax(Q·Kᵀ / sqrt(head size) + mask) · V`, as rows.
    fn attention(&mut self, module: &str, hidden: &str, mask: &str) -> Result<String, Failure> {
        let module = format!("{module}.attention.self");
        let rows = self.rows(hidden);
        let query = self.heads(&module, "query", &rows, &HEADS_FIRST)?;
        let key = self.heads(&module, "key", &rows, &HEADS_FIRST_TRANSPOSED)?;
        let value = self.heads(&module, "value", &rows, &HEADS_FIRST)?;
        let scores = self.node("MatMul", &[&query, &key], &format!("{module}.products"));
        let root = self
            .writer
            .scalar("head.root", (self.config.head_size() as f64).sqrt());
        let scores = self.node("Div", &[&scores, &root], &format!("{module}.scores"));
        let scores = self.node("Add", &[&scores, mask], &format!("{module}.masked"));
        let axis = AttributeProto::int("axis", -1);
        let probabilities = format!("{module}.probabilities");
        let probabilities = self
            .writer
            .node("Softmax", &[&scores], &probabilities, vec![axis]);
        let context = format!("{module}.context");
        let context = self.node("MatMul", &[&probabilities, &value], &context);
        let context = self.transpose(&context, &HEADS_FIRST);
        Ok(self.rows(&context))
    }

    /// One of Q, K and V, split into heads.
    fn heads(
        &mut self,
        module: &str,
        name: &str,
        rows: &str,
        order: &[i64],
    ) -> Result<String, Failure> {
        let config = self.config;
        let value = format!("{module}.{name}");
        let dense = self.linear(&value, rows, config.hidden_size, config.hidden_size)?;
        let shape = self.batch_shape(
            "shape.heads",
            &[config.num_attention_heads, config.head_size()],
        );
        let split = self.node("Reshape", &[&dense, &shape], &format!("{value}.heads"));
        Ok(self.transpose(&split, order))
    }

    /// `LayerNorm(rows + residual)`; `rows` is brought back to `[batch, sequence, width]`.
    fn add_and_norm(
        &mut self,
        module: &str,
        rows: &str,
        residual: &str,
        output: &str,
    ) -> Result<String, Failure> {
        let width = self.config.hidden_size;
        let wide = self.sequences(rows, width, &format!("{rows}.wide"));
        self.writer
            .declare(&wide, &[BATCH, SEQUENCE, Dim::Fixed(width)]);
        let sum = self.node("Add", &[&wide, residual], module);
        self.layer_norm(&format!("{module}.LayerNorm"), &sum, output)
    }

    /// The masked-language-model head at every position.
    fn head(&mut self, hidden: &str) -> Result<(), Failure> {
        let BertConfig {
            hidden_size,
            vocab_size,
            ..
        } = *self.config;
        let rows = self.rows(hidden);
        let module = "cls.predictions.transform";
        let dense = self.linear(&format!("{module}.dense"), &rows, hidden_size, hidden_size)?;
        let activated = self.activation(&dense);
        let transformed = self.layer_norm(&format!("{module}.LayerNorm"), &activated, module)?;
        let weight = self.weight("cls.predictions.decoder.weight", &[vocab_size, hidden_size])?;
        let bias = self.weight("cls.predictions.decoder.bias", &[vocab_size])?;
        let scores = self.gemm(&transformed, &weight, &bias, "cls.predictions.decoder");
        self.sequences(&scores, vocab_size, observation::LOGITS);
        Ok(())
    }

    /// `rows · weightᵀ + bias` of a module.
    fn linear(
        &mut self,
        module: &str,
        rows: &str,
        from: usize,
        to: usize,
    ) -> Result<String, Failure> {
        let weight = self.weight(&format!("{module}.weight"), &[to, from])?;
        let bias = self.weight(&format!("{module}.bias"), &[to])?;
        Ok(self.gemm(rows, &weight, &bias, module))
    }

    fn gemm(&mut self, rows: &str, weight: &str, bias: &str, output: &str) -> String {
        let transposed = AttributeProto::int("transB", 1);
        self.writer
            .node("Gemm", &[rows, weight, bias], output, vec![transposed])
    }

    fn layer_norm(&mut self, module: &str, input: &str, output: &str) -> Result<String, Failure> {
        let width = [self.config.hidden_size];
        let weight = self.weight(&format!("{module}.weight"), &width)?;
        let bias = self.weight(&format!("{module}.bias"), &width)?;
        let attributes = vec![
            AttributeProto::int("axis", -1),
            AttributeProto::float("epsilon", self.config.layer_norm_eps as f32),
        ];
        let inputs = [input, &weight, &bias];
        Ok(self
            .writer
            .node("LayerNormalization", &inputs, output, attributes))
    }

    /// `[batch · sequence, hidden_size]` of anything with as many elements.
    fn rows(&mut self, input: &str) -> String {
        let width = self.config.hidden_size as i64;
        let shape = self.writer.integers("shape.rows", &[-1, width]);
        self.node("Reshape", &[input, &shape], &format!("{input}.rows"))
    }

    /// `[batch, sequence, width]` of rows.
    fn sequences(&mut self, rows: &str, width: usize, output: &str) -> String {
        let shape = self.batch_shape(&format!("shape.{width}"), &[width]);
        self.node("Reshape", &[rows, &shape], output)
    }

    /// The shape of the batch, followed by `extents`.
    fn batch_shape(&mut self, name: &str, extents: &[usize]) -> String {
        let values: Vec<i64> = extents.iter().map(|&extent| extent as i64).collect();
        let tail = self.writer.integers(&format!("{name}.tail"), &values);
        let axis = AttributeProto::int("axis", 0);
        self.writer
            .node_once("Concat", &["shape", &tail], name, vec![axis])
    }

    fn transpose(&mut self, input: &str, order: &[i64]) -> String {
        let order = AttributeProto::ints("perm", order);
        let output = format!("{input}.transposed");
        self.writer
            .node("Transpose", &[input], &output, vec![order])
    }

    pub(super) fn node(&mut self, operator: &str, inputs: &[&str], output: &str) -> String {
        self.writer.node(operator, inputs, output, Vec::new())
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> Result<String, Failure> {
        self.writer.weight(name, shape)
    }
}
