#!/usr/bin/env bash
# A forward hook registered after a compiled model's first call is silent until a new input shape makes it compile again.
#
# Guessed: it never fires, or always. Seen 2026-11-29, torch 2.13.0: calls with the shape that was compiled run without it; the
# first call with another batch size calls it, and from then on it fires for the shapes compiled since. A hook that was tried
# with a batch of another size "works", and a last, smaller batch of an epoch is what it then records.
# What to do: register hooks before the first compiled call, or call torch.compiler.reset() after.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch

model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
compiled = torch.compile(model, backend="eager")
compiled(torch.randn(2, 4))
calls = []
model[1].register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
seen = []
for size in (2, 2, 3, 3, 4):
    compiled(torch.randn(size, 4))
    seen.append(len(calls))
print("batch sizes 2 2 3 3 4, hook calls so far:", seen)
assert seen == [0, 0, 1, 2, 3], "this has changed"
PY
