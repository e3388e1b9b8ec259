#!/usr/bin/env bash
# A GGUF file that transformers has turned into plain float32 parameters can be neither trained by its Trainer nor saved.
#
# Guessed: after "dequantised to float32" it is a model as any other, as in 4.57.3, which saves it. Seen 2026-11-30, transformers
# 5.23.0, gguf 0.19.0: even of a file of float32 tensors, where nothing was ever quantised, `Trainer(...)` raises "You cannot perform
# fine-tuning on purely quantized models", and after a loop of one's own, save_pretrained raises "The model is quantized with
# gguf and is not serializable": the trained weights are lost with the process.
# What to do: `del model.config.quantization_config; model.hf_quantizer = None` before training; torch.save(model.state_dict()).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import gguf
import numpy as np
import torch

WIDTH, ROWS, HIDDEN = 32, 96, 64
writer = gguf.GGUFWriter("model.gguf", "llama")
writer.add_context_length(64)
writer.add_block_count(1)
writer.add_embedding_length(WIDTH)
writer.add_feed_forward_length(HIDDEN)
writer.add_head_count(2)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(WIDTH // 2)
writer.add_vocab_size(ROWS)
square, wide, tall, table = (WIDTH, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN), (ROWS, WIDTH)
shapes = {"token_embd": table, "output": table, "blk.0.ffn_gate": wide, "blk.0.ffn_up": wide, "blk.0.ffn_down": tall}
shapes |= {f"blk.0.attn_{name}": square for name in ("q", "k", "v", "output")}
rng = np.random.default_rng(0)
for name, shape in shapes.items():
    writer.add_tensor(f"{name}.weight", rng.normal(0, 0.02, shape).astype(np.float32))
for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
    writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.utils import logging

logging.disable_progress_bar()
model = AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf")
print("parameters are", {str(parameter.dtype) for parameter in model.parameters()})
assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in model.parameters())


def refused(what, action, words):
    try:
        action()
    except ValueError as error:
        assert words in str(error), error
        print(f"{what}: {error}")
    else:
        raise SystemExit(f"this has changed: {what} works")


refused("Trainer", lambda: Trainer(model, TrainingArguments("out", use_cpu=True, report_to=[])), "purely quantized models")
refused("save_pretrained", lambda: model.save_pretrained("saved"), "not serializable")
model.hf_quantizer = None
del model.config.quantization_config
model.save_pretrained("saved")
print("saved once its configuration says nothing of GGUF")
PY
