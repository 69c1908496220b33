//! In which ways the chosen sequences are run, and what each way is compared with.

use driftgauge_protocol::Batch;
use driftgauge_reports::consistency::Check;

use crate::oracle::Sequence;
use crate::plan::{Plan, longest, pad};

/// Tokens of padding that a sequence gets.
const PADDING: [usize; 3] = [1, 7, 100];
/// Sequences of one length in a batch.
const BATCH: usize = 4;
/// Numbers of threads that are tried.
const THREADS: [usize; 2] = [1, 2];

/// One way of running the sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variant {
    /// The check that it belongs to; `None` where it is only there to be compared with.
    pub check: Option<Check>,
    /// What it is, in a few words.
    pub name: String,
    /// Where it runs.
    pub process: Process,
    /// The earlier variant that it is compared with.
    pub against: Option<usize>,
    /// The batches.
    pub runs: Vec<Run>,
    /// Sequences that are not run this way, with the reason.
    pub skipped: Vec<String>,
}

/// The process of a variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// The one that the variants before it ran in.
    Shared,
    /// A fresh one, which is to use so many threads.
    Fresh {
        /// Threads that one operation may use.
        threads: usize,
    },
}

/// One batch, and what of it is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What the worker gets.
    pub batch: Batch,
    /// The sequences whose numbers are compared.
    pub read: Vec<Read>,
}

/// Where a sequence stands in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// Its index in the plan.
    pub case: usize,
    /// Its row in the batch.
    pub row: usize,
}

/// The ways of running the sequences of a plan that [`choose`](super::choose()) made, on a model with so many
/// `positions`, in workers with so many `threads`. Those in fresh processes come last.
pub fn variants(
    plan: &Plan,
    threads: usize,
    positions: usize,
    pad_token_id: usize,
) -> Vec<Variant> {
    let sequences = &plan.sequences[..];
    let mut variants = Vec::new();
    let mut add = |variant: Variant| {
        variants.push(variant);
        variants.len() - 1
    };
    let shared = |check: Option<Check>, name: &str, against: Option<usize>, runs: Vec<Run>| {
        let (name, skipped) = (name.to_owned(), Vec::new());
        Variant {
            check,
            name,
            process: Process::Shared,
            against,
            runs,
            skipped,
        }
    };
    let pad_to = |case: usize, length: usize| Run {
        batch: pad(&sequences[case..=case], length, pad_token_id),
        read: vec![Read { case, row: 0 }],
    };
    let cases = || 0..sequences.len();
    let alone_runs = || {
        cases()
            .map(|case| pad_to(case, sequences[case].ids.len()))
            .collect::<Vec<_>>()
    };
    let alone = add(shared(None, "alone", None, alone_runs()));
    let again = shared(Some(Check::Again), "once more", Some(alone), alone_runs());
    add(again);

    let batched = |row: usize| {
        let run = |case: usize| {
            let batch = neighbours(sequences, case, row);
            Run {
                batch: pad(&batch, longest(&batch), pad_token_id),
                read: vec![Read { case, row }],
            }
        };
        cases().map(run).collect::<Vec<_>>()
    };
    let name = format!("first of {BATCH}");
    let first = add(shared(Some(Check::Batch), &name, Some(alone), batched(0)));
    for row in 1..BATCH {
        let name = format!("place {} of {BATCH}", row + 1);
        add(shared(
            Some(Check::Position),
            &name,
            Some(first),
            batched(row),
        ));
    }

    for padding in PADDING {
        let name = match padding {
            1 => "1 token of padding".to_owned(),
            _ => format!("{padding} tokens of padding"),
        };
        let mut variant = shared(Some(Check::Padding), &name, Some(alone), Vec::new());
        for case in cases() {
            let length = sequences[case].ids.len() + padding;
            if length <= positions {
                variant.runs.push(pad_to(case, length));
            } else {
                variant.skipped.push(format!(
                    "{} has {} tokens, the model has {positions} positions",
                    plan.cases[case].id(),
                    sequences[case].ids.len()
                ));
            }
        }
        add(variant);
    }

    let together = |order: Vec<usize>| {
        let batch: Vec<Sequence> = order.iter().map(|case| sequences[*case].clone()).collect();
        let read = order.iter().enumerate();
        vec![Run {
            batch: pad(&batch, longest(&batch), pad_token_id),
            read: read.map(|(row, case)| Read { case: *case, row }).collect(),
        }]
    };
    let name = format!("all {} padded to {}", sequences.len(), longest(sequences));
    let mut in_order = shared(Some(Check::Together), &name, Some(alone), Vec::new());
    let mut reversed = shared(Some(Check::Order), "last first", None, Vec::new());
    if sequences.len() > 1 {
        in_order.runs = together(cases().collect());
        reversed.runs = together(cases().rev().collect());
    } else {
        for variant in [&mut in_order, &mut reversed] {
            let reason = "there is only one sequence";
            variant.skipped.push(reason.to_owned());
        }
    }
    reversed.against = Some(add(in_order));
    add(reversed);

    let fresh = |check: Check, name: &str, threads: usize| Variant {
        process: Process::Fresh { threads },
        ..shared(Some(check), name, Some(alone), alone_runs())
    };
    add(fresh(Check::Process, "another process", threads));
    for other in THREADS.into_iter().filter(|other| *other != threads) {
        let name = match other {
            1 => "1 thread".to_owned(),
            _ => format!("{other} threads"),
        };
        add(fresh(Check::Threads, &name, other));
    }
    variants
}

/// A batch of sequences of one length with that of `case` in `row`. The others are made from the
/// tokens of all sequences, between the first and the last token of this one.
fn neighbours(sequences: &[Sequence], case: usize, row: usize) -> Vec<Sequence> {
    let own = &sequences[case];
    let inner = |sequence: &Sequence| {
        let end = sequence.ids.len().saturating_sub(1).max(1);
        sequence.ids[1..end.max(1)].to_vec()
    };
    let pool: Vec<u32> = sequences.iter().flat_map(inner).collect();
    let mut stream = pool.iter().copied().cycle();
    let mut neighbour = || {
        let mut ids = own.ids.clone();
        let last = ids.len().saturating_sub(1).max(1);
        for id in &mut ids[1..last] {
            *id = stream.next().unwrap_or(*id);
        }
        Sequence {
            ids,
            type_ids: own.type_ids.clone(),
            logit_positions: Vec::new(),
        }
    };
    let mut batch: Vec<Sequence> = (1..BATCH).map(|_| neighbour()).collect();
    batch.insert(row, own.clone());
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consistency::choose::tests::plan;

    /// Sequences of 3 and 5 tokens, the longer one with a mask at position 2.
    fn variants_of(threads: usize, positions: usize) -> (Plan, Vec<Variant>) {
        let plan = plan(&[(3, false), (5, true)]);
        let variants = variants(&plan, threads, positions, 9);
        (plan, variants)
    }

    fn own(variants: &[Variant], check: Check) -> Vec<&Variant> {
        let own = |variant: &&Variant| variant.check == Some(check);
        variants.iter().filter(own).collect()
    }

    #[test]
    fn each_check_has_its_variants_and_those_are_compared_with_earlier_ones() {
        for (threads, expected) in [
            (
                1,
                "alone=_ | once more=alone | first of 4=alone | place 2 of 4=first of 4 | \
                 place 3 of 4=first of 4 | place 4 of 4=first of 4 | 1 token of padding=alone | \
                 7 tokens of padding=alone | 100 tokens of padding=alone | all 2 padded to 5=alone | \
                 last first=all 2 padded to 5 | another process=alone | 2 threads=alone",
            ),
            (4, "1 thread=alone | 2 threads=alone"),
        ] {
            let (_, variants) = variants_of(threads, 512);
            let shown = variants.iter().enumerate().map(|(index, variant)| {
                assert!(variant.against.is_none_or(|against| against < index));
                let against = variant
                    .against
                    .map_or("_", |against| &variants[against].name);
                format!("{}={against}", variant.name)
            });
            let shown = shown.collect::<Vec<_>>().join(" | ");
            assert!(shown.ends_with(expected), "{threads}: {shown}");
            for check in Check::ALL {
                assert!(!own(&variants, check).is_empty(), "{check:?}");
            }
            // Once a fresh process runs, the first one is gone.
            let fresh = |variant: &Variant| variant.process != Process::Shared;
            assert!(variants.is_sorted_by_key(fresh));
        }
    }

    #[test]
    fn every_variant_reads_each_sequence_once_and_finds_it_there() {
        let (plan, variants) = variants_of(1, 512);
        for variant in &variants {
            let mut read = Vec::new();
            for run in &variant.runs {
                for Read { case, row } in &run.read {
                    let sequence = &plan.sequences[*case];
                    let start = row * run.batch.length;
                    let range = start..start + sequence.ids.len();
                    let ids: Vec<i64> = sequence.ids.iter().map(|id| i64::from(*id)).collect();
                    assert_eq!(run.batch.input_ids[range.clone()], ids, "{}", variant.name);
                    let own: Vec<i64> = vec![1; ids.len()];
                    assert_eq!(run.batch.attention_mask[range], own, "{}", variant.name);
                    let logits = run.batch.logit_rows.iter().filter(|place| place.0 == *row);
                    let logits: Vec<usize> = logits.map(|place| place.1).collect();
                    assert_eq!(logits, sequence.logit_positions, "{}", variant.name);
                    read.push(*case);
                }
            }
            read.sort_unstable();
            assert_eq!(read, [0, 1], "{}", variant.name);
        }
    }

    #[test]
    fn shapes_of_the_batches() {
        let (_, variants) = variants_of(1, 512);
        let shapes = |check: Check, index: usize| -> Vec<(usize, usize)> {
            let runs = own(&variants, check)[index].runs.iter();
            runs.map(|run| (run.batch.sequences, run.batch.length))
                .collect()
        };
        for (check, index, expected) in [
            (Check::Again, 0, &[(1, 3), (1, 5)][..]),
            (Check::Batch, 0, &[(4, 3), (4, 5)]),
            (Check::Position, 2, &[(4, 3), (4, 5)]),
            (Check::Padding, 0, &[(1, 4), (1, 6)]),
            (Check::Padding, 2, &[(1, 103), (1, 105)]),
            (Check::Together, 0, &[(2, 5)]),
            (Check::Order, 0, &[(2, 5)]),
            (Check::Process, 0, &[(1, 3), (1, 5)]),
        ] {
            assert_eq!(shapes(check, index), expected, "{check:?} {index}");
        }
        // Neighbours are no copies and have no padding.
        let batch = &own(&variants, Check::Batch)[0].runs[1].batch;
        assert!(batch.attention_mask.iter().all(|mask| *mask == 1));
        assert_ne!(batch.input_ids[..5], batch.input_ids[5..10]);
    }

    #[test]
    fn padding_beyond_the_positions_is_skipped_with_the_reason() {
        let (_, variants) = variants_of(1, 11);
        let padding = own(&variants, Check::Padding);
        let counts = padding
            .iter()
            .map(|own| (own.runs.len(), own.skipped.len()));
        assert_eq!(counts.collect::<Vec<_>>(), [(2, 0), (1, 1), (0, 2)]);
        let expected = "suite/case-1 has 5 tokens, the model has 11 positions";
        assert_eq!(padding[1].skipped, [expected]);
    }

    #[test]
    fn one_sequence_has_no_batch_of_several() {
        let variants = variants(&plan(&[(3, false)]), 1, 512, 9);
        for check in [Check::Together, Check::Order] {
            let own = own(&variants, check);
            assert!(
                own[0].runs.is_empty() && own[0].skipped.len() == 1,
                "{check:?}"
            );
        }
    }
}
