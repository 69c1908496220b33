//! The architecture of a BERT encoder, as `config.json` states it and the harness has checked it.

use serde::{Deserialize, Serialize};

/// The numbers that define the computation. Names and meaning as in Hugging Face's `config.json`;
/// what that file leaves out has been filled in with transformers' defaults, and what no backend
/// could honour has been refused by the harness.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BertConfig {
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Encoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the feed-forward network.
    pub intermediate_size: usize,
    /// Activation of the feed-forward network and of the head's transform.
    pub hidden_act: HiddenAct,
    /// Positions that have an embedding; the longest sequence.
    pub max_position_embeddings: usize,
    /// Segments that have an embedding.
    pub type_vocab_size: usize,
    /// Added to the variance in every layer norm.
    pub layer_norm_eps: f64,
    /// ID of the padding token.
    pub pad_token_id: usize,
}

impl BertConfig {
    /// Width of one attention head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

/// Activation functions, by the formula and not by the many names they go under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// x · Φ(x) with the error function: `gelu` in transformers.
    Gelu,
    /// The tanh approximation of GELU: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// x · sigmoid(x): `silu`, `swish`.
    Silu,
}
