//! `config.json`: what it says, and what of it no backend could honour.

use std::path::Path;

use driftgauge_protocol::{BertConfig, HiddenAct};
use serde_json::{Map, Value};

use super::ModelError;

/// More layers than any model has. Every layer has a name for each of its tensors, so a wrong number
/// must not become memory.
const MOST_LAYERS: usize = 1024;

/// Reads the architecture from the bytes of `config.json`.
///
/// What the file leaves out takes transformers' `BertConfig` default. A setting that changes the
/// computation and that the oracle cannot follow is refused rather than ignored.
///
/// # Errors
/// [`ModelError::Config`] with the file, the key and what is wrong with it.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<BertConfig, ModelError> {
    let error = |problem: String| ModelError::Config {
        path: path.to_owned(),
        problem,
    };
    let value: Value =
        serde_json::from_slice(bytes).map_err(|cause| error(format!("not valid JSON: {cause}")))?;
    let Value::Object(keys) = value else {
        return Err(error("not a JSON object".to_owned()));
    };
    let reader = Reader { keys: &keys };
    reader.read().map_err(error)
}

struct Reader<'a> {
    keys: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn read(&self) -> Result<BertConfig, String> {
        self.refuse_what_cannot_be_honoured()?;
        let config = BertConfig {
            vocab_size: self.size("vocab_size", None)?,
            hidden_size: self.size("hidden_size", Some(768))?,
            num_hidden_layers: self.layers()?,
            num_attention_heads: self.size("num_attention_heads", Some(12))?,
            intermediate_size: self.size("intermediate_size", Some(3072))?,
            hidden_act: self.hidden_act()?,
            max_position_embeddings: self.size("max_position_embeddings", Some(512))?,
            type_vocab_size: self.size("type_vocab_size", Some(2))?,
            layer_norm_eps: self.layer_norm_eps()?,
            pad_token_id: self.count("pad_token_id", Some(0))?,
        };
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        if !width.is_multiple_of(heads) {
            return Err(format!(
                "`hidden_size` {width} is not a multiple of `num_attention_heads` {heads}"
            ));
        }
        if config.pad_token_id >= config.vocab_size {
            return Err(format!(
                "`pad_token_id` {} is not in the vocabulary",
                config.pad_token_id
            ));
        }
        Ok(config)
    }

    fn refuse_what_cannot_be_honoured(&self) -> Result<(), String> {
        let is = |key: &str, harmless: &[Value]| match self.keys.get(key) {
            None | Some(Value::Null) => true,
            Some(value) => harmless.contains(value),
        };
        for (key, harmless) in [
            ("model_type", vec!["bert".into()]),
            ("position_embedding_type", vec!["absolute".into()]),
            ("is_decoder", vec![false.into()]),
            ("add_cross_attention", vec![false.into()]),
            ("pruned_heads", vec![Value::Object(Map::new())]),
            ("quantization_config", vec![]),
        ] {
            if !is(key, &harmless) {
                let known: Vec<String> = harmless.iter().map(Value::to_string).collect();
                let known = if known.is_empty() {
                    "nothing".to_owned()
                } else {
                    known.join(", ")
                };
                let value = &self.keys[key];
                return Err(format!("`{key}` is {value}, only {known} can be honoured"));
            }
        }
        Ok(())
    }

    fn hidden_act(&self) -> Result<HiddenAct, String> {
        match self.keys.get("hidden_act") {
            None => Ok(HiddenAct::Gelu),
            Some(Value::String(name)) => match name.as_str() {
                "gelu" | "gelu_python" => Ok(HiddenAct::Gelu),
                "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" => Ok(HiddenAct::GeluTanh),
                "relu" => Ok(HiddenAct::Relu),
                "silu" | "swish" => Ok(HiddenAct::Silu),
                other => Err(format!(
                    "`hidden_act` is `{other}` (known: gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish)"
                )),
            },
            Some(other) => Err(format!("`hidden_act` is {other}, expected a name")),
        }
    }

    fn layer_norm_eps(&self) -> Result<f64, String> {
        let Some(value) = self.keys.get("layer_norm_eps") else {
            return Ok(1e-12);
        };
        value
            .as_f64()
            .filter(|eps| *eps >= 0.0 && eps.is_finite())
            .ok_or_else(|| format!("`layer_norm_eps` is {value}, expected a number of at least 0"))
    }

    /// A whole number of at least 1.
    fn size(&self, key: &str, default: Option<usize>) -> Result<usize, String> {
        let size = self.count(key, default)?;
        if size == 0 {
            return Err(format!("`{key}` is 0"));
        }
        Ok(size)
    }

    fn layers(&self) -> Result<usize, String> {
        let layers = self.size("num_hidden_layers", Some(12))?;
        if layers > MOST_LAYERS {
            return Err(format!(
                "`num_hidden_layers` is {layers}, more than {MOST_LAYERS}"
            ));
        }
        Ok(layers)
    }

    fn count(&self, key: &str, default: Option<usize>) -> Result<usize, String> {
        match (self.keys.get(key), default) {
            (None | Some(Value::Null), Some(default)) => Ok(default),
            (None | Some(Value::Null), None) => Err(format!("`{key}` is missing")),
            (Some(value), _) => value
                .as_u64()
                .and_then(|count| usize::try_from(count).ok())
                .filter(|count| *count <= 1 << 24)
                .ok_or_else(|| format!("`{key}` is {value}, expected a whole number up to 2^24")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<BertConfig, String> {
        parse(Path::new("config.json"), json.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let config = check(r#"{"vocab_size": 21128}"#).unwrap();
        assert_eq!((config.hidden_size, config.num_hidden_layers), (768, 12));
        assert_eq!(
            (config.hidden_act, config.layer_norm_eps),
            (HiddenAct::Gelu, 1e-12)
        );
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_key() {
        for (json, expected) in [
            ("[]", "not a JSON object"),
            ("{\"vocab_size\": ", "not valid JSON"),
            ("{}", "`vocab_size` is missing"),
            (r#"{"vocab_size": -3}"#, "`vocab_size` is -3"),
            (
                r#"{"vocab_size": 8, "hidden_size": 0}"#,
                "`hidden_size` is 0",
            ),
            (r#"{"vocab_size": 8, "hidden_size": 10}"#, "not a multiple"),
            (
                r#"{"vocab_size": 8, "hidden_act": "mish"}"#,
                "`hidden_act` is `mish`",
            ),
            (
                r#"{"vocab_size": 8, "model_type": "roberta"}"#,
                "`model_type` is \"roberta\"",
            ),
            (
                r#"{"vocab_size": 8, "position_embedding_type": "relative_key"}"#,
                "`position_embedding_type` is \"relative_key\", only \"absolute\" can be honoured",
            ),
            (
                r#"{"vocab_size": 8, "is_decoder": true}"#,
                "`is_decoder` is true",
            ),
            (
                r#"{"vocab_size": 8, "layer_norm_eps": "x"}"#,
                "`layer_norm_eps` is \"x\"",
            ),
        ] {
            let error = check(json).unwrap_err();
            assert!(
                error.contains(expected),
                "{error:?} should contain {expected:?}"
            );
        }
    }
}
