//! What a target may ask of this backend: its options and its device.

use std::collections::BTreeMap;
use std::path::PathBuf;

use driftgauge_protocol::Failure;

use crate::optimisers;
use crate::session::{Level, Optimisation};

/// The options of a target, understood.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// `opt`, `gelu-approximation` and `without`: what ONNX Runtime may make of the graph.
    pub optimisation: Optimisation,
    /// `lib`: the ONNX Runtime library. The harness has already started this worker with it; it is
    /// checked, because a target that names a library must never run in another one.
    pub library: Option<PathBuf>,
    /// `model`: an exported model, in the place of the graph that is written here.
    pub model: Option<PathBuf>,
}

impl Options {
    /// Reads the options of a target.
    ///
    /// # Errors
    /// [`driftgauge_protocol::FailureKind::Unsupported`] for an option or a value that is not known.
    pub fn parse(options: &BTreeMap<String, String>) -> Result<Self, Failure> {
        let mut parsed = Self::default();
        let optimisation = &mut parsed.optimisation;
        for (key, value) in options {
            match key.as_str() {
                "gelu-approximation" => optimisation.gelu_approximation = switch(key, value)?,
                "lib" => parsed.library = Some(PathBuf::from(value)),
                "model" => parsed.model = Some(PathBuf::from(value)),
                "opt" => optimisation.level = level(value)?,
                "without" => optimisation.without = optimisers(value)?,
                _ => {
                    return Err(Failure::unsupported(format!(
                        "unknown option `{key}` (known: gelu-approximation, lib, model, opt, without)"
                    )));
                }
            }
        }
        Ok(parsed)
    }
}

/// Checks that a device is one that this build can use.
///
/// # Errors
/// [`driftgauge_protocol::FailureKind::Unsupported`] for every device but `cpu`.
pub fn check_device(device: &str) -> Result<(), Failure> {
    if device == "cpu" {
        return Ok(());
    }
    Err(Failure::unsupported(format!(
        "device `{device}` is not available: this worker runs ONNX Runtime on `cpu` only"
    )))
}

fn level(value: &str) -> Result<Level, Failure> {
    Level::ALL
        .into_iter()
        .find(|level| level.name() == value)
        .ok_or_else(|| {
            let known = Level::ALL.map(Level::name).join(", ");
            Failure::unsupported(format!("option `opt` cannot be `{value}` (known: {known})"))
        })
}

fn switch(key: &str, value: &str) -> Result<bool, Failure> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(Failure::unsupported(format!(
            "option `{key}` cannot be `{value}` (known: on, off)"
        ))),
    }
}

/// Names with semicolons between them. ONNX Runtime ignores what it does not know.
fn optimisers(value: &str) -> Result<Vec<String>, Failure> {
    let names = value
        .split(';')
        .map(|name| match optimisers::is_known(name) {
            true => Ok(name.to_owned()),
            false => Err(Failure::unsupported(format!(
                "option `without`: ONNX Runtime has no optimiser `{name}`"
            ))
            .with_hint("the property `optimisers` of a loaded model names those that act on it")),
        });
    names.collect()
}

#[cfg(test)]
mod tests {
    use driftgauge_protocol::FailureKind;

    use super::*;

    fn parse(key: &str, value: &str) -> Result<Options, Failure> {
        Options::parse(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn options_are_read() {
        let optimisation =
            |options: Result<Options, Failure>| options.map(|options| options.optimisation);
        let default = Optimisation {
            level: Level::All,
            gelu_approximation: false,
            without: Vec::new(),
        };
        let found = optimisation(Options::parse(&BTreeMap::new()));
        assert_eq!(found, Ok(default.clone()));
        for level in Level::ALL {
            let expected = Optimisation {
                level,
                ..default.clone()
            };
            assert_eq!(optimisation(parse("opt", level.name())), Ok(expected));
        }
        for (value, gelu_approximation) in [("on", true), ("off", false)] {
            let expected = Optimisation {
                gelu_approximation,
                ..default.clone()
            };
            let found = optimisation(parse("gelu-approximation", value));
            assert_eq!(found, Ok(expected));
        }
        let without = "GeluFusionL2;MatMulAddFusion";
        let expected = Optimisation {
            without: without.split(';').map(str::to_owned).collect(),
            ..default
        };
        assert_eq!(optimisation(parse("without", without)), Ok(expected));
        let library = parse("lib", "x/libonnxruntime.so").map(|options| options.library);
        assert_eq!(library, Ok(Some("x/libonnxruntime.so".into())));
        let model = parse("model", "x/model.onnx").map(|options| options.model);
        assert_eq!(model, Ok(Some("x/model.onnx".into())));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (result, expected) in [
            (
                parse("optimise", "all").map(drop),
                "unknown option `optimise` (known: gelu-approximation, lib, model, opt, without)",
            ),
            (
                parse("gelu-approximation", "tanh").map(drop),
                "option `gelu-approximation` cannot be `tanh` (known: on, off)",
            ),
            (
                parse("without", "GeluFusionL2;GeluFusion").map(drop),
                "option `without`: ONNX Runtime has no optimiser `GeluFusion`",
            ),
            (
                parse("without", "").map(drop),
                "option `without`: ONNX Runtime has no optimiser ``",
            ),
            (
                parse("opt", "3").map(drop),
                "option `opt` cannot be `3` (known: disable, basic, extended, all)",
            ),
            (
                check_device("cuda:0"),
                "device `cuda:0` is not available: this worker runs ONNX Runtime on `cpu` only",
            ),
        ] {
            let failure = result.expect_err(expected);
            assert_eq!(
                (failure.kind, failure.message.as_str()),
                (FailureKind::Unsupported, expected)
            );
        }
    }
}
