//! Budgets: how large an error a correct implementation may have.
//!
//! Rounding errors of the stages are independent, so their effect grows with the square root of the
//! number of stages that were passed: the embeddings are one stage, each encoder layer another, the
//! head the last. The budget is
//!
//! ```text
//! 16 u · √stages        embeddings, hidden states, centred logits
//! 24 u · √stages        cls: one row alone scatters more than the mean of many
//! ```
//!
//! with u the unit roundoff of the target's dtype. The factors stand at about two and a half times the
//! largest error that was measured: all 190 cases of the suites, f32, one thread, x86-64 with
//! AVX-512, on `zh-mini` (4 layers, 192 wide, trained) and on transformers' random initialisation of
//! the full size (12 layers, 768 wide). The largest error of any case, in u:
//!
//! | observation | candle 0.11.1 | libtorch 2.11.0 | ONNX Runtime 1.31.1 | allowed |
//! |---|---|---|---|---|
//! | `embeddings`, 4 × 192 | 2.9 | 1.4 | 1.7 | 16.0 |
//! | `embeddings`, 12 × 768 | 6.8 | 1.6 | 1.6 | 16.0 |
//! | `hidden.1`, 4 × 192 | 6.8 | 5.1 | 5.4 | 22.6 |
//! | `hidden.1`, 12 × 768 | 7.8 | 4.0 | 6.6 | 22.6 |
//! | `hidden.4`, 4 × 192 | 13.4 | 8.9 | 9.4 | 35.8 |
//! | `hidden.12`, 12 × 768 | 20.5 | 13.2 | 11.7 | 57.7 |
//! | `logits`, 4 × 192 | 11.8 | 6.7 | 6.7 | 39.2 |
//! | `logits`, 12 × 768 | 26.3 | 17.1 | 14.7 | 59.9 |
//! | `cls`, 4 × 192 | 19.3 | 14.6 | 14.6 | 53.7 |
//! | `cls`, 12 × 768 | 20.0 | 12.7 | 13.5 | 86.5 |
//!
//! candle is the furthest away throughout: its layer norm computes the variance in one pass.
//!
//! The same factors serve the other dtypes, in their own u.

use driftgauge_protocol::observation;

/// Name of the observation that is the first row of the last layer.
pub const CLS: &str = "cls";

/// Largest error that passes, in units of roundoff of the target's dtype, for an observation of a
/// model with `layers` encoder layers.
pub fn budget_u(name: &str, layers: usize) -> f64 {
    let (factor, stages) = match name {
        observation::EMBEDDINGS => (16.0, 1),
        observation::LOGITS => (16.0, layers + 2),
        CLS => (24.0, layers + 1),
        _ => (16.0, observation::hidden_layer(name).unwrap_or(layers) + 1),
    };
    factor * (stages as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_grow_with_the_square_root_of_the_stages() {
        for (name, layers, expected) in [
            ("embeddings", 12, 16.0),
            ("hidden.3", 12, 32.0),
            ("logits", 2, 32.0),
            ("cls", 3, 48.0),
        ] {
            assert_eq!(budget_u(name, layers), expected, "{name}");
        }
    }
}
