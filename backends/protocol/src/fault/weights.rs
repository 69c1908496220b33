//! What the weights become under a fault.

use half::{bf16, f16};
use rand_distr::{Distribution, StandardNormal};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use crate::Dtype;

/// A changed tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightEdit {
    /// Canonical name. Tensors that share their storage are changed one by one.
    pub tensor: String,
    /// What becomes of it.
    pub change: WeightChange,
}

/// What becomes of a tensor. Rows are its first axis; a bias is one row for each number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum WeightChange {
    /// The stored values of another tensor of the same shape.
    Copy(String),
    /// Rows and columns exchanged; only for square tensors.
    Transpose,
    /// Every number is this one.
    Fill(f64),
    /// Every number is multiplied by this one.
    Scale(f64),
    /// Every number is rounded to a narrower format, to nearest.
    Round(Dtype),
    /// Every number is rounded to one of 255 steps, the largest magnitude being 127 of them.
    Int8,
    /// Magnitudes below this one become this one, except for 0.
    Raise(f64),
    /// Row i is what row i + 1 was; the last is what the first was.
    NextRow,
    /// Number i is what number i + 1 was, across rows; the last is what the first was.
    NextNumber,
    /// One row is what another was.
    CopyRow {
        /// The row that is read.
        from: usize,
        /// The row that is written.
        to: usize,
    },
    /// Rows from this one on are what this one was.
    RepeatRowsFrom(usize),
    /// Some rows become 0.
    ZeroRows {
        /// The first.
        first: usize,
        /// How many.
        count: usize,
    },
    /// Rows are split into heads as if a row's number were `d · heads + head` and not
    /// `head · head size + d`.
    SplitHeads(usize),
    /// The number of the largest magnitude changes its sign.
    NegateLargest,
    /// Seeded normal numbers are added, of this fraction of the tensor's root mean square.
    Jitter(f64),
    /// Seeded normal numbers of standard deviation 0.02, as a new model starts from.
    Reinitialise,
}

/// The values of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    /// The numbers, row by row.
    pub numbers: Vec<f64>,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
}

/// What a tensor becomes, or `None` where no edit changes it. `stored` gives the stored values of a tensor by
/// its canonical name.
///
/// # Errors
/// What does not fit: a tensor that is missing, another shape, a row that is not there.
pub fn changed<'a>(
    edits: impl Iterator<Item = &'a WeightEdit>,
    tensor: &str,
    stored: impl Fn(&str) -> Result<Values, String>,
) -> Result<Option<Values>, String> {
    let mut values: Option<Values> = None;
    for edit in edits.filter(|edit| edit.tensor == tensor) {
        let before = match values.take() {
            Some(values) => values,
            None => stored(tensor)?,
        };
        let after = apply(&edit.change, before, &stored);
        values = Some(after.map_err(|why| format!("tensor `{tensor}`: {why}"))?);
    }
    // What is not in f32 would not be loaded either.
    if let Some(values) = &mut values {
        let numbers = values.numbers.iter_mut();
        numbers.for_each(|number| *number = f64::from(*number as f32));
    }
    Ok(values)
}

fn apply(
    change: &WeightChange,
    mut values: Values,
    stored: impl Fn(&str) -> Result<Values, String>,
) -> Result<Values, String> {
    let rows = values.shape.first().copied().unwrap_or(0);
    let width = values.numbers.len().checked_div(rows).unwrap_or(0);
    let numbers = &mut values.numbers;
    let has_rows = |end: usize| match end <= rows {
        true => Ok(()),
        false => Err(format!("there are {rows} rows, row {} is wanted", end - 1)),
    };
    match change {
        WeightChange::Copy(from) => {
            let other = stored(from)?;
            if other.shape != values.shape {
                return Err(format!(
                    "is of shape {:?}, `{from}` of shape {:?}",
                    values.shape, other.shape
                ));
            }
            return Ok(other);
        }
        WeightChange::Transpose => {
            if width != rows || values.shape.len() != 2 {
                return Err(format!("shape {:?} is not square", values.shape));
            }
            for row in 0..rows {
                for column in 0..row {
                    numbers.swap(row * width + column, column * width + row);
                }
            }
        }
        WeightChange::Fill(value) => numbers.fill(*value),
        WeightChange::Scale(factor) => numbers.iter_mut().for_each(|x| *x *= factor),
        WeightChange::Round(to) => numbers.iter_mut().for_each(|x| *x = rounded(*x, *to)),
        WeightChange::Int8 => {
            let step = largest(numbers) / 127.0;
            if step > 0.0 {
                numbers
                    .iter_mut()
                    .for_each(|x| *x = (*x / step).round() * step);
            }
        }
        WeightChange::Raise(to) => {
            let small = numbers.iter_mut().filter(|x| **x != 0.0 && x.abs() < *to);
            small.for_each(|x| *x = to.copysign(*x));
        }
        WeightChange::NextRow => numbers.rotate_left(width),
        WeightChange::NextNumber => numbers.rotate_left(1),
        WeightChange::CopyRow { from, to } => {
            has_rows(from.max(to) + 1)?;
            numbers.copy_within(from * width..(from + 1) * width, to * width);
        }
        WeightChange::RepeatRowsFrom(first) => {
            has_rows(first + 1)?;
            for row in first + 1..rows {
                numbers.copy_within(first * width..(first + 1) * width, row * width);
            }
        }
        WeightChange::ZeroRows { first, count } => {
            has_rows(first + count)?;
            numbers[first * width..(first + count) * width].fill(0.0);
        }
        WeightChange::SplitHeads(heads) => {
            if *heads == 0 || !rows.is_multiple_of(*heads) {
                return Err(format!("{rows} rows are not {heads} heads"));
            }
            let size = rows / heads;
            let source = numbers.clone();
            for head in 0..*heads {
                for d in 0..size {
                    let (to, from) = (head * size + d, d * heads + head);
                    numbers[to * width..(to + 1) * width]
                        .copy_from_slice(&source[from * width..(from + 1) * width]);
                }
            }
        }
        WeightChange::NegateLargest => {
            let largest = largest(numbers);
            if let Some(number) = numbers.iter_mut().find(|x| x.abs() == largest) {
                *number = -*number;
            }
        }
        WeightChange::Jitter(relative) => {
            let squares = numbers.iter().map(|x| x * x).sum::<f64>();
            let deviation = relative * (squares / numbers.len().max(1) as f64).sqrt();
            let random = normal(numbers.len());
            let pairs = numbers.iter_mut().zip(random);
            pairs.for_each(|(number, random)| *number += deviation * random);
        }
        WeightChange::Reinitialise => {
            *numbers = normal(numbers.len()).map(|random| 0.02 * random).collect();
        }
    }
    Ok(values)
}

/// A number rounded to a narrower format, to nearest, by way of f32.
pub fn rounded(value: f64, to: Dtype) -> f64 {
    match to {
        Dtype::F64 | Dtype::I64 => value,
        Dtype::F32 => f64::from(value as f32),
        // By way of f32, as it is done with numbers that are f32.
        Dtype::F16 => f16::from_f32(value as f32).to_f64(),
        Dtype::Bf16 => bf16::from_f32(value as f32).to_f64(),
    }
}

fn largest(numbers: &[f64]) -> f64 {
    numbers.iter().fold(0.0, |largest, x| x.abs().max(largest))
}

fn normal(count: usize) -> impl Iterator<Item = f64> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(count as u64);
    (0..count).map(move |_| StandardNormal.sample(&mut random))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn become_(change: WeightChange, rows: usize) -> Result<Vec<f64>, String> {
        let stored = |name: &str| {
            let count = if name == "other" { 6 } else { 4 };
            Ok(Values {
                numbers: (1..=count).map(f64::from).collect(),
                shape: vec![rows, count as usize / rows],
            })
        };
        let edit = WeightEdit {
            tensor: "one".to_owned(),
            change,
        };
        changed(std::iter::once(&edit), "one", stored).map(|values| values.unwrap().numbers)
    }

    #[test]
    fn each_change_does_what_it_says() {
        use WeightChange as C;
        for (change, rows, expected) in [
            (C::Transpose, 2, [1.0, 3.0, 2.0, 4.0]),
            (C::Fill(7.0), 2, [7.0; 4]),
            (C::Scale(2.0), 2, [2.0, 4.0, 6.0, 8.0]),
            (C::Raise(2.5), 2, [2.5, 2.5, 3.0, 4.0]),
            (C::NextRow, 2, [3.0, 4.0, 1.0, 2.0]),
            (C::NextNumber, 2, [2.0, 3.0, 4.0, 1.0]),
            (C::CopyRow { from: 1, to: 0 }, 2, [3.0, 4.0, 3.0, 4.0]),
            (C::RepeatRowsFrom(1), 4, [1.0, 2.0, 2.0, 2.0]),
            (C::ZeroRows { first: 1, count: 1 }, 2, [1.0, 2.0, 0.0, 0.0]),
            (C::SplitHeads(2), 4, [1.0, 3.0, 2.0, 4.0]),
            (C::NegateLargest, 2, [1.0, 2.0, 3.0, -4.0]),
        ] {
            assert_eq!(
                become_(change.clone(), rows).unwrap(),
                expected,
                "{change:?}"
            );
        }
        let rounded = become_(C::Scale(1.0 + 2f64.powi(-30)), 2).unwrap();
        assert_eq!(
            rounded,
            [1.0, 2.0, 3.0, 4.0],
            "what f32 cannot hold is lost"
        );
        let int8 = become_(C::Int8, 2).unwrap();
        assert!((int8[0] - 32.0 * 4.0 / 127.0).abs() < 1e-6, "{int8:?}");
        let jitter = become_(C::Jitter(0.1), 2).unwrap();
        assert!(jitter.iter().all(|x| x.fract() != 0.0) && (jitter[3] - 4.0).abs() < 1.5);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        use WeightChange as C;
        for (change, rows, expected) in [
            (C::Transpose, 4, "shape [4, 1] is not square"),
            (C::SplitHeads(3), 4, "4 rows are not 3 heads"),
            (C::RepeatRowsFrom(2), 2, "there are 2 rows, row 2 is wanted"),
            (
                C::Copy("other".to_owned()),
                2,
                "is of shape [2, 2], `other` of shape [2, 3]",
            ),
        ] {
            let why = become_(change, rows).unwrap_err();
            assert_eq!(why, format!("tensor `one`: {expected}"));
        }
    }
}
