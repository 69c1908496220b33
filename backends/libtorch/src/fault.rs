//! Which faults mean something to a model.

use driftgauge_protocol::fault::{Change, Fault};
use driftgauge_protocol::{Dtype, Failure, LoadRequest, Stage};

/// Checks that a fault changes the model that is asked for; one that does not would pass for one that is not
/// found.
///
/// # Errors
/// For a change of a stage that the model has not, or to no format.
pub fn check(fault: &Fault, request: &LoadRequest) -> Result<(), Failure> {
    let stages = Stage::all(request.config.num_hidden_layers, request.mlm_head);
    for edit in fault.step_edits() {
        let why = match edit.change {
            _ if !stages.contains(&edit.stage) => format!("the model has no `{}`", edit.stage),
            Change::Round(Dtype::I64)
            | Change::RoundInput(Dtype::I64)
            | Change::Accumulate { to: Dtype::I64, .. } => {
                "i64 is no format to round to".to_owned()
            }
            Change::Accumulate { every: 0, .. } => "partial sums need an input".to_owned(),
            _ => continue,
        };
        return Err(Failure::error(format!("fault `{}`: {why}", fault.name)));
    }
    Ok(())
}
