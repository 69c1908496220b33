//! Names of tensors: the many ways in which checkpoints write them, and the one in which we do.
//!
//! Checkpoints come with `gamma`/`beta` or `weight`/`bias`, with or without the `bert.` prefix,
//! with a decoder of their own or one that is tied to the word embeddings. Everything behind this
//! module sees transformers' `BertForMaskedLM` names only.

use std::collections::BTreeMap;

use driftgauge_protocol::BertConfig;

/// A tensor that the architecture asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Canonical name.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
}

/// Which names a checkpoint uses, for the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naming {
    /// `bert.` or nothing.
    pub prefix: &'static str,
    /// `weight/bias` or `gamma/beta`.
    pub layer_norm: &'static str,
    /// `tied` to the word embeddings, `separate`, or `none` without a head.
    pub decoder: &'static str,
}

/// The tensors of the encoder, in the order of the computation.
pub fn encoder(config: &BertConfig) -> Vec<Expected> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let mut tensors = Tensors::default();
    let embeddings = "bert.embeddings";
    tensors.add(
        format!("{embeddings}.word_embeddings.weight"),
        &[config.vocab_size, hidden],
    );
    tensors.add(
        format!("{embeddings}.position_embeddings.weight"),
        &[config.max_position_embeddings, hidden],
    );
    tensors.add(
        format!("{embeddings}.token_type_embeddings.weight"),
        &[config.type_vocab_size, hidden],
    );
    tensors.layer_norm(&format!("{embeddings}.LayerNorm"), hidden);
    for layer in 0..config.num_hidden_layers {
        let layer = format!("bert.encoder.layer.{layer}");
        for part in ["query", "key", "value"] {
            tensors.linear(&format!("{layer}.attention.self.{part}"), hidden, hidden);
        }
        tensors.linear(&format!("{layer}.attention.output.dense"), hidden, hidden);
        tensors.layer_norm(&format!("{layer}.attention.output.LayerNorm"), hidden);
        tensors.linear(&format!("{layer}.intermediate.dense"), hidden, inner);
        tensors.linear(&format!("{layer}.output.dense"), inner, hidden);
        tensors.layer_norm(&format!("{layer}.output.LayerNorm"), hidden);
    }
    tensors.0
}

/// The tensors of the masked-language-model head.
pub fn head(config: &BertConfig) -> Vec<Expected> {
    let hidden = config.hidden_size;
    let mut tensors = Tensors::default();
    tensors.linear("cls.predictions.transform.dense", hidden, hidden);
    tensors.layer_norm("cls.predictions.transform.LayerNorm", hidden);
    tensors.linear("cls.predictions.decoder", hidden, config.vocab_size);
    tensors.0
}

#[derive(Default)]
struct Tensors(Vec<Expected>);

impl Tensors {
    fn add(&mut self, name: String, shape: &[usize]) {
        self.0.push(Expected {
            name,
            shape: shape.to_vec(),
        });
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) {
        self.add(format!("{name}.weight"), &[outputs, inputs]);
        self.add(format!("{name}.bias"), &[outputs]);
    }

    fn layer_norm(&mut self, name: &str, width: usize) {
        self.add(format!("{name}.weight"), &[width]);
        self.add(format!("{name}.bias"), &[width]);
    }
}

/// Finds the stored name of every expected tensor.
///
/// Returns the map from canonical to stored names, and the names that were looked for in vain.
pub fn resolve(
    expected: &[Expected],
    stored: &dyn Fn(&str) -> bool,
) -> (BTreeMap<String, String>, Vec<String>) {
    let mut names = BTreeMap::new();
    let mut missing = Vec::new();
    for tensor in expected {
        match spellings(&tensor.name)
            .into_iter()
            .find(|name| stored(name))
        {
            Some(name) => drop(names.insert(tensor.name.clone(), name)),
            None => missing.push(tensor.name.clone()),
        }
    }
    (names, missing)
}

/// How a canonical name may be spelt, the most specific first.
fn spellings(canonical: &str) -> Vec<String> {
    let mut bases = vec![canonical.to_owned()];
    match canonical {
        // Tied decoders are stored once, under the name of the embeddings.
        "cls.predictions.decoder.weight" => {
            bases.push("bert.embeddings.word_embeddings.weight".to_owned());
        }
        "cls.predictions.decoder.bias" => bases.push("cls.predictions.bias".to_owned()),
        _ => {}
    }
    let mut names = Vec::new();
    for base in bases {
        let old = base
            .strip_suffix("LayerNorm.weight")
            .map(|stem| format!("{stem}LayerNorm.gamma"))
            .or_else(|| {
                base.strip_suffix("LayerNorm.bias")
                    .map(|stem| format!("{stem}LayerNorm.beta"))
            });
        for name in [Some(base), old].into_iter().flatten() {
            let bare = name.strip_prefix("bert.").map(str::to_owned);
            names.push(name);
            names.extend(bare);
        }
    }
    names
}

/// Which naming a resolved checkpoint uses.
pub fn naming(names: &BTreeMap<String, String>) -> Naming {
    let any = |test: &dyn Fn(&str, &str) -> bool| {
        names
            .iter()
            .any(|(canonical, stored)| test(canonical, stored))
    };
    let decoder = names.get("cls.predictions.decoder.weight");
    Naming {
        prefix: if any(&|_, stored| stored.starts_with("bert.")) {
            "bert."
        } else {
            ""
        },
        layer_norm: if any(&|_, stored| stored.ends_with(".gamma")) {
            "gamma/beta"
        } else {
            "weight/bias"
        },
        decoder: match decoder {
            None => "none",
            Some(stored) if stored.ends_with("word_embeddings.weight") => "tied",
            Some(_) => "separate",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One row per way of writing: the same canonical name is found in each.
    #[test]
    fn every_spelling_is_found() {
        for (canonical, stored) in [
            (
                "bert.embeddings.LayerNorm.weight",
                "bert.embeddings.LayerNorm.weight",
            ),
            (
                "bert.embeddings.LayerNorm.weight",
                "bert.embeddings.LayerNorm.gamma",
            ),
            (
                "bert.embeddings.LayerNorm.bias",
                "embeddings.LayerNorm.beta",
            ),
            (
                "bert.encoder.layer.3.output.dense.weight",
                "encoder.layer.3.output.dense.weight",
            ),
            (
                "cls.predictions.decoder.weight",
                "cls.predictions.decoder.weight",
            ),
            (
                "cls.predictions.decoder.weight",
                "bert.embeddings.word_embeddings.weight",
            ),
            ("cls.predictions.decoder.bias", "cls.predictions.bias"),
            (
                "cls.predictions.transform.LayerNorm.bias",
                "cls.predictions.transform.LayerNorm.beta",
            ),
        ] {
            let expected = [Expected {
                name: canonical.to_owned(),
                shape: vec![],
            }];
            let (names, missing) = resolve(&expected, &|name| name == stored);
            assert_eq!(
                names.get(canonical).map(String::as_str),
                Some(stored),
                "{missing:?}"
            );
        }
    }

    /// The published list of tensors of bert-base-chinese resolves completely.
    #[test]
    fn a_decoder_of_its_own_wins_over_the_embeddings() {
        let expected = [Expected {
            name: "cls.predictions.decoder.weight".to_owned(),
            shape: vec![],
        }];
        let (names, _) = resolve(&expected, &|_| true);
        assert_eq!(naming(&names).decoder, "separate");
    }
}
