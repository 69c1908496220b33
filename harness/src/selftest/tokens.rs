//! Faults of the tokenizer: token IDs are compared, in integers.

use driftgauge_reports::selftest::{Status, TokenTrial};

use crate::catalogue::tokenizer::TokenizerFault;
use crate::catalogue::tokenizer::attribution::{Effect, attribute, first_difference, imitations};
use crate::model::Model;
use crate::plan::Plan;

/// Tries faults of the tokenizer on all cases of a plan: whether any token differs, and whether what differs is
/// that of the one fault.
pub fn try_all(model: &Model, plan: &Plan, faults: &[TokenizerFault]) -> Vec<TokenTrial> {
    if faults.is_empty() {
        return Vec::new();
    }
    let imitations = imitations(plan, &model.tokenizer);
    let wanted = imitations.iter().filter(|one| faults.contains(&one.fault));
    wanted
        .map(|imitation| {
            let mut trial = TokenTrial {
                fault: imitation.fault.name().to_owned(),
                title: imitation.fault.title().to_owned(),
                status: Status::NotExercised,
                cases: 0,
                note: String::new(),
                cause_right: None,
            };
            match &imitation.effect {
                Effect::NotExercised { reason } => trial.note.clone_from(reason),
                Effect::Changes { produced, cases } => {
                    let difference = first_difference(plan, &model.tokenizer, produced);
                    trial.cases = cases.len();
                    trial.status = match difference.is_some() {
                        true => Status::Detected,
                        false => Status::Missed,
                    };
                    trial.note = difference.map_or(String::new(), |one| one.to_string());
                    let causes = attribute(&imitations, produced);
                    trial.cause_right = Some(causes == [imitation.fault]);
                }
            }
            trial
        })
        .collect()
}
