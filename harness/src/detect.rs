//! How small a change the budgets notice, beside what common gates notice of the same change.
//!
//! A target's real results are changed as if one of its layers returned something slightly else: each
//! element of the layer's output gets a random relative error, and the oracle carries that to all later
//! observations. Changes are small, so that they add up with the target's own errors, and a change
//! of another size is the same one times a factor.

use std::collections::BTreeMap;

use driftgauge_protocol::{Loaded, observation};
use driftgauge_reports::detection::Point;
use rand_distr::{Distribution, StandardNormal};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;
use rayon::prelude::*;

use crate::budget;
use crate::extract::compared;
use crate::judge::Bench;
use crate::measure::Distance;
use crate::observed;
use crate::oracle::{Matrix, Truth, truth_from};
use crate::plan::{Job, PlannedCase};
use crate::predict::Prediction;
use crate::run::JobOutcome;

/// Sizes of the changes, in the noise of the changed output.
pub const SIZES: [f64; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 30.0, 100.0, 300.0, 1e3, 1e4, 1e5,
];
/// Names of the gates, in the order of each point's rates.
pub const GATES: [&str; 4] = [
    "driftgauge",
    "allclose 1e-5",
    "allclose 1e-3",
    "cosine 0.999",
];
/// Size, relative to the output, at which a change is computed and from which it is scaled.
const STEP: f64 = 1e-6;

/// A case that is changed.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The case.
    pub case: &'a PlannedCase,
    /// Its batch.
    pub job: &'a Job,
    /// What a target made of the batch.
    pub tensors: &'a JobOutcome,
    /// How it had loaded the model.
    pub loaded: &'a Loaded,
    /// What is predicted for the case.
    pub prediction: &'a Prediction,
}

/// What was tried and noticed, by size.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    sizes: Vec<(f64, usize, [usize; GATES.len()])>,
}

impl Tally {
    /// Adds what was found elsewhere.
    pub fn add(&mut self, other: &Tally) {
        if self.sizes.is_empty() {
            self.sizes.clone_from(&other.sizes);
            return;
        }
        for (own, other) in self.sizes.iter_mut().zip(&other.sizes) {
            own.0 += other.0;
            own.1 += other.1;
            own.2
                .iter_mut()
                .zip(other.2)
                .for_each(|(own, other)| *own += other);
        }
    }

    /// The rates.
    pub fn points(&self) -> Vec<Point> {
        let points = SIZES.iter().zip(&self.sizes);
        points
            .map(|(noise, (u, tried, noticed))| Point {
                noise: *noise,
                u: u / *tried as f64,
                tried: *tried,
                rates: noticed.map(|count| count as f64 / *tried as f64).to_vec(),
            })
            .collect()
    }
}

/// Changes every layer of a case `draws` times at random.
///
/// # Errors
/// Where the target did not deliver what the case needs.
pub fn detect(bench: Bench<'_>, subject: Subject<'_>, draws: usize) -> Result<Tally, String> {
    let found = Values::of(bench, subject)?;
    let layers = bench.model.config.num_hidden_layers;
    let tries: Vec<(usize, usize)> = (1..=layers)
        .flat_map(|layer| (0..draws).map(move |draw| (layer, draw)))
        .collect();
    let tallies: Vec<Tally> = tries
        .into_par_iter()
        .map(|(layer, draw)| change(bench, subject, &found, layer, draw))
        .collect();
    let mut sum = Tally::default();
    tallies.iter().for_each(|tally| sum.add(tally));
    Ok(sum)
}

/// The observations of a case as they are compared.
struct Values {
    target: BTreeMap<String, Vec<f64>>,
    truth: BTreeMap<String, Vec<f64>>,
}

impl Values {
    fn of(bench: Bench<'_>, subject: Subject<'_>) -> Result<Self, String> {
        let Subject {
            case,
            job,
            tensors,
            loaded,
            prediction,
        } = subject;
        let config = &bench.model.config;
        let layers = config.num_hidden_layers;
        let truths = bench.truths_of(case);
        let (mut target, mut truth) = (BTreeMap::new(), BTreeMap::new());
        for name in prediction.errors.keys() {
            let values = compared(name, tensors, job, case, loaded.dtype, config)?;
            target.insert(name.clone(), values);
            truth.insert(name.clone(), observed::truth(&truths, name, layers));
        }
        Ok(Self { target, truth })
    }
}

fn change(
    bench: Bench<'_>,
    subject: Subject<'_>,
    found: &Values,
    layer: usize,
    draw: usize,
) -> Tally {
    let name = observation::hidden(layer);
    let unit = subject.loaded.dtype.unit_roundoff().unwrap_or(f64::NAN);
    let rounded_truth = budget::against_rounded_truth(subject.loaded.dtype);
    let predicted = |name: &str| subject.prediction.error_u(name).unwrap_or(0.0) * rounded_truth;
    let moved = moved(bench, subject.case, layer, draw);
    let layers = bench.model.config.num_hidden_layers;
    let moved: Vec<&Truth> = moved.iter().collect();
    let directions: BTreeMap<&String, Vec<f64>> = found
        .truth
        .iter()
        .map(|(name, truth)| {
            let changed = observed::truth(&moved, name, layers);
            // What lies before the changed layer is not among the changed observations.
            let difference = changed
                .iter()
                .zip(truth)
                .map(|(changed, truth)| changed - truth);
            (name, difference.collect())
        })
        .collect();
    let size =
        Distance::between(&observed::truth(&moved, &name, layers), &found.truth[&name]).error;
    let sizes = SIZES.map(|noise| {
        let u = noise * predicted(&name);
        let factor = u * unit / size;
        let mut noticed = [false; GATES.len()];
        for (name, target) in &found.target {
            let direction = &directions[name];
            let values: Vec<f64> = match direction.is_empty() {
                true => target.clone(),
                false => target
                    .iter()
                    .zip(direction)
                    .map(|(y, d)| y + factor * d)
                    .collect(),
            };
            let truth = &found.truth[name];
            let distance = Distance::between(&values, truth);
            let is_close = |tolerance: f64| {
                let mut parts = values.iter().zip(truth);
                parts.all(|(y, t)| (y - t).abs() <= tolerance + tolerance * t.abs())
            };
            let gates = [
                distance.error / unit > bench.k * predicted(name),
                !is_close(1e-5),
                !is_close(1e-3),
                distance.cosine < 0.999,
            ];
            noticed
                .iter_mut()
                .zip(gates)
                .for_each(|(noticed, gate)| *noticed |= gate);
        }
        (u, 1, noticed.map(usize::from))
    });
    Tally {
        sizes: sizes.to_vec(),
    }
}

/// The truth of each text from a layer on whose output is changed by [`STEP`].
fn moved(bench: Bench<'_>, case: &PlannedCase, layer: usize, draw: usize) -> Vec<Truth> {
    let sequences = case.sequences.clone();
    sequences
        .map(|index| {
            let seed = (index as u64) << 32 | (layer as u64) << 16 | draw as u64;
            let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
            let truth = &bench.truths[index][&observation::hidden(layer)];
            let changed = truth.values().iter().map(|value| {
                let normal: f64 = StandardNormal.sample(&mut random);
                value * (1.0 + STEP * normal)
            });
            let changed = Matrix::new(truth.width(), changed.collect());
            truth_from(bench.model, &bench.plan.sequences[index], layer, changed)
        })
        .collect()
}
