//! What common gates notice, on the same observations.

use crate::measure::Distance;

/// Names of the gates, in the order of what [`Gates::of`] gives.
pub const NAMES: [&str; 5] = [
    "allclose 1e-5",
    "torch default",
    "allclose 1e-3",
    "NMSE 1e-7",
    "cosine 0.999",
];

/// Whether each gate notices a difference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gates(pub [bool; NAMES.len()]);

impl Gates {
    /// Of one observation. `torch default` is what `torch.testing.assert_close` allows f32; the normalised
    /// mean squared error is what ggml's tests limit.
    pub fn of(values: &[f64], truth: &[f64]) -> Self {
        let is_close = |relative: f64, absolute: f64| {
            let mut pairs = values.iter().zip(truth);
            pairs.all(|(y, t)| (y - t).abs() <= absolute + relative * t.abs())
        };
        let distance = Distance::between(values, truth);
        // Written so that what is not a number is noticed.
        let squares = distance.error * distance.error;
        Self([
            !is_close(1e-5, 1e-5),
            !is_close(1.3e-6, 1e-5),
            !is_close(1e-3, 1e-3),
            squares.is_nan() || squares > 1e-7,
            distance.cosine.is_nan() || distance.cosine < 0.999,
        ])
    }

    /// Notices what either does.
    pub fn join(&mut self, other: Self) {
        let pairs = self.0.iter_mut().zip(other.0);
        pairs.for_each(|(one, other)| *one |= other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gate_has_its_own_limit() {
        let truth = [1.0, -2.0, 3.0, 0.5];
        let off = |by: f64| Gates::of(&truth.map(|x| x * (1.0 + by)), &truth).0;
        assert_eq!(off(0.0), [false; 5]);
        assert_eq!(off(8e-6), [false, true, false, false, false]);
        assert_eq!(off(5e-5), [true, true, false, false, false]);
        assert_eq!(off(8e-4), [true, true, false, true, false]);
        let turned = Gates::of(&[-2.0, 1.0, 0.5, 3.0], &truth).0;
        assert_eq!(turned, [true; 5]);
        assert_eq!(Gates::of(&[f64::NAN, -2.0, 3.0, 0.5], &truth).0, [true; 5]);
    }
}
