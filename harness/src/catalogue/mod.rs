//! The catalogue of faults: what is known to go wrong in BERT inference, as data and as code.
//!
//! An [`Entry`] says what a fault is, where in the model it can sit, what edits make it, how it should be
//! found, and what it usually means. Adding a fault is adding one entry to a file of `entries`. The
//! self-test injects every entry; attribution compares what a target does with what every entry would do.

mod entries;
pub mod tokenizer;

use driftgauge_protocol::fault::{Change, Edit, Fault, StepEdit, WeightChange, WeightEdit};
use driftgauge_protocol::{BertConfig, Dtype, Stage, Step};

/// A known fault.
#[derive(Debug)]
pub struct Entry {
    /// Its name: `gelu-tanh`.
    pub name: &'static str,
    /// What it is, in a few words.
    pub title: &'static str,
    /// How it should be found.
    pub kind: Kind,
    /// Where it can sit.
    pub places: &'static [Place],
    /// Whether it usually sits at all its places at once, because a configuration makes it.
    pub everywhere: bool,
    /// The edits that make it at one place.
    pub edits: fn(&At<'_>) -> Vec<Edit>,
    /// What it usually means.
    pub means: &'static str,
    /// Threads and sources that document it, `owner/name#number`; empty where none was found.
    pub evidence: &'static [&'static str],
    /// What to try.
    pub advice: &'static str,
}

/// How a fault should be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As another formula, or other weights.
    Semantic,
    /// As a lower precision.
    Precision,
    /// As damage: not finite, or in another place.
    Damage,
    /// As a result that is another one in the next run.
    Unsteady,
    /// Not at all, in any implementation: it changes nothing that can be seen. Holds why.
    Benign(&'static str),
}

/// A place for a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A step of the embedding stage.
    Embeddings(Step),
    /// A step of a layer.
    Layer(Step),
    /// A step of the head.
    Head(Step),
    /// What is fed or answered.
    Whole,
}

/// A place in a certain model.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// The model's architecture.
    pub config: &'a BertConfig,
    /// The stage; the embedding stage for [`Place::Whole`].
    pub stage: Stage,
    /// The step.
    pub step: Step,
}

/// A fault at a place in a model.
#[derive(Debug, Clone)]
pub struct Instance {
    /// The entry.
    pub entry: &'static Entry,
    /// Where it sits; `None` for the whole model.
    pub stage: Option<Stage>,
    /// The step, where it sits in one.
    pub step: Option<Step>,
    /// The fault.
    pub fault: Fault,
}

/// All entries, by topic.
pub fn all() -> impl Iterator<Item = &'static Entry> {
    entries::ALL.iter().copied().flatten()
}

impl Entry {
    /// The fault at every place of a model where it can sit.
    pub fn instances(&'static self, config: &BertConfig, head: bool) -> Vec<Instance> {
        let mut instances = Vec::new();
        for place in self.places {
            for (stage, step) in place.in_model(config, head) {
                let at = At {
                    config,
                    stage,
                    step,
                };
                let is_whole = *place == Place::Whole;
                let fits = (self.edits)(&at);
                if fits.is_empty() {
                    continue;
                }
                let place = match is_whole {
                    true => String::new(),
                    false => format!(" in {stage}, {step}"),
                };
                instances.push(Instance {
                    entry: self,
                    stage: (!is_whole).then_some(stage),
                    step: (!is_whole).then_some(step),
                    fault: Fault {
                        name: format!("{}{place}", self.name),
                        edits: fits,
                    },
                });
            }
        }
        instances
    }

    /// The fault at all its places at once, where it usually sits so.
    pub fn everywhere(&'static self, config: &BertConfig, head: bool) -> Option<Instance> {
        if !self.everywhere {
            return None;
        }
        let instances = self.instances(config, head);
        let edits = instances.into_iter().flat_map(|one| one.fault.edits);
        Some(Instance {
            entry: self,
            stage: None,
            step: None,
            fault: Fault {
                name: format!("{} everywhere", self.name),
                edits: edits.collect(),
            },
        })
    }
}

impl Instance {
    /// Size of the noise that it adds anew in every run, if it adds any.
    pub fn size(&self) -> Option<f64> {
        self.fault.step_edits().find_map(|edit| match edit.change {
            Change::Noise(size) => Some(size),
            _ => None,
        })
    }
}

impl Place {
    fn in_model(self, config: &BertConfig, head: bool) -> Vec<(Stage, Step)> {
        match self {
            Self::Embeddings(step) => vec![(Stage::Embeddings, step)],
            Self::Layer(step) => (1..=config.num_hidden_layers)
                .map(|layer| (Stage::Layer(layer), step))
                .collect(),
            Self::Head(step) => head.then_some((Stage::Head, step)).into_iter().collect(),
            Self::Whole => vec![(Stage::Embeddings, Step::Sum)],
        }
    }
}

impl At<'_> {
    /// A change of this step.
    fn step(&self, change: Change) -> Edit {
        self.at(self.step, change)
    }

    /// A change of a step of this stage.
    fn at(&self, step: Step, change: Change) -> Edit {
        Edit::Step(StepEdit {
            stage: self.stage,
            step,
            change,
        })
    }

    /// A change of this step's weight or bias.
    fn own(&self, part: &str, change: WeightChange) -> Edit {
        self.of(self.step, part, change)
    }

    /// A change of the weight or bias of a step of this stage.
    fn of(&self, step: Step, part: &str, change: WeightChange) -> Edit {
        tensor(self.name(self.stage, step, part), change)
    }

    /// Canonical name of the weight or bias of a step.
    fn name(&self, stage: Stage, step: Step, part: &str) -> String {
        let module = step.module(stage);
        let module = module.expect("an entry changes the weights of steps that have some");
        format!("{module}.{part}")
    }

    /// Steps of this stage that are dense layers.
    fn dense_steps(&self) -> &'static [Step] {
        match self.stage {
            Stage::Embeddings => &[],
            Stage::Layer(_) => &[
                Step::Query,
                Step::Key,
                Step::Value,
                Step::AttentionOutput,
                Step::Intermediate,
                Step::Output,
            ],
            Stage::Head => &[Step::Transform, Step::Logits],
        }
    }

    /// Both operands of every dense layer of this stage rounded.
    fn rounded_operands(&self, to: Dtype) -> Vec<Edit> {
        let steps = self.dense_steps().iter();
        steps
            .flat_map(|step| {
                [
                    self.of(*step, "weight", WeightChange::Round(to)),
                    self.at(*step, Change::RoundInput(to)),
                ]
            })
            .collect()
    }

    /// Every weight of the dense layers of this stage changed.
    fn dense_weights(&self, change: &WeightChange) -> Vec<Edit> {
        let steps = self.dense_steps().iter();
        steps
            .map(|step| self.of(*step, "weight", change.clone()))
            .collect()
    }

    /// All weights of this layer are those of another one.
    fn layer_from(&self, other: usize) -> Vec<Edit> {
        let steps = self.stage.steps().iter();
        let parts = steps.filter(|step| step.module(self.stage).is_some());
        parts
            .flat_map(|step| {
                ["weight", "bias"].map(|part| {
                    let from = self.name(Stage::Layer(other), *step, part);
                    self.of(*step, part, WeightChange::Copy(from))
                })
            })
            .collect()
    }

    /// Number of this layer, counted from 1.
    fn layer(&self) -> usize {
        match self.stage {
            Stage::Layer(layer) => layer,
            _ => 0,
        }
    }
}

/// A change of a tensor.
fn tensor(name: impl Into<String>, change: WeightChange) -> Edit {
    Edit::Weights(WeightEdit {
        tensor: name.into(),
        change,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::model::Model;

    fn model() -> Model {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/models/zh-mini");
        Model::open(&directory, &[]).unwrap()
    }

    #[test]
    fn entries_are_complete_and_named_once() {
        let mut names = BTreeSet::new();
        for entry in all() {
            let name = entry.name;
            assert!(names.insert(name), "{name} is there twice");
            let is_kebab = name.split('-').all(|word| {
                let mut letters = word.chars();
                !word.is_empty() && letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
            });
            assert!(is_kebab, "{name}");
            let why = match entry.kind {
                Kind::Benign(why) => why,
                _ => "-",
            };
            for text in [entry.title, entry.means, entry.advice, why] {
                assert!(
                    !text.trim().is_empty() && text.trim() == text,
                    "{name}: {text:?}"
                );
                assert!(!text.ends_with('.'), "{name}: no whole sentence: {text:?}");
            }
            for thread in entry.evidence {
                assert!(is_thread(thread), "{name}: {thread:?}");
            }
        }
        assert!(names.len() >= 45, "{} entries", names.len());
        let tokenizer = tokenizer::TokenizerFault::ALL.iter();
        for fault in tokenizer {
            assert!(
                names.insert(fault.name()),
                "{} is there twice",
                fault.name()
            );
        }
    }

    /// `owner/name#number`, `name#number`, or words.
    fn is_thread(text: &str) -> bool {
        match text.split_once('#') {
            Some((repository, number)) => {
                let mut parts = repository.split('/');
                number.parse::<u32>().is_ok()
                    && repository.split('/').count() <= 2
                    && parts.all(|part| !part.is_empty() && !part.contains(' '))
            }
            None => text.contains(' '),
        }
    }

    /// Every fault has a place in a model with a head, every change fits its step, every tensor is there.
    #[test]
    fn every_instance_fits_the_model() {
        let model = model();
        let stages = Stage::all(model.config.num_hidden_layers, true);
        for entry in all() {
            let instances = entry.instances(&model.config, true);
            assert!(!instances.is_empty(), "{} has no place", entry.name);
            let mut names = BTreeSet::new();
            for instance in &instances {
                let fault = &instance.fault;
                assert!(
                    names.insert(fault.name.clone()),
                    "{} is there twice",
                    fault.name
                );
                assert!(!fault.edits.is_empty(), "{} changes nothing", fault.name);
                for edit in fault.step_edits() {
                    let fits = edit.change.fits(edit.stage, edit.step);
                    assert!(
                        fits && stages.contains(&edit.stage),
                        "{}: {edit:?}",
                        fault.name
                    );
                    assert_eq!(Some(edit.stage), instance.stage, "{}", fault.name);
                }
                for edit in fault.weight_edits() {
                    let is_there = model.weights.find(&edit.tensor).is_some();
                    assert!(is_there, "{}: no `{}`", fault.name, edit.tensor);
                }
                assert_eq!(
                    instance.size().is_some(),
                    entry.kind == Kind::Unsteady,
                    "{}",
                    fault.name
                );
            }
            if let Some(everywhere) = entry.everywhere(&model.config, true) {
                let edits = instances.iter().map(|one| one.fault.edits.len());
                assert_eq!(everywhere.fault.edits.len(), edits.sum::<usize>());
                assert!(instances.len() > 1, "{} sits at one place", entry.name);
            }
        }
    }

    #[test]
    fn without_a_head_nothing_sits_there() {
        let config = model().config;
        let instances = all().flat_map(|entry| entry.instances(&config, false));
        let at_head = instances.filter(|one| one.stage == Some(Stage::Head));
        assert_eq!(at_head.count(), 0);
    }

    /// A layer cannot have the weights of the one before the first.
    #[test]
    fn a_stale_layer_starts_with_the_second() {
        let config = model().config;
        let entry = all().find(|entry| entry.name == "stale-layer").unwrap();
        let stages: Vec<_> = entry
            .instances(&config, true)
            .iter()
            .filter_map(|one| one.stage)
            .collect();
        let expected: Vec<_> = (2..=config.num_hidden_layers).map(Stage::Layer).collect();
        assert_eq!(stages, expected);
    }
}
