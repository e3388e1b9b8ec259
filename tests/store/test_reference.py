"""The committed store of each format still opens, and holds what it held when it was made."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray

import trainhooks as th

REFERENCE = Path(__file__).parents[2] / "store" / "reference"
VERSIONS = sorted(path.parent for path in REFERENCE.glob("*/expected.json"))


def test_there_is_one():
    assert VERSIONS


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def version(request):
    return th.open_store(request.param / "run.zarr"), json.loads((request.param / "expected.json").read_text())


def test_holds_the_expected_numbers(version):
    store, expected = version
    assert store.steps.tolist() == expected["steps"]
    assert store.snapshot_steps.tolist() == expected["snapshot_steps"]
    assert list(store.groups) == expected["groups"]
    assert store.attributes["corpus_hash"] == expected["corpus_hash"]
    for step, total in expected["matrix_sums"].items():
        matrix = store.output_embedding(int(step))
        assert list(matrix.shape) == expected["shape"]
        assert matrix.sum(dtype="float64") == pytest.approx(total, rel=1e-12)
    assert store.token_path(7).sum(dtype="float64") == pytest.approx(expected["token_path_sum"], rel=1e-12)
    assert store.label_counts(store.steps[-1]).sum() == expected["labels_seen"]
    for name, values in expected["metrics_at_20"].items():
        np.testing.assert_array_equal(store[name][20], values)


def test_its_metrics_follow_from_its_matrices(version):
    store, _ = version
    metric = th.default_metrics(store.token_counts)[0]
    matrix = torch.from_numpy(store.output_embedding(40))
    head = th.OutputEmbedding(matrix, "lm_head.weight", torch.nn.Linear(1, 1))
    state = th.State(step=40, model=torch.nn.Linear(1, 1), head=head, groups={})
    again = float(metric.compute(state)["probe.heldout_r2"])
    assert again == pytest.approx(store["probe.heldout_r2"][40], abs=0.01)  # matrices are rounded to bfloat16


def test_opens_without_the_package(version):
    store, expected = version
    with xarray.open_zarr(store.path) as dataset:
        assert dataset["output_embedding"].dims == ("snapshot_step", "token", "dim")
        assert float(dataset["output_embedding"][20].values.sum(dtype="float64")) == pytest.approx(
            expected["matrix_sums"]["20"], rel=1e-12
        )
