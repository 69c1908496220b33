//! Batching, padding, and what changes between runs.

use driftgauge_protocol::Step;
use driftgauge_protocol::fault::{Change, Edit, OutputChange};

use crate::catalogue::{Entry, Kind, Place};

pub(super) const ENTRIES: &[Entry] = &[
    Entry {
        name: "sequences-exchanged",
        title: "every text of a batch has the result of the next",
        kind: Kind::Damage,
        places: &[Place::Whole],
        everywhere: false,
        edits: |_| vec![Edit::Output(OutputChange::NextSequence)],
        means: "results were put back in another order, as after sorting by length",
        evidence: &[],
        advice: "undo the sorting of the batch",
    },
    Entry {
        name: "tokens-shifted",
        title: "every token has the vector of the next",
        kind: Kind::Damage,
        places: &[Place::Whole],
        everywhere: false,
        edits: |_| vec![Edit::Output(OutputChange::NextToken)],
        means: "the first special token was dropped, or not",
        evidence: &[],
        advice: "count [CLS] as position 0",
    },
    Entry {
        name: "noise-1e-3",
        title: "a layer adds noise of 0.1 %, anew in every run",
        kind: Kind::Unsteady,
        places: &[Place::Layer(Step::Norm)],
        everywhere: false,
        edits: |at| vec![at.step(Change::Noise(1e-3))],
        means: "dropout is on, memory is not initialised, or threads race",
        evidence: &[
            "huggingface/transformers#9039",
            "huggingface/transformers#2401",
        ],
        advice: "switch to evaluation mode; run with one thread",
    },
    Entry {
        name: "noise-1e-5",
        title: "a layer adds noise of 0.001 %, anew in every run",
        kind: Kind::Unsteady,
        places: &[Place::Layer(Step::Norm)],
        everywhere: false,
        edits: |at| vec![at.step(Change::Noise(1e-5))],
        means: "threads race, or a first call takes another kernel than later ones",
        evidence: &["pytorch/pytorch#188792"],
        advice: "run with one thread; warm up before the first result",
    },
];
