//! BERT (Bidirectional Encoder Representations from Transformers) in libtorch operations.
//!
//! - Paper: [arXiv:1810.04805](https://arxiv.org/abs/1810.04805)
//! - Upstream: [`modeling_bert.py`][hf] of transformers 4.28.1, with eager attention
//!
//! Each block below is the class of that file with the same name, in the same order of operations,
//! because a different order rounds differently. Dropout and what belongs to decoders is left out.
//!
//! [hf]: https://github.com/huggingface/transformers/blob/v4.28.1/src/transformers/models/bert/modeling_bert.py

use std::collections::BTreeMap;

use driftgauge_protocol::{BertConfig, Failure, HiddenAct, observation};
use tch::{TchError, Tensor};

use crate::tensors::{Input, Loader, lowest};

/// An encoder, with a masked-language-model head where the checkpoint has one.
pub struct Bert {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    head: Option<Head>,
}

impl Bert {
    /// Reads all weights.
    ///
    /// # Errors
    /// For weights that are missing or of a wrong shape.
    pub fn load(loader: &mut Loader, config: &BertConfig, mlm_head: bool) -> Result<Self, Failure> {
        let embeddings = Embeddings::load(loader, config)?;
        let layers = (0..config.num_hidden_layers)
            .map(|layer| Layer::load(loader, config, &format!("bert.encoder.layer.{layer}")))
            .collect::<Result<_, _>>()?;
        let head = mlm_head.then(|| Head::load(loader, config)).transpose()?;
        Ok(Self {
            embeddings,
            layers,
            head,
        })
    }

    /// Names of everything that [`Bert::forward`] can observe.
    pub fn observations(&self) -> Vec<String> {
        let mut names = vec![observation::EMBEDDINGS.to_owned()];
        names.extend((1..=self.layers.len()).map(observation::hidden));
        names.extend(self.head.iter().map(|_| observation::LOGITS.to_owned()));
        names
    }

    /// One forward pass, and the wanted observations. The head runs only when it is wanted, but
    /// then on every position, as users run it.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn forward(
        &self,
        input: &Input,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Tensor>, TchError> {
        let mut observed = BTreeMap::new();
        let mut observe = |name: String, tensor: &Tensor| {
            if wanted.contains(&name) {
                observed.insert(name, tensor.shallow_clone());
            }
        };
        let mut hidden = self.embeddings.forward(input)?;
        observe(observation::EMBEDDINGS.to_owned(), &hidden);
        let mask = extended_attention_mask(&input.mask, &hidden)?;
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = layer.forward(&hidden, &mask)?;
            observe(observation::hidden(index + 1), &hidden);
        }
        let logits_wanted = wanted.iter().any(|name| name == observation::LOGITS);
        if let Some(head) = self.head.as_ref().filter(|_| logits_wanted) {
            let logits = head.forward(&hidden)?.f_flatten(0, 1)?;
            let rows = logits.f_index_select(0, &input.rows)?;
            observe(observation::LOGITS.to_owned(), &rows);
        }
        Ok(observed)
    }
}

/// 0 for a token and the lowest finite number for padding, to be added to the scores.
///
/// [`get_extended_attention_mask`](https://github.com/huggingface/transformers/blob/v4.28.1/src/transformers/modeling_utils.py#L890)
fn extended_attention_mask(mask: &Tensor, hidden: &Tensor) -> Result<Tensor, TchError> {
    let kind = hidden.f_kind()?;
    mask.f_unsqueeze(1)?
        .f_unsqueeze(1)?
        .f_to_kind(kind)?
        .f_rsub_scalar(1.0)?
        .f_mul_scalar(lowest(kind))
}

/// [`BertEmbeddings`](https://github.com/huggingface/transformers/blob/v4.28.1/src/transformers/models/bert/modeling_bert.py#L180)
struct Embeddings {
    word: Tensor,
    segment: Tensor,
    position: Tensor,
    norm: LayerNorm,
}

impl Embeddings {
    fn load(loader: &mut Loader, config: &BertConfig) -> Result<Self, Failure> {
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

    fn forward(&self, input: &Input) -> Result<Tensor, TchError> {
        let look_up = |table: &Tensor, ids: &Tensor| {
            // The padding entry matters to training only.
            let (padding, scale_gradient, sparse_gradient) = (-1, false, false);
            Tensor::f_embedding(table, ids, padding, scale_gradient, sparse_gradient)
        };
        let embeddings = look_up(&self.word, &input.ids)?
            .f_add(&look_up(&self.segment, &input.segments)?)?
            .f_add(&look_up(&self.position, &input.positions)?)?;
        self.norm.forward(&embeddings)
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

    fn forward(&self, hidden: &Tensor, mask: &Tensor) -> Result<Tensor, TchError> {
        let query = self.split_heads(&self.query.forward(hidden)?)?;
        let key = self.split_heads(&self.key.forward(hidden)?)?;
        let value = self.split_heads(&self.value.forward(hidden)?)?;
        let scores = query
            .f_matmul(&key.f_transpose(-1, -2)?)?
            .f_div_scalar((self.head_size as f64).sqrt())?
            .f_add(mask)?;
        let probabilities = scores.f_softmax(-1, None)?;
        let context = probabilities.f_matmul(&value)?;
        context
            .f_permute([0, 2, 1, 3])?
            .f_contiguous()?
            .f_flatten(2, 3)
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

    fn forward(&self, hidden: &Tensor, residual: &Tensor) -> Result<Tensor, TchError> {
        self.norm
            .forward(&self.dense.forward(hidden)?.f_add(residual)?)
    }
}

/// [`BertLayer`](https://github.com/huggingface/transformers/blob/v4.28.1/src/transformers/models/bert/modeling_bert.py#L468)
struct Layer {
    attention: SelfAttention,
    attention_output: Output,
    intermediate: Linear,
    activation: HiddenAct,
    output: Output,
}

impl Layer {
    fn load(loader: &mut Loader, config: &BertConfig, name: &str) -> Result<Self, Failure> {
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

    fn forward(&self, hidden: &Tensor, mask: &Tensor) -> Result<Tensor, TchError> {
        let context = self.attention.forward(hidden, mask)?;
        let attended = self.attention_output.forward(&context, hidden)?;
        let inner = activate(self.activation, &self.intermediate.forward(&attended)?)?;
        self.output.forward(&inner, &attended)
    }
}

/// [`BertLMPredictionHead`](https://github.com/huggingface/transformers/blob/v4.28.1/src/transformers/models/bert/modeling_bert.py#L684)
/// with its `BertPredictionHeadTransform`.
struct Head {
    dense: Linear,
    activation: HiddenAct,
    norm: LayerNorm,
    decoder: Linear,
}

impl Head {
    fn load(loader: &mut Loader, config: &BertConfig) -> Result<Self, Failure> {
        let (width, vocabulary) = (config.hidden_size, config.vocab_size);
        let transform = "cls.predictions.transform";
        Ok(Self {
            dense: Linear::load(loader, &format!("{transform}.dense"), width, width)?,
            activation: config.hidden_act,
            norm: LayerNorm::load(loader, config, &format!("{transform}.LayerNorm"))?,
            decoder: Linear::load(loader, "cls.predictions.decoder", width, vocabulary)?,
        })
    }

    fn forward(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        let transformed = activate(self.activation, &self.dense.forward(hidden)?)?;
        self.decoder.forward(&self.norm.forward(&transformed)?)
    }
}

/// `torch.nn.Linear`: weights are `[outputs, inputs]`.
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn load(
        loader: &mut Loader,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Self, Failure> {
        Ok(Self {
            weight: loader.tensor(&format!("{name}.weight"), &[outputs, inputs])?,
            bias: loader.tensor(&format!("{name}.bias"), &[outputs])?,
        })
    }

    fn forward(&self, tensor: &Tensor) -> Result<Tensor, TchError> {
        tensor.f_linear(&self.weight, Some(&self.bias))
    }
}

/// `torch.nn.LayerNorm` over the last extent.
struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    width: i64,
    eps: f64,
}

impl LayerNorm {
    fn load(loader: &mut Loader, config: &BertConfig, name: &str) -> Result<Self, Failure> {
        let width = config.hidden_size;
        Ok(Self {
            weight: loader.tensor(&format!("{name}.weight"), &[width])?,
            bias: loader.tensor(&format!("{name}.bias"), &[width])?,
            width: width as i64,
            eps: config.layer_norm_eps,
        })
    }

    fn forward(&self, tensor: &Tensor) -> Result<Tensor, TchError> {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        let cudnn = true;
        tensor.f_layer_norm([self.width], weight, bias, self.eps, cudnn)
    }
}

fn activate(activation: HiddenAct, tensor: &Tensor) -> Result<Tensor, TchError> {
    match activation {
        HiddenAct::Gelu => tensor.f_gelu("none"),
        HiddenAct::GeluTanh => tensor.f_gelu("tanh"),
        HiddenAct::Relu => tensor.f_relu(),
        HiddenAct::Silu => tensor.f_silu(),
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::{FRAC_1_SQRT_2, PI};

    use super::*;

    fn formula(activation: HiddenAct, x: f64) -> f64 {
        match activation {
            HiddenAct::Gelu => 0.5 * x * (1.0 + libm::erf(x * FRAC_1_SQRT_2)),
            HiddenAct::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            HiddenAct::Relu => x.max(0.0),
            HiddenAct::Silu => x / (1.0 + (-x).exp()),
        }
    }

    /// Every activation is the formula that its name promises. 41 numbers, so that both the
    /// vector part and the scalar remainder of the kernels are seen.
    #[test]
    fn activations_follow_their_formulas() {
        let inputs: Vec<f64> = (-20..=20).map(|step| f64::from(step) * 0.3).collect();
        let tensor = Tensor::f_from_slice(&inputs).unwrap();
        for activation in [
            HiddenAct::Gelu,
            HiddenAct::GeluTanh,
            HiddenAct::Relu,
            HiddenAct::Silu,
        ] {
            let outputs: Vec<f64> = activate(activation, &tensor).unwrap().try_into().unwrap();
            for (x, y) in inputs.iter().zip(outputs) {
                let expected = formula(activation, *x);
                let near = (y - expected).abs() <= 1e-14 * expected.abs().max(1e-2);
                assert!(near, "{activation:?}({x}) is {y}, expected {expected}");
            }
        }
    }
}
