"""Parameter groups of a suite: each number read once a checkpoint, and read ahead."""

import os
from collections import Counter

import numpy as np
import pytest
import torch
from analyzed import write_suite
from safetensors.torch import load_file, save_file

from trainhooks.analyze import analyze_suite
from trainhooks.checkpoints.opening import FileCheckpoint
from trainhooks.store import open_store

STEPS = (0, 1, 2, 4)


@pytest.fixture
def suite(tmp_path):
    return write_suite(tmp_path / "suite", STEPS)


def analyzed(suite, out, **given):
    analyze_suite(suite, counts=None, out=out, params="all", workers=1, audit=False, **given)
    return open_store(out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_norms_and_the_way_to_the_final_state_of_any_type(suite, tmp_path, dtype, monkeypatch):
    monkeypatch.setattr("trainhooks.numerics.distances.BLOCK", 1 << 8)  # a head of 480 numbers has two
    states = []
    for step in STEPS:
        file = suite / f"step{step}" / "model.safetensors"
        held = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
        save_file(held, file)
        states.append(torch.cat([tensor.flatten() for tensor in held.values()]).double().numpy())
    store = analyzed(suite, tmp_path / "a.zarr")
    whole = list(store.groups).index("whole")
    final, norms = states[-1], [np.linalg.norm(state) for state in states]
    wanted = {
        "norm": norms,
        "exact_distance_to_final": [np.linalg.norm(state - final) / norms[-1] for state in states],
        "exact_cosine_to_final": [state @ final / np.linalg.norm(state) / norms[-1] for state in states],
    }
    for name, values in wanted.items():
        np.testing.assert_allclose(store[f"convergence.{name}"][:, whole], values, rtol=1e-6, atol=1e-7)


def test_each_parameter_is_read_once_and_the_final_one_beside_it(suite, tmp_path, monkeypatch):
    reads, read = Counter(), FileCheckpoint.read

    def counted(checkpoint, key):
        reads[os.path.basename(checkpoint.name), key] += 1
        return read(checkpoint, key)

    monkeypatch.setattr(FileCheckpoint, "read", counted)
    analyzed(suite, tmp_path / "a.zarr")
    inner = "layers.0.weight"
    assert {step: reads[f"step{step}", inner] for step in STEPS} == {0: 1, 1: 1, 2: 1, 4: 1 + len(STEPS)}


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be asked to read ahead")
def test_the_next_checkpoint_is_on_its_way_before_its_turn(suite, tmp_path, monkeypatch):
    plain = analyzed(suite, tmp_path / "plain.zarr")
    asked, advise = Counter(), os.posix_fadvise

    def counted(file, start, length, advice):
        folder = os.path.basename(os.path.dirname(os.readlink(f"/proc/self/fd/{file}")))
        asked[folder] += length
        advise(file, start, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", counted)
    monkeypatch.setattr("trainhooks.checkpoints.sources.byte_source.AHEAD_AT_ONCE", 100)
    seen = []
    store = analyzed(suite, tmp_path / "a.zarr", progress=lambda done, total: seen.append(dict(asked)))
    numbers = sum(tensor.numel() for tensor in load_file(suite / "step0" / "model.safetensors").values())
    assert [found.get(f"step{step}", 0) >= 4 * numbers for found, step in zip(seen, STEPS[1:], strict=False)] == [
        True, True, True,
    ]  # fmt: skip
    assert {name for name in plain.names if not np.array_equal(plain[name], store[name], equal_nan=True)} == set()


def test_what_is_wrong_with_the_next_checkpoint_is_said_at_its_turn(suite, tmp_path):
    (suite / "step2" / "model.safetensors").write_bytes(b"\xff" * 100)
    report = analyze_suite(
        suite, counts=None, out=tmp_path / "a.zarr", params="all", workers=1, audit=False, head="lm_head.weight"
    )
    assert report.steps == (0, 1, 4)
    assert list(report.failed) == [2]
