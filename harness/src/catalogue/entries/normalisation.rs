//! Layer norms and residual connections.

use driftgauge_protocol::fault::{Change, Edit, WeightChange};
use driftgauge_protocol::{Dtype, Stage, Step};

use crate::catalogue::{At, Entry, Kind, Place};

pub(super) const ENTRIES: &[Entry] = &[
    Entry {
        name: "eps-1e-3",
        title: "layer norm with epsilon 1e-3",
        kind: Kind::Semantic,
        places: &[
            Place::Embeddings(Step::Norm),
            Place::Layer(Step::AttentionNorm),
            Place::Layer(Step::Norm),
            Place::Head(Step::Norm),
        ],
        everywhere: true,
        edits: |at| vec![at.step(Change::Epsilon(1e-3))],
        means: "the default of Keras in place of the checkpoint's 1e-12",
        evidence: &["keras-team/keras-hub#642", "keras-team/keras-hub#665"],
        advice: "pass `layer_norm_eps` of config.json to every layer norm",
    },
    Entry {
        name: "eps-1e-5",
        title: "layer norm with epsilon 1e-5",
        kind: Kind::Semantic,
        places: &[
            Place::Embeddings(Step::Norm),
            Place::Layer(Step::AttentionNorm),
            Place::Layer(Step::Norm),
            Place::Head(Step::Norm),
        ],
        everywhere: true,
        edits: |at| vec![at.step(Change::Epsilon(1e-5))],
        means: "the default of PyTorch, ONNX and ggml in place of the checkpoint's 1e-12",
        evidence: &[
            "nomic-ai/gpt4all#1946",
            "huggingface/transformers#1089",
            "tensorflow/tensorflow#58863",
        ],
        advice: "pass `layer_norm_eps` of config.json to every layer norm; an ONNX node without `epsilon` means 1e-5",
    },
    Entry {
        name: "eps-1e-7",
        title: "layer norm with epsilon 1e-7",
        kind: Kind::Semantic,
        places: &[
            Place::Embeddings(Step::Norm),
            Place::Layer(Step::AttentionNorm),
            Place::Layer(Step::Norm),
            Place::Head(Step::Norm),
        ],
        everywhere: true,
        edits: |at| vec![at.step(Change::Epsilon(1e-7))],
        means: "a converter to f16 raised what it holds for too small",
        evidence: &["NVIDIA/Model-Optimizer#194"],
        advice: "look at the constants of the converted graph",
    },
    Entry {
        name: "unbiased-variance",
        title: "variance divided by n - 1",
        kind: Kind::Semantic,
        places: &[
            Place::Embeddings(Step::Norm),
            Place::Layer(Step::AttentionNorm),
            Place::Layer(Step::Norm),
            Place::Head(Step::Norm),
        ],
        everywhere: true,
        edits: unbiased,
        means: "`torch.std` and its like divide by n - 1 by default",
        evidence: &[
            "harvardnlp/annotated-transformer#119",
            "allenai/allennlp#953",
        ],
        advice: "divide by n, or use the library's own layer norm",
    },
    Entry {
        name: "norm-rounded-input",
        title: "layer norm computed from f16",
        kind: Kind::Precision,
        places: &[
            Place::Embeddings(Step::Norm),
            Place::Layer(Step::AttentionNorm),
            Place::Layer(Step::Norm),
            Place::Head(Step::Norm),
        ],
        everywhere: false,
        edits: |at| vec![at.step(Change::RoundInput(Dtype::F16))],
        means: "mean and variance are taken in half precision",
        evidence: &["NVIDIA/TensorRT#1196", "pytorch/pytorch#66707"],
        advice: "keep layer norms in f32",
    },
    Entry {
        name: "norm-collapsed",
        title: "layer norm returns its shift alone",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::AttentionNorm), Place::Layer(Step::Norm)],
        everywhere: false,
        edits: |at| vec![at.own("weight", WeightChange::Fill(0.0))],
        means: "a fused kernel gives zeros",
        evidence: &["microsoft/onnxruntime#29034"],
        advice: "switch the fusion off and compare",
    },
    Entry {
        name: "norm-untrained",
        title: "layer norm left as a new model has it",
        kind: Kind::Semantic,
        places: &[
            Place::Embeddings(Step::Norm),
            Place::Layer(Step::AttentionNorm),
            Place::Layer(Step::Norm),
            Place::Head(Step::Norm),
        ],
        everywhere: false,
        edits: |at| {
            vec![
                at.own("weight", WeightChange::Fill(1.0)),
                at.own("bias", WeightChange::Fill(0.0)),
            ]
        },
        means: "`gamma` and `beta` were not recognised as `weight` and `bias`",
        evidence: &["huggingface/candle#1887", "huggingface/transformers#29554"],
        advice: "list the tensors that were not filled when the checkpoint was loaded",
    },
    Entry {
        name: "norm-no-shift",
        title: "layer norm without its shift",
        kind: Kind::Semantic,
        places: &[
            Place::Embeddings(Step::Norm),
            Place::Layer(Step::AttentionNorm),
            Place::Layer(Step::Norm),
            Place::Head(Step::Norm),
        ],
        everywhere: false,
        edits: |at| vec![at.own("bias", WeightChange::Fill(0.0))],
        means: "a bias was lost in a conversion or a fusion",
        evidence: &["microsoft/onnxruntime#17689"],
        advice: "compare the weights of the two models",
    },
    Entry {
        name: "norms-swapped",
        title: "the two layer norms of a layer in each other's place",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::AttentionNorm)],
        everywhere: false,
        edits: swapped,
        means: "a name map mixed up `attention.output.LayerNorm` and `output.LayerNorm`",
        evidence: &["ml-explore/mlx#1636"],
        advice: "compare the name map with the checkpoint",
    },
    Entry {
        name: "no-residual",
        title: "a residual connection is missing",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::AttentionSum), Place::Layer(Step::Sum)],
        everywhere: false,
        edits: |at| vec![at.step(Change::DropResidual)],
        means: "a fusion took one branch of the sum, or an implementation forgot it",
        evidence: &["microsoft/onnxruntime#18959", "ml-explore/mlx-examples#262"],
        advice: "switch the skip-layer-norm fusion off and compare",
    },
];

/// √(1/(n − 1)) in place of √(1/n) scales what is normalised; the shift comes after it.
fn unbiased(at: &At<'_>) -> Vec<Edit> {
    let width = at.config.hidden_size as f64;
    let scale = WeightChange::Scale(((width - 1.0) / width).sqrt());
    vec![at.own("weight", scale)]
}

fn swapped(at: &At<'_>) -> Vec<Edit> {
    let Stage::Layer(_) = at.stage else {
        return Vec::new();
    };
    let pairs = [
        (Step::AttentionNorm, Step::Norm),
        (Step::Norm, Step::AttentionNorm),
    ];
    let parts = pairs.into_iter().flat_map(|(to, from)| {
        ["weight", "bias"].map(|part| {
            let from = at.name(at.stage, from, part);
            at.of(to, part, WeightChange::Copy(from))
        })
    });
    parts.collect()
}
