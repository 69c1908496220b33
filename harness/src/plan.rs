//! From cases to jobs: tokenizes every text once and puts the sequences into padded batches.

use std::ops::Range;

use driftgauge_protocol::Batch;
use globset::{Glob, GlobMatcher};

use crate::model::{Encoded, MASK, Model};
use crate::oracle::Sequence;
use crate::suite::{Case, Suite, Task};

/// Everything that every target is asked, the same for all of them.
#[derive(Debug)]
pub struct Plan {
    /// The selected cases, in suite order.
    pub cases: Vec<PlannedCase>,
    /// All sequences, in case order: one for each text, or for each pair of texts.
    pub sequences: Vec<Sequence>,
    /// The batches, in case order.
    pub jobs: Vec<Job>,
}

/// A case with its tokens.
#[derive(Debug, Clone)]
pub struct PlannedCase {
    /// Name of its suite.
    pub suite: String,
    /// The case.
    pub case: Case,
    /// Its inputs as tokens.
    pub encoded: Vec<Encoded>,
    /// Its sequences in [`Plan::sequences`].
    pub sequences: Range<usize>,
}

impl PlannedCase {
    /// `suite/case`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.suite, self.case.name)
    }
}

/// One padded batch.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its cases in [`Plan::cases`].
    pub cases: Range<usize>,
    /// Its sequences in [`Plan::sequences`], one for each row of the batch.
    pub sequences: Range<usize>,
    /// What the worker gets.
    pub batch: Batch,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A pattern is not a pattern.
    #[error("`{pattern}` is not a pattern for --case")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        #[source]
        source: globset::Error,
    },
    /// A pattern matches no case.
    #[error("no case is selected by --case {pattern}")]
    NothingSelected {
        /// The pattern.
        pattern: String,
    },
    /// A text cannot be tokenized.
    #[error("case `{case}` cannot be tokenized: {problem}")]
    Tokenize {
        /// `suite/case`.
        case: String,
        /// The tokenizer's words.
        problem: String,
    },
    /// Truncation cut the masks off.
    #[error(
        "case `{case}`: no {MASK} is left among the first {kept} tokens (the text has {length})"
    )]
    NoMask {
        /// `suite/case`.
        case: String,
        /// Tokens that are kept.
        kept: usize,
        /// Tokens of the whole text.
        length: usize,
    },
}

impl PlanError {
    /// The next step for the user.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NothingSelected { .. } => {
                "patterns match a case's name or suite/name: --case 'fill-mask/*'"
            }
            Self::Pattern { .. } => "patterns are globs: --case 'fill-mask/*'",
            Self::Tokenize { .. } => {
                "change the case, leave it out with --case, or mend the model's tokenizer files"
            }
            Self::NoMask { .. } => "put the mask earlier, or shorten the text",
        }
    }
}

impl Plan {
    /// A plan of some of the batches, by their index, in this order.
    #[must_use]
    pub fn only(&self, jobs: &[usize]) -> Self {
        let mut plan = Self {
            cases: Vec::new(),
            sequences: Vec::new(),
            jobs: Vec::new(),
        };
        for job in jobs.iter().map(|job| &self.jobs[*job]) {
            let (cases, sequences) = (plan.cases.len(), plan.sequences.len());
            let moved = |start: usize, from: usize, to: usize| start - from + to;
            for case in &self.cases[job.cases.clone()] {
                let start = moved(case.sequences.start, job.sequences.start, sequences);
                plan.cases.push(PlannedCase {
                    sequences: start..start + case.sequences.len(),
                    ..case.clone()
                });
            }
            plan.sequences
                .extend_from_slice(&self.sequences[job.sequences.clone()]);
            plan.jobs.push(Job {
                cases: cases..plan.cases.len(),
                sequences: sequences..plan.sequences.len(),
                batch: job.batch.clone(),
            });
        }
        plan
    }

    /// Up to `count` batches, by their index, spread over all that have at most `tokens` tokens,
    /// padding included; the smallest one where there is none.
    pub fn sample_jobs(&self, count: usize, tokens: usize) -> Vec<usize> {
        let size = |job: &usize| self.jobs[*job].batch.input_ids.len();
        let all = 0..self.jobs.len();
        let small: Vec<usize> = all.clone().filter(|job| size(job) <= tokens).collect();
        if small.is_empty() {
            return all.min_by_key(size).into_iter().collect();
        }
        let step = small.len().div_ceil(count);
        small.into_iter().step_by(step).collect()
    }
}

/// Makes the plan of a run. `patterns` select cases by `suite/case` or by the case's name; without
/// any, all are selected.
///
/// # Errors
/// [`PlanError`] that names the case.
pub fn plan(suites: &[Suite], patterns: &[String], model: &Model) -> Result<Plan, PlanError> {
    let selection = Selection::new(patterns)?;
    let mut plan = Plan {
        cases: Vec::new(),
        sequences: Vec::new(),
        jobs: Vec::new(),
    };
    for suite in suites {
        let cases: Vec<&Case> = suite
            .cases
            .iter()
            .filter(|case| selection.selects(&suite.name, &case.name))
            .collect();
        for group in cases.chunks(suite.batch) {
            let first = plan.cases.len();
            for case in group {
                plan_case(&mut plan, suite, case, model)?;
            }
            let cases = first..plan.cases.len();
            let sequences = plan.cases[first].sequences.start..plan.sequences.len();
            let own = &plan.sequences[sequences.clone()];
            let batch = pad(own, longest(own), model.config.pad_token_id);
            plan.jobs.push(Job {
                cases,
                sequences,
                batch,
            });
        }
    }
    selection.check_each_selects(&plan.cases)?;
    Ok(plan)
}

/// The patterns of `--case`; without any, every case is selected.
struct Selection(Vec<GlobMatcher>);

impl Selection {
    fn new(patterns: &[String]) -> Result<Self, PlanError> {
        let compile = |pattern: &String| match Glob::new(pattern) {
            Ok(glob) => Ok(glob.compile_matcher()),
            Err(source) => Err(PlanError::Pattern {
                pattern: pattern.clone(),
                source,
            }),
        };
        patterns
            .iter()
            .map(compile)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn selects(&self, suite: &str, case: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| matches(pattern, suite, case))
    }

    /// A pattern that selects nothing is a mistake, even where another one selects something.
    fn check_each_selects(&self, cases: &[PlannedCase]) -> Result<(), PlanError> {
        let idle = |pattern: &&GlobMatcher| {
            !cases
                .iter()
                .any(|case| matches(pattern, &case.suite, &case.case.name))
        };
        match self.0.iter().find(idle) {
            None => Ok(()),
            Some(pattern) => Err(PlanError::NothingSelected {
                pattern: pattern.glob().to_string(),
            }),
        }
    }
}

/// Whether a pattern is of a case, by its name or as `suite/case`.
pub(crate) fn matches(pattern: &GlobMatcher, suite: &str, case: &str) -> bool {
    pattern.is_match(case) || pattern.is_match(format!("{suite}/{case}"))
}

fn plan_case(plan: &mut Plan, suite: &Suite, case: &Case, model: &Model) -> Result<(), PlanError> {
    let id = || format!("{}/{}", suite.name, case.name);
    let start = plan.sequences.len();
    let mut encoded = Vec::new();
    for input in case.task.inputs() {
        let tokens = model
            .tokenizer
            .encode(input)
            .map_err(|problem| PlanError::Tokenize {
                case: id(),
                problem,
            })?;
        let is_fill_mask = matches!(case.task, Task::FillMask { .. });
        if is_fill_mask && tokens.masks.is_empty() {
            return Err(PlanError::NoMask {
                case: id(),
                kept: tokens.ids.len(),
                length: tokens.untruncated,
            });
        }
        plan.sequences.push(Sequence {
            ids: tokens.ids.clone(),
            type_ids: tokens.type_ids.clone(),
            logit_positions: if is_fill_mask {
                tokens.masks.clone()
            } else {
                Vec::new()
            },
        });
        encoded.push(tokens);
    }
    let sequences = start..plan.sequences.len();
    plan.cases.push(PlannedCase {
        suite: suite.name.clone(),
        case: case.clone(),
        encoded,
        sequences,
    });
    Ok(())
}

/// Tokens of the longest sequence.
pub fn longest(sequences: &[Sequence]) -> usize {
    let lengths = sequences.iter().map(|sequence| sequence.ids.len());
    lengths.max().unwrap_or(0)
}

/// Pads sequences on the right to `length` tokens, which must be no less than the [`longest`] has.
pub fn pad(sequences: &[Sequence], length: usize, pad_token_id: usize) -> Batch {
    let mut batch = Batch {
        sequences: sequences.len(),
        length,
        input_ids: Vec::with_capacity(sequences.len() * length),
        token_type_ids: Vec::with_capacity(sequences.len() * length),
        attention_mask: Vec::with_capacity(sequences.len() * length),
        logit_rows: Vec::new(),
    };
    for (row, sequence) in sequences.iter().enumerate() {
        let padding = length - sequence.ids.len();
        batch
            .input_ids
            .extend(sequence.ids.iter().map(|id| i64::from(*id)));
        batch
            .input_ids
            .extend(std::iter::repeat_n(pad_token_id as i64, padding));
        batch
            .token_type_ids
            .extend(sequence.type_ids.iter().map(|id| i64::from(*id)));
        batch.token_type_ids.extend(std::iter::repeat_n(0, padding));
        batch
            .attention_mask
            .extend(std::iter::repeat_n(1, sequence.ids.len()));
        batch.attention_mask.extend(std::iter::repeat_n(0, padding));
        batch.logit_rows.extend(
            sequence
                .logit_positions
                .iter()
                .map(|position| (row, *position)),
        );
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_plan_counts_from_its_own_start() {
        let sequence = |id: u32| Sequence {
            ids: vec![id],
            type_ids: vec![0],
            logit_positions: Vec::new(),
        };
        let case = |name: &str, sequences: Range<usize>| PlannedCase {
            suite: "s".to_owned(),
            case: Case {
                name: name.to_owned(),
                task: Task::Similarity {
                    a: String::new(),
                    b: String::new(),
                },
                note: None,
            },
            encoded: Vec::new(),
            sequences,
        };
        let sequences: Vec<Sequence> = (0..6).map(sequence).collect();
        let job = |cases: Range<usize>, own: Range<usize>| Job {
            batch: pad(&sequences[own.clone()], 1, 0),
            cases,
            sequences: own,
        };
        let plan = Plan {
            cases: vec![case("a", 0..2), case("b", 2..4), case("c", 4..6)],
            jobs: vec![job(0..1, 0..2), job(1..3, 2..6)],
            sequences: sequences.clone(),
        };
        let only = plan.only(&[1]);
        let spans: Vec<_> = only
            .cases
            .iter()
            .map(|case| case.sequences.clone())
            .collect();
        assert_eq!(spans, [0..2, 2..4]);
        assert_eq!(
            (only.jobs[0].cases.clone(), only.jobs[0].sequences.clone()),
            (0..2, 0..4)
        );
        assert_eq!(only.sequences, sequences[2..]);
        let turned = plan.only(&[1, 0]);
        assert_eq!(turned.cases[2].case.name, "a");
        assert_eq!(turned.jobs[1].sequences, 4..6);
    }

    #[test]
    fn padding_is_on_the_right_and_rows_follow_their_sequence() {
        let sequence = |ids: &[u32], logit_positions: &[usize]| Sequence {
            ids: ids.to_vec(),
            type_ids: vec![0; ids.len()],
            logit_positions: logit_positions.to_vec(),
        };
        let mut sequences = [sequence(&[101, 102], &[]), sequence(&[101, 103, 102], &[1])];
        sequences[0].type_ids = vec![0, 1];
        assert_eq!(longest(&sequences), 3);
        assert_eq!(pad(&sequences[..1], 4, 9).input_ids, [101, 102, 9, 9]);
        let batch = pad(&sequences, 3, 9);
        assert_eq!(batch.input_ids, [101, 102, 9, 101, 103, 102]);
        assert_eq!(batch.token_type_ids, [0, 1, 0, 0, 0, 0]);
        assert_eq!(batch.attention_mask, [1, 1, 0, 1, 1, 1]);
        assert_eq!(batch.logit_rows, [(1, 1)]);
    }

    #[test]
    fn patterns_match_the_case_or_the_suite_and_case() {
        let check = |patterns: &[&str]| {
            let patterns: Vec<String> =
                patterns.iter().map(|&pattern| pattern.to_owned()).collect();
            Selection::new(&patterns).map(|selection| selection.selects("seed", "capital"))
        };
        for (patterns, expected) in [
            (&[][..], true),
            (&["cap*"], true),
            (&["seed/*"], true),
            (&["seed"], false),
            (&["gone", "*/capital"], true),
        ] {
            assert_eq!(check(patterns).ok(), Some(expected), "{patterns:?}");
        }
        assert!(check(&["a["]).is_err());
    }
}
