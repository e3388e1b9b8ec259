"""Suites and metrics for the analyzer's tests; importable in worker processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import torch
from safetensors.torch import save_file

from trainhooks.core.variable import Variable
from trainhooks.metrics.base import Metric
from trainhooks.metrics.defaults import default_metrics

VOCAB, DIM = 60, 8
OFTEN = torch.arange(1, VOCAB + 1, dtype=torch.int64).flip(0).numpy() * 7


def write_suite(folder: Path, steps, *, vocab: int = VOCAB, dim: int = DIM, seed: int = 0) -> Path:
    """A straight walk of noise with a head, a bias, an embedding, two blocks and a norm; returns the folder."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "embed.weight": (vocab, dim),
        "layers.0.weight": (dim, dim),
        "layers.1.weight": (dim, dim),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "lm_head.weight": (vocab, dim),
        "lm_head.bias": (vocab,),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    drift = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for step in steps:
        moved = {
            name: tensor + 0.1 * step**0.5 * drift[name] + 0.03 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in tensors.items()
        }
        write_checkpoint(folder, step, moved)
    return folder


def write_checkpoint(folder: Path, step: int, tensors) -> None:
    place = folder / f"step{step}"
    place.mkdir(parents=True, exist_ok=True)
    save_file(tensors, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps({}))


class Deadly(Metric):
    """Kills its process at the steps named in the environment: once (where a flag file is missing), or always."""

    variables = (Variable("test.step"),)

    def compute(self, state):
        once = os.environ.get("TEST_DIES_ONCE")
        if once and state.step == 3 and not Path(once).exists():
            Path(once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("TEST_DIES_AT") == str(state.step):
            os.kill(os.getpid(), signal.SIGKILL)
        return {"test.step": float(state.step)}


def deadly_metrics():
    return [*default_metrics(OFTEN), Deadly()]


def same_numbers(store, other, *, exact: bool, leave_out=()) -> None:
    import numpy as np

    assert set(store.names) <= set(other.names), set(store.names) ^ set(other.names)
    assert store.steps.tolist() == other.steps.tolist()
    assert store.groups == other.groups
    for name in store.names:
        if name in leave_out:
            continue
        if exact:
            np.testing.assert_array_equal(store[name], other[name], err_msg=name)
        else:
            np.testing.assert_allclose(other[name], store[name], rtol=2e-5, atol=2e-6, err_msg=name)
