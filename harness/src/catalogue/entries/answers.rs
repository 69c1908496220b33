//! Post-processing: what is made of the observations.

use driftgauge_protocol::fault::{Edit, OutputChange};

use crate::catalogue::{Entry, Kind, Place};

pub(super) const ENTRIES: &[Entry] = &[
    Entry {
        name: "position-after-mask",
        title: "logits of the token after the mask",
        kind: Kind::Damage,
        places: &[Place::Whole],
        everywhere: false,
        edits: |_| vec![Edit::Output(OutputChange::NextPosition)],
        means: "the position of the mask was found in other tokens than were fed",
        evidence: &["huggingface/transformers#16698"],
        advice: "find [MASK] among the IDs that are fed",
    },
    Entry {
        name: "previous-layer",
        title: "hidden states counted from one too many",
        kind: Kind::Semantic,
        places: &[Place::Whole],
        everywhere: false,
        edits: |_| vec![Edit::Output(OutputChange::PreviousLayer)],
        means: "n hidden states in place of n + 1: with or without the embeddings",
        evidence: &[
            "guillaume-be/rust-bert, source",
            "huggingface/transformers#1332",
        ],
        advice: "align hidden states by content, not by index",
    },
    Entry {
        name: "logits-bf16",
        title: "logits rounded to bf16",
        kind: Kind::Precision,
        places: &[Place::Whole],
        everywhere: false,
        edits: |_| vec![Edit::Output(OutputChange::RoundedLogits)],
        means: "scores are returned in half precision, so that close ones tie",
        evidence: &["huggingface/sentence-transformers#3892"],
        advice: "return scores in f32",
    },
    Entry {
        name: "log-softmax",
        title: "logarithms of probabilities returned as logits",
        kind: Kind::Benign(
            "it adds a constant to each row of logits, which changes no probability",
        ),
        places: &[Place::Whole],
        everywhere: false,
        edits: |_| vec![Edit::Output(OutputChange::LogSoftmax)],
        means: "a loss function's convenience is part of the model",
        evidence: &["huggingface/transformers#7726"],
        advice: "nothing needs to be done for probabilities",
    },
];
