//! What goes into an exported model and what comes out, matched with what the harness feeds and observes.

use std::fmt;

use driftgauge_protocol::{BertConfig, Dtype, Failure, observation};
use ort::session::Session;
use ort::value::{TensorElementType, ValueType};

use crate::graph::INPUTS;

/// An input or output, as the model declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outlet {
    pub(super) name: String,
    /// `None` for what is no tensor.
    pub(super) element: Option<TensorElementType>,
    /// Extents; -1 for one that is known when the model runs, none at all where nothing is stated.
    pub(super) shape: Vec<i64>,
}

/// An integer dtype that tokens are fed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Integer {
    I32,
    I64,
}

/// Which values are fed and fetched.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Interface {
    /// Inputs, as places in [`INPUTS`].
    pub(super) inputs: Vec<(usize, Integer)>,
    /// Observations, and the outputs that hold them.
    pub(super) outputs: Vec<(String, String)>,
    /// Outputs that are none of them.
    pub(super) ignored: Vec<Outlet>,
}

impl Interface {
    /// Matches a model's inputs and outputs.
    ///
    /// # Errors
    /// [`driftgauge_protocol::FailureKind::Unsupported`] for a model that wants something else, cannot mask
    /// padding, has nothing that is observed, or computes it in another dtype.
    pub(super) fn of(
        inputs: &[Outlet],
        outputs: Vec<Outlet>,
        expected: &Expected<'_>,
    ) -> Result<Self, Failure> {
        let fed = inputs.iter().map(input).collect::<Result<Vec<_>, _>>()?;
        let [ids, _, mask] = [0, 1, 2].map(|place| fed.iter().any(|(fed, _)| *fed == place));
        for (name, is_there) in [(INPUTS[0], ids), (INPUTS[2], mask)] {
            if !is_there {
                return Err(Failure::unsupported(format!(
                    "the model has no input `{name}` (it has {})",
                    listed(inputs)
                )));
            }
        }
        let found = observed(&outputs, expected);
        if found.is_empty() {
            let config = expected.config;
            let message = format!(
                "no output of the model fits the checkpoint, whose `logits` are {} wide and whose \
                 `last_hidden_state` is {} wide (it has {})",
                config.vocab_size,
                config.hidden_size,
                listed(&outputs)
            );
            let hint = "give the checkpoint that it was made from with --model";
            return Err(Failure::unsupported(message).with_hint(hint));
        }
        for (_, outlet) in &found {
            let element = outlet.element.map(|element| element.to_string());
            if element.as_deref() != Some(expected.dtype.name()) {
                return Err(Failure::unsupported(format!(
                    "the model computes {outlet}, and {} was asked for",
                    expected.dtype
                )));
            }
        }
        let named = found
            .into_iter()
            .map(|(name, outlet)| (name, outlet.name.clone()));
        let matched: Vec<(String, String)> = named.collect();
        let is_matched = |outlet: &Outlet| matched.iter().any(|(_, name)| *name == outlet.name);
        Ok(Self {
            inputs: fed,
            ignored: outputs
                .iter()
                .filter(|outlet| !is_matched(outlet))
                .cloned()
                .collect(),
            outputs: matched,
        })
    }
}

/// What the harness expects of a model.
pub(super) struct Expected<'a> {
    pub(super) config: &'a BertConfig,
    pub(super) mlm_head: bool,
    pub(super) dtype: Dtype,
}

/// The inputs and outputs of a session.
pub(super) fn outlets(session: &Session) -> (Vec<Outlet>, Vec<Outlet>) {
    let read = |outlets: &[ort::value::Outlet]| outlets.iter().map(Outlet::from).collect();
    (read(session.inputs()), read(session.outputs()))
}

/// Names and types, with commas between them.
pub(super) fn listed(outlets: &[Outlet]) -> String {
    let words: Vec<String> = outlets.iter().map(ToString::to_string).collect();
    match words.is_empty() {
        true => "none".to_owned(),
        false => words.join(", "),
    }
}

/// The place of an input in [`INPUTS`], and its dtype.
fn input(outlet: &Outlet) -> Result<(usize, Integer), Failure> {
    let refused = |why: String| Failure::unsupported(format!("input {outlet} {why}"));
    let place = INPUTS.iter().position(|name| *name == outlet.name);
    let known = INPUTS.join(", ");
    let place =
        place.ok_or_else(|| refused(format!("is none that a batch has (it has {known})")))?;
    let integer = match outlet.element {
        Some(TensorElementType::Int64) => Integer::I64,
        Some(TensorElementType::Int32) => Integer::I32,
        _ => return Err(refused("is not of i64 or i32".to_owned())),
    };
    match *outlet.shape {
        [] | [-1, -1] => Ok((place, integer)),
        [_, _] => Err(refused("takes batches of one size only".to_owned())),
        _ => Err(refused("is not of rank 2".to_owned())),
    }
}

/// The observations there are, each with its output: by name, and else by shape where only one output has it
/// and it can be only one observation.
fn observed<'a>(outputs: &'a [Outlet], expected: &Expected<'_>) -> Vec<(String, &'a Outlet)> {
    let BertConfig {
        hidden_size,
        vocab_size,
        num_hidden_layers,
        ..
    } = *expected.config;
    let last = observation::hidden(num_hidden_layers);
    let mut wanted = vec![(last, "last_hidden_state", hidden_size)];
    if expected.mlm_head {
        let logits = observation::LOGITS;
        wanted.push((logits.to_owned(), logits, vocab_size));
    }
    let names: Vec<&str> = wanted.iter().map(|(_, name, _)| *name).collect();
    let mut found = Vec::new();
    for (name, output, width) in wanted {
        let named = outputs.iter().find(|outlet| outlet.name == output);
        let named = named.filter(|outlet| outlet.may_hold(width));
        let is_free = |outlet: &&Outlet| !names.contains(&&*outlet.name) && outlet.holds(width);
        let shaped = || {
            let mut shaped = outputs.iter().filter(is_free);
            let only = shaped.next().filter(|_| hidden_size != vocab_size)?;
            shaped.next().is_none().then_some(only)
        };
        if let Some(outlet) = named.or_else(shaped) {
            found.push((name, outlet));
        }
    }
    found
}

impl Outlet {
    /// Whether it is known to have rows of a width, `[batch, sequence, width]`.
    fn holds(&self, width: usize) -> bool {
        matches!(*self.shape, [_, _, last] if last == width as i64)
    }

    /// Whether it is not known to have anything else.
    fn may_hold(&self, width: usize) -> bool {
        matches!(*self.shape, [] | [_, _, -1]) || self.holds(width)
    }
}

impl From<&ort::value::Outlet> for Outlet {
    fn from(outlet: &ort::value::Outlet) -> Self {
        let (element, shape) = match outlet.dtype() {
            ValueType::Tensor { ty, shape, .. } => (Some(*ty), shape.to_vec()),
            _ => (None, Vec::new()),
        };
        Self {
            name: outlet.name().to_owned(),
            element,
            shape,
        }
    }
}

impl fmt::Display for Outlet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            element,
            shape,
        } = self;
        let Some(element) = element else {
            return write!(formatter, "`{name}` (no tensor)");
        };
        let extents = shape.iter().map(|extent| match extent {
            -1 => "?".to_owned(),
            extent => extent.to_string(),
        });
        let extents: Vec<String> = extents.collect();
        write!(formatter, "`{name}` ({element} [{}])", extents.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use driftgauge_protocol::{FailureKind, HiddenAct};

    use super::*;

    fn outlet(name: &str, element: TensorElementType, shape: &[i64]) -> Outlet {
        Outlet {
            name: name.to_owned(),
            element: Some(element),
            shape: shape.to_vec(),
        }
    }

    fn integers(names: &[&str]) -> Vec<Outlet> {
        let integer = |name: &&str| outlet(name, TensorElementType::Int64, &[-1, -1]);
        names.iter().map(integer).collect()
    }

    fn float(name: &str, shape: &[i64]) -> Outlet {
        outlet(name, TensorElementType::Float32, shape)
    }

    fn matched(
        inputs: &[Outlet],
        outputs: Vec<Outlet>,
        vocab_size: usize,
        mlm_head: bool,
    ) -> Result<Interface, Failure> {
        let config = BertConfig {
            vocab_size,
            hidden_size: 12,
            num_hidden_layers: 3,
            num_attention_heads: 2,
            intermediate_size: 20,
            hidden_act: HiddenAct::Gelu,
            max_position_embeddings: 9,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            pad_token_id: 0,
        };
        let expected = Expected {
            config: &config,
            mlm_head,
            dtype: Dtype::F32,
        };
        Interface::of(inputs, outputs, &expected)
    }

    fn check_outputs(outputs: &[Outlet], vocab_size: usize, head: bool, expected: &[(&str, &str)]) {
        let inputs = integers(&INPUTS);
        let found = matched(&inputs, outputs.to_vec(), vocab_size, head);
        let found = match found {
            Ok(interface) => {
                assert_eq!(interface.ignored.len() + expected.len(), outputs.len());
                interface.outputs
            }
            Err(failure) => {
                assert_eq!(failure.kind, FailureKind::Unsupported);
                assert!(
                    failure.message.starts_with("no output of the model"),
                    "{failure}"
                );
                Vec::new()
            }
        };
        let pairs: Vec<(&str, &str)> = found
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        assert_eq!(pairs, expected, "{}", listed(outputs));
    }

    #[test]
    fn outputs_are_matched_by_name_and_then_by_shape() {
        let rows = |name, width| float(name, &[-1, -1, width]);
        let (last, logits) = (("hidden.3", "last_hidden_state"), ("logits", "logits"));
        let both = [rows("logits", 37), rows("last_hidden_state", 12)];
        check_outputs(&both, 37, true, &[last, logits]);
        check_outputs(&both, 37, false, &[last]);
        let dynamic = [
            rows("logits", -1),
            rows("last_hidden_state", -1),
            float("pooler_output", &[-1, 12]),
        ];
        check_outputs(&dynamic, 37, true, &[last, logits]);
        let unstated = [float("logits", &[])];
        check_outputs(&unstated, 37, true, &[logits]);
        let renamed = [rows("output_0", 12), rows("output_1", 37)];
        check_outputs(
            &renamed,
            37,
            true,
            &[("hidden.3", "output_0"), ("logits", "output_1")],
        );
        // The name comes first, and what has another's name is not taken for something else.
        check_outputs(
            &[rows("other", 12), rows("last_hidden_state", 12)],
            37,
            true,
            &[last],
        );
        check_outputs(&[rows("logits", 12)], 37, true, &[]);
        check_outputs(
            &[float("logits", &[-1, 2]), rows("x", 37)],
            37,
            true,
            &[("logits", "x")],
        );
        // Two of one shape, and one shape for two.
        check_outputs(&[rows("one", 12), rows("two", 12)], 37, true, &[]);
        check_outputs(
            &[rows("one", 12), rows("two", 12), rows("three", 37)],
            37,
            true,
            &[("logits", "three")],
        );
        check_outputs(&[rows("one", 12)], 12, true, &[]);
        check_outputs(
            &[rows("logits", 12), rows("last_hidden_state", 12)],
            12,
            true,
            &[last, logits],
        );
        check_outputs(&[float("scores", &[-1, 2])], 37, true, &[]);
    }

    #[test]
    fn inputs_are_matched_by_name_in_any_order() {
        let outputs = vec![float("logits", &[-1, -1, 37])];
        let narrow = outlet(INPUTS[2], TensorElementType::Int32, &[-1, -1]);
        let inputs = [narrow, integers(&["input_ids"]).remove(0)];
        let found = matched(&inputs, outputs.clone(), 37, true).map(|interface| interface.inputs);
        assert_eq!(found, Ok(vec![(2, Integer::I32), (0, Integer::I64)]));
        let change = |change: Outlet| {
            let mut inputs = integers(&INPUTS);
            inputs[1] = change;
            inputs
        };
        let types = |element, shape: &[i64]| change(outlet("token_type_ids", element, shape));
        for (inputs, expected) in [
            (
                change(outlet("position_ids", TensorElementType::Int64, &[-1, -1])),
                "input `position_ids` (i64 [?, ?]) is none that a batch has \
                 (it has input_ids, token_type_ids, attention_mask)",
            ),
            (
                types(TensorElementType::Float32, &[-1, -1]),
                "input `token_type_ids` (f32 [?, ?]) is not of i64 or i32",
            ),
            (
                types(TensorElementType::Int64, &[1, 128]),
                "input `token_type_ids` (i64 [1, 128]) takes batches of one size only",
            ),
            (
                types(TensorElementType::Int64, &[-1]),
                "input `token_type_ids` (i64 [?]) is not of rank 2",
            ),
            (
                integers(&["input_ids", "token_type_ids"]),
                "the model has no input `attention_mask` \
                 (it has `input_ids` (i64 [?, ?]), `token_type_ids` (i64 [?, ?]))",
            ),
            (
                Vec::new(),
                "the model has no input `input_ids` (it has none)",
            ),
        ] {
            let failure = matched(&inputs, outputs.clone(), 37, true).expect_err(expected);
            assert_eq!(
                (failure.kind, failure.message.as_str()),
                (FailureKind::Unsupported, expected)
            );
        }
    }

    #[test]
    fn an_output_of_another_dtype_is_unsupported() {
        let outputs = vec![outlet("logits", TensorElementType::Float16, &[-1, -1, 37])];
        let failure = matched(&integers(&INPUTS), outputs, 37, true).expect_err("f32 is wanted");
        assert_eq!(
            (failure.kind, failure.message.as_str()),
            (
                FailureKind::Unsupported,
                "the model computes `logits` (f16 [?, ?, 37]), and f32 was asked for"
            )
        );
    }
}
