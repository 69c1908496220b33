//! What a backend has to implement.

use std::collections::BTreeMap;

use crate::{Failure, Hello, LoadRequest, Loaded, Tensor};

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
}

/// A model that is loaded and ready.
pub trait LoadedModel {
    /// Runs one batch and returns exactly the `wanted` observations, in the dtype they were
    /// computed in. Rows of padding are returned as they come; the harness drops them.
    ///
    /// # Errors
    /// Where the library fails; the failure carries its own words.
    fn run(
        &mut self,
        batch: &Batch,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Tensor>, Failure>;
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
