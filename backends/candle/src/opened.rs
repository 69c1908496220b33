//! candle-transformers' BERT with every step in sight.
//!
//! candle keeps the parts of its stages private. Here they are once more, in the operations and in the
//! order of [`bert.rs`]; the tests hold every stage bit for bit to the stock one. Nothing is taken
//! from here for an ordinary run: only to probe a stage, or where a fault changes a step of it.
//! Tensors of one name share their storage, so the opened stages cost no memory.
//!
//! [`bert.rs`]: https://github.com/huggingface/candle/blob/59f8e903ca80a32ea7f8514b39748fc979e69e82/candle-transformers/src/models/bert.rs

use candle_core::{D, Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module, VarBuilder, embedding, layer_norm, linear};
use candle_transformers::models::bert::{Config, HiddenAct};
use driftgauge_protocol::Step;
use driftgauge_protocol::fault::Activation;

use crate::mask::Mask;
use crate::model::Inputs;
use crate::steps::Steps;

/// All stages of a model.
pub struct Opened {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    head: Option<Head>,
}

impl Opened {
    /// Loads the stages from the builder that the stock model was loaded from.
    ///
    /// # Errors
    /// Where a tensor is missing or has a wrong shape.
    pub fn load(vb: &VarBuilder, config: &Config, mlm_head: bool) -> Result<Self> {
        let layer = |index| Layer::load(vb.pp("bert.encoder.layer").pp(index), config);
        let head = mlm_head.then(|| Head::load(vb.pp("cls.predictions"), config));
        Ok(Self {
            embeddings: Embeddings::load(vb.pp("bert.embeddings"), config)?,
            layers: (0..config.num_hidden_layers)
                .map(layer)
                .collect::<Result<_>>()?,
            head: head.transpose()?,
        })
    }

    /// The embedding stage. The steps are those of that stage, at their beginning, as in all stages.
    ///
    /// # Errors
    /// What candle says.
    pub fn embeddings(&self, inputs: &Inputs, steps: &mut Steps) -> Result<Tensor> {
        self.embeddings.forward(inputs, steps)
    }

    /// A layer, counted from 1, from the output of the stage before it.
    ///
    /// # Errors
    /// What candle says, and where there is no such layer.
    pub fn layer(
        &self,
        layer: usize,
        before: &Tensor,
        mask: &Mask,
        steps: &mut Steps,
    ) -> Result<Tensor> {
        match layer
            .checked_sub(1)
            .and_then(|index| self.layers.get(index))
        {
            Some(layer) => layer.forward(before, mask, steps),
            None => candle_core::bail!("there is no layer {layer}"),
        }
    }

    /// The head at every position, from the output of the last layer.
    ///
    /// # Errors
    /// What candle says, and where the model was loaded without its head.
    pub fn head(&self, last_hidden: &Tensor, steps: &mut Steps) -> Result<Tensor> {
        match &self.head {
            Some(head) => head.forward(last_hidden, steps),
            None => candle_core::bail!("the model was loaded without its head"),
        }
    }
}

struct Embeddings {
    words: Embedding,
    positions: Embedding,
    types: Embedding,
    norm: LayerNorm,
}

impl Embeddings {
    fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let width = config.hidden_size;
        let table = |rows, name| embedding(rows, width, vb.pp(name));
        Ok(Self {
            words: table(config.vocab_size, "word_embeddings")?,
            positions: table(config.max_position_embeddings, "position_embeddings")?,
            types: table(config.type_vocab_size, "token_type_embeddings")?,
            norm: layer_norm(width, config.layer_norm_eps, vb.pp("LayerNorm"))?,
        })
    }

    fn forward(&self, inputs: &Inputs, steps: &mut Steps) -> Result<Tensor> {
        let (_, length) = inputs.ids.dims2()?;
        let words = self.words.forward(&inputs.ids)?;
        let types = self.types.forward(&inputs.types)?;
        let positions = Tensor::arange(0, length as u32, inputs.ids.device())?;
        let positions = self.positions.forward(&positions)?;
        let sum = (words + types)?.broadcast_add(&positions)?;
        let sum = steps.keep(Step::Sum, sum)?;
        steps.norm(Step::Norm, &self.norm, &sum)
    }
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    activation: Activation,
    output: Linear,
    norm: LayerNorm,
    heads: usize,
    head_size: usize,
}

impl Layer {
    fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let square = |name| linear(width, width, vb.pp(name));
        let norm = |name| layer_norm(width, config.layer_norm_eps, vb.pp(name));
        Ok(Self {
            query: square("attention.self.query")?,
            key: square("attention.self.key")?,
            value: square("attention.self.value")?,
            attention_output: square("attention.output.dense")?,
            attention_norm: norm("attention.output.LayerNorm")?,
            intermediate: linear(width, inner, vb.pp("intermediate.dense"))?,
            activation: activation(config.hidden_act),
            output: linear(inner, width, vb.pp("output.dense"))?,
            norm: norm("output.LayerNorm")?,
            heads: config.num_attention_heads,
            head_size: width / config.num_attention_heads,
        })
    }

    fn forward(&self, before: &Tensor, mask: &Mask, steps: &mut Steps) -> Result<Tensor> {
        let query = steps.dense(Step::Query, &self.query, before)?;
        let key = steps.dense(Step::Key, &self.key, before)?;
        let value = steps.dense(Step::Value, &self.value, before)?;
        let (query, key) = (self.split_heads(&query)?, self.split_heads(&key)?);
        let value = self.split_heads(&value)?;

        let products = query.matmul(&key.t()?)?;
        let products = (products / (self.head_size as f64).sqrt())?;
        let scores = steps.scores(products, mask)?;
        let probabilities = steps.probabilities(&scores, mask)?;
        let context = probabilities.matmul(&value)?;
        let context = context.transpose(1, 2)?.contiguous()?;
        let context = steps.keep(Step::Context, context.flatten_from(D::Minus2)?)?;

        let output = steps.dense(Step::AttentionOutput, &self.attention_output, &context)?;
        let sum = steps.sum(Step::AttentionSum, &output, before)?;
        let attention = steps.norm(Step::AttentionNorm, &self.attention_norm, &sum)?;

        let inner = steps.dense(Step::Intermediate, &self.intermediate, &attention)?;
        let inner = steps.activation(self.activation, &inner)?;
        let output = steps.dense(Step::Output, &self.output, &inner)?;
        let sum = steps.sum(Step::Sum, &output, &attention)?;
        steps.norm(Step::Norm, &self.norm, &sum)
    }

    fn split_heads(&self, tensor: &Tensor) -> Result<Tensor> {
        let (sequences, length, _) = tensor.dims3()?;
        let split = (sequences, length, self.heads, self.head_size);
        tensor.reshape(split)?.transpose(1, 2)?.contiguous()
    }
}

struct Head {
    transform: Linear,
    activation: Activation,
    norm: LayerNorm,
    decoder: Linear,
}

impl Head {
    fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        let width = config.hidden_size;
        let norm = vb.pp("transform.LayerNorm");
        Ok(Self {
            transform: linear(width, width, vb.pp("transform.dense"))?,
            activation: activation(config.hidden_act),
            norm: layer_norm(width, config.layer_norm_eps, norm)?,
            decoder: linear(width, config.vocab_size, vb.pp("decoder"))?,
        })
    }

    fn forward(&self, last_hidden: &Tensor, steps: &mut Steps) -> Result<Tensor> {
        let transform = steps.dense(Step::Transform, &self.transform, last_hidden)?;
        let activation = steps.activation(self.activation, &transform)?;
        let norm = steps.norm(Step::Norm, &self.norm, &activation)?;
        steps.dense(Step::Logits, &self.decoder, &norm)
    }
}

fn activation(activation: HiddenAct) -> Activation {
    match activation {
        HiddenAct::Gelu => Activation::Gelu,
        HiddenAct::GeluApproximate => Activation::GeluTanh,
        HiddenAct::Relu => Activation::Relu,
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use driftgauge_protocol::{Dtype, Weights};

    use super::*;
    use crate::backend::config_for_candle;
    use crate::fixture::{Checkpoint, address, tiny};
    use crate::weights::Checkpointed;

    /// The stock model takes its tensors from the same builder, so that what is shared with the
    /// builder is shared with the stock model.
    #[test]
    fn opened_stages_hold_no_tensors_of_their_own() {
        let checkpoint = Checkpoint::random(&tiny(), Dtype::F16);
        let weights = Weights::open(&checkpoint.weights).unwrap();
        let builder = Checkpointed::builder(&weights, DType::F32, &Device::Cpu);
        let config = config_for_candle(&tiny()).unwrap();
        let opened = Opened::load(&builder, &config, true).unwrap();
        let check = |tensor: &Tensor, name: &str| {
            let shared = builder.get_unchecked(name).unwrap();
            assert_eq!(address(tensor), address(&shared), "{name}");
        };
        let words = "bert.embeddings.word_embeddings.weight";
        check(opened.embeddings.words.embeddings(), words);
        for (index, layer) in opened.layers.iter().enumerate() {
            let name = |part: &str| format!("bert.encoder.layer.{index}.{part}");
            check(layer.query.weight(), &name("attention.self.query.weight"));
            check(layer.output.weight(), &name("output.dense.weight"));
            check(layer.norm.weight(), &name("output.LayerNorm.weight"));
        }
        let head = opened.head.unwrap();
        check(head.decoder.weight(), words);
        check(
            head.transform.weight(),
            "cls.predictions.transform.dense.weight",
        );
    }
}
