//! A model that somebody else exported: a user's own `.onnx` file in the place of our graph.
//!
//! Its inputs and outputs are taken as they are found ([`interface`]); it is offered for what can be told to be an
//! observation. It is read once, hashed, and loaded from what was read. Nothing of it is changed, so there are no
//! faults, no probes and no float64 twin.

mod files;
mod interface;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use driftgauge_protocol::{
    Batch, Dtype, Failure, LoadRequest, LoadedModel, Properties, Tensor, observation,
};
use ort::session::{Session, SessionInputValue};
use ort::value::{Tensor as Value, TensorRef};

use self::files::{External, Files};
use self::interface::{Expected, Integer, Interface, listed, outlets};
use crate::graph::INPUTS;
use crate::model::{failed, logit_rows, output, selected};
use crate::session::{self, Settings};
use crate::values;

/// A session of an exported model.
pub(crate) struct Exported {
    session: Session,
    interface: Interface,
    external: External,
    dtype: Dtype,
    widths: [usize; 2],
}

/// What a load states of an exported model.
pub(crate) struct Facts {
    /// The observations that it offers.
    pub(crate) observations: Vec<String>,
    /// Which file it is, and what was found in it.
    pub(crate) properties: Properties,
}

/// Loads a model file.
///
/// # Errors
/// [`driftgauge_protocol::FailureKind::Unsupported`] for a fault, `f64`, and for inputs and outputs that are not
/// those of a BERT; an error for a file that is missing or cannot be loaded.
pub(crate) fn load(
    path: &Path,
    settings: &Settings,
    request: &LoadRequest,
) -> Result<(Exported, Facts), Failure> {
    if let Some(fault) = &request.fault {
        let name = &fault.name;
        return Err(Failure::unsupported(format!(
            "fault `{name}`: a model of one's own (option `model`) takes no faults"
        )));
    }
    if request.dtype == Dtype::F64 {
        return Err(Failure::unsupported(
            "a model of one's own (option `model`) has no f64 twin: its file says what it computes in",
        ));
    }
    let files = Files::open(path)?;
    let session = session::options(settings)
        .and_then(|options| session::commit_bytes(options, &files.model, path));
    let session = session.map_err(|error| {
        Failure::error(format!("`{}` cannot be loaded: {error}", path.display()))
    })?;
    let expected = Expected {
        config: &request.config,
        mlm_head: request.mlm_head,
        dtype: request.dtype,
    };
    let (inputs, outputs) = outlets(&session);
    let found = Interface::of(&inputs, outputs, &expected);
    let interface = found.map_err(|failure| Failure {
        message: format!("`{}`: {}", path.display(), failure.message),
        ..failure
    })?;
    let facts = Facts {
        observations: interface
            .outputs
            .iter()
            .map(|(name, _)| name.clone())
            .collect(),
        properties: properties(&files, &listed(&inputs), &interface)?,
    };
    files.external.check_unchanged()?;
    let mut model = Exported {
        session,
        interface,
        external: files.external,
        dtype: request.dtype,
        widths: [request.config.hidden_size, request.config.vocab_size],
    };
    // What is declared need not be what comes out.
    model
        .run(&Batch::one_token(), &facts.observations)
        .map_err(|failure| Failure {
            message: format!(
                "`{}` cannot run one token: {}",
                files.path.display(),
                failure.message
            ),
            ..failure
        })?;
    Ok((model, facts))
}

impl LoadedModel for Exported {
    fn run(
        &mut self,
        batch: &Batch,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Tensor>, Failure> {
        self.external.check_unchanged()?;
        let wanted: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        let feed = feed(&self.interface, batch)?;
        let fetched = self.interface.outputs.iter();
        let fetched: Vec<_> = fetched
            .filter(|(name, _)| wanted.contains(name.as_str()))
            .collect();
        let names = fetched.iter().map(|(_, output)| output.as_str());
        let options = selected(names).map_err(failed)?;
        let outputs = self
            .session
            .run_with_options(feed, &options)
            .map_err(failed)?;
        let mut observed = BTreeMap::new();
        for (name, source) in fetched {
            let is_logits = name == observation::LOGITS;
            let value = output(&outputs, source)?;
            let [hidden, vocabulary] = self.widths;
            let width = if is_logits { vocabulary } else { hidden };
            let expected = [batch.sequences, batch.length, width];
            let found = value.dtype().tensor_shape();
            let found: Vec<i64> = found.map(|shape| shape.to_vec()).unwrap_or_default();
            if found != expected.map(|extent| extent as i64) {
                return Err(Failure::error(format!(
                    "output `{source}` has the shape {found:?}, expected {expected:?}"
                )));
            }
            let rows = is_logits.then(|| logit_rows(batch));
            observed.insert(name.clone(), values::tensor(value, self.dtype, rows)?);
        }
        Ok(observed)
    }

    fn probe(
        &mut self,
        _: driftgauge_protocol::Stage,
        _: &Batch,
        _: Option<&Tensor>,
    ) -> Result<BTreeMap<String, Tensor>, Failure> {
        Err(Failure::unsupported(
            "a model of one's own (option `model`) does not show its steps",
        ))
    }
}

type Feed<'a> = Vec<(Cow<'a, str>, SessionInputValue<'a>)>;

/// A batch as the model takes it.
fn feed<'a>(interface: &Interface, batch: &'a Batch) -> Result<Feed<'a>, Failure> {
    let [_, types, _] = INPUTS;
    let takes_types = interface
        .inputs
        .iter()
        .any(|(place, _)| INPUTS[*place] == types);
    if !takes_types && batch.token_type_ids.iter().any(|kind| *kind != 0) {
        return Err(Failure::unsupported(format!(
            "the model has no input `{types}`, and the batch has second segments"
        )));
    }
    let shape = [batch.sequences, batch.length];
    let parts = [
        &batch.input_ids,
        &batch.token_type_ids,
        &batch.attention_mask,
    ];
    let feed = interface.inputs.iter().map(|(place, integer)| {
        let numbers = parts[*place];
        let value = match integer {
            Integer::I64 => TensorRef::from_array_view((shape, &numbers[..])).map(Into::into),
            // A batch holds nothing that a model has no embedding for, and no table has 2^31 rows.
            Integer::I32 => {
                let numbers: Vec<i32> = numbers.iter().map(|number| *number as i32).collect();
                Value::from_array((shape, numbers)).map(Into::into)
            }
        };
        Ok((INPUTS[*place].into(), value.map_err(failed)?))
    });
    feed.collect()
}

fn properties(files: &Files, inputs: &str, interface: &Interface) -> Result<Properties, Failure> {
    let outline = &files.outline;
    let opset = outline
        .opset_import
        .iter()
        .find(|set| set.domain.is_empty());
    let external = files.external.digests()?;
    let external: Vec<String> = external
        .into_iter()
        .map(|(name, digest)| format!("{name} {digest}"))
        .collect();
    let file = files.path.file_name().unwrap_or_default();
    Ok([
        ("external_data", external.join(", ")),
        ("ir_version", outline.ir_version.to_string()),
        ("model_file", file.to_string_lossy().into_owned()),
        ("model_inputs", inputs.to_owned()),
        ("model_outputs_ignored", listed(&interface.ignored)),
        (
            "model_producer",
            format!("{} {}", outline.producer_name, outline.producer_version),
        ),
        ("model_sha256", files.sha256.clone()),
        (
            "opset",
            opset.map(|set| set.version.to_string()).unwrap_or_default(),
        ),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into())
}
