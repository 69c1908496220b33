//! What a backend has to implement.

use std::collections::BTreeMap;

use crate::{BertConfig, Failure, Hello, LoadRequest, Loaded, Stage, Tensor};

/// A binding to one inference library.
///
/// ```
/// use std::collections::BTreeMap;
/// use driftgauge_protocol::*;
///
/// struct Echo;
/// impl Backend for Echo {
///     fn hello(&mut self) -> Result<Hello, Failure> {
///         Ok(Hello {
///             protocol: PROTOCOL_VERSION,
///             backend: "echo".to_owned(),
///             library: "none".to_owned(),
///             version: "0".to_owned(),
///             properties: Properties::new(),
///         })
///     }
///     fn load(&mut self, _: &LoadRequest) -> Result<(Box<dyn LoadedModel>, Loaded), Failure> {
///         Err(Failure::unsupported("this backend only says hello"))
///     }
/// }
/// # assert_eq!(Echo.hello().unwrap().backend, "echo");
/// ```
pub trait Backend {
    /// Makes the library ready and describes it.
    ///
    /// # Errors
    /// Where the library is missing or of a wrong version; the failure names the file and the next
    /// step.
    fn hello(&mut self) -> Result<Hello, Failure>;

    /// Loads a model exactly as requested, or fails: another device, dtype or activation than the
    /// requested one is never an acceptable answer.
    ///
    /// # Errors
    /// [`crate::FailureKind::Unsupported`] for what the library cannot do,
    /// [`crate::FailureKind::Error`] for what should have worked.
    fn load(&mut self, request: &LoadRequest) -> Result<(Box<dyn LoadedModel>, Loaded), Failure>;

    /// Whether [`Backend::load`] honours [`LoadRequest::fault`]: the changes of weights
    /// ([`crate::Weights::under`]) and of steps. What is fed and answered is changed by the serve loop. A
    /// change that the library cannot express must be refused as unsupported.
    fn has_faults(&self) -> bool {
        false
    }
}

/// A model that is loaded and ready.
pub trait LoadedModel {
    /// Runs one batch, which has been checked against the model, and returns exactly the `wanted`
    /// observations, each one of those that were offered, in the dtype they were
    /// computed in. Rows of padding are returned as they come; the harness drops them.
    ///
    /// # Errors
    /// Where the library fails; the failure carries its own words.
    fn run(
        &mut self,
        batch: &Batch,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Tensor>, Failure>;

    /// Runs one stage from `input`, the hidden state before it (none for the embedding stage), and
    /// returns the result of each of its steps ([`Stage::steps`]) under its name, in the shape that
    /// [`crate::Step`] states. It should compute as [`LoadedModel::run`] does; the harness holds its
    /// last step against that.
    ///
    /// # Errors
    /// Where the library fails, or cannot be opened so far.
    fn probe(
        &mut self,
        _stage: Stage,
        _batch: &Batch,
        _input: Option<&Tensor>,
    ) -> Result<BTreeMap<String, Tensor>, Failure> {
        Err(Failure::unsupported(
            "this worker cannot show the steps inside a stage",
        ))
    }
}

/// A padded batch of `sequences` × `length` token IDs, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Number of sequences, at least 1.
    pub sequences: usize,
    /// Tokens per sequence, padding included, at least 1.
    pub length: usize,
    /// Token IDs.
    pub input_ids: Vec<i64>,
    /// Segment of each token: 0 or 1.
    pub token_type_ids: Vec<i64>,
    /// 1 for a token, 0 for padding, which is always on the right.
    pub attention_mask: Vec<i64>,
    /// The rows of `logits`, as (sequence, position) pairs.
    pub logit_rows: Vec<(usize, usize)>,
}

impl Batch {
    /// The smallest batch there is: what a backend tries a model with.
    pub fn one_token() -> Self {
        Self {
            sequences: 1,
            length: 1,
            input_ids: vec![0],
            token_type_ids: vec![0],
            attention_mask: vec![1],
            logit_rows: vec![(0, 0)],
        }
    }

    /// Whether the model has an embedding for everything in here. Libraries take what is outside
    /// silently (a negative ID counts from the end, 2^32 − 1 is "no token"), or end the process.
    ///
    /// # Errors
    /// [`Failure`] that names the value and the limit.
    pub fn check(&self, config: &BertConfig) -> Result<(), Failure> {
        let (length, positions) = (self.length, config.max_position_embeddings);
        if length > positions {
            return Err(Failure::error(format!(
                "a batch of length {length} is too long: the model has {positions} positions"
            )));
        }
        let parts = [&self.input_ids, &self.token_type_ids, &self.attention_mask];
        let limits = [config.vocab_size, config.type_vocab_size, 2];
        for ((name, values), limit) in Self::TENSORS.iter().zip(parts).zip(limits) {
            let inside = |value: &i64| usize::try_from(*value).is_ok_and(|value| value < limit);
            if let Some(value) = values.iter().find(|value| !inside(value)) {
                return Err(Failure::error(format!(
                    "`{name}` holds {value}, the limit is {limit}"
                )));
            }
        }
        Ok(())
    }

    const TENSORS: [&'static str; 3] = ["input_ids", "token_type_ids", "attention_mask"];

    /// The tensors of a [`crate::Request::Run`] payload: `input_ids`, `token_type_ids` and
    /// `attention_mask`, each `i64` of shape `[sequences, length]`.
    pub fn to_tensors(&self) -> BTreeMap<String, Tensor> {
        let parts = [&self.input_ids, &self.token_type_ids, &self.attention_mask];
        Self::TENSORS
            .into_iter()
            .zip(parts)
            .map(|(name, values)| {
                let tensor = Tensor::from_i64(vec![self.sequences, self.length], values)
                    .expect("a batch holds sequences × length numbers");
                (name.to_owned(), tensor)
            })
            .collect()
    }

    /// The batch of a payload, checked: shapes, lengths, and that every row lies inside.
    ///
    /// # Errors
    /// [`Failure`] that says which part is wrong.
    pub fn from_tensors(
        mut tensors: BTreeMap<String, Tensor>,
        logit_rows: Vec<(usize, usize)>,
    ) -> Result<Self, Failure> {
        let mut shape = None;
        let mut take = |name: &str| {
            let tensor = tensors
                .remove(name)
                .ok_or_else(|| Failure::error(format!("the batch has no `{name}`")))?;
            let [sequences, length] = *tensor.shape() else {
                return Err(Failure::error(format!("`{name}` must be of rank 2")));
            };
            if *shape.get_or_insert((sequences, length)) != (sequences, length) {
                return Err(Failure::error(format!("`{name}` has a shape of its own")));
            }
            tensor
                .to_i64()
                .ok_or_else(|| Failure::error(format!("`{name}` must be i64")))
        };
        let [ids, types, mask] = Self::TENSORS;
        let (input_ids, token_type_ids, attention_mask) = (take(ids)?, take(types)?, take(mask)?);
        let (sequences, length) = shape.unwrap_or_default();
        if sequences == 0 || length == 0 {
            return Err(Failure::error("the batch is empty"));
        }
        if let Some(row) = logit_rows
            .iter()
            .find(|row| row.0 >= sequences || row.1 >= length)
        {
            return Err(Failure::error(format!("row {row:?} is outside the batch")));
        }
        Ok(Self {
            sequences,
            length,
            input_ids,
            token_type_ids,
            attention_mask,
            logit_rows,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HiddenAct;

    #[test]
    fn batches_outside_the_model_are_refused() {
        let config = BertConfig {
            vocab_size: 37,
            hidden_size: 4,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            intermediate_size: 4,
            hidden_act: HiddenAct::Gelu,
            max_position_embeddings: 9,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            pad_token_id: 0,
        };
        let check = |change: &dyn Fn(&mut Batch)| {
            let mut batch = Batch::one_token();
            change(&mut batch);
            batch.check(&config).map_err(|failure| failure.message)
        };
        assert_eq!(check(&|batch| batch.input_ids[0] = 36), Ok(()));
        for (result, expected) in [
            (
                check(&|batch| batch.input_ids[0] = 37),
                "`input_ids` holds 37, the limit is 37",
            ),
            (
                check(&|batch| batch.input_ids[0] = -1),
                "`input_ids` holds -1, the limit is 37",
            ),
            (
                check(&|batch| batch.input_ids[0] = u32::MAX.into()),
                "`input_ids` holds 4294967295, the limit is 37",
            ),
            (
                check(&|batch| batch.token_type_ids[0] = 2),
                "`token_type_ids` holds 2, the limit is 2",
            ),
            (
                check(&|batch| batch.attention_mask[0] = 2),
                "`attention_mask` holds 2, the limit is 2",
            ),
            (
                check(&|batch| batch.length = 10),
                "a batch of length 10 is too long: the model has 9 positions",
            ),
        ] {
            assert_eq!(result, Err(expected.to_owned()));
        }
    }
}
