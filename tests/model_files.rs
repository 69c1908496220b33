//! Files of a model: whatever is wrong with weights or vocabulary ends in one clear error that names
//! the file and the next step, before anything is run.

#![cfg(test)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/cli.rs"]
mod cli;

use std::path::Path;

use checkpoint::{Checkpoint, fixture, tokenizer_json};
use cli::Folder;
use safetensors::Dtype;
use serde_json::json;

const WORDS: &str = "bert.embeddings.word_embeddings.weight";
const WEIGHTS: &str = "model.safetensors";

/// A checkpoint is refused after a change.
#[track_caller]
fn bad_checkpoint(change: impl FnOnce(&mut Checkpoint), file: &str, problem: &str) {
    let mut checkpoint = Checkpoint::new();
    change(&mut checkpoint);
    Folder::with(&checkpoint).refuses_model(file, problem);
}

/// A checkpoint is refused after the bytes of one file were changed.
#[track_caller]
fn bad_file(file: &str, change: impl FnOnce(&mut Vec<u8>), problem: &str) {
    let folder = Folder::with(&Checkpoint::new());
    let path = folder.path("model").join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
    folder.refuses_model(file, problem);
}

// ---- model.safetensors -----------------------------------------------------------------------

/// The weights do not fit or are damaged.
#[track_caller]
fn bad_weights(change: impl FnOnce(&mut Checkpoint), problem: &str) {
    bad_checkpoint(change, WEIGHTS, problem);
}

#[test]
fn weights_cut_by_one_byte() {
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 1);
    bad_file(WEIGHTS, cut, "not a valid safetensors file: ");
}

#[test]
fn weights_cut_in_the_header() {
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(100);
    bad_file(WEIGHTS, cut, "not a valid safetensors file: ");
}

#[test]
fn empty_weights() {
    bad_file(WEIGHTS, Vec::clear, "not a valid safetensors file: ");
}

#[test]
fn a_flipped_bit_in_the_header_length() {
    for bit in 0..64 {
        let flip = |bytes: &mut Vec<u8>| bytes[bit / 8] ^= 1 << (bit % 8);
        bad_file(WEIGHTS, flip, "not a valid safetensors file: ");
    }
}

/// `git clone` without Git LFS leaves this.
#[test]
fn a_pointer_in_place_of_weights() {
    let replace = |bytes: &mut Vec<u8>| {
        *bytes = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n".to_vec();
    };
    bad_file(WEIGHTS, replace, "is a Git LFS pointer, not the weights");
}

#[test]
fn a_wrong_shape() {
    let change = |model: &mut Checkpoint| {
        let words = model.tensors.get_mut(WORDS).unwrap();
        words.shape[0] -= 1;
        words.values.truncate(words.shape[0] * words.shape[1]);
    };
    let words = Checkpoint::new().vocabulary.len();
    let fewer = words - 1;
    let problem = format!("`{WORDS}` has shape [{fewer}, 32], config.json asks for [{words}, 32]");
    bad_weights(change, &problem);
}

#[test]
fn a_missing_tensor() {
    let name = "bert.encoder.layer.2.attention.self.key.bias";
    let problem = format!("a tensor is missing (the file has 57): `{name}`");
    bad_weights(|model| drop(model.tensors.remove(name)), &problem);
}

#[test]
fn a_missing_tensor_of_the_head() {
    let name = "cls.predictions.transform.LayerNorm.bias";
    bad_weights(|model| drop(model.tensors.remove(name)), name);
}

#[test]
fn whole_numbers_for_weights() {
    let change = |model: &mut Checkpoint| *model = model.clone().stored_as(Dtype::I32);
    bad_weights(change, "is of dtype I32, expected F64, F32, F16 or BF16");
}

#[track_caller]
fn not_finite(number: f64, dtype: Dtype) {
    let change = |model: &mut Checkpoint| {
        let words = model.tensors.get_mut(WORDS).unwrap();
        words.dtype = dtype;
        words.values[5] = number;
    };
    let problem = format!("tensors hold NaN or infinite numbers: `{WORDS}` (1)");
    bad_weights(change, &problem);
}

#[test]
fn nan_weights() {
    for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64] {
        not_finite(f64::NAN, dtype);
    }
}

#[test]
fn infinite_weights() {
    not_finite(f64::INFINITY, Dtype::F32);
    not_finite(f64::NEG_INFINITY, Dtype::F16);
}

// ---- pytorch_model.bin -----------------------------------------------------------------------

/// A PyTorch checkpoint is refused.
#[track_caller]
fn bad_torch_file(bytes: Vec<u8>, problem: &str) {
    let folder = Folder::with(&Checkpoint::new());
    folder.remove("model/model.safetensors");
    folder.write("model/pytorch_model.bin", bytes);
    folder.refuses_model("pytorch_model.bin", problem);
}

#[test]
fn a_pickle_that_runs_a_command() {
    // What the fixtures would make, if anything in them were executed.
    let trace = Path::new("/tmp/driftgauge-was-here");
    assert!(!trace.exists(), "{trace:?} is left from somewhere else");
    for name in ["os_system.bin", "os_system_legacy.bin"] {
        let problem = "refused: the pickle uses `posix.system`";
        bad_torch_file(fixture(name), problem);
        assert!(!trace.exists(), "`{name}` was executed");
    }
}

#[test]
fn a_torch_file_cut_by_one_byte() {
    for name in ["bert.bin", "bert_legacy.bin"] {
        let mut bytes = fixture(name);
        bytes.pop();
        bad_torch_file(bytes, "cannot be read as a PyTorch checkpoint: ");
    }
}

#[test]
fn a_torch_file_of_another_model() {
    let missing = "`bert.embeddings.word_embeddings.weight`";
    bad_torch_file(fixture("zip.bin"), missing);
}

// ---- the vocabulary --------------------------------------------------------------------------

/// The vocabulary does not fit.
#[track_caller]
fn bad_vocabulary(change: impl FnOnce(&mut Vec<String>), problem: &str) {
    bad_checkpoint(|model| change(&mut model.vocabulary), "vocab.txt", problem);
}

#[test]
fn a_vocabulary_shorter_than_the_embeddings() {
    let words = Checkpoint::new().vocabulary.len();
    let fewer = words - 1;
    let problem = format!("has only {fewer} entries, config.json says `vocab_size` {words}");
    bad_vocabulary(|lines| drop(lines.pop()), &problem);
}

#[test]
fn a_vocabulary_with_a_line_twice() {
    let change = |lines: &mut Vec<String>| lines[9] = lines[7].clone();
    bad_vocabulary(change, "line 10 repeats line 8: `的`");
}

#[test]
fn a_vocabulary_without_a_mask() {
    let change = |lines: &mut Vec<String>| lines[4] = "[MUSK]".to_owned();
    bad_vocabulary(change, "has no [MASK] token");
}

#[test]
fn a_vocabulary_in_another_encoding() {
    let change = |bytes: &mut Vec<u8>| bytes[30] = 0xb5;
    bad_file("vocab.txt", change, "not UTF-8 at byte 30");
}

#[test]
fn no_room_for_a_text() {
    let change = |model: &mut Checkpoint| {
        model.config["max_position_embeddings"] = json!(1);
        let name = "bert.embeddings.position_embeddings.weight";
        let positions = model.tensors.get_mut(name).unwrap();
        positions.shape[0] = 1;
        positions.values.truncate(32);
    };
    let problem = "adds 2 tokens to every text, the model takes 1 in all";
    bad_checkpoint(change, "vocab.txt", problem);
}

/// A `tokenizer.json` that gives its last token and its texts a certain ID and segment, and of which
/// something is replaced.
#[track_caller]
fn bad_tokenizer(last_id: Option<usize>, segment: usize, from: &str, to: &str, problem: &str) {
    let model = Checkpoint::new();
    let folder = Folder::with(&model);
    let last_id = last_id.unwrap_or(model.vocabulary.len() - 1);
    let json = tokenizer_json(&model.vocabulary, last_id, segment);
    assert!(json.contains(from), "no {from} in {json}");
    folder.write("model/tokenizer.json", json.replacen(from, to, 1));
    folder.refuses_model("tokenizer.json", problem);
}

#[test]
fn a_token_without_an_embedding() {
    let problem = "gives `##c` the ID 1000, config.json says `vocab_size`";
    bad_tokenizer(Some(1000), 0, "", "", problem);
}

#[test]
fn a_special_token_without_an_embedding() {
    let problem = "adds a token of ID 1000, config.json says `vocab_size`";
    bad_tokenizer(None, 0, "\"ids\":[3]", "\"ids\":[1000]", problem);
}

/// The tokenizers library takes it and panics on the first text.
#[test]
fn a_special_token_without_an_id() {
    let problem = "the template adds `[SEP]` and does not say its ID";
    bad_tokenizer(None, 0, "\"[SEP]\":{", "\"[SAP]\":{", problem);
}

#[test]
fn a_template_without_a_second_text() {
    let problem = "the template for two texts has no place for `B`";
    let text = "{\"Sequence\":{\"id\":\"B\"";
    bad_tokenizer(None, 0, text, &text.replace('B', "A"), problem);
}

#[test]
fn a_segment_without_an_embedding() {
    let problem = "puts tokens into segment 2, config.json says `type_vocab_size` 2";
    bad_tokenizer(None, 2, "", "", problem);
}

#[test]
fn a_broken_tokenizer() {
    let problem = "not valid JSON: key must be a string";
    bad_tokenizer(None, 0, "{", "{,", problem);
}
