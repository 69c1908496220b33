//! The parts of BERT, in the order of the paper.
//!
//! Each is the class of transformers' [`modeling_bert.py`][hf] with the same name, in the same order of
//! operations, because a different order rounds differently. Every result on the way is a step of its stage.
//!
//! [hf]: https://github.com/huggingface/transformers/blob/v4.28.1/src/transformers/models/bert/modeling_bert.py

use driftgauge_protocol::fault::Change;
use driftgauge_protocol::{BertConfig, Failure, HiddenAct, Step};
use tch::{TchError, Tensor};

use crate::mask::Mask;
use crate::nn::{LayerNorm, Linear, activate};
use crate::steps::Steps;
use crate::tensors::{Input, Loader};

/// [`BertEmbeddings`](https://github.com/huggingface/transformers/blob/v4.28.1/src/transformers/models/bert/modeling_bert.py#L180)
pub struct Embeddings {
    word: Tensor,
    segment: Tensor,
    position: Tensor,
    norm: LayerNorm,
}

impl Embeddings {
    /// Reads its weights.
    ///
    /// # Errors
    /// For weights that are missing or of a wrong shape.
    pub fn load(loader: &mut Loader, config: &BertConfig) -> Result<Self, Failure> {
        let mut table = |name: &str, entries: usize| {
            let name = format!("bert.embeddings.{name}_embeddings.weight");
            loader.tensor(&name, &[entries, config.hidden_size])
        };
        Ok(Self {
            word: table("word", config.vocab_size)?,
            segment: table("token_type", config.type_vocab_size)?,
            position: table("position", config.max_position_embeddings)?,
            norm: LayerNorm::load(loader, config, "bert.embeddings.LayerNorm")?,
        })
    }

    /// The first hidden state.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn forward(&self, input: &Input, steps: &mut Steps) -> Result<Tensor, TchError> {
        let look_up = |table: &Tensor, ids: &Tensor| {
            // The padding entry matters to training only.
            let (padding, scale_gradient, sparse_gradient) = (-1, false, false);
            Tensor::f_embedding(table, ids, padding, scale_gradient, sparse_gradient)
        };
        let embeddings = look_up(&self.word, &input.ids)?
            .f_add(&look_up(&self.segment, &input.segments)?)?
            .f_add(&look_up(&self.position, &input.positions)?)?;
        let embeddings = steps.result(Step::Sum, embeddings)?;
        self.norm.forward(&embeddings, Step::Norm, steps)
    }
}

/// [`BertSelfAttention`](https://github.com/huggingface/transformers/blob/v4.28.1/src/transformers/models/bert/modeling_bert.py#L242)
struct SelfAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    heads: i64,
    head_size: i64,
}

impl SelfAttention {
    fn load(loader: &mut Loader, config: &BertConfig, name: &str) -> Result<Self, Failure> {
        let width = config.hidden_size;
        let mut part = |part| Linear::load(loader, &format!("{name}.{part}"), width, width);
        Ok(Self {
            query: part("query")?,
            key: part("key")?,
            value: part("value")?,
            heads: config.num_attention_heads as i64,
            head_size: config.head_size() as i64,
        })
    }

    fn forward(&self, hidden: &Tensor, mask: &Mask, steps: &mut Steps) -> Result<Tensor, TchError> {
        let query = self.split_heads(&self.query.forward(hidden, Step::Query, steps)?)?;
        let key = self.split_heads(&self.key.forward(hidden, Step::Key, steps)?)?;
        let value = self.split_heads(&self.value.forward(hidden, Step::Value, steps)?)?;
        let scores = query
            .f_matmul(&key.f_transpose(-1, -2)?)?
            .f_div_scalar((self.head_size as f64).sqrt())?;
        let scores = steps.result(Step::Scores, mask.scores(scores)?)?;
        let (over_keys, over_queries) = (-1, -2);
        let over = match steps.has(Step::Probabilities, Change::SoftmaxOverQueries) {
            true => over_queries,
            false => over_keys,
        };
        let probabilities = mask.probabilities(scores.f_softmax(over, None)?)?;
        let probabilities = steps.result(Step::Probabilities, probabilities)?;
        let context = probabilities.f_matmul(&value)?;
        let context = context
            .f_permute([0, 2, 1, 3])?
            .f_contiguous()?
            .f_flatten(2, 3)?;
        steps.result(Step::Context, context)
    }

    /// From `[sequences, length, width]` to `[sequences, heads, length, head size]`.
    fn split_heads(&self, tensor: &Tensor) -> Result<Tensor, TchError> {
        let (sequences, length, _) = tensor.size3()?;
        tensor
            .f_view([sequences, length, self.heads, self.head_size])?
            .f_permute([0, 2, 1, 3])
    }
}

/// A dense layer, the residual connection, and the norm over both: `BertSelfOutput` and
/// [`BertOutput`](https://github.com/huggingface/transformers/blob/v4.28.1/src/transformers/models/bert/modeling_bert.py#L454)
struct Output {
    dense: Linear,
    norm: LayerNorm,
}

/// Dense layer, sum and norm after the attention.
const ATTENTION_OUTPUT: [Step; 3] = [
    Step::AttentionOutput,
    Step::AttentionSum,
    Step::AttentionNorm,
];

/// Dense layer, sum and norm of the feed-forward network.
const OUTPUT: [Step; 3] = [Step::Output, Step::Sum, Step::Norm];

impl Output {
    fn load(
        loader: &mut Loader,
        config: &BertConfig,
        name: &str,
        inputs: usize,
    ) -> Result<Self, Failure> {
        Ok(Self {
            dense: Linear::load(loader, &format!("{name}.dense"), inputs, config.hidden_size)?,
            norm: LayerNorm::load(loader, config, &format!("{name}.LayerNorm"))?,
        })
    }

    fn forward(
        &self,
        hidden: &Tensor,
        residual: &Tensor,
        [dense, sum, norm]: [Step; 3],
        steps: &mut Steps,
    ) -> Result<Tensor, TchError> {
        let output = self.dense.forward(hidden, dense, steps)?;
        let output = match steps.has(sum, Change::DropResidual) {
            true => output,
            false => output.f_add(residual)?,
        };
        let output = steps.result(sum, output)?;
        self.norm.forward(&output, norm, steps)
    }
}

/// [`BertLayer`](https://github.com/huggingface/transformers/blob/v4.28.1/src/transformers/models/bert/modeling_bert.py#L468)
pub struct Layer {
    attention: SelfAttention,
    attention_output: Output,
    intermediate: Linear,
    activation: HiddenAct,
    output: Output,
}

impl Layer {
    /// Reads its weights.
    ///
    /// # Errors
    /// For weights that are missing or of a wrong shape.
    pub fn load(loader: &mut Loader, config: &BertConfig, name: &str) -> Result<Self, Failure> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let attention = format!("{name}.attention");
        Ok(Self {
            attention: SelfAttention::load(loader, config, &format!("{attention}.self"))?,
            attention_output: Output::load(loader, config, &format!("{attention}.output"), width)?,
            intermediate: Linear::load(
                loader,
                &format!("{name}.intermediate.dense"),
                width,
                inner,
            )?,
            activation: config.hidden_act,
            output: Output::load(loader, config, &format!("{name}.output"), inner)?,
        })
    }

    /// The hidden state after it.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn forward(
        &self,
        hidden: &Tensor,
        mask: &Mask,
        steps: &mut Steps,
    ) -> Result<Tensor, TchError> {
        let context = self.attention.forward(hidden, mask, steps)?;
        let output = &self.attention_output;
        let attended = output.forward(&context, hidden, ATTENTION_OUTPUT, steps)?;
        let intermediate = &self.intermediate;
        let inner = intermediate.forward(&attended, Step::Intermediate, steps)?;
        let inner = activate(self.activation, &inner, steps)?;
        self.output.forward(&inner, &attended, OUTPUT, steps)
    }
}

/// [`BertLMPredictionHead`](https://github.com/huggingface/transformers/blob/v4.28.1/src/transformers/models/bert/modeling_bert.py#L684)
/// with its `BertPredictionHeadTransform`.
pub struct Head {
    dense: Linear,
    activation: HiddenAct,
    norm: LayerNorm,
    decoder: Linear,
}

impl Head {
    /// Reads its weights.
    ///
    /// # Errors
    /// For weights that are missing or of a wrong shape.
    pub fn load(loader: &mut Loader, config: &BertConfig) -> Result<Self, Failure> {
        let (width, vocabulary) = (config.hidden_size, config.vocab_size);
        let transform = "cls.predictions.transform";
        Ok(Self {
            dense: Linear::load(loader, &format!("{transform}.dense"), width, width)?,
            activation: config.hidden_act,
            norm: LayerNorm::load(loader, config, &format!("{transform}.LayerNorm"))?,
            decoder: Linear::load(loader, "cls.predictions.decoder", width, vocabulary)?,
        })
    }

    /// The logits of every position.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn forward(&self, hidden: &Tensor, steps: &mut Steps) -> Result<Tensor, TchError> {
        let transformed = self.dense.forward(hidden, Step::Transform, steps)?;
        let transformed = activate(self.activation, &transformed, steps)?;
        let transformed = self.norm.forward(&transformed, Step::Norm, steps)?;
        self.decoder.forward(&transformed, Step::Logits, steps)
    }
}
