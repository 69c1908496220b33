//! Small random checkpoints in Hugging Face layout, in all the ways in which people store them.
//!
//! Every number is a small integer over a power of two, so that f16, bf16, f32 and f64 hold it
//! exactly: however a checkpoint is stored, it is the same model and has the same truth.

#![allow(dead_code, reason = "each test program uses the part that it needs")]

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// Cases whose texts the vocabulary knows. The masks are in the first three.
pub const SUITE: &str = r#"
[suite]
name = "tiny"
description = "Cases for small checkpoints."
batch = 3
[[case]]
name = "capital"
task = "fill-mask"
text = "中国的首都是[MASK]。"
[[case]]
name = "weather"
task = "fill-mask"
text = "今天天[MASK]很[MASK]，我们去北海看花！"
[[case]]
name = "mask-first"
task = "fill-mask"
text = "[MASK]学"
[[case]]
name = "pair"
task = "similarity"
a = "我喜欢语言。"
b = "苹果abc发布了新机12？"
[[case]]
name = "science"
task = "features"
text = "自然语言处理很有趣。"
text_pair = "我喜欢。"
[[case]]
name = "empty"
task = "features"
text = ""
"#;

const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
const CHARACTERS: &str =
    "中国的首都是今天气很我们去北海看花学喜欢语言苹果发布了新机自然处理有趣京上好，。！？0123abc";

/// A model directory to be.
#[derive(Clone)]
pub struct Checkpoint {
    /// `config.json`.
    pub config: Value,
    /// Lines of `vocab.txt`.
    pub vocabulary: Vec<String>,
    /// Tensors, by the names under which they are stored.
    pub tensors: BTreeMap<String, Numbers>,
}

/// One tensor.
#[derive(Clone)]
pub struct Numbers {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

impl Checkpoint {
    /// 3 layers of 32, GELU, f32; names as transformers writes them today, the decoder tied.
    pub fn new() -> Self {
        let single = CHARACTERS.chars().map(String::from);
        let continued = "0123abc".chars().map(|c| format!("##{c}"));
        let special = SPECIAL.map(str::to_owned).into_iter();
        let vocabulary: Vec<String> = special.chain(single).chain(continued).collect();
        let config = json!({
            "model_type": "bert",
            "vocab_size": vocabulary.len(),
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "hidden_act": "gelu",
            "max_position_embeddings": 40,
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
            "position_embedding_type": "absolute",
        });
        let mut checkpoint = Self {
            config,
            tensors: BTreeMap::new(),
            vocabulary,
        };
        checkpoint.add_encoder();
        checkpoint.add_head();
        checkpoint
    }

    /// The same model with `gamma` and `beta`.
    pub fn gamma_beta(self) -> Self {
        self.renamed(|name| {
            name.replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta")
        })
    }

    /// The same model without the prefix `bert.`.
    pub fn without_prefix(self) -> Self {
        self.renamed(|name| name.strip_prefix("bert.").unwrap_or(name).to_owned())
    }

    /// The same model with a decoder of its own, and its bias named as newer versions do.
    pub fn with_separate_decoder(mut self) -> Self {
        let words = self.tensors["bert.embeddings.word_embeddings.weight"].clone();
        let decoder = "cls.predictions.decoder";
        self.tensors.insert(format!("{decoder}.weight"), words);
        self.renamed(|name| name.replace("predictions.bias", "predictions.decoder.bias"))
    }

    /// The encoder alone.
    pub fn without_head(mut self) -> Self {
        self.tensors.retain(|name, _| !name.starts_with("cls."));
        self
    }

    /// The same model, stored in another number format.
    pub fn stored_as(mut self, dtype: Dtype) -> Self {
        let all = self.tensors.values_mut();
        all.for_each(|numbers| numbers.dtype = dtype);
        self
    }

    /// Another value in `config.json`.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config[key] = value.into();
        self
    }

    /// Makes the directory and its three files.
    pub fn write(&self, directory: &Path) {
        std::fs::create_dir_all(directory).unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(directory.join(name), bytes).unwrap();
        write("config.json", self.config.to_string().as_bytes());
        write("vocab.txt", (self.vocabulary.join("\n") + "\n").as_bytes());
        write("model.safetensors", &self.safetensors());
    }

    fn safetensors(&self) -> Vec<u8> {
        let bytes: BTreeMap<&String, Vec<u8>> = self
            .tensors
            .iter()
            .map(|(name, numbers)| (name, numbers.bytes()))
            .collect();
        let views = self.tensors.iter().map(|(name, numbers)| {
            let shape = numbers.shape.clone();
            let view = TensorView::new(numbers.dtype, shape, &bytes[name]);
            (name, view.unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        let tensors = self.tensors.into_iter();
        self.tensors = tensors
            .map(|(name, numbers)| (rename(&name), numbers))
            .collect();
        self
    }

    fn size(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap() as usize
    }

    fn add_encoder(&mut self) {
        let hidden = self.size("hidden_size");
        let inner = self.size("intermediate_size");
        for (name, rows) in [
            ("word", self.size("vocab_size")),
            ("position", self.size("max_position_embeddings")),
            ("token_type", self.size("type_vocab_size")),
        ] {
            let name = format!("bert.embeddings.{name}_embeddings.weight");
            self.add(&name, &[rows, hidden], 128.0, 0.0);
        }
        self.add_layer_norm("bert.embeddings.LayerNorm");
        for layer in 0..self.size("num_hidden_layers") {
            let layer = format!("bert.encoder.layer.{layer}");
            for part in ["query", "key", "value"] {
                self.add_linear(&format!("{layer}.attention.self.{part}"), hidden, hidden);
            }
            self.add_linear(&format!("{layer}.attention.output.dense"), hidden, hidden);
            self.add_layer_norm(&format!("{layer}.attention.output.LayerNorm"));
            self.add_linear(&format!("{layer}.intermediate.dense"), hidden, inner);
            self.add_linear(&format!("{layer}.output.dense"), inner, hidden);
            self.add_layer_norm(&format!("{layer}.output.LayerNorm"));
        }
    }

    fn add_head(&mut self) {
        let (hidden, words) = (self.size("hidden_size"), self.size("vocab_size"));
        self.add("cls.predictions.bias", &[words], 512.0, 0.0);
        self.add_linear("cls.predictions.transform.dense", hidden, hidden);
        self.add_layer_norm("cls.predictions.transform.LayerNorm");
    }

    fn add_linear(&mut self, name: &str, inputs: usize, outputs: usize) {
        self.add(&format!("{name}.weight"), &[outputs, inputs], 256.0, 0.0);
        self.add(&format!("{name}.bias"), &[outputs], 512.0, 0.0);
    }

    fn add_layer_norm(&mut self, name: &str) {
        let width = self.size("hidden_size");
        self.add(&format!("{name}.weight"), &[width], 128.0, 1.0);
        self.add(&format!("{name}.bias"), &[width], 256.0, 0.0);
    }

    /// Adds `centre + n / scale` for random whole `n` from -63 to 63.
    fn add(&mut self, name: &str, shape: &[usize], scale: f64, centre: f64) {
        let mut random = Random::named(name);
        let count = shape.iter().product();
        let number = || centre + (random.below(127) as f64 - 63.0) / scale;
        let numbers = Numbers {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            values: std::iter::repeat_with(number).take(count).collect(),
        };
        self.tensors.insert(name.to_owned(), numbers);
    }
}

impl Numbers {
    fn bytes(&self) -> Vec<u8> {
        let values = self.values.iter();
        match self.dtype {
            Dtype::F64 => values.flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F32 => values.flat_map(|v| (*v as f32).to_le_bytes()).collect(),
            Dtype::F16 => values
                .flat_map(|v| f16::from_f64(*v).to_le_bytes())
                .collect(),
            Dtype::BF16 => values
                .flat_map(|v| bf16::from_f64(*v).to_le_bytes())
                .collect(),
            Dtype::I32 => values.flat_map(|v| (*v as i32).to_le_bytes()).collect(),
            other => panic!("no checkpoint is stored as {other:?}"),
        }
    }
}

/// The same tokenizer as `vocab.txt` makes, with IDs and segment of our choice.
pub fn tokenizer_json(vocabulary: &[String], last_id: usize, segment: usize) -> String {
    let mut ids: serde_json::Map<_, _> = (0..)
        .zip(vocabulary)
        .map(|(id, token): (usize, _)| (token.clone(), json!(id)))
        .collect();
    ids[vocabulary.last().unwrap()] = json!(last_id);
    let special = |(id, token): (usize, &String)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let special: Vec<_> = vocabulary[..5].iter().enumerate().map(special).collect();
    let piece = |token, segment| json!({"SpecialToken": {"id": token, "type_id": segment}});
    let text = |name, segment| json!({"Sequence": {"id": name, "type_id": segment}});
    let (one, two) = (segment, segment.max(1));
    let ends = |token, id| json!({"id": token, "ids": [id], "tokens": [token]});
    json!({
        "version": "1.0",
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [piece("[CLS]", one), text("A", one), piece("[SEP]", one)],
            "pair": [piece("[CLS]", one), text("A", one), piece("[SEP]", one), text("B", two),
                piece("[SEP]", two)],
            "special_tokens": {"[CLS]": ends("[CLS]", 2), "[SEP]": ends("[SEP]", 3)}},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids},
    })
    .to_string()
}

/// A file that PyTorch has made, or `make_fixtures.py` in its place.
pub fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/torch")
            .join(name),
    )
    .unwrap()
}

/// Steele, Lea and Flood's SplitMix64, so that the numbers are the same for ever.
struct Random(u64);

impl Random {
    /// Every tensor has its own sequence, seeded by its name (FNV-1a).
    fn named(name: &str) -> Self {
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self(name.bytes().fold(0xcbf2_9ce4_8422_2325, mix))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % limit
    }
}
