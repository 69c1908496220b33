//! A small random checkpoint in a file, for the tests of this crate.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;

use candle_core::Device;
use driftgauge_protocol::{
    Batch, BertConfig, Dtype, FileIdentity, HiddenAct, LoadRequest, Tensor, WeightsFile,
    encode_tensors,
};
use tempfile::NamedTempFile;

/// Threads of every test: candle's pools are fixed once per process.
pub const THREADS: usize = 2;

/// An architecture that runs in milliseconds.
pub fn tiny() -> BertConfig {
    BertConfig {
        vocab_size: 50,
        hidden_size: 32,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        intermediate_size: 64,
        hidden_act: HiddenAct::Gelu,
        max_position_embeddings: 16,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        pad_token_id: 0,
    }
}

/// Four padded sequences, of which all rows of the logits are wanted. The last is all padding: only
/// there the value of the mask shows, as elsewhere the softmax turns any large negative number into
/// the same zero.
pub fn padded_batch() -> Batch {
    let ids = [
        [2, 7, 9, 11, 4, 8, 3],
        [2, 30, 31, 3, 0, 0, 0],
        [2, 3, 0, 0, 0, 0, 0],
        [2, 9, 3, 0, 0, 0, 0],
    ];
    let types = [[0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0], [0; 7], [0; 7]];
    let mask = [[1; 7], [1, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [0; 7]];
    Batch {
        sequences: 4,
        length: 7,
        input_ids: ids.concat(),
        token_type_ids: types.concat(),
        attention_mask: mask.concat(),
        logit_rows: (0..28).map(|row| (row / 7, row % 7)).collect(),
    }
}

/// A request that loads the checkpoint of a [`tiny`] model in `dtype`.
pub fn load_request(checkpoint: &Checkpoint, dtype: Dtype) -> LoadRequest {
    LoadRequest {
        config: tiny(),
        weights: checkpoint.weights.clone(),
        mlm_head: true,
        device: "cpu".to_owned(),
        dtype,
        threads: THREADS,
        options: BTreeMap::new(),
        fault: None,
    }
}

/// A checkpoint on disk: `gamma`/`beta` names, a tied decoder, no `decoder.bias`, like the
/// published `bert-base-chinese`.
pub struct Checkpoint {
    /// The file and its names, as the harness would state them.
    pub weights: WeightsFile,
    /// The tensors, by canonical name.
    tensors: BTreeMap<String, Tensor>,
    _file: NamedTempFile,
}

impl Checkpoint {
    /// Random weights, the same in every run.
    pub fn random(config: &BertConfig, dtype: Dtype) -> Self {
        let mut state = 1;
        let tensors: BTreeMap<String, Tensor> = shapes(config)
            .into_iter()
            .map(|(name, shape)| {
                let centre = if name.ends_with("LayerNorm.weight") {
                    1.0
                } else {
                    0.0
                };
                let tensor = random_tensor(&mut state, dtype, shape, centre);
                (name, tensor)
            })
            .collect();
        let stored_name = |name: &str| {
            name.replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta")
                .replace("cls.predictions.decoder.bias", "cls.predictions.bias")
        };
        let stored: BTreeMap<String, Tensor> = tensors
            .iter()
            .map(|(name, tensor)| (stored_name(name), tensor.clone()))
            .collect();
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&encode_tensors(&stored).unwrap()).unwrap();
        let words = "bert.embeddings.word_embeddings.weight".to_owned();
        let names = tensors
            .keys()
            .map(|name| (name.clone(), stored_name(name)))
            .chain([("cls.predictions.decoder.weight".to_owned(), words)])
            .collect();
        let weights = WeightsFile {
            path: file.path().to_owned(),
            identity: FileIdentity::of(file.as_file()).unwrap(),
            names,
        };
        Self {
            weights,
            tensors,
            _file: file,
        }
    }

    /// The numbers of a tensor, by canonical name.
    pub fn numbers(&self, name: &str) -> Vec<f32> {
        let words = "bert.embeddings.word_embeddings.weight";
        let is_tied = name == "cls.predictions.decoder.weight";
        self.tensors[if is_tied { words } else { name }].to_f32()
    }

    /// The tensors as stock candle wants them: every name in full, nothing tied.
    pub fn stock(&self) -> HashMap<String, candle_core::Tensor> {
        let tensor = |name: &str| {
            let tensor = &self.tensors[name];
            candle_core::Tensor::from_vec(tensor.to_f32(), tensor.shape(), &Device::Cpu).unwrap()
        };
        let decoder = "cls.predictions.decoder.weight".to_owned();
        let words = tensor("bert.embeddings.word_embeddings.weight");
        self.tensors
            .keys()
            .map(|name| (name.clone(), tensor(name)))
            .chain([(decoder, words)])
            .collect()
    }
}

fn shapes(config: &BertConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let mut shapes = Vec::new();
    let mut pair = |name: &str, weight: Vec<usize>, bias: usize| {
        shapes.push((format!("{name}.weight"), weight));
        shapes.push((format!("{name}.bias"), vec![bias]));
    };
    pair("bert.embeddings.LayerNorm", vec![hidden], hidden);
    for layer in 0..config.num_hidden_layers {
        let layer = format!("bert.encoder.layer.{layer}");
        for part in ["self.query", "self.key", "self.value", "output.dense"] {
            let name = format!("{layer}.attention.{part}");
            pair(&name, vec![hidden, hidden], hidden);
        }
        for part in ["attention.output.LayerNorm", "output.LayerNorm"] {
            pair(&format!("{layer}.{part}"), vec![hidden], hidden);
        }
        let name = format!("{layer}.intermediate.dense");
        pair(&name, vec![inner, hidden], inner);
        pair(
            &format!("{layer}.output.dense"),
            vec![hidden, inner],
            hidden,
        );
    }
    let transform = "cls.predictions.transform";
    pair(&format!("{transform}.dense"), vec![hidden, hidden], hidden);
    pair(&format!("{transform}.LayerNorm"), vec![hidden], hidden);
    for (table, rows) in [
        ("word", config.vocab_size),
        ("position", config.max_position_embeddings),
        ("token_type", config.type_vocab_size),
    ] {
        let name = format!("bert.embeddings.{table}_embeddings.weight");
        shapes.push((name, vec![rows, hidden]));
    }
    shapes.push((
        "cls.predictions.decoder.bias".to_owned(),
        vec![config.vocab_size],
    ));
    shapes
}

/// Address of a tensor's first element: equal where two tensors share their storage.
pub fn address(tensor: &candle_core::Tensor) -> *const f32 {
    let (storage, layout) = tensor.storage_and_layout();
    assert!(layout.is_contiguous());
    match &*storage {
        candle_core::Storage::Cpu(storage) => storage.as_slice::<f32>().unwrap().as_ptr(),
        _ => unreachable!("the tests run on the CPU"),
    }
}

/// Numbers in ±0.5 around a centre, from a linear congruential generator.
fn random_tensor(state: &mut u64, dtype: Dtype, shape: Vec<usize>, centre: f32) -> Tensor {
    let values = (0..shape.iter().product()).map(|_| {
        *state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        centre + (*state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    });
    let bytes = match dtype {
        Dtype::F16 => values
            .flat_map(|value| half::f16::from_f32(value).to_le_bytes())
            .collect(),
        Dtype::Bf16 => values
            .flat_map(|value| half::bf16::from_f32(value).to_le_bytes())
            .collect(),
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        Dtype::F64 | Dtype::I64 => unreachable!("no test stores {dtype}"),
    };
    Tensor::new(dtype, shape, bytes).unwrap()
}
