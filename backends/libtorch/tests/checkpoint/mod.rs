//! A small random checkpoint on disk, written in the ways in which checkpoints are written.

use std::collections::BTreeMap;
use std::io::Write;

use driftgauge_protocol::{
    BertConfig, Dtype, FileIdentity, HiddenAct, LoadRequest, Tensor, WeightsFile, encode_tensors,
};
use half::f16;

const LAYERS: usize = 2;
pub const HIDDEN: usize = 12;
pub const VOCABULARY: usize = 50;

/// A random checkpoint on disk and the request that loads it.
pub struct Checkpoint {
    pub request: LoadRequest,
    _file: tempfile::NamedTempFile,
}

/// How a checkpoint is written.
#[derive(Clone, Copy)]
pub struct Spelling {
    pub dtype: Dtype,
    pub gamma: bool,
    pub tied: bool,
}

pub const PLAIN: Spelling = Spelling {
    dtype: Dtype::F64,
    gamma: false,
    tied: true,
};

pub fn config() -> BertConfig {
    BertConfig {
        vocab_size: VOCABULARY,
        hidden_size: HIDDEN,
        num_hidden_layers: LAYERS,
        num_attention_heads: 3,
        intermediate_size: 20,
        hidden_act: HiddenAct::Gelu,
        max_position_embeddings: 16,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        pad_token_id: 0,
    }
}

/// Canonical names and shapes, in transformers' words.
fn tensors(config: &BertConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let mut all = Vec::new();
    for (table, entries) in [
        ("word", config.vocab_size),
        ("position", config.max_position_embeddings),
        ("token_type", config.type_vocab_size),
    ] {
        all.push((
            format!("bert.embeddings.{table}_embeddings.weight"),
            vec![entries, hidden],
        ));
    }
    let mut pair = |name: String, weight: Vec<usize>| {
        all.push((format!("{name}.bias"), weight[..1].to_vec()));
        all.push((format!("{name}.weight"), weight));
    };
    pair("bert.embeddings.LayerNorm".to_owned(), vec![hidden]);
    for layer in 0..config.num_hidden_layers {
        let layer = format!("bert.encoder.layer.{layer}");
        for part in ["query", "key", "value"] {
            pair(
                format!("{layer}.attention.self.{part}"),
                vec![hidden, hidden],
            );
        }
        pair(
            format!("{layer}.attention.output.dense"),
            vec![hidden, hidden],
        );
        pair(format!("{layer}.attention.output.LayerNorm"), vec![hidden]);
        pair(format!("{layer}.intermediate.dense"), vec![inner, hidden]);
        pair(format!("{layer}.output.dense"), vec![hidden, inner]);
        pair(format!("{layer}.output.LayerNorm"), vec![hidden]);
    }
    pair(
        "cls.predictions.transform.dense".to_owned(),
        vec![hidden, hidden],
    );
    pair(
        "cls.predictions.transform.LayerNorm".to_owned(),
        vec![hidden],
    );
    pair(
        "cls.predictions.decoder".to_owned(),
        vec![config.vocab_size, hidden],
    );
    all
}

/// Numbers in -1..1 that every format holds exactly, the same for the same name.
fn random(name: &str, count: usize) -> Vec<f64> {
    let mut state = name.bytes().fold(17u64, |state, byte| {
        state
            .wrapping_mul(0x0100_0000_01b3)
            .wrapping_add(byte.into())
    });
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            ((state >> 40) % 256) as f64 / 128.0 - 1.0
        })
        .collect()
}

fn encode(dtype: Dtype, shape: Vec<usize>, values: &[f64]) -> Tensor {
    let halves = || {
        values
            .iter()
            .flat_map(|value| f16::from_f64(*value).to_le_bytes())
            .collect()
    };
    match dtype {
        Dtype::F64 => Tensor::from_f64(shape, values).unwrap(),
        _ => Tensor::new(Dtype::F16, shape, halves()).unwrap(),
    }
}

pub fn checkpoint(config: BertConfig, spelling: Spelling) -> Checkpoint {
    let word = "bert.embeddings.word_embeddings.weight";
    let (mut stored, mut names) = (BTreeMap::new(), BTreeMap::new());
    for (name, shape) in tensors(&config) {
        let decoder = name == "cls.predictions.decoder.weight";
        let mut stored_name = if decoder && spelling.tied {
            word.to_owned()
        } else {
            name.clone()
        };
        if spelling.gamma {
            stored_name = stored_name
                .replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta");
        }
        let values = random(if decoder { word } else { &name }, shape.iter().product());
        stored.insert(stored_name.clone(), encode(spelling.dtype, shape, &values));
        names.insert(name, stored_name);
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&encode_tensors(&stored).unwrap()).unwrap();
    let identity = FileIdentity::of(file.as_file()).unwrap();
    let request = LoadRequest {
        config,
        weights: WeightsFile {
            path: file.path().to_owned(),
            identity,
            names,
        },
        mlm_head: true,
        device: "cpu".to_owned(),
        dtype: Dtype::F64,
        threads: 1,
        options: BTreeMap::new(),
    };
    Checkpoint {
        request,
        _file: file,
    }
}
