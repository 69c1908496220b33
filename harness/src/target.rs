//! Targets: `backend@device/dtype?option=value&…`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use driftgauge_protocol::Dtype;

/// One configuration that is run and judged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Name of the backend: `candle`, `libtorch`, `onnx`.
    pub backend: String,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Number format that the model computes in.
    pub dtype: Dtype,
    /// Options, handed to the worker as they are.
    pub options: BTreeMap<String, String>,
}

/// Why a target is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not of the form of a target.
    #[error(
        "`{0}` is not a target, expected backend@device/dtype?option=value, as in candle@cpu/f32"
    )]
    Form(String),
    /// A dtype that no target computes in.
    #[error("unknown dtype `{0}` (known: f32, f64, f16, bf16)")]
    Dtype(String),
    /// A device that no target runs on.
    #[error("unknown device `{0}` (known: cpu, cuda:0, cuda:1, …)")]
    Device(String),
}

/// Options that name a file of this machine. Which file it is says the worker, among its properties.
const FILE_OPTIONS: [&str; 1] = ["lib"];

impl Target {
    /// The target less what only says where files are: what it is called on every machine, whichever
    /// version of its library it loads.
    pub fn identity(&self) -> String {
        let mut identity = self.clone();
        let is_kept = |option: &String| !FILE_OPTIONS.contains(&option.as_str());
        identity.options.retain(|option, _| is_kept(option));
        identity.to_string()
    }
}

impl FromStr for Target {
    type Err = TargetError;

    /// Parses a target. Device and dtype may be left out: they are `cpu` and `f32`.
    fn from_str(text: &str) -> Result<Self, TargetError> {
        let form = || TargetError::Form(text.to_owned());
        let (place, options) = text
            .split_once('?')
            .map_or((text, None), |(p, o)| (p, Some(o)));
        let (place, dtype) = place.split_once('/').unwrap_or((place, "f32"));
        let (backend, device) = place.split_once('@').unwrap_or((place, "cpu"));
        let is_name = |name: &str| {
            !name.is_empty()
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        if !is_name(backend) {
            return Err(form());
        }
        let index = device.strip_prefix("cuda:");
        if device != "cpu" && index.and_then(|index| index.parse::<u16>().ok()).is_none() {
            return Err(TargetError::Device(device.to_owned()));
        }
        let dtype = match dtype {
            "f32" => Dtype::F32,
            "f64" => Dtype::F64,
            "f16" => Dtype::F16,
            "bf16" => Dtype::Bf16,
            other => return Err(TargetError::Dtype(other.to_owned())),
        };
        let mut parsed = BTreeMap::new();
        for option in options.into_iter().flat_map(|options| options.split('&')) {
            let (key, value) = option.split_once('=').ok_or_else(form)?;
            if !is_name(key) || parsed.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(form());
            }
        }
        let (backend, device) = (backend.to_owned(), device.to_owned());
        Ok(Self {
            backend,
            device,
            dtype,
            options: parsed,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}/{}", self.backend, self.device, self.dtype)?;
        for (index, (key, value)) in self.options.iter().enumerate() {
            let separator = if index == 0 { '?' } else { '&' };
            write!(formatter, "{separator}{key}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_s_place_is_no_part_of_the_identity() {
        for (text, identity) in [
            ("onnx", "onnx@cpu/f32"),
            ("onnx?lib=/a/b.so", "onnx@cpu/f32"),
            ("onnx?opt=basic&lib=/a/b.so", "onnx@cpu/f32?opt=basic"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().identity(), identity);
        }
    }

    #[test]
    fn targets_are_read_and_written_in_full() {
        for (text, expected) in [
            ("candle", Ok("candle@cpu/f32")),
            ("libtorch/f64", Ok("libtorch@cpu/f64")),
            (
                "onnx@cuda:0/f16?opt=basic&lib=a/b.so",
                Ok("onnx@cuda:0/f16?lib=a/b.so&opt=basic"),
            ),
            ("", Err("`` is not a target")),
            ("a b", Err("`a b` is not a target")),
            ("onnx?opt", Err("`onnx?opt` is not a target")),
            ("onnx?opt=a&opt=b", Err("is not a target")),
            ("onnx@gpu", Err("unknown device `gpu`")),
            ("onnx@cuda:x", Err("unknown device `cuda:x`")),
            (
                "onnx/f8",
                Err("unknown dtype `f8` (known: f32, f64, f16, bf16)"),
            ),
        ] {
            match (text.parse::<Target>(), expected) {
                (Ok(target), Ok(expected)) => assert_eq!(target.to_string(), expected),
                (Err(error), Err(expected)) => {
                    assert!(error.to_string().contains(expected), "{error}");
                }
                (result, _) => panic!("{text:?} gave {result:?}"),
            }
        }
    }
}
