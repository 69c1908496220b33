//! What is fed and what is answered under a fault.

use std::collections::BTreeMap;

use super::{Change, Edit, Fault, InputChange, MaskChange, OutputChange, rounded};
use crate::{Batch, Dtype, Stage, Step, Tensor, observation};

/// A batch as a fault feeds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fed {
    /// The batch.
    pub batch: Batch,
    /// The observations to compute.
    pub wanted: Vec<String>,
}

/// Observations, by name.
pub type Answered = BTreeMap<String, Tensor>;

/// The attention mask of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionMask {
    /// 1 for a position that is attended to, 0 for any other: `[sequences, length]`.
    pub attended: Vec<i64>,
    /// What is added to the scores of the others; `None` for the lowest number there is.
    pub fill: Option<f64>,
    /// Whether the mask is multiplied with the probabilities, and not added to the scores.
    pub after_softmax: bool,
}

impl Fault {
    /// What is fed for a batch, and what must be computed to answer `wanted`.
    pub fn feed(&self, batch: &Batch, wanted: &[String]) -> Fed {
        let mut fed = Fed {
            batch: batch.clone(),
            wanted: wanted.to_vec(),
        };
        for edit in &self.edits {
            match edit {
                Edit::Input(InputChange::MaskAndTypesSwapped) => {
                    let Batch {
                        token_type_ids,
                        attention_mask,
                        ..
                    } = &mut fed.batch;
                    std::mem::swap(token_type_ids, attention_mask);
                }
                Edit::Input(InputChange::LeftPadding) => shift(&mut fed.batch),
                Edit::Output(OutputChange::NextPosition) => {
                    let last = batch.length - 1;
                    let rows = fed.batch.logit_rows.iter_mut();
                    rows.for_each(|(_, position)| *position = (*position + 1).min(last));
                }
                Edit::Output(OutputChange::PreviousLayer) => {
                    fed.wanted = wanted.iter().map(|name| previous(name)).collect();
                    fed.wanted.sort();
                    fed.wanted.dedup();
                }
                _ => {}
            }
        }
        fed
    }

    /// What is answered for a batch, of what was computed for what was fed.
    pub fn answer(&self, batch: &Batch, wanted: &[String], mut computed: Answered) -> Answered {
        for edit in &self.edits {
            match edit {
                Edit::Input(InputChange::LeftPadding) => {
                    for (name, tensor) in &mut computed {
                        if name != observation::LOGITS {
                            *tensor = unshifted(batch, tensor);
                        }
                    }
                }
                Edit::Output(OutputChange::PreviousLayer) => {
                    let named = wanted.iter().filter_map(|name| {
                        Some((name.clone(), computed.get(&previous(name))?.clone()))
                    });
                    computed = named.collect();
                }
                Edit::Output(change) => {
                    for (name, tensor) in &mut computed {
                        if let Some(other) = other(*change, name, tensor) {
                            *tensor = other;
                        }
                    }
                }
                _ => {}
            }
        }
        computed
    }

    /// The attention mask of a layer for a batch as it was fed; `None` where it is the batch's own.
    pub fn mask(&self, layer: usize, batch: &Batch) -> Option<AttentionMask> {
        let mut mask = None;
        for change in self.changes(Stage::Layer(layer), Step::Scores) {
            let Change::Mask(change) = change else {
                continue;
            };
            let mask = mask.get_or_insert_with(|| AttentionMask {
                attended: batch.attention_mask.clone(),
                fill: None,
                after_softmax: false,
            });
            let rows = mask.attended.chunks_mut(batch.length);
            match change {
                MaskChange::Fill(value) => mask.fill = Some(value),
                MaskChange::AfterSoftmax => mask.after_softmax = true,
                MaskChange::Ignored => mask.attended.fill(1),
                MaskChange::Inverted => {
                    rows.flatten()
                        .for_each(|attended| *attended = 1 - *attended);
                }
                MaskChange::Longer => rows.for_each(|row| {
                    let padding = row.iter_mut().find(|attended| **attended == 0);
                    padding.into_iter().for_each(|attended| *attended = 1);
                }),
                MaskChange::Shorter => rows.for_each(|row| {
                    let token = row.iter_mut().rfind(|attended| **attended == 1);
                    token.into_iter().for_each(|attended| *attended = 0);
                }),
                MaskChange::LastOf33 if batch.length % 32 == 1 => {
                    rows.for_each(|row| row[batch.length - 1] = 0);
                }
                MaskChange::LastOf33 => {}
            }
        }
        mask
    }
}

/// The observation that stands in the place of another where layers are counted from one too many.
fn previous(name: &str) -> String {
    match observation::hidden_layer(name) {
        Some(1) => observation::EMBEDDINGS.to_owned(),
        Some(layer) => observation::hidden(layer - 1),
        None => name.to_owned(),
    }
}

/// Padding of each sequence.
fn paddings(batch: &Batch) -> impl Iterator<Item = usize> {
    let rows = batch.attention_mask.chunks(batch.length);
    rows.map(|row| row.iter().filter(|attended| **attended == 0).count())
}

/// Moves padding from the right to the left.
fn shift(batch: &mut Batch) {
    let paddings: Vec<usize> = paddings(batch).collect();
    let parts = [
        &mut batch.input_ids,
        &mut batch.token_type_ids,
        &mut batch.attention_mask,
    ];
    for part in parts {
        let rows = part.chunks_mut(batch.length).zip(&paddings);
        rows.for_each(|(row, padding)| row.rotate_right(*padding));
    }
    let rows = batch.logit_rows.iter_mut();
    rows.for_each(|(sequence, position)| *position += paddings[*sequence]);
}

/// Moves the rows of a hidden state back to where the batch has them.
fn unshifted(batch: &Batch, tensor: &Tensor) -> Tensor {
    rows_from(tensor, |sequence, position, length| {
        let padding = paddings(batch).nth(sequence).unwrap_or(0);
        (sequence, (position + padding) % length)
    })
}

/// What an observation becomes; nothing where it stays.
fn other(change: OutputChange, name: &str, tensor: &Tensor) -> Option<Tensor> {
    let is_logits = name == observation::LOGITS;
    match change {
        OutputChange::NextSequence if !is_logits => Some(rows_from(tensor, |s, p, _| {
            ((s + 1) % tensor.shape()[0].max(1), p)
        })),
        OutputChange::NextToken if !is_logits => {
            Some(rows_from(tensor, |s, p, length| (s, (p + 1) % length)))
        }
        OutputChange::LogSoftmax if is_logits => Some(each_row(tensor, |row| {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|x| (x - largest).exp()).sum();
            let shift = largest + sum.ln();
            row.iter_mut().for_each(|x| *x -= shift);
        })),
        OutputChange::RoundedLogits if is_logits => Some(each_row(tensor, |row| {
            row.iter_mut().for_each(|x| *x = rounded(*x, Dtype::Bf16));
        })),
        _ => None,
    }
}

/// A tensor `[sequences, length, width]` whose row at a place is that of another place.
fn rows_from(tensor: &Tensor, source: impl Fn(usize, usize, usize) -> (usize, usize)) -> Tensor {
    let [sequences, length, width] = *tensor.shape() else {
        return tensor.clone();
    };
    let size = width * tensor.dtype().size();
    let mut bytes = Vec::with_capacity(tensor.bytes().len());
    for sequence in 0..sequences {
        for position in 0..length {
            let (from, row) = source(sequence, position, length);
            let start = (from * length + row) * size;
            bytes.extend_from_slice(&tensor.bytes()[start..start + size]);
        }
    }
    Tensor::new(tensor.dtype(), tensor.shape().to_vec(), bytes).expect("as many rows as there were")
}

/// Changes every row of a tensor, in f64, and rounds back to its dtype.
fn each_row(tensor: &Tensor, change: impl Fn(&mut [f64])) -> Tensor {
    let width = tensor.shape().last().copied().unwrap_or(1).max(1);
    let mut values = tensor.to_f64();
    values.chunks_mut(width).for_each(change);
    tensor.with_values(&values)
}

#[cfg(test)]
mod tests {
    use super::super::StepEdit;
    use super::*;

    fn batch() -> Batch {
        Batch {
            sequences: 2,
            length: 3,
            input_ids: vec![7, 8, 9, 5, 6, 0],
            token_type_ids: vec![0, 1, 1, 0, 0, 0],
            attention_mask: vec![1, 1, 1, 1, 1, 0],
            logit_rows: vec![(0, 2), (1, 1)],
        }
    }

    fn fault(edit: Edit) -> Fault {
        Fault {
            name: "f".to_owned(),
            edits: vec![edit],
        }
    }

    #[test]
    fn padding_moves_to_the_left_and_the_rows_back() {
        let fault = fault(Edit::Input(InputChange::LeftPadding));
        let fed = fault.feed(&batch(), &[]).batch;
        assert_eq!(fed.input_ids, [7, 8, 9, 0, 5, 6]);
        assert_eq!(fed.attention_mask, [1, 1, 1, 0, 1, 1]);
        assert_eq!(fed.logit_rows, [(0, 2), (1, 2)]);
        let ids: Vec<f32> = fed.input_ids.iter().map(|id| *id as f32).collect();
        let computed = Tensor::from_f32(vec![2, 3, 1], &ids).unwrap();
        let computed = Answered::from([("embeddings".to_owned(), computed)]);
        let answered = fault.answer(&batch(), &[], computed);
        assert_eq!(
            answered["embeddings"].to_f32(),
            [7.0, 8.0, 9.0, 5.0, 6.0, 0.0]
        );
    }

    #[test]
    fn masks() {
        let check = |change| {
            let edit = StepEdit {
                stage: Stage::Layer(2),
                step: Step::Scores,
                change: Change::Mask(change),
            };
            let fault = fault(Edit::Step(edit));
            assert_eq!(fault.mask(1, &batch()), None);
            fault.mask(2, &batch()).unwrap()
        };
        assert_eq!(check(MaskChange::Ignored).attended, [1; 6]);
        assert_eq!(check(MaskChange::Inverted).attended, [0, 0, 0, 0, 0, 1]);
        assert_eq!(check(MaskChange::Longer).attended, [1; 6]);
        assert_eq!(check(MaskChange::Shorter).attended, [1, 1, 0, 1, 0, 0]);
        assert_eq!(check(MaskChange::LastOf33).attended, batch().attention_mask);
        assert_eq!(check(MaskChange::Fill(-10.0)).fill, Some(-10.0));
        assert!(check(MaskChange::AfterSoftmax).after_softmax);
    }

    #[test]
    fn outputs() {
        let values = Tensor::from_f32(vec![2, 3, 1], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let logits = Tensor::from_f32(vec![1, 2], &[0.0, 0.0]).unwrap();
        let computed = Answered::from([
            ("hidden.1".to_owned(), values),
            ("logits".to_owned(), logits),
        ]);
        let answer = |change| fault(Edit::Output(change)).answer(&batch(), &[], computed.clone());
        let next = answer(OutputChange::NextSequence);
        assert_eq!(next["hidden.1"].to_f32(), [4.0, 5.0, 6.0, 1.0, 2.0, 3.0]);
        let next = answer(OutputChange::NextToken);
        assert_eq!(next["hidden.1"].to_f32(), [2.0, 3.0, 1.0, 5.0, 6.0, 4.0]);
        let softmax = answer(OutputChange::LogSoftmax);
        assert_eq!(softmax["logits"].to_f32(), [-(2f32.ln()); 2]);

        let fault = fault(Edit::Output(OutputChange::PreviousLayer));
        let wanted = ["hidden.1", "hidden.2"].map(str::to_owned);
        let fed = fault.feed(&batch(), &wanted);
        assert_eq!(fed.wanted, ["embeddings", "hidden.1"]);
        let answered = fault.answer(&batch(), &wanted[1..], computed.clone());
        assert_eq!(answered["hidden.2"], computed["hidden.1"]);
    }
}
