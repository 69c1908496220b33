//! Models: whatever is wrong with a model directory ends in one clear error that names the file and
//! the next step, before anything is run. And the layouts that can be used.

#![cfg(test)]

#[path = "support/checkpoint.rs"]
mod checkpoint;
#[path = "support/cli.rs"]
mod cli;

use std::path::Path;

use checkpoint::{Checkpoint, fixture, tokenizer_json};
use cli::{Folder, GOOD, HOME};
use driftgauge_reports::RunRecord;
use driftgauge_reports::record::{ResultRecord, Verdict};
use serde_json::json;
use sha2::Digest;

// ---- the directory ---------------------------------------------------------------------------

/// Something is missing from the directory, or it is no directory.
#[track_caller]
fn bad_directory(arrange: impl FnOnce(&Folder), expected: &[&str]) {
    let folder = Folder::with(&Checkpoint::new());
    arrange(&folder);
    let expected = [expected, &["\n  hint: "]].concat();
    folder.refuses(&GOOD, 2, &expected);
}

#[test]
fn no_directory() {
    let arrange = |folder: &Folder| std::fs::remove_dir_all(folder.path("model")).unwrap();
    bad_directory(arrange, &["`model`", "No such file or directory"]);
}

#[test]
fn a_file_for_a_directory() {
    let arrange = |folder: &Folder| {
        std::fs::remove_dir_all(folder.path("model")).unwrap();
        folder.write("model", "weights");
    };
    bad_directory(arrange, &["`model`", "not a directory"]);
}

#[test]
fn no_config() {
    let arrange = |folder: &Folder| folder.remove("model/config.json");
    bad_directory(arrange, &["`model` has no config.json"]);
}

#[test]
fn no_vocabulary() {
    let arrange = |folder: &Folder| folder.remove("model/vocab.txt");
    bad_directory(arrange, &["`model` has no vocab.txt and no tokenizer.json"]);
}

#[test]
fn no_weights() {
    let arrange = |folder: &Folder| folder.remove("model/model.safetensors");
    let expected = "`model` has no model.safetensors and no pytorch_model.bin";
    bad_directory(arrange, &[expected]);
}

/// As in a Hugging Face cache whose download was cut off. Other weights beside it are no way out.
#[test]
fn a_link_to_weights_that_are_gone() {
    let arrange = |folder: &Folder| {
        folder.remove("model/model.safetensors");
        std::os::unix::fs::symlink("../gone", folder.path("model/model.safetensors")).unwrap();
        folder.write("model/pytorch_model.bin", fixture("bert.bin"));
    };
    bad_directory(arrange, &["`model/model.safetensors`", "No such file"]);
}

#[test]
fn a_directory_for_a_file() {
    let arrange = |folder: &Folder| {
        folder.remove("model/config.json");
        std::fs::create_dir(folder.path("model/config.json")).unwrap();
    };
    bad_directory(arrange, &["`model/config.json`", "not a file"]);
}

// ---- config.json -----------------------------------------------------------------------------

/// A value in `config.json` cannot be honoured.
#[track_caller]
fn bad_config(key: &str, value: serde_json::Value, problem: &str) {
    let folder = Folder::with(&Checkpoint::new().with(key, value));
    folder.refuses_model("config.json", problem);
}

#[test]
fn broken_json() {
    let folder = Folder::with(&Checkpoint::new());
    folder.write("model/config.json", "{\"vocab_size\": ");
    folder.refuses_model("config.json", "not valid JSON: EOF while parsing");
}

#[test]
fn relative_positions() {
    let problem = "`position_embedding_type` is \"relative_key\", only \"absolute\"";
    bad_config("position_embedding_type", json!("relative_key"), problem);
}

#[test]
fn an_unknown_activation() {
    let problem = "`hidden_act` is `mish` (known: gelu, ";
    bad_config("hidden_act", json!("mish"), problem);
}

#[test]
fn another_architecture() {
    let problem = "`model_type` is \"roberta\", only \"bert\"";
    bad_config("model_type", json!("roberta"), problem);
}

#[test]
fn no_vocabulary_size() {
    let problem = "`vocab_size` is missing";
    bad_config("vocab_size", json!(null), problem);
}

#[test]
fn more_layers_than_memory() {
    let problem = "`num_hidden_layers` is 16777216, more than";
    bad_config("num_hidden_layers", json!(1 << 24), problem);
}

// ---- models that are known -------------------------------------------------------------------

/// Every file that is not the published one is listed, and one that changes tokens is missed.
#[test]
fn a_directory_that_is_not_bert_base_chinese() {
    let folder = Folder::with(&Checkpoint::new());
    for directory in [
        "bert-base-chinese",
        "models--google-bert--bert-base-chinese/snapshots/0000",
    ] {
        Checkpoint::new().write(&folder.path(directory));
        let arguments = ["--model", directory, "--target", "candle"];
        let refusal = format!("`{directory}` is not the model `bert-base-chinese`: ");
        let expected = [
            &refusal,
            "`config.json` has ",
            "the manifest says 624; it has SHA-256 ",
            "the manifest says 88af762cfb15fa9ce183c84dcbfdc9d635196ba635dfe81f265fdd21d67f4c4c",
            "`vocab.txt` has ",
            "`model.safetensors` has SHA-256 ",
            "`tokenizer_config.json` is missing",
            "\n  hint: fetch the files of `bert-base-chinese` again",
            "bert-base-chinese.toml`)",
        ];
        folder.refuses(&arguments, 2, &expected);
    }
}

/// The embedded model after a change of its weights.
#[track_caller]
fn damaged_model(change: impl FnOnce(&mut Vec<u8>), size: &str) {
    let folder = Folder::with(&Checkpoint::new());
    let source = Path::new(HOME).join("cases/models/zh-mini");
    for file in [
        "config.json",
        "vocab.txt",
        "tokenizer_config.json",
        "model.safetensors",
    ] {
        folder.write(
            &format!("zh-mini/{file}"),
            std::fs::read(source.join(file)).unwrap(),
        );
    }
    let mut bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    change(&mut bytes);
    let digest = hex::encode(sha2::Sha256::digest(&bytes));
    folder.write("zh-mini/model.safetensors", bytes);
    let problem = format!(
        "`zh-mini` is not the model `zh-mini`: `model.safetensors` {size}has SHA-256 {digest}, \
         the manifest says cc2fa43c94ce35b01b52904b041f6d54a4b5926bb4047d3c6ec4768b9561061c\n"
    );
    let arguments = ["--model", "zh-mini", "--target", "candle"];
    folder.refuses(
        &arguments,
        2,
        &[&problem, "  hint: fetch the files of `zh-mini` again"],
    );
}

#[test]
fn the_embedded_model_less_one_byte() {
    let size = "has 12070039 bytes, the manifest says 12070040; it ";
    let shorten = |bytes: &mut Vec<u8>| {
        bytes.remove(6_000_000);
    };
    damaged_model(shorten, size);
}

#[test]
fn the_embedded_model_with_a_flipped_bit() {
    damaged_model(|bytes| bytes[6_000_000] ^= 0x10, "");
}

// ---- models that can be used -----------------------------------------------------------------

/// Runs the model on the three real backends, all of which conform.
#[track_caller]
fn conforms(folder: &Folder) -> RunRecord {
    let arguments = ["--model", "model", "--suite", "tiny.toml", "--threads", "1"];
    let run = folder.run(&arguments);
    let record = run.record(0);
    run.expect(record.results.len() == 6 * 3, "no result should be missing");
    let mut verdicts = record.results.iter().map(|result| result.verdict);
    run.expect(verdicts.all(|v| v == Verdict::Pass), "all should pass");
    record
}

fn truth(record: &RunRecord) -> Vec<&driftgauge_reports::record::Answer> {
    let results = record.results.iter();
    results.flat_map(|result| &result.truth_answer).collect()
}

/// One model, written by PyTorch in both of its formats and by hand as safetensors.
#[test]
fn torch_files_are_the_model_that_they_hold() {
    let mut records = Vec::new();
    for (file, fixture_name) in [
        ("model.safetensors", "bert.safetensors"),
        ("pytorch_model.bin", "bert.bin"),
        ("pytorch_model.bin", "bert_legacy.bin"),
    ] {
        let mut model = Checkpoint::new();
        model.vocabulary.truncate(20);
        for (key, value) in [
            ("vocab_size", 20),
            ("hidden_size", 8),
            ("num_hidden_layers", 1),
            ("num_attention_heads", 2),
            ("intermediate_size", 16),
            ("max_position_embeddings", 16),
        ] {
            model.config[key] = json!(value);
        }
        let folder = Folder::with(&model);
        folder.remove("model/model.safetensors");
        folder.write(&format!("model/{file}"), fixture(fixture_name));
        records.push(conforms(&folder));
    }
    for record in &records {
        assert_eq!(truth(record), truth(&records[0]));
        assert_eq!(record.model.naming["decoder"], "tied");
        assert_eq!(record.model.parameters, records[0].model.parameters);
    }
}

/// The record of a pair has two texts and one sequence.
#[test]
fn a_pair_is_one_sequence_of_two_texts() {
    let record = conforms(&Folder::with(&Checkpoint::new()));
    let results = record.results.iter();
    let pairs: Vec<&ResultRecord> = results.filter(|r| r.case == "science").collect();
    assert_eq!(pairs.len(), 3);
    for pair in pairs {
        assert_eq!(pair.texts, ["自然语言处理很有趣。", "我喜欢。"]);
        let tokens: Vec<&str> = pair.tokens.iter().map(|t| t.text.as_str()).collect();
        let sequence = "[CLS] 自 然 语 言 处 理 很 有 趣 。 [SEP] 我 喜 欢 。 [SEP]";
        assert_eq!(tokens, [sequence]);
    }
}

#[test]
fn a_tokenizer_json_gives_the_same_tokens() {
    let model = Checkpoint::new();
    let folder = Folder::with(&model);
    let from_vocabulary = conforms(&folder);
    let last = model.vocabulary.len() - 1;
    folder.write(
        "model/tokenizer.json",
        tokenizer_json(&model.vocabulary, last, 0),
    );
    folder.remove("model/vocab.txt");
    let record = conforms(&folder);
    assert_eq!(record.model.tokenizer["source"], "tokenizer.json");
    assert_eq!(truth(&record), truth(&from_vocabulary));
}
