#!/usr/bin/env bash
# TRL's SFTTrainer never calls the model's head: its loss takes the head's weight, so a forward hook on the head sees nothing.
#
# Guessed: a hook on lm_head fires once a batch, as under transformers' Trainer with the same model. Seen 2026-11-30, trl 1.16.0,
# transformers 5.23.0, torch 2.13.0: in three steps it fires 3 times under Trainer and 0 times under SFTTrainer with its default
# settings, without a message; hooks on the blocks and on the last norm fire in both. Whatever reads logits or hidden states at the
# head, or replaces the head's forward (a logit scale, an adapter that was put there), is passed by.
# What to do: hook the last norm, whose output is the head's input; and test a hook by counting its calls.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
from collections import Counter

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

WORDS = [f"w{number}" for number in range(60)]
plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["<pad>", "<eos>", *WORDS])}, "<pad>"))
plain.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")
texts = [" ".join(WORDS[(start + step) % 60] for step in range(16)) for start in range(24)]
settings = {"max_steps": 3, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
settings |= {"disable_tqdm": True, "bf16": False}


def calls(make):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model, seen = LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=64, **shape)), Counter()
    for name, module in (("head", model.lm_head), ("last norm", model.model.norm)):
        module.register_forward_hook(lambda *_, name=name: seen.update([name]))
    before = model.lm_head.weight.detach().clone()
    make(model).train()
    assert not torch.equal(before, model.lm_head.weight), "nothing was trained"
    return seen


ids = [{"input_ids": row, "labels": row} for row in tokenizer(texts)["input_ids"]]
theirs = calls(lambda model: Trainer(model=model, args=TrainingArguments("a", **settings), train_dataset=ids))
sft = Dataset.from_dict({"text": texts})
ours = calls(
    lambda model: SFTTrainer(model=model, args=SFTConfig("b", **settings), train_dataset=sft, processing_class=tokenizer)
)
print(f"transformers' Trainer: head {theirs['head']}, last norm {theirs['last norm']}")
print(f"TRL's SFTTrainer: head {ours['head']}, last norm {ours['last norm']}")
assert theirs["head"] == theirs["last norm"] == ours["last norm"] == 3, "this has changed"
assert ours["head"] == 0, "this has changed: the head is called"
PY
