//! A model, a batch and what they give, for tests of single steps.

use std::collections::BTreeMap;

use driftgauge_protocol::fault::{Change, Edit, Fault, StepEdit};
use driftgauge_protocol::{
    Backend, Batch, BertConfig, Dtype, LoadRequest, LoadedModel, Stage, Step, Tensor,
};
use half::{bf16, f16};

use crate::backend::Candle;
use crate::fixture::{Checkpoint, load_request, padded_batch, tiny};

/// Tensors by name: observations, or steps.
pub type Tensors = BTreeMap<String, Tensor>;

/// A checkpoint, and what the model without a fault gives for a batch.
pub struct Bench {
    pub config: BertConfig,
    pub dtype: Dtype,
    pub batch: Batch,
    pub checkpoint: Checkpoint,
    /// The observations without a fault.
    pub observed: Tensors,
}

impl Bench {
    /// The tiny model and the padded batch.
    pub fn tiny() -> Self {
        Self::new(tiny(), Dtype::F32, padded_batch())
    }

    pub fn new(config: BertConfig, dtype: Dtype, batch: Batch) -> Self {
        let mut bench = Self {
            checkpoint: Checkpoint::random(&config, Dtype::F32),
            config,
            dtype,
            batch,
            observed: Tensors::new(),
        };
        bench.observed = bench.run(vec![]);
        bench
    }

    pub fn stages(&self) -> Vec<Stage> {
        Stage::all(self.config.num_hidden_layers, true)
    }

    /// The model under edits; without a fault where there are none.
    pub fn model(&self, edits: Vec<Edit>) -> Box<dyn LoadedModel> {
        let name = "f".to_owned();
        let request = LoadRequest {
            config: self.config.clone(),
            fault: (!edits.is_empty()).then_some(Fault { name, edits }),
            ..load_request(&self.checkpoint, self.dtype)
        };
        Candle.load(&request).unwrap().0
    }

    /// All observations under edits.
    pub fn run(&self, edits: Vec<Edit>) -> Tensors {
        self.run_model(&mut *self.model(edits))
    }

    pub fn run_model(&self, model: &mut dyn LoadedModel) -> Tensors {
        let wanted: Vec<String> = self.stages().into_iter().map(Stage::observation).collect();
        model.run(&self.batch, &wanted).unwrap()
    }

    /// The hidden state before a stage, without a fault.
    pub fn before(&self, stage: Stage) -> Option<&Tensor> {
        let before = match stage {
            Stage::Embeddings => return None,
            Stage::Layer(1) => Stage::Embeddings,
            Stage::Layer(layer) => Stage::Layer(layer - 1),
            Stage::Head => Stage::Layer(self.config.num_hidden_layers),
        };
        Some(&self.observed[&before.observation()])
    }

    /// The steps of a stage under edits, from the hidden state that there is without a fault.
    pub fn probe(&self, stage: Stage, edits: Vec<Edit>) -> Tensors {
        let mut model = self.model(edits);
        model.probe(stage, &self.batch, self.before(stage)).unwrap()
    }

    /// What a dense step or a layer norm starts from, without a fault.
    pub fn input(&self, stage: Stage, step: Step, clean: &Tensors) -> Vec<f32> {
        let source = match (stage, step) {
            (_, Step::Query | Step::Key | Step::Value | Step::Transform) => {
                return self.before(stage).unwrap().to_f32();
            }
            (_, Step::AttentionOutput) => Step::Context,
            (_, Step::AttentionNorm) => Step::AttentionSum,
            (_, Step::Intermediate) => Step::AttentionNorm,
            (_, Step::Output) | (Stage::Head, Step::Norm) => Step::Activation,
            (_, Step::Norm) => Step::Sum,
            (_, Step::Logits) => Step::Norm,
            _ => unreachable!("{step} has no weights"),
        };
        clean[source.name()].to_f32()
    }

    /// Weight and bias of a step.
    pub fn weights(&self, stage: Stage, step: Step) -> (Vec<f32>, Vec<f32>) {
        let module = step.module(stage).unwrap();
        let numbers = |part| self.checkpoint.numbers(&format!("{module}.{part}"));
        (numbers("weight"), numbers("bias"))
    }

    /// A change wherever it fits.
    pub fn everywhere(&self, change: Change) -> Vec<Edit> {
        let places = self.stages().into_iter();
        places
            .flat_map(|stage| stage.steps().iter().map(move |step| (stage, *step)))
            .filter(|(stage, step)| change.fits(*stage, *step))
            .map(|(stage, step)| edit(stage, step, change))
            .collect()
    }
}

/// A change of a step.
pub fn edit(stage: Stage, step: Step, change: Change) -> Edit {
    Edit::Step(StepEdit {
        stage,
        step,
        change,
    })
}

/// Bits of f32 numbers, in which NaN is equal to itself.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Whether numbers are as far apart as f32 arithmetic makes them, seen from the largest of them.
pub fn is_close(values: &[f32], expected: &[f64]) -> bool {
    assert_eq!(values.len(), expected.len());
    let largest = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    let mut pairs = values.iter().zip(expected);
    pairs.all(|(value, expected)| (f64::from(*value) - expected).abs() <= 2e-6 * largest)
}

/// A number in a narrower format and back.
pub fn round(value: f32, to: Dtype) -> f32 {
    match to {
        Dtype::F16 => f16::from_f32(value).to_f32(),
        Dtype::Bf16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// Places where a change fits.
pub fn places(bench: &Bench, change: Change) -> Vec<(Stage, Step)> {
    let edits = bench.everywhere(change).into_iter();
    edits
        .filter_map(|edit| match edit {
            Edit::Step(edit) => Some((edit.stage, edit.step)),
            _ => None,
        })
        .collect()
}

/// The clean and the faulty steps of a stage, whose steps before the changed one must be the same.
pub fn clean_and_faulty(bench: &Bench, stage: Stage, step: Step, change: Change) -> [Tensors; 2] {
    let clean = bench.probe(stage, vec![]);
    let faulty = bench.probe(stage, vec![edit(stage, step, change)]);
    for before in stage.steps().iter().take_while(|before| **before != step) {
        let name = before.name();
        assert!(clean[name] == faulty[name], "{stage} {name}, {change:?}");
    }
    [clean, faulty]
}
