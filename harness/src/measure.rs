//! How far two vectors of numbers are apart.

/// Distance of an observation from the truth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distance {
    /// Largest |y − truth|.
    pub max_abs: f64,
    /// Largest |y − truth| / |truth| over elements whose truth is not zero.
    pub max_rel: f64,
    /// ‖y − truth‖₂ / ‖truth‖₂; infinite where the truth is zero and y is not.
    pub error: f64,
    /// Cosine of the angle between the two; 1 where both are zero.
    pub cosine: f64,
}

/// Effective bits of a result that does not differ at all: those of an f64.
pub const MOST_EFFECTIVE_BITS: f64 = 53.0;

impl Distance {
    /// Measures `y` against `truth`, element by element.
    ///
    /// # Panics
    /// Where the lengths differ: that is damage, to be found before anything is measured.
    pub fn between(y: &[f64], truth: &[f64]) -> Self {
        assert_eq!(y.len(), truth.len(), "numbers and their truth");
        let (mut max_abs, mut max_rel) = (0.0f64, 0.0f64);
        let (mut squares, mut truth_squares, mut y_squares, mut dot) = (0.0, 0.0, 0.0, 0.0);
        for (y, truth) in y.iter().zip(truth) {
            let difference = (y - truth).abs();
            max_abs = max_abs.max(difference);
            if *truth != 0.0 {
                max_rel = max_rel.max(difference / truth.abs());
            }
            squares += difference * difference;
            truth_squares += truth * truth;
            y_squares += y * y;
            dot += y * truth;
        }
        let error = if squares == 0.0 {
            0.0
        } else {
            (squares / truth_squares).sqrt()
        };
        let norms = (truth_squares * y_squares).sqrt();
        let cosine = match (norms == 0.0, squares == 0.0) {
            (false, _) => (dot / norms).clamp(-1.0, 1.0),
            (true, true) => 1.0,
            (true, false) => 0.0,
        };
        Self {
            max_abs,
            max_rel,
            error,
            cosine,
        }
    }

    /// −log₂ of the error: how many leading bits are right.
    pub fn effective_bits(&self) -> f64 {
        (-self.error.log2()).min(MOST_EFFECTIVE_BITS)
    }
}

/// Subtracts the mean of each row. A constant that is added to all logits of a row changes no
/// probability, and on some models it is most of their norm, so that it would hide every error.
pub fn centre_rows(values: &mut [f64], width: usize) {
    for row in values.chunks_mut(width) {
        // Twice: over a vocabulary, the first mean is itself off by dozens of u of a large constant.
        for _ in 0..2 {
            let mean = row.iter().sum::<f64>() / width as f64;
            row.iter_mut().for_each(|value| *value -= mean);
        }
    }
}

/// Euclidean norm.
pub fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// ‖a − b‖₂ in units of `norm`; 0 where the two do not differ, whatever the norm.
///
/// # Panics
/// Where the lengths differ: such numbers have no distance.
pub fn apart(a: &[f64], b: &[f64], norm: f64) -> f64 {
    assert_eq!(a.len(), b.len(), "numbers of two targets");
    let squares = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    if squares == 0.0 {
        0.0
    } else {
        squares.sqrt() / norm
    }
}

/// Square root of the mean of the squares; 0 of nothing.
pub fn root_mean_square(values: impl Iterator<Item = f64>) -> f64 {
    let (mut squares, mut count) = (0.0, 0usize);
    for value in values {
        squares += value * value;
        count += 1;
    }
    if count == 0 {
        0.0
    } else {
        (squares / count as f64).sqrt()
    }
}

/// Cosine of the angle between two vectors; 0 where one of them is zero.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms == 0.0 {
        0.0
    } else {
        (dot(a, b) / norms).clamp(-1.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_by_hand() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} is not {b}");
        let distance = Distance::between(&[3.0, 4.5, 0.5], &[3.0, 4.0, 0.0]);
        close(distance.max_abs, 0.5);
        close(distance.max_rel, 0.125);
        close(distance.error, (0.5f64).sqrt() / 5.0);
        close(distance.cosine, 27.0 / (25.0f64 * 29.5).sqrt());
        let same = Distance::between(&[0.0, 1.0], &[0.0, 1.0]);
        assert_eq!(
            (same.error, same.effective_bits(), same.cosine),
            (0.0, 53.0, 1.0)
        );
        let from_nothing = Distance::between(&[1.0], &[0.0]);
        assert_eq!(
            (from_nothing.error, from_nothing.cosine),
            (f64::INFINITY, 0.0)
        );
        close(Distance::between(&[1.25], &[1.0]).effective_bits(), 2.0);
    }

    #[test]
    fn two_targets_are_apart_by_hand() {
        assert_eq!(norm(&[3.0, 4.0]), 5.0);
        assert_eq!(apart(&[3.0, 4.0], &[0.0, 0.0], 10.0), 0.5);
        assert_eq!(apart(&[1.0], &[1.0], 0.0), 0.0);
        assert_eq!(apart(&[1.0], &[2.0], 0.0), f64::INFINITY);
        assert!(apart(&[f64::NAN], &[2.0], 1.0).is_nan());
    }

    #[test]
    fn centring_and_cosine() {
        let mut rows = [1.0, 3.0, 10.0, 10.0];
        centre_rows(&mut rows, 2);
        assert_eq!(rows, [-1.0, 1.0, 0.0, 0.0]);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 2.0]), 0.0);
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
    }
}
