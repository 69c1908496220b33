//! candle-transformers' BERT, taken apart so that one forward pass yields every hidden state.
//!
//! Nothing is computed here that candle does not compute itself: the stages are candle's types, and
//! the tests hold every one of them bit for bit to the stock model.

use candle_core::{Device, Result, Tensor};
use candle_nn::{Module, VarBuilder};
use candle_transformers::models::bert::{BertEncoder, BertModel, BertOnlyMLMHead, Config};

/// A padded batch, as candle's BERT takes it: three `u32` tensors of shape `[sequences, length]`.
#[derive(Debug)]
pub struct Inputs {
    /// Token IDs.
    pub ids: Tensor,
    /// Segment of each token.
    pub types: Tensor,
    /// 1 for a token, 0 for padding.
    pub mask: Tensor,
}

/// A loaded BERT encoder, with or without the masked-language-model head.
pub struct Bert {
    /// A stock model of no layers: its output is that of the embedding stage.
    embeddings: BertModel,
    /// Stock encoders of one layer each.
    layers: Vec<BertEncoder>,
    head: Option<BertOnlyMLMHead>,
}

impl Bert {
    /// Loads the model from a builder whose names are those of transformers' `BertForMaskedLM`.
    ///
    /// # Errors
    /// Where a tensor is missing or has a wrong shape.
    pub fn load(vb: VarBuilder, config: &Config, mlm_head: bool) -> Result<Self> {
        let no_layers = Config {
            num_hidden_layers: 0,
            ..config.clone()
        };
        let embeddings = BertModel::load(vb.pp("bert"), &no_layers)?;
        let mut encoder = BertEncoder::load(vb.pp("bert.encoder"), config)?;
        let layers = std::mem::take(&mut encoder.layers)
            .into_iter()
            .map(|layer| {
                let mut one = encoder.clone();
                one.layers = vec![layer];
                one
            })
            .collect();
        let head = mlm_head.then(|| BertOnlyMLMHead::load(vb.pp("cls"), config));
        Ok(Self {
            embeddings,
            layers,
            head: head.transpose()?,
        })
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &Device {
        &self.embeddings.device
    }

    /// Number of encoder layers.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Whether [`Bert::logits`] can be asked for.
    pub fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// The output of the embedding stage, `[sequences, length, hidden_size]`.
    ///
    /// # Errors
    /// What candle says.
    pub fn embeddings(&self, inputs: &Inputs) -> Result<Tensor> {
        let Inputs { ids, types, mask } = inputs;
        self.embeddings.forward(ids, types, Some(mask))
    }

    /// The output of a layer, counted from 1, from that of the stage before it. `mask` is added
    /// to the scores ([`crate::mask`]).
    ///
    /// # Errors
    /// What candle says.
    pub fn layer(&self, layer: usize, before: &Tensor, mask: &Tensor) -> Result<Tensor> {
        self.layers[layer - 1].forward(before, mask)
    }

    /// The head's scores at every position, `[sequences, length, vocab_size]`, from the output of
    /// the last layer.
    ///
    /// # Errors
    /// What candle says, and where the model was loaded without its head.
    pub fn logits(&self, last_hidden: &Tensor) -> Result<Tensor> {
        match &self.head {
            Some(head) => head.forward(last_hidden),
            None => candle_core::bail!("the model was loaded without its head"),
        }
    }
}
