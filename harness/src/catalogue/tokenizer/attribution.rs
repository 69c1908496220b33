//! Which fault explains what a tokenizer gave: the faults that give exactly the same for every input.

use std::fmt;

use super::TokenizerFault;
use crate::model::{Encoded, Tokenizer};
use crate::plan::Plan;

/// What a tokenizer made of one input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Produced {
    /// Token IDs.
    pub ids: Vec<u32>,
    /// Segment of each token.
    pub type_ids: Vec<u32>,
}

impl From<&Encoded> for Produced {
    fn from(encoded: &Encoded) -> Self {
        Self {
            ids: encoded.ids.clone(),
            type_ids: encoded.type_ids.clone(),
        }
    }
}

/// A fault and what it makes of the inputs of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imitation {
    /// The fault.
    pub fault: TokenizerFault,
    /// What it does to the inputs.
    pub effect: Effect,
}

/// What a fault does to the inputs of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It changes some.
    Changes {
        /// What it makes of every input, in the order of [`Plan::sequences`].
        produced: Vec<Produced>,
        /// The cases whose tokens or segments it changes, as `suite/case`.
        cases: Vec<String>,
    },
    /// It changes none of them, so that nothing can be said of it.
    NotExercised {
        /// Why, as a clause.
        reason: String,
    },
}

/// The first place in which two tokenizers differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The case, as `suite/case`.
    pub case: String,
    /// Which input of the case, from 0.
    pub input: usize,
    /// Position of the token, from 0.
    pub position: usize,
    /// What the reference has there; `None` where it has ended.
    pub expected: Option<TokenAt>,
    /// What the other one has there; `None` where it has ended.
    pub got: Option<TokenAt>,
}

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenAt {
    /// Its ID.
    pub id: u32,
    /// Its segment.
    pub type_id: u32,
    /// Its text.
    pub text: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |token: &Option<TokenAt>| match token {
            None => "nothing".to_owned(),
            Some(TokenAt { id, type_id, text }) => {
                format!("`{}` ({id}, segment {type_id})", text.escape_debug())
            }
        };
        let (case, position) = (&self.case, self.position);
        let (got, expected) = (show(&self.got), show(&self.expected));
        write!(
            formatter,
            "`{case}`: token {position} is {got}, expected {expected}"
        )
    }
}

/// What every fault makes of the inputs of a plan, in the order of the catalogue.
pub fn imitations(plan: &Plan, reference: &Tokenizer) -> Vec<Imitation> {
    let imitate = |fault| Imitation {
        fault,
        effect: effect(fault, plan, reference)
            .unwrap_or_else(|reason| Effect::NotExercised { reason }),
    };
    TokenizerFault::ALL.into_iter().map(imitate).collect()
}

/// The faults that give exactly what was `produced`, an entry for each of [`Plan::sequences`]; none where no
/// fault explains it, or where it is what the reference gives. What changes nothing explains nothing.
pub fn attribute(imitations: &[Imitation], produced: &[Produced]) -> Vec<TokenizerFault> {
    let explains = |imitation: &&Imitation| matches!(&imitation.effect, Effect::Changes { produced: own, .. } if own == produced);
    let found = imitations.iter().filter(explains);
    found.map(|imitation| imitation.fault).collect()
}

/// The first place where what was `produced`, an entry for each of [`Plan::sequences`], is not what the
/// reference gives.
pub fn first_difference(
    plan: &Plan,
    reference: &Tokenizer,
    produced: &[Produced],
) -> Option<Difference> {
    let mut produced = produced.iter();
    for case in &plan.cases {
        for (input, encoded) in case.encoded.iter().enumerate() {
            let (expected, got) = (Produced::from(encoded), produced.next());
            let at = |produced: &Produced, position: usize| {
                Some(TokenAt {
                    id: *produced.ids.get(position)?,
                    type_id: *produced.type_ids.get(position)?,
                    text: reference.token(produced.ids[position]),
                })
            };
            let longest = expected.ids.len().max(got.map_or(0, |got| got.ids.len()));
            for position in 0..longest {
                let expected = at(&expected, position);
                let got = got.and_then(|got| at(got, position));
                if expected != got {
                    return Some(Difference {
                        case: case.id(),
                        input,
                        position,
                        expected,
                        got,
                    });
                }
            }
        }
    }
    None
}

fn effect(fault: TokenizerFault, plan: &Plan, reference: &Tokenizer) -> Result<Effect, String> {
    let faulty = fault.configure(reference)?;
    let mut produced = Vec::with_capacity(plan.sequences.len());
    let mut cases = Vec::new();
    for case in &plan.cases {
        let mut is_changed = false;
        for (input, expected) in case.case.task.inputs().into_iter().zip(&case.encoded) {
            let own = Produced::from(&faulty.encode(input)?);
            is_changed |= own != Produced::from(expected);
            produced.push(own);
        }
        if is_changed {
            cases.push(case.id());
        }
    }
    if cases.is_empty() {
        return Err("it changes nothing in these cases".to_owned());
    }
    Ok(Effect::Changes { produced, cases })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Model;
    use crate::plan::plan;
    use crate::suite;

    fn model() -> Model {
        let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
        Model::open(&cases.join("models/zh-mini"), &[]).unwrap()
    }

    /// The cases of the repository, as a run takes them, or some of them.
    fn repository(model: &Model, patterns: &[&str]) -> Plan {
        let suites = ["seed", "features", "fill-mask", "similarity"];
        let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
        let paths = suites.map(|name| cases.join(format!("{name}.toml")));
        let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        plan(&suite::load_all(&paths).unwrap(), &patterns, model).unwrap()
    }

    fn reference(plan: &Plan) -> Vec<Produced> {
        let encoded = plan.cases.iter().flat_map(|case| &case.encoded);
        encoded.map(Produced::from).collect()
    }

    /// The cases exercise every fault, and no two faults look the same in them.
    #[test]
    fn every_fault_is_exercised_and_told_apart_by_the_cases_of_the_repository() {
        let model = model();
        let plan = repository(&model, &[]);
        let imitations = imitations(&plan, &model.tokenizer);
        let faults: Vec<TokenizerFault> = imitations.iter().map(|own| own.fault).collect();
        assert_eq!(faults, TokenizerFault::ALL);
        for imitation in &imitations {
            let Effect::Changes { produced, cases } = &imitation.effect else {
                panic!("{imitation:?}");
            };
            assert_eq!(attribute(&imitations, produced), [imitation.fault]);
            let difference = first_difference(&plan, &model.tokenizer, produced).unwrap();
            assert_eq!(difference.case, cases[0], "{difference}");
        }
    }

    /// So they do for a model that keeps case, apart from the fault that only a model can have that does not.
    #[test]
    fn a_cased_model_exercises_all_faults_that_it_can_have() {
        let mut model = model();
        let cased = TokenizerFault::LowerCase.configure(&model.tokenizer);
        model.tokenizer = cased.unwrap().tokenizer;
        let plan = repository(&model, &[]);
        let imitations = imitations(&plan, &model.tokenizer);
        for imitation in &imitations {
            match &imitation.effect {
                Effect::Changes { produced, .. } => {
                    assert_eq!(attribute(&imitations, produced), [imitation.fault]);
                }
                Effect::NotExercised { reason } => {
                    assert_eq!(imitation.fault, TokenizerFault::LowerCaseByString);
                    assert_eq!(reason, "the tokenizer does not lower-case");
                }
            }
        }
    }

    #[test]
    fn what_no_fault_explains_is_attributed_to_none() {
        let model = model();
        let plan = repository(&model, &["seed/*", "features/pair-*"]);
        let imitations = imitations(&plan, &model.tokenizer);
        let mut produced = reference(&plan);
        assert_eq!(attribute(&imitations, &produced), []);
        assert_eq!(first_difference(&plan, &model.tokenizer, &produced), None);
        // No fault gives this.
        produced[0].ids[1] = 100;
        assert_eq!(attribute(&imitations, &produced), []);
        let difference = first_difference(&plan, &model.tokenizer, &produced).unwrap();
        assert_eq!(
            difference.to_string(),
            "`seed/capital`: token 1 is `[UNK]` (100, segment 0), expected `中` (704, segment 0)"
        );
        assert_eq!(attribute(&imitations, &produced[1..]), []);
    }

    #[test]
    fn what_changes_nothing_is_not_exercised_and_explains_nothing() {
        let model = model();
        let plan = repository(&model, &["seed/science-vector"]);
        let imitations = imitations(&plan, &model.tokenizer);
        let exercised = imitations.iter().filter(|own| match &own.effect {
            Effect::Changes { .. } => true,
            Effect::NotExercised { reason } => {
                assert_eq!(reason, "it changes nothing in these cases");
                false
            }
        });
        let exercised: Vec<&str> = exercised.map(|own| own.fault.name()).collect();
        // A single Chinese character shows what is put around a text and nothing else.
        assert_eq!(exercised, ["no-special-tokens", "no-final-sep"]);
        assert_eq!(attribute(&imitations, &reference(&plan)), []);
    }

    #[test]
    fn differences_are_found_in_segments_and_at_ends() {
        let model = model();
        let plan = repository(&model, &["features/pair-empty-second"]);
        let mut produced = reference(&plan);
        let last = produced[0].ids.len() - 1;
        produced[0].type_ids[last] = 0;
        let difference = first_difference(&plan, &model.tokenizer, &produced).unwrap();
        assert_eq!((difference.input, difference.position), (0, last));
        assert_eq!(difference.got.map(|token| token.type_id), Some(0));
        produced[0].ids.pop();
        produced[0].type_ids.pop();
        let difference = first_difference(&plan, &model.tokenizer, &produced).unwrap();
        assert_eq!((difference.position, difference.got), (last, None));
    }
}
