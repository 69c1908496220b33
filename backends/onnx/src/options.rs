//! What a target may ask of this backend: its options and its device.

use std::collections::BTreeMap;
use std::path::PathBuf;

use driftgauge_protocol::Failure;

use crate::session::Level;

/// The options of a target, understood.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// `opt`: how much ONNX Runtime may change the graph.
    pub level: Level,
    /// `lib`: the ONNX Runtime library. The harness has already started this worker with it; it is
    /// checked, because a target that names a library must never run in another one.
    pub library: Option<PathBuf>,
}

impl Options {
    /// Reads the options of a target.
    ///
    /// # Errors
    /// [`driftgauge_protocol::FailureKind::Unsupported`] for an option or a value that is not known.
    pub fn parse(options: &BTreeMap<String, String>) -> Result<Self, Failure> {
        let mut parsed = Self::default();
        for (key, value) in options {
            match key.as_str() {
                "opt" => parsed.level = level(value)?,
                "lib" => parsed.library = Some(PathBuf::from(value)),
                _ => {
                    return Err(Failure::unsupported(format!(
                        "unknown option `{key}` (known: lib, opt)"
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

#[cfg(test)]
mod tests {
    use driftgauge_protocol::FailureKind;

    use super::*;

    fn parse(key: &str, value: &str) -> Result<Options, Failure> {
        Options::parse(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn options_are_read() {
        assert_eq!(
            Options::parse(&BTreeMap::new()).map(|options| options.level),
            Ok(Level::All)
        );
        for level in Level::ALL {
            assert_eq!(
                parse("opt", level.name()).map(|options| options.level),
                Ok(level)
            );
        }
        let library = parse("lib", "x/libonnxruntime.so").map(|options| options.library);
        assert_eq!(library, Ok(Some("x/libonnxruntime.so".into())));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (result, expected) in [
            (
                parse("optimise", "all").map(drop),
                "unknown option `optimise` (known: lib, opt)",
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
