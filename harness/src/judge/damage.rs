//! Patterns of damage: numbers that no precision and no other formula gives, but a broken answer does.

use crate::measure::Distance;

/// Distance, relative to the truth's norm, within which a row is taken for another one.
const SAME_ROW: f64 = 0.01;
/// The same in units of noise, for coarse dtypes.
const SAME_NOISE: f64 = 10.0;
/// Rows that a message lists.
const LISTED: usize = 4;

/// How many numbers are not finite, as the end of a sentence.
pub(crate) fn not_finite(values: &[f64]) -> String {
    let nan = values.iter().filter(|value| value.is_nan()).count();
    let infinite = values.iter().filter(|value| value.is_infinite()).count();
    let count = values.len();
    match (nan, infinite) {
        (nan, 0) => format!("{nan} of {count} numbers are NaN"),
        (0, infinite) => format!("{infinite} of {count} numbers are infinite"),
        (nan, infinite) => {
            format!("{nan} of {count} numbers are NaN and {infinite} are infinite")
        }
    }
}

/// Which pattern rows of `width` finite numbers show against their truth, as the end of a sentence;
/// `None` where they show none. `noise` is the relative error that is predicted for them; `others` are
/// truths of the same observation for other cases of the batch, with their names.
pub(crate) fn pattern(
    values: &[f64],
    truth: &[f64],
    width: usize,
    noise: f64,
    others: &[(String, Vec<f64>)],
) -> Option<String> {
    let is_same = |values: &[f64], truth: &[f64]| {
        Distance::between(values, truth).error < SAME_ROW.max(SAME_NOISE * noise)
    };
    let rows: Vec<&[f64]> = values.chunks(width).collect();
    let truths: Vec<&[f64]> = truth.chunks(width).collect();
    exchanged(values, truth, width, others, &is_same)
        .or_else(|| permuted(&rows, &truths, &is_same))
        .or_else(|| zeroed(&rows, &truths))
}

/// Another case's rows, as far as both have any: the rest may be its padding.
fn exchanged(
    values: &[f64],
    truth: &[f64],
    width: usize,
    others: &[(String, Vec<f64>)],
    is_same: &dyn Fn(&[f64], &[f64]) -> bool,
) -> Option<String> {
    let holds = |(_, other): &&(String, Vec<f64>)| {
        let both = values.len().min(other.len());
        let is_other = |(row, other): (&[f64], &[f64])| is_same(row, other);
        both > 0
            && values[..both]
                .chunks(width)
                .zip(other.chunks(width))
                .all(is_other)
            && !is_same(&truth[..both], &other[..both])
    };
    let (name, _) = others.iter().find(holds)?;
    Some(format!(
        "holds the rows of `{name}`: sequences of the batch have changed places"
    ))
}

fn zeroed(rows: &[&[f64]], truths: &[&[f64]]) -> Option<String> {
    let is_zero = |row: &[f64]| row.iter().all(|value| *value == 0.0);
    let zero: Vec<usize> = (0..rows.len())
        .filter(|row| is_zero(rows[*row]) && !is_zero(truths[*row]))
        .collect();
    (!zero.is_empty()).then(|| {
        format!(
            "{} of {} rows are zero ({})",
            zero.len(),
            rows.len(),
            list(&zero)
        )
    })
}

fn permuted(
    rows: &[&[f64]],
    truths: &[&[f64]],
    is_same: &dyn Fn(&[f64], &[f64]) -> bool,
) -> Option<String> {
    let place = |row: usize| {
        if is_same(rows[row], truths[row]) {
            return Some(row);
        }
        truths.iter().position(|truth| is_same(rows[row], truth))
    };
    let places: Vec<usize> = (0..rows.len()).map(place).collect::<Option<_>>()?;
    let moved: Vec<usize> = (0..rows.len()).filter(|row| places[*row] != *row).collect();
    let first = *moved.first()?;
    let shift = places[first] as isize - first as isize;
    let is_shift = moved.len() > 2
        && moved
            .iter()
            .all(|row| places[*row] as isize - *row as isize == shift);
    let how = if is_shift {
        format!("shifted by {shift}")
    } else {
        format!("row {first} holds what belongs to row {}", places[first])
    };
    Some(format!(
        "{} of {} tokens have changed places ({how})",
        moved.len(),
        rows.len()
    ))
}

fn list(rows: &[usize]) -> String {
    let shown: Vec<String> = rows.iter().take(LISTED).map(usize::to_string).collect();
    let more = if rows.len() > LISTED { ", …" } else { "" };
    let word = if rows.len() == 1 { "row" } else { "rows" };
    format!("{word} {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_counted() {
        let (nan, infinite) = (f64::NAN, f64::NEG_INFINITY);
        for (values, expected) in [
            ([1.0, nan, nan], "2 of 3 numbers are NaN"),
            ([1.0, 2.0, infinite], "1 of 3 numbers are infinite"),
            (
                [nan, 2.0, infinite],
                "1 of 3 numbers are NaN and 1 are infinite",
            ),
        ] {
            assert_eq!(not_finite(&values), expected);
        }
    }

    #[test]
    fn patterns_are_named() {
        let truth = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, -1.0, 2.0];
        let other = vec![(
            "suite/other".to_owned(),
            vec![3.0, 0.0, 0.0, 3.0, 2.0, 2.0, 2.0, 9.0],
        )];
        for (values, expected) in [
            ([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, -1.0, 2.0], None),
            ([1.3, 0.0, 0.0, 1.0, 1.0, 1.0, -1.0, 2.0], None),
            (
                [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, -1.0, 2.0],
                Some("1 of 4 rows are zero (row 1)"),
            ),
            (
                [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, -1.0, 2.0],
                Some("2 of 4 tokens have changed places (row 0 holds what belongs to row 1)"),
            ),
            (
                [0.0, 1.0, 1.0, 1.0, -1.0, 2.0, -1.0, 2.0],
                Some("3 of 4 tokens have changed places (shifted by 1)"),
            ),
            (
                [3.0, 0.0, 0.0, 3.0, 2.0, 2.0, 2.0, 9.0],
                Some("holds the rows of `suite/other`: sequences of the batch have changed places"),
            ),
        ] {
            assert_eq!(
                pattern(&values, &truth, 2, 1e-7, &other).as_deref(),
                expected,
                "{values:?}"
            );
        }
    }
}
