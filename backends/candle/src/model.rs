//! candle-transformers' BERT, taken apart so that one forward pass yields every hidden state.
//!
//! Nothing is computed here that candle does not compute itself: the stages are candle's types and
//! are called in candle's order. The only formula restated is that of the additive attention mask,
//! because candle keeps it private. The tests hold every stage bit for bit to the stock model.

use candle_core::{DType, Device, Result, Tensor};
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

    /// The output of the embedding stage and of the first `depth` layers, in this order: `depth` + 1
    /// tensors of shape `[sequences, length, hidden_size]`.
    ///
    /// # Errors
    /// What candle says.
    pub fn hidden_states(&self, inputs: &Inputs, depth: usize) -> Result<Vec<Tensor>> {
        let Inputs { ids, types, mask } = inputs;
        let embeddings = self.embeddings.forward(ids, types, Some(mask))?;
        let mask = extended_attention_mask(mask, embeddings.dtype())?;
        let mut states = vec![embeddings];
        for layer in self.layers.iter().take(depth) {
            states.push(layer.forward(&states[states.len() - 1], &mask)?);
        }
        Ok(states)
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

/// candle's private `get_extended_attention_mask`, for a mask of rank 2. In `f16` and `bf16` the
/// cast of `f32::MIN` is −∞ and 0 · −∞ is NaN; that is how candle computes, so it stays.
/// <https://github.com/huggingface/candle/blob/59f8e903ca80a32ea7f8514b39748fc979e69e82/candle-transformers/src/models/bert.rs#L520-L533>
fn extended_attention_mask(mask: &Tensor, dtype: DType) -> Result<Tensor> {
    let mask = mask.unsqueeze(1)?.unsqueeze(1)?.to_dtype(dtype)?;
    (mask.ones_like()? - &mask)?.broadcast_mul(
        &Tensor::try_from(f32::MIN)?
            .to_device(mask.device())?
            .to_dtype(dtype)?,
    )
}

#[cfg(test)]
mod tests {
    use candle_transformers::models::bert::BertForMaskedLM;
    use driftgauge_protocol::{Dtype, Weights};

    use super::*;
    use crate::backend::config_for_candle;
    use crate::fixture::{Checkpoint, THREADS, tiny};
    use crate::weights::Checkpointed;

    fn bits(tensor: &Tensor) -> Vec<u32> {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    /// Four padded sequences. The last is all padding: only there the value of the mask shows, as
    /// elsewhere the softmax turns any large negative number into the same zero.
    fn inputs() -> Inputs {
        let tensor = |rows: &[[u32; 7]; 4]| Tensor::new(rows, &Device::Cpu).unwrap();
        Inputs {
            ids: tensor(&[
                [2, 7, 9, 11, 4, 8, 3],
                [2, 30, 31, 3, 0, 0, 0],
                [2, 3, 0, 0, 0, 0, 0],
                [2, 9, 3, 0, 0, 0, 0],
            ]),
            types: tensor(&[
                [0, 0, 0, 0, 1, 1, 1],
                [0, 0, 1, 1, 0, 0, 0],
                [0, 0, 0, 0, 0, 0, 0],
                [0, 0, 0, 0, 0, 0, 0],
            ]),
            mask: tensor(&[
                [1, 1, 1, 1, 1, 1, 1],
                [1, 1, 1, 1, 0, 0, 0],
                [1, 1, 0, 0, 0, 0, 0],
                [0, 0, 0, 0, 0, 0, 0],
            ]),
        }
    }

    /// The claim that this worker runs candle's production path: each stage has the bits of the
    /// stock model, which got the same numbers from candle's own map of tensors.
    #[test]
    fn every_stage_is_bitwise_that_of_stock_candle() {
        crate::threads::settle(THREADS).unwrap();
        let config = tiny();
        let checkpoint = Checkpoint::random(&config, Dtype::F32);
        let stock = VarBuilder::from_tensors(checkpoint.stock(), DType::F32, &Device::Cpu);
        let weights = Weights::open(&checkpoint.weights).unwrap();
        let ours = Checkpointed::builder(&weights, DType::F32, &Device::Cpu);
        let config = config_for_candle(&config).unwrap();
        let (inputs, depth) = (inputs(), config.num_hidden_layers);
        let model = Bert::load(ours, &config, true).unwrap();
        let states = model.hidden_states(&inputs, depth).unwrap();
        assert_eq!(states.len(), depth + 1);

        for (layers, state) in states.iter().enumerate() {
            let shallow = Config {
                num_hidden_layers: layers,
                ..config.clone()
            };
            let expected = BertModel::load(stock.pp("bert"), &shallow)
                .and_then(|stock| stock.forward(&inputs.ids, &inputs.types, Some(&inputs.mask)))
                .unwrap();
            assert_eq!(bits(state), bits(&expected), "after {layers} layers");
        }
        let expected = BertForMaskedLM::load(stock, &config)
            .and_then(|stock| stock.forward(&inputs.ids, &inputs.types, Some(&inputs.mask)))
            .unwrap();
        let logits = model.logits(&states[depth]).unwrap();
        assert_eq!(logits.dims(), &[4, 7, config.vocab_size]);
        assert_eq!(bits(&logits), bits(&expected));
        assert!(bits(&expected).iter().any(|bits| *bits != 0));
    }

    /// Half precision: candle's mask is NaN on every token that is attended to.
    #[test]
    fn the_mask_is_candles_own_in_half_precision_too() {
        let mask = Tensor::new(&[[1u32, 0]], &Device::Cpu).unwrap();
        for (dtype, expected) in [
            (DType::F32, [0.0, f32::MIN]),
            (DType::F16, [f32::NAN, f32::NEG_INFINITY]),
            (DType::BF16, [f32::NAN, f32::NEG_INFINITY]),
        ] {
            let extended = extended_attention_mask(&mask, dtype).unwrap();
            assert_eq!(extended.dims(), &[1, 1, 1, 2]);
            let got = extended.to_dtype(DType::F32).unwrap();
            let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (got, expected) in got.iter().zip(expected) {
                assert!(
                    *got == expected || got.is_nan() && expected.is_nan(),
                    "{dtype:?}: {got}, expected {expected}"
                );
            }
        }
    }
}
