#!/usr/bin/env bash
# fully_shard(head), then fully_shard(model) of a tied model: accepted, untied in memory, refused at the first forward pass only.
#
# Guessed: refused at once, or the tie is kept. Seen 2026-11-29, torch 2.13.0, gloo, one process: after the first call head and
# embedding are two parameters; both calls return, an optimizer made now has both, and only the first forward pass raises
# ValueError ("shared with a parameter already managed by another FSDP group"). A checkpoint written before it has two matrices.
# What to do: fully_shard([model.embed, model.head]) together.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - "$folder/rendezvous" <<'PY'
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


model = Tied()
fully_shard(model.head, mesh=mesh)
fully_shard(model, mesh=mesh)
print("tied:", model.head.weight is model.embed.weight, "parameters:", len(list(model.parameters())))
assert model.head.weight is not model.embed.weight, "this has changed"
try:
    model(torch.tensor([1]))
    raise AssertionError("this has changed: the forward pass runs")
except ValueError as error:
    print("forward pass:", error)
dist.destroy_process_group()
PY
