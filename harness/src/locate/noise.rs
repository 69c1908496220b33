//! The noise of each stage alone, for whole batches.

use std::collections::BTreeMap;

use driftgauge_protocol::observation;

use crate::plan::{Job, Plan};
use crate::predict::Prediction;

/// Relative error of each stage alone that is predicted for a batch, in u, by observation; `predictions` are those of
/// [`super::stage_noise`], for all cases of the plan.
///
/// Rows of one observation are about equally long, because they come from a layer norm, so that their number
/// is a case's share.
pub fn stage_noise_of(plan: &Plan, job: &Job, predictions: &[Prediction]) -> BTreeMap<String, f64> {
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for place in job.cases.clone() {
        let case = &plan.cases[place];
        let tokens = case
            .encoded
            .iter()
            .map(|text| text.ids.len())
            .sum::<usize>();
        let sequences = &plan.sequences[case.sequences.clone()];
        let logits = sequences
            .iter()
            .map(|one| one.logit_positions.len())
            .sum::<usize>();
        for name in predictions[place].errors.keys() {
            let rows = match name.as_str() {
                observation::LOGITS => logits,
                _ => tokens,
            } as f64;
            let error = predictions[place].error_u(name).unwrap_or(f64::NAN);
            let sum = sums.entry(name.clone()).or_default();
            sum.0 += rows * error * error;
            sum.1 += rows;
        }
    }
    let means = sums.into_iter().filter(|(_, (_, rows))| *rows > 0.0);
    means
        .map(|(name, (squares, rows))| (name, (squares / rows).sqrt()))
        .collect()
}
