//! Which sequences are run: a handful of different lengths.

use crate::oracle::Sequence;
use crate::plan::{Job, Plan, PlannedCase, longest, pad};
use crate::suite::{Case, Task};

/// Chooses up to `most` sequences from the cases of a plan: spread over the lengths that there are,
/// at least one with a mask where there is one, the shortest first. Each becomes a case of its own;
/// the plan that is returned has one job for each.
pub fn choose(plan: &Plan, most: usize, pad_token_id: usize) -> Plan {
    let candidates = candidates(plan);
    let chosen = spread(&candidates, most);
    let mut own = Plan {
        cases: Vec::new(),
        sequences: Vec::new(),
        jobs: Vec::new(),
    };
    for (index, (case, sequence)) in chosen.into_iter().enumerate() {
        own.cases.push(PlannedCase {
            suite: case.suite.clone(),
            case: case.case.clone(),
            encoded: case.encoded.clone(),
            sequences: index..index + 1,
        });
        let sequences = std::slice::from_ref(sequence);
        own.jobs.push(Job {
            cases: index..index + 1,
            sequences: index..index + 1,
            batch: pad(sequences, longest(sequences), pad_token_id),
        });
        own.sequences.push(sequence.clone());
    }
    own
}

/// Every text, or pair of texts, as a case of its own, each token sequence once, the shortest first.
fn candidates(plan: &Plan) -> Vec<(PlannedCase, Sequence)> {
    let mut candidates: Vec<(PlannedCase, Sequence)> = Vec::new();
    for case in &plan.cases {
        let inputs = case.case.task.inputs();
        for (index, (input, encoded)) in inputs.iter().zip(&case.encoded).enumerate() {
            let name = match inputs.len() {
                1 => case.case.name.clone(),
                _ => format!("{}:{}", case.case.name, if index == 0 { 'a' } else { 'b' }),
            };
            let task = match &case.case.task {
                Task::Similarity { .. } => Task::Features {
                    text: input.text.to_owned(),
                    text_pair: input.pair.map(str::to_owned),
                },
                other => other.clone(),
            };
            let sequence = plan.sequences[case.sequences.start + index].clone();
            let own = PlannedCase {
                suite: case.suite.clone(),
                case: Case {
                    name,
                    task,
                    note: None,
                },
                encoded: vec![encoded.clone()],
                sequences: 0..1,
            };
            if !candidates.iter().any(|(_, known)| *known == sequence) {
                candidates.push((own, sequence));
            }
        }
    }
    // Of one length, those with masks come first: they are compared in one observation more.
    candidates
        .sort_by_key(|(_, sequence)| (sequence.ids.len(), sequence.logit_positions.is_empty()));
    candidates
}

/// Evenly over the logarithms of the lengths, then whatever else there is. Short sequences are where
/// libraries choose between kernels, so that they are tried more densely.
fn spread(candidates: &[(PlannedCase, Sequence)], most: usize) -> Vec<&(PlannedCase, Sequence)> {
    let length = |index: usize| candidates[index].1.ids.len();
    let firsts: Vec<usize> = (0..candidates.len())
        .filter(|index| *index == 0 || length(*index) != length(*index - 1))
        .collect();
    let mut chosen: Vec<usize> = if firsts.len() <= most {
        firsts.clone()
    } else {
        nearest(&firsts, most, |index| (length(index) as f64).ln())
    };
    let rest = (0..candidates.len()).filter(|index| !firsts.contains(index));
    let room = most.saturating_sub(chosen.len());
    if firsts.len() <= most {
        chosen.extend(rest.take(room));
    }
    let has_mask = |index: &usize| !candidates[*index].1.logit_positions.is_empty();
    if !chosen.iter().any(has_mask)
        && let Some(masked) = (0..candidates.len()).rev().find(has_mask)
    {
        let middle = chosen.len() / 2;
        chosen[middle] = masked;
    }
    chosen.sort_unstable();
    chosen.into_iter().map(|index| &candidates[index]).collect()
}

/// Of `candidates`, whose `place` grows, `most` that are as evenly spread as they can be; in the
/// middle where only one is wanted.
fn nearest(candidates: &[usize], most: usize, place: impl Fn(usize) -> f64) -> Vec<usize> {
    let (Some(first), Some(last)) = (candidates.first(), candidates.last()) else {
        return Vec::new();
    };
    let (start, end) = (place(*first), place(*last));
    let mut chosen = Vec::new();
    for step in 0..most {
        let share = match most {
            1 => 0.5,
            _ => step as f64 / (most - 1) as f64,
        };
        let wanted = start + share * (end - start);
        let distance = |index: usize| (place(index) - wanted).abs();
        let free = candidates.iter().filter(|index| !chosen.contains(*index));
        let next = free.min_by(|a, b| distance(**a).total_cmp(&distance(**b)));
        chosen.extend(next.copied());
    }
    chosen
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::Encoded;

    /// A plan of cases with so many tokens, with a mask at position 2 or without one.
    pub fn plan(lengths: &[(usize, bool)]) -> Plan {
        let mut plan = Plan {
            cases: Vec::new(),
            sequences: Vec::new(),
            jobs: Vec::new(),
        };
        for (index, (length, has_mask)) in lengths.iter().enumerate() {
            let masks = if *has_mask { vec![2] } else { Vec::new() };
            let ids: Vec<u32> = (0..*length).map(|id| (100 * index + id) as u32).collect();
            let text = String::new();
            plan.cases.push(PlannedCase {
                suite: "suite".to_owned(),
                case: Case {
                    name: format!("case-{index}"),
                    task: match has_mask {
                        true => Task::FillMask {
                            text,
                            text_pair: None,
                        },
                        false => Task::Features {
                            text,
                            text_pair: None,
                        },
                    },
                    note: None,
                },
                encoded: vec![Encoded {
                    ids: ids.clone(),
                    type_ids: vec![0; *length],
                    tokens: Vec::new(),
                    masks: masks.clone(),
                    untruncated: *length,
                }],
                sequences: index..index + 1,
            });
            plan.sequences.push(Sequence {
                ids,
                type_ids: vec![0; *length],
                logit_positions: masks,
            });
        }
        plan
    }

    #[test]
    fn sequences_are_spread_over_the_lengths() {
        let plain = |lengths: &[usize]| -> Vec<(usize, bool)> {
            lengths.iter().map(|length| (*length, false)).collect()
        };
        let all = plain(&[9, 3, 4, 5, 6, 7, 8, 3]);
        for (lengths, most, expected) in [
            (&all[..], 3, &[3, 5, 9][..]),
            (&all, 1, &[5]),
            (&all, 2, &[3, 9]),
            (&all, 7, &[3, 4, 5, 6, 7, 8, 9]),
            // Every length is there; then a second one of a length.
            (&all, 8, &[3, 3, 4, 5, 6, 7, 8, 9]),
            (&all, 20, &[3, 3, 4, 5, 6, 7, 8, 9]),
            (&plain(&[4, 4, 4]), 2, &[4, 4]),
        ] {
            let chosen = choose(&plan(lengths), most, 0);
            let found: Vec<usize> = chosen.sequences.iter().map(|own| own.ids.len()).collect();
            assert_eq!(found, expected, "{most}");
            let jobs = chosen.jobs.iter().map(|job| job.batch.length);
            assert!(jobs.eq(expected.iter().copied()));
        }
    }

    #[test]
    fn masks_are_preferred_and_never_left_out() {
        let check = |lengths: &[(usize, bool)], most: usize| -> Vec<String> {
            let chosen = choose(&plan(lengths), most, 0);
            chosen
                .cases
                .iter()
                .map(|case| case.case.name.clone())
                .collect()
        };
        // Of the same length.
        assert_eq!(check(&[(5, false), (5, true)], 1), ["case-1"]);
        // Of a length that would not have been chosen.
        let lengths = [(3, false), (4, true), (5, false), (6, false), (7, false)];
        assert_eq!(check(&lengths, 3), ["case-0", "case-1", "case-4"]);
    }

    #[test]
    fn texts_of_a_pair_become_sequences_and_equal_ones_are_run_once() {
        let mut plan = plan(&[(3, false), (4, false)]);
        let (first, second) = (plan.cases[0].encoded[0].clone(), plan.cases.remove(1));
        plan.cases[0].encoded = vec![first, second.encoded[0].clone()];
        plan.cases[0].sequences = 0..2;
        plan.cases[0].case.task = Task::Similarity {
            a: "a".to_owned(),
            b: "b".to_owned(),
        };
        let ids = |plan: &Plan| -> Vec<String> {
            choose(plan, 9, 0)
                .cases
                .iter()
                .map(PlannedCase::id)
                .collect()
        };
        assert_eq!(ids(&plan), ["suite/case-0:a", "suite/case-0:b"]);
        plan.sequences[1] = plan.sequences[0].clone();
        assert_eq!(ids(&plan), ["suite/case-0:a"]);
    }
}
