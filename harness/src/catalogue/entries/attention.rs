//! Attention: mask, scale, softmax, heads.

use driftgauge_protocol::fault::{Change, Edit, MaskChange, WeightChange};
use driftgauge_protocol::{Dtype, Step};

use crate::catalogue::{At, Entry, Kind, Place};

pub(super) const ENTRIES: &[Entry] = &[
    Entry {
        name: "mask-ignored",
        title: "padding is attended to",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::Scores)],
        everywhere: true,
        edits: |at| vec![at.step(Change::Mask(MaskChange::Ignored))],
        means: "the attention mask does not reach the encoder",
        evidence: &[
            "huggingface/candle#1552",
            "huggingface/candle#1798",
            "huggingface/transformers#16221",
        ],
        advice: "pass the mask; compare one text alone and in a batch",
    },
    Entry {
        name: "mask-inverted",
        title: "attention mask of the opposite meaning",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::Scores)],
        everywhere: true,
        edits: |at| vec![at.step(Change::Mask(MaskChange::Inverted))],
        means: "one side reads `true` as attend, the other as ignore",
        evidence: &["pytorch/pytorch#170415"],
        advice: "look up what the attention function takes `true` for",
    },
    Entry {
        name: "mask-one-longer",
        title: "one padding is attended to",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::Scores)],
        everywhere: true,
        edits: |at| vec![at.step(Change::Mask(MaskChange::Longer))],
        means: "lengths are off by one",
        evidence: &[],
        advice: "count special tokens in the lengths",
    },
    Entry {
        name: "mask-one-shorter",
        title: "the last token is not attended to",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::Scores)],
        everywhere: true,
        edits: |at| vec![at.step(Change::Mask(MaskChange::Shorter))],
        means: "lengths are off by one",
        evidence: &[],
        advice: "count special tokens in the lengths",
    },
    Entry {
        name: "mask-fill-10",
        title: "padding masked with -10",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::Scores)],
        everywhere: true,
        edits: |at| vec![at.step(Change::Mask(MaskChange::Fill(-10.0)))],
        means: "the number that masks is too small to mask",
        evidence: &["TransformerLens#318", "huggingface/transformers#14859"],
        advice: "mask with the lowest number of the dtype",
    },
    Entry {
        name: "mask-fill-1",
        title: "padding masked with -1",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::Scores)],
        everywhere: false,
        edits: |at| vec![at.step(Change::Mask(MaskChange::Fill(-1.0)))],
        means: "1 - mask is added without a factor",
        evidence: &["pytorch/benchmark#794"],
        advice: "mask with the lowest number of the dtype",
    },
    Entry {
        name: "mask-fill-10000",
        title: "padding masked with -10000",
        kind: Kind::Benign(
            "exp(-10000) is 0 in every format, so it masks as well as any lower number",
        ),
        places: &[Place::Layer(Step::Scores)],
        everywhere: false,
        edits: |at| vec![at.step(Change::Mask(MaskChange::Fill(-10_000.0)))],
        means: "the usual constant of older implementations",
        evidence: &["huggingface/transformers#17306"],
        advice: "nothing needs to be done",
    },
    Entry {
        name: "mask-after-softmax",
        title: "mask multiplied with the probabilities",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::Scores)],
        everywhere: false,
        edits: |at| vec![at.step(Change::Mask(MaskChange::AfterSoftmax))],
        means: "probabilities of a row no longer sum up to 1",
        evidence: &[],
        advice: "mask the scores, before the softmax",
    },
    Entry {
        name: "mask-length-33",
        title: "a fused kernel drops the last key at lengths of 32 n + 1",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::Scores)],
        everywhere: false,
        edits: |at| vec![at.step(Change::Mask(MaskChange::LastOf33))],
        means: "a block of a fused kernel is not read where it holds one key",
        evidence: &["pytorch/pytorch#191937"],
        advice: "compare with attention that is not fused; try lengths around multiples of 32",
    },
    Entry {
        name: "no-scale",
        title: "scores not divided by the root of the head size",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::Query)],
        everywhere: true,
        edits: |at| scaled(at, (at.config.head_size() as f64).sqrt()),
        means: "one of two code paths lacks the scale",
        evidence: &["mlc-ai/mlc-llm#3426"],
        advice: "look at the attention call's `scale`",
    },
    Entry {
        name: "scale-hidden-size",
        title: "scores divided by the root of the hidden size",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::Query)],
        everywhere: true,
        edits: |at| scaled(at, 1.0 / (at.config.num_attention_heads as f64).sqrt()),
        means: "the width of the model was taken for that of a head",
        evidence: &[],
        advice: "divide by the root of the head size",
    },
    Entry {
        name: "softmax-over-queries",
        title: "softmax over the wrong axis",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::Probabilities)],
        everywhere: false,
        edits: |at| vec![at.step(Change::SoftmaxOverQueries)],
        means: "rows of the probabilities do not sum up to 1, columns do",
        evidence: &[],
        advice: "softmax over the last axis",
    },
    Entry {
        name: "softmax-f16",
        title: "probabilities in f16",
        kind: Kind::Precision,
        places: &[Place::Layer(Step::Probabilities)],
        everywhere: true,
        edits: |at| vec![at.step(Change::Round(Dtype::F16))],
        means: "softmax returns half precision",
        evidence: &["huggingface/candle#3717"],
        advice: "keep the softmax in f32",
    },
    Entry {
        name: "softmax-bf16",
        title: "probabilities in bf16",
        kind: Kind::Precision,
        places: &[Place::Layer(Step::Probabilities)],
        everywhere: true,
        edits: |at| vec![at.step(Change::Round(Dtype::Bf16))],
        means: "softmax returns bf16, as candle's does in a bf16 model",
        evidence: &["huggingface/candle#3718"],
        advice: "keep the softmax in f32",
    },
    Entry {
        name: "flush-to-zero",
        title: "probabilities below 6.1e-5 are 0",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::Probabilities)],
        everywhere: false,
        edits: |at| vec![at.step(Change::Flush(6.103_515_625e-5))],
        means: "what is no normal number in f16 is flushed to zero",
        evidence: &["microsoft/onnxruntime#5117", "LaurentMazare/tch-rs#971"],
        advice: "do not flush, or keep the softmax in f32",
    },
    Entry {
        name: "denormals-flushed",
        title: "results below 1.2e-38 are 0",
        kind: Kind::Benign("numbers below the smallest normal f32 change no later digit"),
        places: &[Place::Layer(Step::Probabilities)],
        everywhere: false,
        edits: |at| vec![at.step(Change::Flush(f64::from(f32::MIN_POSITIVE)))],
        means: "the CPU flushes denormal numbers to zero",
        evidence: &["microsoft/onnxruntime#5117", "pytorch/pytorch#19652"],
        advice: "nothing needs to be done",
    },
    Entry {
        name: "head-layout",
        title: "heads split in the wrong order",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::Query)],
        everywhere: true,
        edits: heads_mixed,
        means: "a reshape without its transposition, or (size, heads) for (heads, size)",
        evidence: &["NVIDIA/apex#1131"],
        advice: "look at the reshape before the scores",
    },
    Entry {
        name: "head-zeroed",
        title: "one attention head gives zeros",
        kind: Kind::Semantic,
        places: &[Place::Layer(Step::Value)],
        everywhere: false,
        edits: head_zeroed,
        means: "a head was pruned, or a kernel covers too few heads",
        evidence: &["microsoft/onnxruntime#9108"],
        advice: "compare the weights; look at `num_heads` of fused nodes",
    },
];

/// A scale of the queries is one of the scores.
fn scaled(at: &At<'_>, by: f64) -> Vec<Edit> {
    ["weight", "bias"]
        .map(|part| at.own(part, WeightChange::Scale(by)))
        .into()
}

/// The same wrong order for queries, keys and values would only number the heads otherwise if the result were
/// merged in that order again; it is merged in the right one.
fn heads_mixed(at: &At<'_>) -> Vec<Edit> {
    let heads = at.config.num_attention_heads;
    if heads == 1 {
        return Vec::new();
    }
    let steps = [Step::Query, Step::Key, Step::Value].into_iter();
    steps
        .flat_map(|step| {
            ["weight", "bias"].map(|part| at.of(step, part, WeightChange::SplitHeads(heads)))
        })
        .collect()
}

fn head_zeroed(at: &At<'_>) -> Vec<Edit> {
    let rows = WeightChange::ZeroRows {
        first: 0,
        count: at.config.head_size(),
    };
    ["weight", "bias"]
        .map(|part| at.own(part, rows.clone()))
        .into()
}
