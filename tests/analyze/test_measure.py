"""What a walk over checkpoints keeps in memory: one mapped head, whatever there is to compare it with."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.analyze.analyzed import OFTEN, same_numbers, write_suite
from tests.support.resident_pages import needs_pages, resident_bytes
from trainhooks.analyze import analyze_suite
from trainhooks.store import open_store

VOCAB, DIM, STEPS = 16000, 64, range(4)
HEAD = VOCAB * DIM * 4


@needs_pages
@pytest.mark.parametrize("masked", [False, True])
def test_few_pages_of_mapped_heads_stay_in_memory_and_no_file_is_mapped_twice(tmp_path, masked):
    seen = []
    suite = write_suite(tmp_path / "suite", STEPS, vocab=VOCAB, dim=DIM)
    counts = np.arange(VOCAB, 0, -1) * (np.arange(VOCAB) % 7 > 0) if masked else np.arange(VOCAB, 0, -1)
    analyze_suite(
        suite, counts=counts, out=tmp_path / "a.zarr", workers=1, progress=lambda *_: seen.append(resident_bytes(suite))
    )
    assert len(seen) == len(STEPS)
    for maps in seen:
        assert all(len(one) == 1 for one in maps.values()), maps
        # of four heads the blocks that were read last, and what the system maps around them at once: up to 2 MiB each
        assert sum(map(sum, maps.values())) <= 2 * HEAD


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_the_figures_of_its_copy_in_float32(tmp_path, dtype):
    suite = write_suite(tmp_path / "suite", STEPS)
    for kind in ("half", "wide"):
        for step in STEPS:
            tensors = load_file(suite / f"step{step}" / "model.safetensors")
            place = tmp_path / kind / f"step{step}"
            place.mkdir(parents=True)
            rounded = {name: tensor.to(dtype) for name, tensor in tensors.items()}
            wide = {name: tensor.float() for name, tensor in rounded.items()}
            save_file(rounded if kind == "half" else wide, place / "model.safetensors")
        analyze_suite(tmp_path / kind, counts=OFTEN, out=tmp_path / f"{kind}.zarr", workers=1, audit=False)
    half, wide = (open_store(tmp_path / f"{kind}.zarr") for kind in ("half", "wide"))
    same_numbers(half, wide, exact=False)
    assert half["convergence.head_distance_to_final"][-1] == 0.0
