//! Activation functions.

use driftgauge_protocol::fault::{Activation, Change, Special};
use driftgauge_protocol::{Dtype, Step};

use crate::catalogue::{Entry, Kind, Place};

pub(super) const ENTRIES: &[Entry] = &[
    Entry {
        name: "gelu-tanh",
        title: "GELU by its tanh approximation",
        kind: Kind::Semantic,
        places: &[
            Place::Layer(Step::Activation),
            Place::Head(Step::Activation),
        ],
        everywhere: true,
        edits: |at| vec![at.step(Change::Activate(Activation::GeluTanh))],
        means: "`gelu_new` or `gelu_pytorch_tanh` where the checkpoint says `gelu`, or an optimiser that replaces the error function",
        evidence: &[
            "huggingface/candle#900",
            "huggingface/candle#969",
            "huggingface/text-embeddings-inference#753",
            "microsoft/onnxruntime#7131",
        ],
        advice: "compare `hidden_act` with the export's options; in ONNX Runtime leave `optimization.enable_gelu_approximation` off",
    },
    Entry {
        name: "gelu-quick",
        title: "GELU by a sigmoid, x · σ(1.702 x)",
        kind: Kind::Semantic,
        places: &[
            Place::Layer(Step::Activation),
            Place::Head(Step::Activation),
        ],
        everywhere: true,
        edits: |at| vec![at.step(Change::Activate(Activation::GeluQuick))],
        means: "`quick_gelu`, the activation of CLIP, in place of `gelu`",
        evidence: &[],
        advice: "look up what the runtime makes of `hidden_act`",
    },
    Entry {
        name: "relu",
        title: "ReLU in place of GELU",
        kind: Kind::Semantic,
        places: &[
            Place::Layer(Step::Activation),
            Place::Head(Step::Activation),
        ],
        everywhere: true,
        edits: |at| vec![at.step(Change::Activate(Activation::Relu))],
        means: "`hidden_act` was ignored and a default taken",
        evidence: &[],
        advice: "look up what the runtime makes of `hidden_act`",
    },
    Entry {
        name: "silu",
        title: "SiLU in place of GELU",
        kind: Kind::Semantic,
        places: &[
            Place::Layer(Step::Activation),
            Place::Head(Step::Activation),
        ],
        everywhere: false,
        edits: |at| vec![at.step(Change::Activate(Activation::Silu))],
        means: "the activation of another family of models",
        evidence: &[],
        advice: "look up what the runtime makes of `hidden_act`",
    },
    Entry {
        name: "no-activation",
        title: "no activation function at all",
        kind: Kind::Semantic,
        places: &[
            Place::Layer(Step::Activation),
            Place::Head(Step::Activation),
        ],
        everywhere: false,
        edits: |at| vec![at.step(Change::Activate(Activation::Identity))],
        means: "a node was lost in a conversion, or a fused kernel was chosen without its epilogue",
        evidence: &[],
        advice: "look at the node after the first dense layer of the feed-forward network",
    },
    Entry {
        name: "gelu-f16-table",
        title: "GELU from a table in f16",
        kind: Kind::Precision,
        places: &[Place::Layer(Step::Intermediate)],
        everywhere: false,
        edits: |at| {
            vec![
                at.step(Change::Round(Dtype::F16)),
                at.at(Step::Activation, Change::Round(Dtype::F16)),
            ]
        },
        means: "the activation is looked up in a half precision table although the tensor is f32",
        evidence: &["ggml-org/llama.cpp#29252", "ggml-org/llama.cpp#13667"],
        advice: "build without the table, or compare with a kernel that computes",
    },
    Entry {
        name: "gelu-overflow",
        title: "GELU is NaN for large arguments",
        kind: Kind::Damage,
        places: &[Place::Layer(Step::Activation)],
        everywhere: false,
        edits: |at| {
            vec![at.step(Change::Beyond {
                limit: 1.5,
                becomes: Special::Nan,
            })]
        },
        means: "a kernel overflows inside for large arguments",
        evidence: &["huggingface/candle#1408"],
        advice: "compare with the CPU; update the kernel",
    },
];
