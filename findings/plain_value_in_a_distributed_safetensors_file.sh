#!/usr/bin/env bash
# torch.distributed.checkpoint with HuggingFaceStorageWriter and one value that is no tensor writes a .safetensors file that is none.
#
# Guessed: an error, or the value in the metadata. Seen 2026-11-29, torch 2.13.0, safetensors 0.8.0: dcp.save says nothing; the
# file holds a torch zip of the plain value (here the step), safetensors calls its header too large, and the tensors are lost.
# What to do: give that writer tensors alone; keep step and settings in a file of their own.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 safetensors==0.8.0 fsspec==2026.9.0
"$folder/venv/bin/python" -W ignore - "$folder/saved" <<'PY'
import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint import HuggingFaceStorageWriter

dcp.save({"weight": torch.ones(2, 3), "step": 7}, storage_writer=HuggingFaceStorageWriter(sys.argv[1]))
(file,) = Path(sys.argv[1]).glob("*.safetensors")
print("begins with", file.read_bytes()[:4])
try:
    with safe_open(file, "pt") as opened:
        raise AssertionError(f"this has changed: it can be read, {list(opened.keys())}")
except SafetensorError as error:
    print("safetensors says:", error)
PY
