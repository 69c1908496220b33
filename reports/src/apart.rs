//! How far two targets are apart: distances in units of the noise that two correct implementations
//! have between them.

use crate::record::{Furthest, Observation, Pair};

/// One observation of a case on two targets.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// Suite and case.
    pub case: String,
    /// The observation.
    pub observation: String,
    /// Whether both are the same to the bit.
    pub bitwise: bool,
    /// Their distance in units of roundoff, of the coarser dtype where they differ; `None` where it
    /// is not finite.
    pub distance_u: Option<f64>,
    /// The same in units of noise; `None` where it is not finite.
    pub noise: Option<f64>,
}

/// Unit roundoff of a dtype of a record; not a number for one that none computes in.
pub fn roundoff(dtype: &str) -> f64 {
    let significand_bits = match dtype {
        "f64" => 53,
        "f32" => 24,
        "f16" => 11,
        "bf16" => 8,
        _ => return f64::NAN,
    };
    0.5f64.powi(significand_bits)
}

/// Puts the distance of two observations, relative to the norm of their truth, into units of noise. The
/// errors of two correct implementations are independent, so that their difference is
/// √(predicted² + predicted²). Numbers that are not finite have no distance.
pub fn compared(
    case: &str,
    observation: &str,
    a: &Observation,
    b: &Observation,
    distance: Option<f64>,
) -> Compared {
    let (unit_a, unit_b) = (roundoff(&a.dtype), roundoff(&b.dtype));
    let noise = (a.predicted_u * unit_a).hypot(b.predicted_u * unit_b);
    let are_finite = a.error_u.is_some() && b.error_u.is_some();
    let finite = |value: f64| (are_finite && value.is_finite()).then_some(value);
    let in_units = |unit: f64| match distance? {
        0.0 => finite(0.0),
        distance => finite(distance / unit),
    };
    Compared {
        case: case.to_owned(),
        observation: observation.to_owned(),
        bitwise: a.dtype == b.dtype && a.digest == b.digest,
        distance_u: in_units(unit_a.max(unit_b)),
        noise: in_units(noise),
    }
}

/// The least that two observations can be apart: the change of the distance from their common truth
/// (triangle inequality). `None` where one is not finite.
pub fn least_distance(a: &Observation, b: &Observation) -> Option<f64> {
    let error = |of: &Observation| Some(of.error_u? * roundoff(&of.dtype));
    Some((error(a)? - error(b)?).abs())
}

/// Counts comparisons of `a` and `b`; they are within where they are at most `k` times the noise apart.
pub fn pair(
    a: impl Into<String>,
    b: impl Into<String>,
    k: f64,
    comparisons: impl IntoIterator<Item = Compared>,
) -> Pair {
    let mut pair = Pair {
        a: a.into(),
        b: b.into(),
        compared: 0,
        bitwise: 0,
        within: 0,
        furthest: None,
    };
    for one in comparisons {
        pair.compared += 1;
        pair.bitwise += usize::from(one.bitwise);
        pair.within += usize::from(one.noise.is_some_and(|noise| noise <= k));
        let distance = |noise: Option<f64>| noise.unwrap_or(f64::INFINITY);
        let furthest = pair.furthest.as_ref();
        if furthest.is_none_or(|known| distance(one.noise) > distance(known.noise)) {
            pair.furthest = Some(Furthest {
                case: one.case,
                observation: one.observation,
                distance_u: one.distance_u,
                noise: one.noise,
            });
        }
    }
    pair
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observation(error_u: Option<f64>, predicted_u: f64, digest: &str) -> Observation {
        Observation {
            shape: vec![1, 2],
            dtype: "f32".to_owned(),
            max_abs: None,
            max_rel: None,
            error_u,
            effective_bits: None,
            cosine: None,
            predicted_u,
            budget_u: 2.0 * predicted_u,
            within: true,
            digest: digest.to_owned(),
            moved: None,
        }
    }

    #[test]
    fn distances_are_measured_in_the_noise_of_a_difference() {
        let u = roundoff("f32");
        let (a, b) = (
            observation(Some(9.0), 3.0, "a"),
            observation(Some(1.0), 4.0, "b"),
        );
        for (distance, distance_u, noise) in [
            (Some(0.0), Some(0.0), Some(0.0)),
            (Some(10.0 * u), Some(10.0), Some(2.0)),
            (Some(f64::NAN), None, None),
            (None, None, None),
        ] {
            let found = compared("s/c", "logits", &a, &b, distance);
            assert_eq!((found.distance_u, found.noise), (distance_u, noise));
            assert!(!found.bitwise);
        }
        assert_eq!(least_distance(&a, &b), Some(8.0 * u));
        let undefined = observation(None, 3.0, "a");
        assert_eq!(least_distance(&a, &undefined), None);
        let same = compared("s/c", "logits", &undefined, &undefined, Some(0.0));
        assert_eq!(
            (same.bitwise, same.noise),
            (true, None),
            "NaN agrees with nothing"
        );
        let mut coarse = observation(Some(1.0), 3.0, "a");
        coarse.dtype = "bf16".to_owned();
        let found = compared("s/c", "logits", &a, &coarse, Some(3.0 * roundoff("bf16")));
        assert!(!found.bitwise && (found.distance_u, found.noise) < (Some(3.1), Some(1.1)));
    }

    #[test]
    fn a_pair_counts_and_names_the_furthest() {
        let one = |case: &str, bitwise, noise| Compared {
            case: case.to_owned(),
            observation: "cls".to_owned(),
            bitwise,
            distance_u: noise,
            noise,
        };
        let pair = |comparisons: Vec<Compared>| pair("a", "b", 2.0, comparisons);
        let found = pair(vec![
            one("x", true, Some(0.0)),
            one("y", false, Some(2.0)),
            one("z", false, Some(2.1)),
        ]);
        assert_eq!((found.compared, found.bitwise, found.within), (3, 1, 2));
        assert_eq!(found.furthest.unwrap().case, "z");
        let found = pair(vec![one("x", false, None), one("y", false, Some(9.0))]);
        assert_eq!(
            (found.within, found.furthest.unwrap().case.as_str()),
            (0, "x")
        );
        assert_eq!(pair(Vec::new()).furthest, None);
    }
}
