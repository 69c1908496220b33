//! The noise of each stage alone, for whole batches.

use std::collections::BTreeMap;

use crate::plan::Job;
use crate::predict::{Prediction, scatter};

/// Relative error of each stage alone that is predicted for a batch, in u, by observation; `predictions` are those of
/// [`super::stage_noise`], for all cases of the plan.
///
/// Rows of one observation are about equally long, because they come from a layer norm, so that their number
/// is a case's share.
pub fn stage_noise_of(job: &Job, predictions: &[Prediction]) -> BTreeMap<String, f64> {
    let mut sums: BTreeMap<&String, (f64, usize)> = BTreeMap::new();
    for prediction in &predictions[job.cases.clone()] {
        for (name, rows) in &prediction.rows {
            let error = prediction.usual_u(name).unwrap_or(f64::NAN);
            let sum = sums.entry(name).or_default();
            sum.0 += *rows as f64 * error * error;
            sum.1 += rows;
        }
    }
    let sums = sums.into_iter().filter(|(_, (_, rows))| *rows > 0);
    let noise = |squares: f64, rows: usize| (squares / rows as f64).sqrt() * scatter(rows);
    sums.map(|(name, (squares, rows))| (name.clone(), noise(squares, rows)))
        .collect()
}
