"""FullyShardedDataParallel, whose parameters are gathered for each record, gives the numbers of one process."""

from __future__ import annotations

import socket

import flat_runs
import host_runs
import numpy as np
import pytest
import rank_runs
from ranks import spawn

from trainhooks.store import open_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flat")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(flat_runs.two_ranks, 2, folder, port)
    model = rank_runs.build()
    with flat_runs.recorder(model, folder / "single.zarr") as record:
        rank_runs.train(model, record, way="alone")
    host_runs.plain(folder / "plain.zarr")
    return folder


@pytest.mark.parametrize(("flat", "one"), [("run", "single"), ("lightning", "plain")])
def test_every_number_is_the_single_processes(flat, one, folder):
    store, single = (open_store(folder / f"{name}.zarr") for name in (flat, one))
    assert store.complete
    assert store.steps.tolist() == single.steps.tolist()
    assert store.attributes["parameters"] == single.attributes["parameters"]
    for record, step in enumerate(store.steps.tolist()):
        np.testing.assert_allclose(store.output_embedding(step), single.output_embedding(step), atol=1e-6)
        np.testing.assert_array_equal(store.label_counts(step), single.label_counts(step))
        np.testing.assert_allclose(store.sketch[record], single.sketch[record], atol=1e-6)
    ours, theirs = store.metrics(), single.metrics()
    assert set(ours) == set(theirs)
    for name in (name for name in theirs if not str(name).startswith(("recorder.", "loss"))):
        atol = 1e-5 * np.nanmax(np.abs(theirs[name].values), initial=1e-3)
        np.testing.assert_allclose(ours[name].values, theirs[name].values, rtol=0, atol=atol, err_msg=name)


def test_training_is_the_same_bits_and_the_plan_says_what_is_gathered(folder):
    whole = 4 * sum(parameter.numel() for parameter in rank_runs.build().parameters())
    assert [(folder / f"said-{rank}").read_text() for rank in (0, 1)] == [f"{whole} True"] * 2


def test_flat_parameters_without_the_original_ones_are_refused(folder):
    for rank in (0, 1):
        assert "use_orig_params=True" in (folder / f"error-{rank}").read_text()
