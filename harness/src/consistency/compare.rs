//! Two results of one target for one sequence, compared number by number.

use std::collections::BTreeMap;

use driftgauge_protocol::{Batch, BertConfig, Loaded, observation};

use crate::extract::{Part, extract};
use crate::measure::{Distance, centre_rows};
use crate::observed::{self, CLS};
use crate::run::JobOutcome;

/// The observations of one sequence in one run, or what is wrong with each.
pub type Values = BTreeMap<String, Result<Vec<f64>, String>>;

/// One observation of two runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// The observation.
    pub observation: String,
    /// Whether its numbers are counted: those of `cls` are counted with the last layer.
    pub counts: bool,
    /// Numbers that were compared.
    pub elements: usize,
    /// Those that are not the same to the bit.
    pub differing: usize,
    /// Largest difference of two numbers; logits are centred first.
    pub max_abs: f64,
    /// ‖a − b‖₂ / ‖b‖₂; logits are centred first.
    pub relative: f64,
    /// What is wrong with one of them; then nothing was compared.
    pub problem: Option<String>,
}

/// Takes the observations of the sequence that is `part` of a batch; padding is dropped, and a number
/// that is not finite is damage, also where both runs have it.
pub fn take(
    tensors: &JobOutcome,
    wanted: &[String],
    batch: &Batch,
    part: Part,
    loaded: &Loaded,
    config: &BertConfig,
) -> Values {
    let mut values = Values::new();
    let has_logits = batch.logit_rows.iter().any(|(row, _)| *row == part.row);
    for name in wanted {
        if name == observation::LOGITS && !has_logits {
            continue;
        }
        let extracted = extract(name, tensors, batch, &[part], loaded.dtype, config);
        let finite = extracted.and_then(|delivered| {
            let numbers = delivered.to_f64();
            match numbers.iter().filter(|number| !number.is_finite()).count() {
                0 => Ok(numbers),
                count => Err(format!(
                    "{count} of {} numbers are NaN or infinite",
                    numbers.len()
                )),
            }
        });
        values.insert(name.clone(), finite);
    }
    let last = observation::hidden(config.num_hidden_layers);
    if let Some(Ok(hidden)) = values.get(&last) {
        let first_row = hidden[..config.hidden_size].to_vec();
        values.insert(CLS.to_owned(), Ok(first_row));
    }
    values
}

/// Compares `values` with those of the run `against`, in the order of the computation.
pub fn compare(values: &Values, against: &Values, vocabulary: usize) -> Vec<Compared> {
    let mut names: Vec<String> = against.keys().cloned().collect();
    observed::sort(&mut names);
    let missing = Err("there is nothing to compare with".to_owned());
    names
        .into_iter()
        .map(|name| {
            let own = values.get(&name).unwrap_or(&missing);
            match (own, &against[&name]) {
                (Ok(a), Ok(b)) => measure(name, a, b, vocabulary),
                (Err(problem), _) | (_, Err(problem)) => Compared {
                    counts: name != CLS,
                    observation: name,
                    elements: 0,
                    differing: 0,
                    max_abs: 0.0,
                    relative: 0.0,
                    problem: Some(problem.clone()),
                },
            }
        })
        .collect()
}

fn measure(name: String, a: &[f64], b: &[f64], vocabulary: usize) -> Compared {
    let differing = a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits());
    let differing = differing.count();
    let distance = match differing {
        0 => Distance::between(&[], &[]),
        _ if name == observation::LOGITS => {
            let centred = |values: &[f64]| {
                let mut values = values.to_vec();
                centre_rows(&mut values, vocabulary);
                values
            };
            Distance::between(&centred(a), &centred(b))
        }
        _ => Distance::between(a, b),
    };
    Compared {
        counts: name != CLS,
        observation: name,
        elements: a.len(),
        differing,
        max_abs: distance.max_abs,
        relative: distance.error,
        problem: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use driftgauge_protocol::{Dtype, HiddenAct, Tensor};

    fn values(entries: &[(&str, Result<&[f64], &str>)]) -> Values {
        let own = |(name, values): &(&str, Result<&[f64], &str>)| {
            let values = values.map(<[f64]>::to_vec).map_err(str::to_owned);
            ((*name).to_owned(), values)
        };
        entries.iter().map(own).collect()
    }

    #[test]
    fn differences_by_hand() {
        let check = |name: &str, a: &[f64], b: &[f64]| {
            let compared = compare(&values(&[(name, Ok(a))]), &values(&[(name, Ok(b))]), 2);
            let [one] = <[_; 1]>::try_from(compared).unwrap();
            assert_eq!((one.elements, &one.problem), (b.len(), &None));
            (one.differing, one.max_abs, one.relative)
        };
        let [same, other] = [[3.0, 4.0], [3.0, 4.5]];
        assert_eq!(check("hidden.1", &same, &same), (0, 0.0, 0.0));
        assert_eq!(check("hidden.1", &other, &same), (1, 0.5, 0.1));
        // Another sign of zero is another bit, and no distance.
        assert_eq!(check("hidden.1", &[0.0, 1.0], &[-0.0, 1.0]), (1, 0.0, 0.0));
        // What is added to all logits of a row is no distance either.
        assert_eq!(check("logits", &[4.0, 6.0], &[3.0, 5.0]), (2, 0.0, 0.0));
        let (differing, max_abs, relative) = check("logits", &[3.0, 6.0], &[3.0, 5.0]);
        assert_eq!((differing, max_abs, relative), (1, 0.5, 0.5));
    }

    #[test]
    fn damage_on_one_side_or_on_both_is_a_problem() {
        let good: (&str, Result<&[f64], &str>) = ("hidden.1", Ok(&[1.0]));
        let bad = ("hidden.1", Err("1 of 1 numbers are NaN or infinite"));
        for (a, b, expected) in [
            (&[good][..], bad, "1 of 1 numbers are NaN or infinite"),
            (&[bad][..], good, "1 of 1 numbers are NaN or infinite"),
            (&[bad][..], bad, "1 of 1 numbers are NaN or infinite"),
            (&[][..], good, "there is nothing to compare with"),
        ] {
            let compared = compare(&values(a), &values(&[b]), 2);
            assert_eq!(compared[0].problem.as_deref(), Some(expected));
        }
    }

    #[test]
    fn observations_are_compared_in_the_order_of_the_computation() {
        let one: Result<&[f64], &str> = Ok(&[1.0]);
        let names = [
            "cls",
            "embeddings",
            "hidden.1",
            "hidden.10",
            "hidden.2",
            "logits",
        ];
        let own = values(&names.map(|name| (name, one)));
        let found: Vec<String> = compare(&own, &own, 1)
            .into_iter()
            .map(|one| one.observation)
            .collect();
        assert_eq!(
            found,
            [
                "embeddings",
                "hidden.1",
                "hidden.2",
                "hidden.10",
                "cls",
                "logits"
            ]
        );
    }

    /// Row 1 of two, one token of two: the padding, which is NaN here, is not looked at.
    #[test]
    fn padding_is_dropped_and_cls_is_the_first_row() {
        let config = BertConfig {
            vocab_size: 2,
            hidden_size: 2,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            intermediate_size: 2,
            hidden_act: HiddenAct::Gelu,
            max_position_embeddings: 9,
            type_vocab_size: 1,
            layer_norm_eps: 1e-12,
            pad_token_id: 0,
        };
        let loaded = Loaded {
            device: "cpu".to_owned(),
            dtype: Dtype::F64,
            threads: 1,
            observations: Vec::new(),
            arithmetic: Default::default(),
            float64_options: Default::default(),
            properties: Default::default(),
            seconds: 0.0,
        };
        let batch = Batch {
            sequences: 2,
            length: 2,
            input_ids: vec![0; 4],
            token_type_ids: vec![0; 4],
            attention_mask: vec![1, 1, 1, 0],
            logit_rows: vec![(0, 1), (1, 0)],
        };
        let hidden = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, f64::NAN, f64::NAN];
        let logits = [7.0, 8.0, 9.0, 10.0];
        let tensors = JobOutcome::from([
            (
                "hidden.1".to_owned(),
                Tensor::from_f64(vec![2, 2, 2], &hidden).unwrap(),
            ),
            (
                "logits".to_owned(),
                Tensor::from_f64(vec![2, 2], &logits).unwrap(),
            ),
        ]);
        let wanted = ["hidden.1", "logits", "embeddings"].map(str::to_owned);
        let check = |row, tokens, batch: &Batch| {
            take(
                &tensors,
                &wanted,
                batch,
                Part { row, tokens },
                &loaded,
                &config,
            )
        };
        let expected = values(&[
            ("hidden.1", Ok(&[5.0, 6.0])),
            ("cls", Ok(&[5.0, 6.0])),
            ("logits", Ok(&[9.0, 10.0])),
            (
                "embeddings",
                Err("the observation is missing from the answer"),
            ),
        ]);
        assert_eq!(check(1, 1, &batch), expected);
        let padded = check(1, 2, &batch);
        let problem = "2 of 4 numbers are NaN or infinite";
        assert_eq!(padded["hidden.1"], Err(problem.to_owned()));
        assert!(!padded.contains_key("cls"));
        let other = Batch {
            logit_rows: vec![(0, 1), (0, 0)],
            ..batch
        };
        assert!(!check(1, 1, &other).contains_key("logits"));
    }
}
