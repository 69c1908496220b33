//! A loaded model: feeds a batch, fetches the observations.

use std::collections::{BTreeMap, BTreeSet};

use driftgauge_protocol::fault::Fault;
use driftgauge_protocol::{
    Batch, BertConfig, Dtype, Failure, LoadedModel, Stage, Step, Tensor, Weights, observation,
};
use ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, Session, SessionOutputs};
use ort::value::{DynValue, TensorRef};

use crate::graph::{self, INPUTS, Source};
use crate::session::{self, Settings};
use crate::values::{self, Rows};

/// The sessions, and what is needed to make more of them and to check what goes in and comes out.
pub(crate) struct Model {
    pub(crate) encoder: Session,
    /// From the last hidden state to the logits.
    pub(crate) head: Option<Session>,
    /// Stages with every step as an output, made when they are asked for.
    pub(crate) stages: BTreeMap<Stage, StageSession>,
    pub(crate) settings: Settings,
    pub(crate) config: BertConfig,
    pub(crate) dtype: Dtype,
    /// The session maps the word embeddings for as long as it lives, so the file is checked at every
    /// run.
    pub(crate) weights: Weights,
    pub(crate) fault: Option<Fault>,
}

/// A stage, and the output that holds each of its steps.
pub(crate) struct StageSession {
    session: Session,
    steps: Vec<(Step, String)>,
}

impl LoadedModel for Model {
    fn run(
        &mut self,
        batch: &Batch,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Tensor>, Failure> {
        self.weights.check_unchanged()?;
        let wanted: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.compute(batch, &wanted)
    }

    fn probe(
        &mut self,
        stage: Stage,
        batch: &Batch,
        input: Option<&Tensor>,
    ) -> Result<BTreeMap<String, Tensor>, Failure> {
        self.weights.check_unchanged()?;
        if stage == Stage::Head && self.head.is_none() {
            return Err(Failure::error(
                "the head cannot be probed: the model was loaded without it",
            ));
        }
        if !self.stages.contains_key(&stage) {
            let session = self.stage_session(stage)?;
            self.stages.insert(stage, session);
        }
        self.compute_stage(stage, batch, input)
    }
}

impl Model {
    fn compute(
        &mut self,
        batch: &Batch,
        wanted: &BTreeSet<&str>,
    ) -> Result<BTreeMap<String, Tensor>, Failure> {
        let last = observation::hidden(self.config.num_hidden_layers);
        let wants_logits = wanted.contains(observation::LOGITS);
        let states = wanted
            .iter()
            .copied()
            .filter(|name| *name != observation::LOGITS);
        let needed: BTreeSet<&str> = states
            .clone()
            .chain(wants_logits.then_some(&*last))
            .collect();
        let integers = Integers::new(batch, &self.config, self.fault.as_ref());
        let options = selected(needed.into_iter()).map_err(failed)?;
        let outputs = self
            .encoder
            .run_with_options(integers.all()?, &options)
            .map_err(failed)?;
        let mut observed = BTreeMap::new();
        for name in states {
            let state = values::tensor(output(&outputs, name)?, self.dtype, None)?;
            observed.insert(name.to_owned(), state);
        }
        if let (true, Some(head)) = (wants_logits, &mut self.head) {
            let inputs = ort::inputs! { &*last => output(&outputs, &last)? };
            let scores = head.run(inputs).map_err(failed)?;
            let logits = output(&scores, observation::LOGITS)?;
            let logits = values::tensor(logits, self.dtype, Some(logit_rows(batch)))?;
            observed.insert(observation::LOGITS.to_owned(), logits);
        }
        Ok(observed)
    }

    fn stage_session(&self, stage: Stage) -> Result<StageSession, Failure> {
        let source = Source {
            config: &self.config,
            weights: &self.weights,
            dtype: self.dtype,
            fault: self.fault.as_ref(),
        };
        let written = graph::write_stage(source, stage)?;
        let session = session::create(&self.settings, &written.model, self.weights.path())
            .map_err(|error| session::failure(&error, self.dtype))?;
        self.weights.check_unchanged()?;
        Ok(StageSession {
            session,
            steps: written.steps,
        })
    }

    fn compute_stage(
        &mut self,
        stage: Stage,
        batch: &Batch,
        input: Option<&Tensor>,
    ) -> Result<BTreeMap<String, Tensor>, Failure> {
        let integers = Integers::new(batch, &self.config, self.fault.as_ref());
        let Some(StageSession { session, steps }) = self.stages.get_mut(&stage) else {
            return Err(Failure::error(format!("`{stage}` has no session")));
        };
        let names: BTreeSet<&str> = session.inputs().iter().map(|input| input.name()).collect();
        let mut inputs = integers.some(&names)?;
        if let Some(input) = input {
            let before = match stage {
                Stage::Embeddings | Stage::Layer(0 | 1) => observation::EMBEDDINGS.to_owned(),
                Stage::Layer(layer) => observation::hidden(layer - 1),
                Stage::Head => observation::hidden(self.config.num_hidden_layers),
            };
            inputs.push((before.into(), values::value(input)?.into()));
        }
        let outputs = session.run(inputs).map_err(failed)?;
        let mut results = BTreeMap::new();
        for (step, name) in &*steps {
            let value = output(&outputs, name)?;
            let rows = (stage == Stage::Head).then(|| logit_rows(batch));
            let mut result = values::tensor(value, self.dtype, rows)?;
            let attends = matches!(step, Step::Scores | Step::Probabilities);
            if stage != Stage::Head && !attends {
                let tokens = batch.sequences * batch.length;
                let numbers = result.bytes().len() / self.dtype.size();
                let shape = vec![batch.sequences, batch.length, numbers / tokens];
                result = values::reshaped(&result, shape)?;
            }
            results.insert(step.name().to_owned(), result);
        }
        Ok(results)
    }
}

pub(crate) fn logit_rows(batch: &Batch) -> Rows<'_> {
    Rows {
        wanted: &batch.logit_rows,
        length: batch.length,
    }
}

/// What is fed beside hidden states, by name.
struct Integers<'a> {
    shape: [usize; 2],
    shared: [(&'static str, &'a [i64]); 3],
    /// Masks of single layers.
    own: Vec<(String, Vec<i64>)>,
}

type Feed<'a> = Vec<(
    std::borrow::Cow<'a, str>,
    ort::session::SessionInputValue<'a>,
)>;

impl<'a> Integers<'a> {
    fn new(batch: &'a Batch, config: &BertConfig, fault: Option<&Fault>) -> Self {
        let [ids, types, mask] = INPUTS;
        let own = fault.into_iter().flat_map(|fault| {
            let layers = graph::masked_layers(config, Some(fault));
            layers.into_iter().filter_map(|layer| {
                let mask = fault.mask(layer, batch)?;
                Some((graph::mask_input(layer), mask.attended))
            })
        });
        Self {
            shape: [batch.sequences, batch.length],
            shared: [
                (ids, &batch.input_ids),
                (types, &batch.token_type_ids),
                (mask, &batch.attention_mask),
            ],
            own: own.collect(),
        }
    }

    /// Everything.
    fn all(&self) -> Result<Feed<'_>, Failure> {
        let own = self.own.iter().map(|(name, mask)| (&**name, &**mask));
        let all = self.shared.into_iter().chain(own);
        all.map(|(name, values)| {
            let value = TensorRef::from_array_view((self.shape, values)).map_err(failed)?;
            Ok((name.into(), value.into()))
        })
        .collect()
    }

    /// What a session has an input for.
    fn some(&self, names: &BTreeSet<&str>) -> Result<Feed<'_>, Failure> {
        let mut feed = self.all()?;
        feed.retain(|(name, _)| names.contains(&**name));
        Ok(feed)
    }
}

/// ONNX Runtime computes every node of a graph, whatever is fetched; selecting outputs only spares
/// their copies.
pub(crate) fn selected<'a>(
    names: impl Iterator<Item = &'a str>,
) -> ort::Result<RunOptions<HasSelectedOutputs>> {
    let outputs = names.fold(OutputSelector::no_default(), OutputSelector::with);
    Ok(RunOptions::new()?.with_outputs(outputs))
}

pub(crate) fn failed(error: ort::Error) -> Failure {
    Failure::error(format!("ONNX Runtime: {error}"))
}

pub(crate) fn output<'a>(
    outputs: &'a SessionOutputs<'_>,
    name: &str,
) -> Result<&'a DynValue, Failure> {
    let missing = || Failure::error(format!("ONNX Runtime returned no output `{name}`"));
    outputs.get(name).ok_or_else(missing)
}
