#!/usr/bin/env bash
# A schedule-free optimizer's `eval()` and back to `train()`, as its manual asks around every evaluation, changes the run.
#
# Guessed: the switch swaps which of two stored points the parameters show, so a run that evaluates equals one that does not.
# Seen 2026-11-30, schedulefree 1.4.1, torch 2.13.0: x is computed into the parameters and y computed back from it, in float32 or
# in bfloat16. Ten updates with an evaluation after each end 1.1e-7 of the distance trained away from ten without in float32, and
# 1.0e-2 in bfloat16. The averages are right; two runs that evaluate at other steps differ.
# What to do: evaluate a copy whose weights are y.lerp(z, 1 - 1/beta), or at the same steps in runs that are compared.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 schedulefree==1.4.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from schedulefree import AdamWScheduleFree
from torch.nn.functional import cross_entropy

IDS = torch.randint(0, 50, (10, 4, 17), generator=torch.Generator().manual_seed(0))


def run(dtype, evaluates):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 50)).to(dtype)
    first = torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])
    optimizer = AdamWScheduleFree(model.parameters(), lr=1e-2)
    optimizer.train()
    for ids in IDS:
        cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if evaluates:
            optimizer.eval()
            optimizer.train()
    return first, torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])


for dtype in (torch.float32, torch.bfloat16):
    first, plain = run(dtype, evaluates=False)
    _, again = run(dtype, evaluates=False)
    _, evaluated = run(dtype, evaluates=True)
    assert torch.equal(plain, again), "this run is not reproducible here"
    share = ((evaluated - plain).norm() / (plain - first).norm()).item()
    print(f"{dtype}: with evaluations the run ends {share:.1e} of the distance trained from where it ends without")
    assert share > 0, f"this has changed: {dtype} is not moved by an evaluation"
PY
