//! Calibration: what clean runs say about K.
//!
//! Every run of a correct target gives, for each case and observation, a ratio of the measured error to
//! the predicted one. K has to be above all of them. How far an error moves between two runs that
//! both are correct (other threads, other batches, another version of a library) says from where on a
//! move is more than noise.

use std::collections::BTreeMap;

use driftgauge_reports::calibration::{Extreme, Ratio};
use driftgauge_reports::record::{Observation, ResultRecord, RunRecord, Verdict};

use crate::measure::root_mean_square;
use crate::observed;

/// What lies between the largest value that was seen and what is proposed: in the control group of the self-test, whose
/// texts are random, the largest ratio is 1.14 times that of the suites.
const HEADROOM: f64 = 1.4;
/// Largest K that may be proposed: above it, errors of three times the noise would pass.
pub const LARGEST_K: f64 = 2.5;

/// What was gathered from clean runs of one model.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Runs of a case on a target.
    pub runs: usize,
    /// Those that did not pass.
    pub alarms: Vec<String>,
    ratios: BTreeMap<(String, String), Vec<f64>>,
    /// Errors of each observation of a case on a backend, by run.
    moves: BTreeMap<(String, String, String), Vec<Seen>>,
    /// Where the largest ratio was seen.
    pub largest: Option<Extreme>,
}

/// An error of one run.
#[derive(Debug)]
struct Seen {
    target: String,
    how: String,
    predicted: f64,
    /// The error over the prediction.
    noise: f64,
}

impl Gathered {
    /// Adds a run; `configuration` says how it was run.
    pub fn add(&mut self, record: &RunRecord, configuration: &str) {
        for result in &record.results {
            self.runs += 1;
            if result.verdict != Verdict::Pass {
                let reason = result
                    .findings
                    .first()
                    .map_or("", |finding| &finding.message);
                let ResultRecord {
                    suite,
                    case,
                    target,
                    ..
                } = result;
                self.alarms.push(format!(
                    "{suite}/{case} on {target}, {configuration}: {reason}"
                ));
            }
            for (name, observation) in &result.observations {
                self.add_observation(result, name, observation, configuration);
            }
        }
    }

    fn add_observation(
        &mut self,
        result: &ResultRecord,
        name: &str,
        observation: &Observation,
        configuration: &str,
    ) {
        let ratio = observation.in_noise();
        let place = format!("{}/{}", result.suite, result.case);
        let key = (result.target.clone(), name.to_owned());
        self.ratios.entry(key).or_default().push(ratio);
        if self
            .largest
            .as_ref()
            .is_none_or(|largest| ratio > largest.value)
        {
            self.largest = Some(Extreme {
                value: ratio,
                place: format!("{name} of {place} on {}, {configuration}", result.target),
            });
        }
        // Targets of one backend are its versions and options: another library is a benign change.
        let backend = result.target.split('?').next().unwrap_or_default();
        let key = (backend.to_owned(), place, name.to_owned());
        let how = format!("{}, {configuration}", result.target);
        let error = observation.error_u.unwrap_or(f64::INFINITY);
        let seen = self.moves.entry(key).or_default();
        // One prediction for all runs of a target: its own scatter is no move of the error.
        let first = seen.iter().find(|first| first.target == result.target);
        let predicted = first.map_or(observation.predicted_u, |first| first.predicted);
        seen.push(Seen {
            target: result.target.clone(),
            how,
            predicted,
            noise: error / predicted,
        });
    }

    /// The ratios of each target and observation, in the order of the computation.
    pub fn ratios(&self) -> Vec<Ratio> {
        let mut names: Vec<String> = self.ratios.keys().map(|(_, name)| name.clone()).collect();
        observed::sort(&mut names);
        names.dedup();
        let of = |name: &String| {
            let own = self
                .ratios
                .iter()
                .filter(move |((_, other), _)| other == name);
            own.map(|((target, name), ratios)| ratio(target, name, ratios))
                .collect::<Vec<_>>()
        };
        names.iter().flat_map(of).collect()
    }

    /// The largest change of an error between two runs of one backend, in predicted errors.
    pub fn largest_move(&self) -> Option<Extreme> {
        let moves = self.moves.iter().filter_map(|((_, place, name), seen)| {
            let smallest = seen.iter().min_by(|a, b| a.noise.total_cmp(&b.noise))?;
            let largest = seen.iter().max_by(|a, b| a.noise.total_cmp(&b.noise))?;
            Some(Extreme {
                value: largest.noise - smallest.noise,
                place: format!(
                    "{name} of {place}: from {} to {}",
                    smallest.how, largest.how
                ),
            })
        });
        moves.max_by(|a, b| a.value.total_cmp(&b.value))
    }
}

/// What is proposed where the largest value that was seen is `seen`: a little more, rounded up to one
/// decimal, and never nothing.
pub fn proposed(seen: f64) -> f64 {
    ((seen * HEADROOM * 10.0).ceil() / 10.0).max(0.1)
}

/// K that is proposed where the largest ratio is `seen`.
pub fn proposed_k(seen: f64) -> f64 {
    proposed(seen).min(LARGEST_K)
}

fn ratio(target: &str, name: &str, ratios: &[f64]) -> Ratio {
    let mut sorted = ratios.to_vec();
    sorted.sort_by(f64::total_cmp);
    Ratio {
        target: target.to_owned(),
        observation: name.to_owned(),
        count: sorted.len(),
        smallest: sorted[0],
        median: sorted[sorted.len() / 2],
        largest: sorted[sorted.len() - 1],
        root_mean_square: root_mean_square(ratios.iter().copied()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_proposed_lies_above_what_was_seen() {
        for (seen, k, limit) in [
            (0.0, 0.1, 0.1),
            (1.5, 2.1, 2.1),
            (1.76, 2.5, 2.5),
            (2.4, 2.5, 3.4),
        ] {
            assert_eq!((proposed_k(seen), proposed(seen)), (k, limit), "{seen}");
        }
    }

    #[test]
    fn ratios_are_summed_up() {
        let found = ratio("t", "cls", &[2.0, 0.5, 1.0]);
        let Ratio {
            smallest,
            median,
            largest,
            root_mean_square,
            ..
        } = found;
        assert_eq!((smallest, median, largest), (0.5, 1.0, 2.0));
        assert!((root_mean_square - (5.25f64 / 3.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn moves_are_between_runs_of_one_backend() {
        let mut gathered = Gathered::default();
        let mut see = |backend: &str, how: &str, ratio: f64| {
            let key = (backend.to_owned(), "s/c".to_owned(), "cls".to_owned());
            gathered.moves.entry(key).or_default().push(Seen {
                target: backend.to_owned(),
                how: how.to_owned(),
                predicted: 1.0,
                noise: ratio,
            });
        };
        see("onnx@cpu/f32", "one", 1.0);
        see("onnx@cpu/f32", "other", 1.25);
        see("candle@cpu/f32", "one", 2.0);
        let largest = gathered.largest_move().unwrap();
        assert_eq!(largest.value, 0.25);
        assert_eq!(largest.place, "cls of s/c: from one to other");
    }
}
