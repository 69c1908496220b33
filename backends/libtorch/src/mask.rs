//! The attention mask of a layer.

use driftgauge_protocol::fault::AttentionMask;
use tch::{Kind, TchError, Tensor};

use crate::tensors::{Input, lowest};

/// What keeps a layer from attending to padding: `[sequences, 1, 1, length]`.
pub enum Mask {
    /// To be added to the scores.
    Added(Tensor),
    /// To be multiplied with the probabilities.
    Multiplied(Tensor),
}

impl Mask {
    /// The mask of the batch: 0 for a token and the lowest finite number for padding.
    ///
    /// [`get_extended_attention_mask`](https://github.com/huggingface/transformers/blob/v4.28.1/src/transformers/modeling_utils.py#L890)
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn new(input: &Input, kind: Kind) -> Result<Self, TchError> {
        Self::extended(&input.mask, kind)
    }

    /// The mask that a fault puts in its place.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn changed(mask: &AttentionMask, input: &Input, kind: Kind) -> Result<Self, TchError> {
        let attended = Tensor::f_from_slice(&mask.attended)?
            .f_view_as(&input.mask)?
            .f_to_device(input.mask.device())?;
        match mask.fill {
            _ if mask.after_softmax => Ok(Self::Multiplied(spread(&attended)?.f_to_kind(kind)?)),
            None => Self::extended(&attended, kind),
            // In f64, because libtorch refuses to multiply with a number that the format cannot hold. It
            // becomes -∞ there, as it does in programs that do this.
            Some(fill) => spread(&attended)?
                .f_to_kind(Kind::Double)?
                .f_rsub_scalar(1.0)?
                .f_mul_scalar(fill)?
                .f_to_kind(kind)
                .map(Self::Added),
        }
    }

    /// Scores under this mask.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn scores(&self, scores: Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Added(mask) => scores.f_add(mask),
            Self::Multiplied(_) => Ok(scores),
        }
    }

    /// Probabilities under this mask.
    ///
    /// # Errors
    /// What libtorch refuses.
    pub fn probabilities(&self, probabilities: Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Added(_) => Ok(probabilities),
            Self::Multiplied(mask) => probabilities.f_mul(mask),
        }
    }

    fn extended(attended: &Tensor, kind: Kind) -> Result<Self, TchError> {
        spread(attended)?
            .f_to_kind(kind)?
            .f_rsub_scalar(1.0)?
            .f_mul_scalar(lowest(kind))
            .map(Self::Added)
    }
}

/// From `[sequences, length]` to `[sequences, 1, 1, length]`: one row for all heads and queries.
fn spread(attended: &Tensor) -> Result<Tensor, TchError> {
    attended.f_unsqueeze(1)?.f_unsqueeze(1)
}
