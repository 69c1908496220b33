"""Makes the checkpoint and the two ONNX files beside this script, and checks them.

usage: export.py

Everything is written into the folder of this script, over what is there:

    tiny-bert/          a BertForMaskedLM in Hugging Face layout; its weights are seeded random numbers
    faithful.onnx       that checkpoint, exported by transformers.onnx
    tanh-layer-3.onnx   the same export, with the tanh form of GELU in layer 3 of 4 (counted from 1)

README.md says which Python it takes and how to install requirements.txt.
"""

import json
import math
import os
import pathlib
import sys

# All of it lies on disk: nothing may be asked of a hub.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy
import onnx
import onnxruntime
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM
from transformers.activations import GELUActivation, NewGELUActivation
from transformers.onnx import FeaturesManager, export, validate_model_outputs

HERE = pathlib.Path(__file__).parent
CHECKPOINT = HERE / "tiny-bert"
FAITHFUL = HERE / "faithful.onnx"
TANH = HERE / "tanh-layer-3.onnx"

SEED = 20260101
# The layer that gets the tanh form, counted from 1.
TANH_LAYER = 3

# How far an exported file may be from torch in any logit. Both are float32, and the largest logit is near 5.
EXPORT_TOLERANCE = 1e-5
# The least that the tanh form has to move some logit: far above rounding, so that a comparison finds it.
LEAST_EFFECT = 1e-4

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Whole words of the suites after lower-casing.
WORDS = ["iphone"]
PUNCTUATION_AND_DIGITS = "，。？！、；：“”（）《》.,0123456789"
# The Han characters of cases/seed.toml and cases/selftest.toml, so that these meet no [UNK]. A character
# that the suites get later and that is not among the frequent ones below is [UNK]: that does no harm.
HAN_OF_THE_SUITES = (
    "一三上下不与且世中习书了产京人今他们会作公再出去反发变司吃各吧品喜喝园国图在地场处天学家工市布"
    "带年并应式张很我技拍推改散文新方是智最有来杯果欢款正步气水活热然照爱片理生用由界的直看真科能自"
    "苹言认语趣这都里错雨馆首"
)
# Frequent Han characters, of which as many are taken as the vocabulary still has room for.
FREQUENT_HAN = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产"
    "种面而方后多定行学法所民得经十三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从"
    "业本去把性好应开它合还因由其些然前外天政四日那社义事平形相全表间样与关各重新线内数正心反你明看原又"
    "么利比或但质第向道命此条只没结解问意建月无系军情者立代想已通提题程展五料象员革位入常总次设及管特件"
    "长求老头基资边流路级少山统接知较将组见计别她手角期根论运农指几九区强放决西被干做必战先回则任取据"
)
VOCABULARY_SIZE = 300

CONFIG = BertConfig(
    vocab_size=VOCABULARY_SIZE,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=128,
    hidden_act="gelu",
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    max_position_embeddings=64,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    pad_token_id=0,
    tie_word_embeddings=True,
)

# The inputs of the checks: a batch with much and with little padding, and a pair with both segments.
TEXTS = [
    "人工智能正在改变世界各地人们的工作与生活方式并且带来新的[MASK]会。",
    "天[MASK]了。",
    "我用 iPhone 拍了 3 张照片。",
    ("中国的首都是[MASK]京。", "今天天气很[MASK]，我们去公园散步吧。"),
]


def vocabulary():
    """The tokens in the order of their IDs, each once."""
    tokens = [*SPECIAL, *PUNCTUATION_AND_DIGITS, *WORDS, *HAN_OF_THE_SUITES, *FREQUENT_HAN]
    tokens = list(dict.fromkeys(tokens))[:VOCABULARY_SIZE]
    if len(tokens) != VOCABULARY_SIZE:
        sys.exit(f"the vocabulary has {len(tokens)} tokens, expected {VOCABULARY_SIZE}")
    return tokens


def fill(model):
    """Gives every parameter seeded random numbers.

    transformers' own initialisation (spread 0.02, biases 0, LayerNorm weights 1) would leave GELU near
    its linear middle, attention uniform and the biases without effect, so that most faults could not
    show themselves. With a spread of 1 / sqrt(inputs) what enters GELU reaches from -4 to 4.
    """
    # Not torch's generator: its normal numbers may depend on the instructions that the processor has.
    numbers = numpy.random.RandomState(SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, spread = mean_and_spread(name, parameter)
            values = mean + spread * numbers.standard_normal(parameter.shape)
            parameter.copy_(torch.from_numpy(values))


def mean_and_spread(name, parameter):
    """Of the normal distribution from which a parameter's numbers come."""
    if name.endswith("LayerNorm.weight"):
        return 1.0, 0.1
    if name == "cls.predictions.bias":
        return 0.0, 0.3
    if name.endswith(".bias"):
        return 0.0, 0.1
    # Tables of embeddings count as well: that of the words is the decoder's weight too.
    return 0.0, 1 / math.sqrt(parameter.shape[1])


def write_checkpoint():
    """Writes tiny-bert/ in Hugging Face layout."""
    CHECKPOINT.mkdir(exist_ok=True)
    model = BertForMaskedLM(CONFIG)
    fill(model)
    # The positions are 0, 1, 2, ...: newer versions of transformers do not write them either.
    model._keys_to_ignore_on_save = ["bert.embeddings.position_ids"]
    model.save_pretrained(CHECKPOINT, safe_serialization=True)
    # Settings for writing text, which nothing here does.
    (CHECKPOINT / "generation_config.json").unlink()
    (CHECKPOINT / "vocab.txt").write_text("".join(f"{t}\n" for t in vocabulary()), encoding="utf-8")
    settings = {
        "do_lower_case": True,
        "model_max_length": CONFIG.max_position_embeddings,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        "tokenizer_class": "BertTokenizer",
    }
    (CHECKPOINT / "tokenizer_config.json").write_text(json.dumps(settings) + "\n")

    with safe_open(CHECKPOINT / "model.safetensors", "pt") as file:
        extra = {"cls.predictions.decoder.weight", "bert.embeddings.position_ids"} & set(file.keys())
    if extra:
        sys.exit(f"model.safetensors holds {sorted(extra)}, which a tied checkpoint leaves out")


def load():
    """The checkpoint as `python -m transformers.onnx --feature=masked-lm --framework=pt` loads it."""
    return FeaturesManager.get_model_from_feature("masked-lm", str(CHECKPOINT), framework="pt")


def with_tanh_gelu(model):
    """Puts the tanh form of GELU, known as `gelu_new`, into one layer."""
    intermediate = model.bert.encoder.layer[TANH_LAYER - 1].intermediate
    if not isinstance(intermediate.intermediate_act_fn, GELUActivation):
        sys.exit("the checkpoint's own activation is not GELU by erf")
    intermediate.intermediate_act_fn = NewGELUActivation()
    return model


def export_onnx(model, tokenizer, path):
    """What `python -m transformers.onnx --export_with_transformers` does with a loaded model.

    The command itself cannot export a model whose activation was changed after loading.
    """
    _, make_config = FeaturesManager.check_supported_model_or_raise(model, feature="masked-lm")
    config = make_config(model.config)
    _, outputs = export(tokenizer, model, config, config.default_onnx_opset, path)
    validate_model_outputs(config, tokenizer, model, path, outputs, config.atol_for_validation)
    onnx.checker.check_model(onnx.load(path), full_check=True)


def encode(tokenizer):
    """The batch of the checks, padded to its longest text."""
    batch = tokenizer.batch_encode_plus(TEXTS, padding=True, return_tensors="pt")
    if tokenizer.unk_token_id in batch["input_ids"]:
        sys.exit("a text of the checks has a token that the vocabulary lacks")
    return batch


def run_torch(model, batch):
    """The logits, as float64 whatever the model computes in."""
    with torch.no_grad():
        return model.eval()(**batch).logits.double().numpy()


def run_onnx(path, batch):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {name: values.numpy() for name, values in batch.items()}
    return session.run(["logits"], inputs)[0].astype(numpy.float64)


def check(tokenizer):
    """Holds both files to torch and to each other, and prints what was measured."""
    batch = encode(tokenizer)
    attended = batch["attention_mask"].bool().numpy()
    faithful, tanh = run_onnx(FAITHFUL, batch), run_onnx(TANH, batch)
    torch_erf, torch_tanh = run_torch(load(), batch), run_torch(with_tanh_gelu(load()), batch)

    def measure(label, one, other):
        difference = numpy.abs(one - other)[attended].max()
        print(f"{label:<42} {difference:.3e}")
        return difference

    print(f"widths {batch['attention_mask'].sum(1).tolist()}, padded to the first")
    print(f"largest logit {numpy.abs(faithful[attended]).max():.3f}; largest differences of a logit:")
    export_error = max(
        measure("faithful.onnx to torch with erf", faithful, torch_erf),
        measure("tanh-layer-3.onnx to torch with tanh", tanh, torch_tanh),
    )
    effect = measure("tanh-layer-3.onnx to faithful.onnx", tanh, faithful)
    measure("torch with tanh to torch with erf", torch_tanh, torch_erf)
    exact_erf = run_torch(load().double(), batch)
    exact_tanh = run_torch(with_tanh_gelu(load()).double(), batch)
    measure("the same two in float64", exact_tanh, exact_erf)
    measure("torch with erf to itself in float64", torch_erf, exact_erf)
    measure("faithful.onnx to torch in float64", faithful, exact_erf)
    if export_error > EXPORT_TOLERANCE:
        sys.exit(f"an exported file is more than {EXPORT_TOLERANCE} from torch")
    if effect < LEAST_EFFECT:
        sys.exit(f"the tanh form moves no logit by {LEAST_EFFECT}")


def main():
    torch.set_num_threads(1)
    write_checkpoint()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    export_onnx(load(), tokenizer, FAITHFUL)
    export_onnx(with_tanh_gelu(load()), tokenizer, TANH)
    check(tokenizer)


if __name__ == "__main__":
    if len(sys.argv) != 1:
        sys.exit(__doc__)
    main()
