//! Monte-Carlo arithmetic: what rounding does to a correct implementation.
//!
//! To the result of every operation a random error is added, of the size that rounding gives it, and
//! carried (`errors.rs`) through the rest of the pass. The spread of such samples is the error that
//! a correct implementation has, for this input, at this observation. Nothing is fitted.
//!
//! Rounding a number to nearest makes a relative error that is uniform in ±u/m for a significand
//! m ∈ [1, 2), and significands are distributed with density 1/(m ln 2). Its root mean square is
//!
//! ```text
//! ρ = u / √(8 ln 2) = 0.4247 u
//! ```
//!
//! The model of each operation, as an absolute standard deviation; all of them in units of u:
//!
//! | operation | error |
//! |---|---|
//! | x + y, x · y, x / y | ρ·\|result\| |
//! | dot product of length n, its terms tᵢ | ρ·√(k/2 + n/2k)·√(Σtᵢ²), k = min(n, [`Arithmetic::product_run`]) |
//! | the same onto a bias b | also ρ·√n·\|b\| |
//! | sum of n numbers, l at a time | the errors of the partial sums of each lane, then of a tree, see [`Noise::sum`] |
//! | softmax, GELU, layer norm | its operations one by one, to first order |
//!
//! A dot product adds k terms one after the other: its j-th partial sum is √(j/n) of the whole, so that
//! the squares add up to k/2 of a single rounding of √(Σtᵢ²); the n/k blocks are then added in the same
//! way. Errors of one element's consecutive operations are drawn together: a product of (1 + εᵢ) is
//! 1 + Σεᵢ to first order.
//!
//! In f16 and bf16, kernels compute inside in f32 and round what they return; weights are rounded to
//! the dtype exactly as every implementation rounds them.

use driftgauge_protocol::{Arithmetic, Bias, Dtype, HiddenAct, Variance};
use half::{bf16, f16};
use rand_distr::{Distribution, StandardNormal};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

use super::Sequence;
use super::activation::ActivationPoint;

/// What the samples imitate, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    /// Number format of the implementation.
    pub dtype: Dtype,
    /// How its library adds numbers up.
    pub arithmetic: Arithmetic,
    /// What is coarser than the dtype, in an implementation that cuts corners.
    pub shortcut: Option<Shortcut>,
    /// Whether every stage starts without an error, from weights as the implementation has them, so that
    /// each observation has the error of its own stage alone.
    pub by_stage: bool,
    /// Samples of the error.
    pub samples: usize,
    /// Where the random numbers start.
    pub seed: u64,
}

/// A precision lower than the dtype's in one part of the computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortcut {
    /// Both operands of every product are rounded to a significand of this many bits first: 11 in
    /// TF32, 8 in bf16.
    Products(i32),
    /// The weights are stored in a coarser dtype.
    Weights(Dtype),
}

/// Root mean square of the relative error of rounding to nearest, in u: 1/√(8 ln 2).
pub const ROUNDING_RMS: f64 = 0.424_660_900_144_009_5;

/// Random numbers for one stage of one sample of one sequence.
pub(super) struct Stream(Xoshiro256PlusPlus);

impl Stream {
    /// A standard normal variable.
    pub(super) fn normal(&mut self) -> f32 {
        StandardNormal.sample(&mut self.0)
    }

    /// Two independent variables of mean 0 and variance 1, uniform: of an error that is one of many,
    /// only the variance matters, and these are cheaper than normal ones.
    fn pair(&mut self) -> [f32; 2] {
        const SCALE: f32 = 1.732_050_8 / (1u32 << 31) as f32;
        let bits = self.0.next_u64();
        [bits as i32, (bits >> 32) as i32].map(|integer| integer as f32 * SCALE)
    }

    /// Adds to each value an error of the standard deviation beside it.
    pub(super) fn perturb(&mut self, values: &mut [f32], deviations: &[f32]) {
        for (values, deviations) in values.chunks_mut(2).zip(deviations.chunks(2)) {
            let parts = values.iter_mut().zip(deviations).zip(self.pair());
            parts.for_each(|((value, deviation), random)| *value += deviation * random);
        }
    }
}

/// The errors of a layer norm's statistics, which all elements of a row share.
pub(super) struct NormNoise {
    /// Standard deviation of the mean.
    pub(super) mean: f64,
    /// Relative standard deviation of the reciprocal of the deviation.
    pub(super) scale: f64,
}

impl Noise {
    /// Identifies a sequence by its content, so that its noise does not depend on its company.
    pub(super) fn key(&self, sequence: &Sequence) -> u64 {
        let mut hash = Sha256::new_with_prefix(self.seed.to_le_bytes());
        for values in [&sequence.ids, &sequence.type_ids] {
            values.iter().for_each(|v| hash.update(v.to_le_bytes()));
        }
        let digest = hash.finalize();
        u64::from_le_bytes(digest[..8].try_into().expect("eight of 32 bytes"))
    }

    /// The random numbers of `stage` in one sample of the sequence with `key`.
    pub(super) fn stream(key: u64, sample: usize, stage: u64) -> Stream {
        let mut state = key;
        for part in [sample as u64, stage] {
            // The finaliser of SplitMix64, http://prng.di.unimi.it/splitmix64.c
            state = state.wrapping_add(part).wrapping_add(0x9e37_79b9_7f4a_7c15);
            state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            state ^= state >> 31;
        }
        Stream(Xoshiro256PlusPlus::seed_from_u64(state))
    }

    /// Unit roundoff of the dtype.
    pub(super) fn unit(&self) -> f64 {
        self.dtype.unit_roundoff().unwrap_or(f64::NAN)
    }

    /// ρ of the dtype, in u.
    fn rho(&self) -> f64 {
        ROUNDING_RMS
    }

    /// ρ inside a kernel, in u: half precision is computed in f32.
    fn rho_inside(&self) -> f64 {
        let inside = if self.returns_rounded() {
            Dtype::F32
        } else {
            self.dtype
        };
        let unit = inside.unit_roundoff().unwrap_or(f64::NAN);
        ROUNDING_RMS * unit / self.unit()
    }

    /// ρ of what a kernel returns, where that is coarser than what it computes in, in u.
    fn rho_returned(&self) -> f64 {
        if self.returns_rounded() {
            ROUNDING_RMS
        } else {
            0.0
        }
    }

    /// Whether kernels return a coarser dtype than they compute in.
    pub(super) fn returns_rounded(&self) -> bool {
        matches!(self.dtype, Dtype::F16 | Dtype::Bf16)
    }

    /// Error of an operation of its own on one element.
    pub(super) fn element(&self, result: f64) -> f64 {
        self.rho() * result
    }

    /// Error of the two additions of the embedding stage.
    pub(super) fn embedding(&self, first_sum: f64, sum: f64) -> f64 {
        self.rho() * root_sum(first_sum, sum)
    }

    /// Error of a dot product of `length` terms whose squares sum up to `squares`; `operands` of them
    /// are numbers that rounding can still change.
    pub(super) fn product(&self, length: usize, squares: f64, result: f64, operands: usize) -> f64 {
        let n = length as f64;
        let run = n.min(self.arithmetic.product_run as f64);
        let growth = run / 2.0 + n / (2.0 * run);
        let inside = self.rho_inside();
        let returned = self.rho_returned() * result;
        let cut = match self.shortcut {
            Some(Shortcut::Products(bits)) => ROUNDING_RMS * 0.5f64.powi(bits) / self.unit(),
            _ => 0.0,
        };
        let terms = inside * inside * growth + cut * cut * operands as f64;
        (terms * squares + returned * returned).sqrt()
    }

    /// Error of a dot product with weights stored as `stored` and of adding a bias, in one kernel.
    pub(super) fn dense(
        &self,
        length: usize,
        squares: f64,
        (bias, result): (f64, f64),
        stored: Dtype,
    ) -> f64 {
        let weight_bits = stored.unit_roundoff().map_or(0.0, |unit| -unit.log2());
        let operands = match self.shortcut {
            Some(Shortcut::Products(bits)) if weight_bits > f64::from(bits) => 2,
            _ => 1,
        };
        let product = self.product(length, squares, result, operands);
        let adding = match self.arithmetic.bias {
            Bias::Last => result,
            Bias::First => (length as f64).sqrt() * bias,
        };
        root_sum(product, self.rho_inside() * adding)
    }

    /// Variance, over ρ², of a sum of `n` numbers of a given mean and mean square: each of l lanes
    /// adds its n/l numbers one after the other, and a tree adds the lanes.
    ///
    /// The j-th partial sum of a lane has the mean square j σ² + j² mean².
    fn sum(&self, n: f64, mean: f64, mean_square: f64) -> f64 {
        let lanes = (self.arithmetic.reduction_lanes as f64).min(n);
        let run = n / lanes;
        let spread = (mean_square - mean * mean).max(0.0);
        let partial = |j: f64| j * spread + j * j * mean * mean;
        let in_lanes = lanes * (run * run / 2.0 * spread + run.powi(3) / 3.0 * mean * mean);
        let mut in_tree = 0.0;
        let mut left = lanes / 2.0;
        while left >= 1.0 {
            in_tree += left * partial(n / left);
            left /= 2.0;
        }
        in_lanes + in_tree
    }

    /// Error of a scaled score as softmax takes it: of the `product` it comes from, of the scaling, and
    /// what has the same effect in the softmax: the difference `shifted` to the largest score, the
    /// exponential and the division.
    pub(super) fn score(&self, product: f64, scaled: f64, shifted: f64) -> f64 {
        let inside = self.rho_inside() * (shifted * shifted + 2.0).sqrt();
        root_sum(root_sum(product, self.element(scaled)), inside)
    }

    /// Relative error of a softmax's sum over `n` scores, which all of them share.
    pub(super) fn softmax_sum(&self, probabilities: &[f64]) -> f64 {
        let n = probabilities.len() as f64;
        let mean_square = probabilities.iter().map(|p| p * p).sum::<f64>() / n;
        self.rho_inside() * self.sum(n, 1.0 / n, mean_square).sqrt()
    }

    /// Errors of the statistics of a row of `n` numbers.
    pub(super) fn norm_statistics(
        &self,
        n: usize,
        mean: f64,
        variance: f64,
        eps: f64,
    ) -> NormNoise {
        let count = n as f64;
        let mean_square = variance + mean * mean;
        // Dividing by n rounds once more.
        let mean_error =
            (self.sum(count, mean, mean_square) / (count * count) + mean * mean).sqrt();
        // Of the sum of squares; its terms scatter about as much as they are large (kurtosis 3).
        let squares = |mean: f64| {
            let sum = self.sum(count, mean, 3.0 * mean * mean) / (count * count);
            (sum + mean * mean).sqrt()
        };
        let variance_error = match self.arithmetic.variance {
            Variance::TwoPass => squares(variance),
            // E[x²] − E[x]²: the product, the difference, and twice the mean's own error.
            Variance::OnePass => [
                squares(mean_square),
                mean * mean,
                2.0 * mean * mean_error,
                variance,
            ]
            .into_iter()
            .fold(0.0, root_sum),
        };
        let relative = variance_error / (variance + eps);
        let inside = self.rho_inside();
        NormNoise {
            mean: inside * mean_error,
            // Adding eps and the root halve what comes before; then the root and the reciprocal.
            scale: inside * (0.25 * (relative * relative + 1.0) + 2.0).sqrt(),
        }
    }

    /// Error of the elementwise part of a layer norm: difference, two products, and the sum with the
    /// shift.
    pub(super) fn norm_element(&self, scaled: f64, result: f64) -> f64 {
        let inside = self.rho_inside() * (3.0 * scaled * scaled + result * result).sqrt();
        root_sum(inside, self.rho_returned() * result)
    }

    /// Error of an activation's value.
    pub(super) fn activation(&self, activation: HiddenAct, at: ActivationPoint) -> f64 {
        let ActivationPoint { x, value, inner } = at;
        // Squares of the errors that are not a relative error of the result, over ρ²; and how many
        // relative ones there are.
        let (within, roundings) = match activation {
            HiddenAct::Relu => return 0.0,
            // 0.5 x (1 + erf(x/√2)): the argument, erf, the sum; then two products.
            HiddenAct::Gelu => {
                let argument = x * std::f64::consts::FRAC_1_SQRT_2 * inner.slope;
                let sum = 1.0 + inner.value;
                let parts = argument * argument + inner.value * inner.value + sum * sum;
                (0.25 * x * x * parts, 1.0)
            }
            // 0.5 x (1 + tanh(c (x + a x³))): four operations on the argument, tanh, the sum.
            HiddenAct::GeluTanh => {
                let argument = inner.argument * inner.slope;
                let sum = 1.0 + inner.value;
                let parts = 4.0 * argument * argument + inner.value * inner.value + sum * sum;
                (0.25 * x * x * parts, 1.0)
            }
            // x / (1 + exp(−x)): exponential, sum, quotient.
            HiddenAct::Silu => (0.0, 3.0),
        };
        let inside = self.rho_inside() * (within + roundings * value * value).sqrt();
        root_sum(inside, self.rho_returned() * value)
    }

    /// Whether weights stored as `stored` change on their way into the computation.
    pub(super) fn rounds(&self, stored: Dtype) -> bool {
        match self.weights_dtype() {
            Dtype::F32 => stored == Dtype::F64,
            coarse @ (Dtype::F16 | Dtype::Bf16) => stored != coarse,
            Dtype::F64 | Dtype::I64 => false,
        }
    }

    /// Rounds weights as they are rounded on their way into the computation, to nearest.
    pub(super) fn round(&self, mut values: Vec<f64>) -> Vec<f64> {
        let round: fn(f64) -> f64 = match self.weights_dtype() {
            Dtype::F32 => |value| f64::from(value as f32),
            Dtype::F16 => |value| f16::from_f64(value).to_f64(),
            Dtype::Bf16 => |value| bf16::from_f64(value).to_f64(),
            Dtype::F64 | Dtype::I64 => return values,
        };
        values.iter_mut().for_each(|value| *value = round(*value));
        values
    }

    fn weights_dtype(&self) -> Dtype {
        match self.shortcut {
            Some(Shortcut::Weights(dtype)) => dtype,
            _ => self.dtype,
        }
    }
}

/// Adds two independent errors. Unlike `hypot` it may overflow, far from where errors are.
fn root_sum(one: f64, other: f64) -> f64 {
    (one * one + other * other).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(arithmetic: Arithmetic) -> Noise {
        Noise {
            dtype: Dtype::F32,
            arithmetic,
            shortcut: None,
            by_stage: false,
            samples: 1,
            seed: 0,
        }
    }

    const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

    const SEQUENTIAL: Arithmetic = Arithmetic {
        product_run: usize::MAX,
        reduction_lanes: 1,
        bias: Bias::Last,
        variance: Variance::TwoPass,
    };

    /// Numbers that no formula of this module knows.
    fn numbers(count: usize, mean: f64, stream: &mut Stream) -> Vec<f32> {
        (0..count).map(|_| mean as f32 + stream.normal()).collect()
    }

    fn rms(values: &[f64]) -> f64 {
        (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt()
    }

    /// Measures real f32 arithmetic against the model: the ratio must be near 1.
    #[test]
    fn the_model_predicts_real_f32_arithmetic() {
        let mut stream = Noise::stream(7, 0, 0);
        let model = noise(SEQUENTIAL);
        for (what, mean, length) in [("dot", 0.0, 64), ("dot", 0.0, 768), ("sum", 1.0, 768)] {
            let (mut errors, mut predicted) = (Vec::new(), Vec::new());
            for _ in 0..400 {
                let x = numbers(length, mean, &mut stream);
                let w = numbers(length, 0.0, &mut stream);
                let (got, exact, deviation) = if what == "dot" {
                    let got = x
                        .iter()
                        .zip(&w)
                        .fold(0f32, |sum, (x, w)| x.mul_add(*w, sum));
                    let terms = || x.iter().zip(&w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let squares = terms().map(|t| t * t).sum();
                    (
                        got,
                        terms().sum::<f64>(),
                        model.product(length, squares, 0.0, 0),
                    )
                } else {
                    let got: f32 = x.iter().sum();
                    let exact: f64 = x.iter().map(|x| f64::from(*x)).sum();
                    let squares = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                    let n = length as f64;
                    let variance = model.sum(n, exact / n, squares / n);
                    (got, exact, model.rho_inside() * variance.sqrt())
                };
                errors.push((f64::from(got) - exact) / UNIT);
                predicted.push(deviation);
            }
            let ratio = rms(&errors) / rms(&predicted);
            assert!((0.75..1.33).contains(&ratio), "{what} of {length}: {ratio}");
        }
    }

    /// A single rounding, over many magnitudes, has the root mean square ρ.
    #[test]
    fn one_rounding_has_the_size_that_is_claimed() {
        let mut stream = Noise::stream(3, 0, 0);
        let errors: Vec<f64> = (0..20_000)
            .map(|_| f64::from(5.0 * stream.normal()).exp())
            .map(|x| (f64::from(x as f32) - x) / x / UNIT)
            .collect();
        assert!((rms(&errors) / ROUNDING_RMS - 1.0).abs() < 0.02);
    }

    /// f32 layer norm, one number after the other, in both formulas.
    #[test]
    fn statistics_of_a_layer_norm() {
        let mut stream = Noise::stream(11, 0, 0);
        for (variance, mean) in [
            (Variance::TwoPass, 0.0),
            (Variance::OnePass, 0.0),
            (Variance::OnePass, 3.0),
        ] {
            let model = noise(Arithmetic {
                variance,
                ..SEQUENTIAL
            });
            let (mut errors, mut predicted) = (Vec::new(), Vec::new());
            for _ in 0..300 {
                let x = numbers(768, mean, &mut stream);
                let n = x.len() as f32;
                let sum: f32 = x.iter().sum();
                let got_mean = sum / n;
                let got = match variance {
                    Variance::TwoPass => {
                        x.iter()
                            .map(|x| (x - got_mean) * (x - got_mean))
                            .sum::<f32>()
                            / n
                    }
                    Variance::OnePass => {
                        x.iter().map(|x| x * x).sum::<f32>() / n - got_mean * got_mean
                    }
                };
                let got = f64::from(got.sqrt().recip());
                let exact_mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / 768.0;
                let exact = x.iter().map(|x| (f64::from(*x) - exact_mean).powi(2));
                let exact = exact.sum::<f64>() / 768.0;
                errors.push((got * exact.sqrt() - 1.0) / UNIT);
                predicted.push(model.norm_statistics(768, exact_mean, exact, 0.0).scale);
            }
            let ratio = rms(&errors) / rms(&predicted);
            assert!((0.7..1.4).contains(&ratio), "{variance:?} {mean}: {ratio}");
        }
    }

    #[test]
    fn weights_are_rounded_only_where_the_dtype_cannot_hold_them() {
        let rounds = |dtype, stored| {
            Noise {
                dtype,
                ..noise(SEQUENTIAL)
            }
            .rounds(stored)
        };
        assert!(!rounds(Dtype::F32, Dtype::F16));
        assert!(rounds(Dtype::F32, Dtype::F64));
        assert!(rounds(Dtype::F16, Dtype::Bf16));
        assert!(!rounds(Dtype::F64, Dtype::F64));
        let halves = Noise {
            dtype: Dtype::Bf16,
            ..noise(SEQUENTIAL)
        };
        assert_eq!(halves.round(vec![1.0 + 1.0 / 512.0, 3.0]), [1.0, 3.0]);
    }
}
