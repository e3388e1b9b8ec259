#!/usr/bin/env bash
# PEFT's TrainableTokens on a tied model: the head's readable weight stays frozen while its logits move.
#
# Guessed: get_output_embeddings().weight is what the head computes with. Seen 2026-11-29, peft 0.21.2, transformers 5.23.0,
# torch 2.13.0: after three steps of SGD the weight is the same to the bit, and head(identity) shows rows 1 and 2 moved. Anything
# that reads .weight (a norm, a histogram, a checkpoint of the base) sees a run in which the head never learns.
# What to do: read the matrix through the module, or merge first.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0
"$folder/venv/bin/python" -W ignore - <<'PY'
import torch
from peft import TrainableTokensConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
base = LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=True, **sizes))
model = get_peft_model(base, TrainableTokensConfig(token_indices=[1, 2], target_modules=["embed_tokens"]))
head = model.get_output_embeddings()
before = head.weight.detach().clone()
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
ids = torch.randint(0, 50, (2, 9))
for _ in range(3):
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
with torch.no_grad():
    moved = (head(torch.eye(16)).T - before).abs().amax(dim=1).nonzero().flatten().tolist()
print("weight unchanged:", torch.equal(head.weight, before), "rows that the logits say have moved:", moved)
assert torch.equal(head.weight, before) and moved == [1, 2], "this has changed"
PY
