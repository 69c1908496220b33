//! How the observations of some cases stand to a baseline, in numbers.

use driftgauge_reports::record::{Moved, ResultRecord};

use super::compare::moved;
use super::{Baseline, input};

/// Observations by how they stand to a baseline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// The accepted ones to the bit.
    pub bitwise: usize,
    /// Moved no further than noise moves them.
    pub within: usize,
    /// Further from the truth by more than noise.
    pub drifted: usize,
    /// Nearer the truth by more than noise.
    pub improved: usize,
    /// Not in the baseline.
    pub unknown: usize,
}

impl Counts {
    /// Counts one observation.
    pub fn add(&mut self, moved: Option<&Moved>, limit: f64) {
        let field = match moved {
            None => &mut self.unknown,
            Some(moved) if moved.bitwise => &mut self.bitwise,
            Some(moved) if !moved.within => &mut self.drifted,
            Some(moved) if moved.noise.is_none_or(|noise| noise < -limit) => &mut self.improved,
            Some(_) => &mut self.within,
        };
        *field += 1;
    }
}

/// An error that has moved.
#[derive(Debug, Clone, PartialEq)]
pub struct Largest {
    /// The case.
    pub case: String,
    /// The observation.
    pub observation: String,
    /// Accepted error in units of roundoff.
    pub from_u: Option<f64>,
    /// Error in units of roundoff.
    pub to_u: Option<f64>,
    /// By how many units of noise it moved; `null` where it is not finite.
    pub noise: Option<f64>,
}

/// How the cases of one target on one suite stand to a baseline.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// Their observations.
    pub counts: Counts,
    /// The error that grew most, or shrank most where none grew.
    pub largest: Option<Largest>,
}

impl Standing {
    /// Compares results with a baseline; an error may grow by `limit` times the noise.
    pub fn of(results: &[&ResultRecord], baseline: &Baseline, limit: f64) -> Self {
        let mut standing = Self::default();
        for result in results {
            let known = baseline.cases.get(&result.case);
            let known = known.filter(|case| case.input == input(&result.tokens));
            for (name, observation) in &result.observations {
                let accepted = known.and_then(|case| case.observations.get(name));
                let moved = accepted.map(|accepted| moved(accepted, observation, limit));
                standing.counts.add(moved.as_ref(), limit);
                if let Some(moved) = moved.filter(|moved| !moved.bitwise) {
                    standing.offer(Largest {
                        case: result.case.clone(),
                        observation: name.clone(),
                        from_u: moved.accepted_u,
                        to_u: observation.error_u,
                        noise: moved.noise,
                    });
                }
            }
        }
        standing
    }

    fn offer(&mut self, new: Largest) {
        let size = |one: &Largest| one.noise.unwrap_or(f64::INFINITY);
        let is_larger = |old: &Largest| match (size(old), size(&new)) {
            (old, new) if old < 0.0 && new < 0.0 => new < old,
            (old, new) => new > old,
        };
        if self.largest.as_ref().is_none_or(is_larger) {
            self.largest = Some(new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_growth_counts_before_any_shrinking() {
        let largest = |noise: Option<f64>| Largest {
            case: String::new(),
            observation: String::new(),
            from_u: None,
            to_u: None,
            noise,
        };
        for (offered, expected) in [
            (vec![Some(-3.0), Some(-1.0)], Some(-3.0)),
            (vec![Some(-3.0), Some(0.2), Some(0.1)], Some(0.2)),
            (vec![Some(0.2), Some(-3.0)], Some(0.2)),
            (vec![Some(9.0), None], None),
        ] {
            let mut standing = Standing::default();
            for noise in offered {
                standing.offer(largest(noise));
            }
            assert_eq!(standing.largest, Some(largest(expected)));
        }
    }
}
