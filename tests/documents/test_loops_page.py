"""The loop of docs/loops.md runs as printed, and records what it says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from loops import VOCAB, TinyLM, batches
from torch import nn

import trainhooks as th
from trainhooks.model.movement_check import SAMPLE

PAGE = (Path(__file__).parents[2] / "docs" / "loops.md").read_text(encoding="utf-8")


def test_the_printed_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    data, model = batches(3), TinyLM()
    given = {
        "model": model,
        "loader": [(ids[:, :-1], ids[:, 1:]) for ids in data],
        "counts": np.bincount(data.flatten().numpy(), minlength=VOCAB),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss_function": lambda logits, labels: nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()),
    }
    exec(compile(block, "docs/loops.md", "exec"), given)
    store = th.open_store("run.zarr")
    assert store.steps.tolist() == [0, 1, 2, 3]
    assert np.array_equal(store.output_embedding(3), model.lm_head.weight.detach().numpy())
    assert store.label_counts(3).sum() == data[:, :, 1:].numel()


def test_the_sample_is_of_the_size_that_is_said():
    assert f"{SAMPLE:,} numbers" in PAGE
