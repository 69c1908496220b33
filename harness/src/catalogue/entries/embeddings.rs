//! Embeddings: words, positions, token types.

use driftgauge_protocol::fault::{Edit, InputChange, WeightChange};
use driftgauge_protocol::{Dtype, Step};

use crate::catalogue::{At, Entry, Kind, Place, tensor};

pub(super) const ENTRIES: &[Entry] = &[
    Entry {
        name: "positions-from-1",
        title: "positions counted from 1",
        kind: Kind::Semantic,
        places: &[Place::Embeddings(Step::Sum)],
        everywhere: false,
        edits: |_| vec![tensor(POSITIONS, WeightChange::NextRow)],
        means: "the rule of RoBERTa, `padding_idx` + 1, applied to BERT",
        evidence: &[
            "huggingface/sentence-transformers#3879",
            "huggingface/transformers#1761",
        ],
        advice: "count positions from 0",
    },
    Entry {
        name: "positions-from-2",
        title: "positions counted from 2",
        kind: Kind::Semantic,
        places: &[Place::Embeddings(Step::Sum)],
        everywhere: false,
        edits: |_| {
            vec![
                tensor(POSITIONS, WeightChange::NextRow),
                tensor(POSITIONS, WeightChange::NextRow),
            ]
        },
        means: "the rule of RoBERTa, `padding_idx` + 1, applied to BERT",
        evidence: &["huggingface/transformers#1764", "Blaizzy/mlx-embeddings#10"],
        advice: "count positions from 0",
    },
    Entry {
        name: "no-positions",
        title: "no position embeddings",
        kind: Kind::Semantic,
        places: &[Place::Embeddings(Step::Sum)],
        everywhere: false,
        edits: |_| vec![tensor(POSITIONS, WeightChange::Fill(0.0))],
        means: "the table was not loaded, or not added",
        evidence: &["guillaume-be/rust-bert#228"],
        advice: "list the tensors that were not used",
    },
    Entry {
        name: "positions-baked-in",
        title: "positions beyond the traced length all the same",
        kind: Kind::Semantic,
        places: &[Place::Embeddings(Step::Sum)],
        everywhere: false,
        edits: |at| at_least(at, 9, POSITIONS, WeightChange::RepeatRowsFrom(8)),
        means: "a trace with 8 tokens made them a constant",
        evidence: &[
            "huggingface/transformers#11597",
            "neuralmagic/sparseml#1826",
        ],
        advice: "export with dynamic axes, and trace with the longest input",
    },
    Entry {
        name: "positions-from-left-padding",
        title: "padding on the left, positions not shifted",
        kind: Kind::Semantic,
        places: &[Place::Embeddings(Step::Sum)],
        everywhere: false,
        edits: |_| vec![Edit::Input(InputChange::LeftPadding)],
        means: "padding side of another model; absolute positions count the padding",
        evidence: &["huggingface/transformers#20068"],
        advice: "pad on the right, or pass `position_ids`",
    },
    Entry {
        name: "types-all-0",
        title: "every token of type 0",
        kind: Kind::Semantic,
        places: &[Place::Embeddings(Step::Sum)],
        everywhere: false,
        edits: |_| vec![tensor(TYPES, WeightChange::CopyRow { from: 0, to: 1 })],
        means: "`token_type_ids` are not passed on, so that the second text of a pair counts as the first",
        evidence: &["ggml-org/llama.cpp#21729", "huggingface/optimum#2062"],
        advice: "pass `token_type_ids`",
    },
    Entry {
        name: "types-all-1",
        title: "every token of type 1",
        kind: Kind::Semantic,
        places: &[Place::Embeddings(Step::Sum)],
        everywhere: false,
        edits: |_| vec![tensor(TYPES, WeightChange::CopyRow { from: 1, to: 0 })],
        means: "ones were passed as `token_type_ids`",
        evidence: &["huggingface/transformers#263"],
        advice: "pass zeros for single texts",
    },
    Entry {
        name: "no-types",
        title: "no token type embeddings",
        kind: Kind::Semantic,
        places: &[Place::Embeddings(Step::Sum)],
        everywhere: false,
        edits: |_| vec![tensor(TYPES, WeightChange::Fill(0.0))],
        means: "the table was not loaded, or not added where `token_type_ids` is missing",
        evidence: &["huggingface/transformers#48128"],
        advice: "add row 0 of the table where there are no types",
    },
    Entry {
        name: "words-shifted",
        title: "every token has the embedding of the next one",
        kind: Kind::Semantic,
        places: &[Place::Embeddings(Step::Sum)],
        everywhere: false,
        edits: |_| vec![tensor(WORDS, WeightChange::NextRow)],
        means: "the vocabulary counts from another number than the table",
        evidence: &[],
        advice: "compare vocabulary and table row by row",
    },
    Entry {
        name: "word-row-damaged",
        title: "the embedding of one token is that of another",
        kind: Kind::Semantic,
        places: &[Place::Embeddings(Step::Sum)],
        everywhere: false,
        edits: |at| at_least(at, 103, WORDS, WeightChange::CopyRow { from: 0, to: 102 }),
        means: "a row was overwritten, as when tokens are added to a vocabulary",
        evidence: &[],
        advice: "compare the weights row by row",
    },
    Entry {
        name: "embeddings-bf16",
        title: "word embeddings stored in bf16",
        kind: Kind::Precision,
        places: &[Place::Embeddings(Step::Sum)],
        everywhere: false,
        edits: |_| vec![tensor(WORDS, WeightChange::Round(Dtype::Bf16))],
        means: "a checkpoint in half precision, or a lookup that converts",
        evidence: &["vllm-project/vllm#15393"],
        advice: "compare the weights",
    },
    Entry {
        name: "mask-and-types-swapped",
        title: "attention mask and token types in each other's place",
        kind: Kind::Semantic,
        places: &[Place::Whole],
        everywhere: false,
        edits: |_| vec![Edit::Input(InputChange::MaskAndTypesSwapped)],
        means: "inputs passed by position and not by name",
        evidence: &["pytorch/pytorch#52667"],
        advice: "pass inputs by name",
    },
];

const WORDS: &str = "bert.embeddings.word_embeddings.weight";
const POSITIONS: &str = "bert.embeddings.position_embeddings.weight";
const TYPES: &str = "bert.embeddings.token_type_embeddings.weight";

/// A change of a table that needs so many rows; nothing for a smaller one.
fn at_least(at: &At<'_>, rows: usize, name: &str, change: WeightChange) -> Vec<Edit> {
    let has = match name {
        WORDS => at.config.vocab_size,
        _ => at.config.max_position_embeddings,
    };
    match has >= rows {
        true => vec![tensor(name, change)],
        false => Vec::new(),
    }
}
