"""What the harness is timed against: three answers from one backend, as a user would write it.

usage: transformers_script.py FOLDER one|two

`two` loads BertForMaskedLM for the masked word and BertModel for the vectors, as articles do.
`one` loads only the first and takes its encoder for the vectors: the least that can be loaded.
"""

import sys

import torch
from transformers import BertForMaskedLM, BertModel, BertTokenizer, pipeline

if len(sys.argv) != 3 or sys.argv[2] not in ("one", "two"):
    sys.exit(__doc__)
folder, models = sys.argv[1:]

tokenizer = BertTokenizer.from_pretrained(folder)
masked = BertForMaskedLM.from_pretrained(folder)
encoder = BertModel.from_pretrained(folder) if models == "two" else masked.bert


def features(text):
    with torch.no_grad():
        return encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]


fill_mask = pipeline("fill-mask", model=masked, tokenizer=tokenizer, top_k=5)
for guess in fill_mask("中国的首都是[MASK]。"):
    print(f"{guess['token_str']} {guess['score']:.6f}")

science, technique = features("科")[0], features("技")[0]
print(f"cosine {torch.cosine_similarity(science, technique, dim=0).item():.6f}")

vectors = features("自然语言处理很有趣。")
print(list(vectors.shape), [round(x, 4) for x in vectors[0, :4].tolist()])
