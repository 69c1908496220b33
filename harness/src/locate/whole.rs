//! Faults of the whole: what is fed to the model, and what is made of its answer.

use std::collections::BTreeMap;

use driftgauge_protocol::fault::{Edit, Fault};
use driftgauge_protocol::{Stage, Tensor};
use driftgauge_reports::location::Origin;

use super::causes::cause;
use super::seen::bounded;
use super::{Clean, Look, Sample};
use crate::catalogue::Instance;
use crate::oracle::Matrix;

/// Share of the difference, squared, that a fault of the whole must explain: what it changes is exchanged or
/// dropped, and hardly rounded.
const EXPLAINED: f64 = 0.99;

impl Look<'_> {
    /// The faults of what is fed or answered that explain everything, if there are any.
    pub(super) fn whole(
        &self,
        clean: &Clean<'_>,
        instances: &[Instance],
    ) -> Result<Vec<Origin>, String> {
        let right = clean.answers(None)?;
        let candidates = instances
            .iter()
            .filter(|instance| is_whole(&instance.fault));
        let mut best: Option<(f64, f64, &Instance)> = None;
        for instance in candidates {
            let variant = clean.answers(Some(&instance.fault))?;
            let Some((coefficient, explained)) = self.compare(&right, &variant) else {
                continue;
            };
            if best.is_none_or(|(_, known, _)| explained > known) {
                best = Some((coefficient, explained, instance));
            }
        }
        let found = best.filter(|(_, explained, _)| *explained >= EXPLAINED);
        Ok(found
            .map(|(coefficient, explained, instance)| Origin {
                stages: Vec::new(),
                step: None,
                more_steps: Vec::new(),
                noise: None,
                causes: vec![cause(instance.entry, None, coefficient, 0.0, explained)],
            })
            .into_iter()
            .collect())
    }

    /// Coefficient and explained share of a variant, over all observations, each in units of its truth.
    fn compare(
        &self,
        clean: &[BTreeMap<String, Tensor>],
        variant: &[BTreeMap<String, Tensor>],
    ) -> Option<(f64, f64)> {
        let (mut rr, mut rd, mut dd, mut left) = (0.0, 0.0, 0.0, 0.0);
        for ((sample, clean), variant) in self.samples.iter().zip(clean).zip(variant) {
            for (name, truth) in clean {
                let (Some(got), Some(other)) = (sample.tensors.get(name), variant.get(name)) else {
                    continue;
                };
                let [got, truth, other] =
                    [got, truth, other].map(|tensor| self.rows(sample, name, tensor));
                let norm: f64 = truth.iter().map(|x| x * x).sum();
                for ((got, truth), other) in got.iter().zip(&truth).zip(&other) {
                    let (r, d) = (bounded(*got) - truth, bounded(*other) - truth);
                    rr += r * r / norm;
                    rd += r * d / norm;
                    dd += d * d / norm;
                    left += (r - d).powi(2) / norm;
                }
            }
        }
        (dd > 0.0 && rr > 0.0).then(|| (rd / dd, 1.0 - left / rr))
    }

    /// What can be compared of an observation.
    fn rows(&self, sample: &Sample<'_>, name: &str, tensor: &Tensor) -> Vec<f64> {
        let width = tensor.shape().last().copied().unwrap_or(1).max(1);
        let stage = match name {
            driftgauge_protocol::observation::LOGITS => Stage::Head,
            _ => Stage::Layer(1),
        };
        super::stage_rows(stage, sample.batch, &Matrix::new(width, tensor.to_f64()))
    }
}

fn is_whole(fault: &Fault) -> bool {
    let whole = |edit: &Edit| matches!(edit, Edit::Input(_) | Edit::Output(_));
    fault.edits.iter().any(whole)
}
