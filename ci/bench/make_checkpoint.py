"""Makes a BERT checkpoint of 12 layers, 768 wide, with transformers' own random initialisation.

usage: make_checkpoint.py VOCABULARY FOLDER

The folder is in Hugging Face layout: config.json, model.safetensors, vocab.txt and
tokenizer_config.json. It says nothing about any language: only its size is of use.
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors import safe_open
from transformers import BertConfig, BertForMaskedLM

SEED = 20260101

# The size of the published BERT base models for Chinese.
CONFIG = BertConfig(
    vocab_size=21128,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
    max_position_embeddings=512,
    type_vocab_size=2,
    initializer_range=0.02,
    layer_norm_eps=1e-12,
    pad_token_id=0,
)


def main(vocabulary, folder):
    folder = pathlib.Path(folder)
    words = pathlib.Path(vocabulary).read_bytes().count(b"\n")
    if words != CONFIG.vocab_size:
        sys.exit(f"`{vocabulary}` has {words} lines, expected {CONFIG.vocab_size}")
    torch.manual_seed(SEED)
    model = BertForMaskedLM(CONFIG)
    model.save_pretrained(folder, safe_serialization=True)
    shutil.copyfile(vocabulary, folder / "vocab.txt")
    settings = {"do_lower_case": False, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    if "cls.predictions.decoder.weight" in names:
        sys.exit("the checkpoint holds the decoder's weights beside the embeddings: it is not tied")
    print(f"{len(names)} tensors, {sum(p.numel() for p in model.parameters())} parameters")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
