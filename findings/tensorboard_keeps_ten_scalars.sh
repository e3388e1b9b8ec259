#!/usr/bin/env bash
# SummaryWriter.add_scalar(new_style=True): TensorBoard's own reader gives 10 of 1,000 points, and none under Scalars().
#
# Guessed: the same curve in a newer format. Seen 2026-11-29, torch 2.13.0, tensorboard 2.21.0: an EventAccumulator with its default
# limits keeps 1,000 points of an old-style tag and a sample of 10 of a new-style one, which it files under tensors; Scalars()
# raises KeyError. Scripts that read curves from event files see a run of ten points, or no curve.
# What to do: write old-style scalars, or read with size_guidance={"tensors": 0}.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 tensorboard==2.21.0 setuptools==84.2.1
"$folder/venv/bin/python" -W ignore - "$folder/events" <<'PY'
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

with SummaryWriter(sys.argv[1]) as writer:
    for step in range(1000):
        writer.add_scalar("old", step, step)
        writer.add_scalar("new", step, step, new_style=True)
read = EventAccumulator(sys.argv[1]).Reload()
whole = EventAccumulator(sys.argv[1], size_guidance={"tensors": 0}).Reload()
print("scalars", read.Tags()["scalars"], "tensors", read.Tags()["tensors"])
print("old", len(read.Scalars("old")), "new", len(read.Tensors("new")), "without a limit", len(whole.Tensors("new")))
assert read.Tags()["scalars"] == ["old"] and len(read.Scalars("old")) == 1000, "this has changed"
assert len(read.Tensors("new")) == 10 and len(whole.Tensors("new")) == 1000, "this has changed"
PY
