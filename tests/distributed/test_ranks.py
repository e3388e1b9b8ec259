"""A run on several processes gives the numbers of one process."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import rank_runs
import torch.multiprocessing as mp

from trainhooks.store import open_store

# of this rank, or of the clock, or a figure of the sample, which every rank draws on its own
OWN = {"recorder.milliseconds", "loss"}


def spawn(function, world, folder, *arguments, join=True):
    multiprocessing.set_forkserver_preload(["rank_runs"])  # PyTorch is imported once, not by every rank
    arguments = (world, folder, *arguments)
    return mp.start_processes(function, args=arguments, nprocs=world, join=join, start_method="forkserver")


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "run.zarr"
    model = rank_runs.build()
    with rank_runs.recorder(model, path) as record:
        rank_runs.train(model, record, way="alone")
    return open_store(path)


def assert_same_matrices(store, single):
    for record, step in enumerate(store.steps):
        np.testing.assert_allclose(store.output_embedding(step), single.output_embedding(step), atol=2e-6)
        np.testing.assert_array_equal(store.label_counts(step), single.label_counts(step))
        np.testing.assert_allclose(store.sketch[record], single.sketch[record], atol=2e-5)


def assert_same_run(store, single):
    assert store.complete
    assert store.steps.tolist() == single.steps.tolist() == list(range(rank_runs.STEPS + 1))
    assert_same_matrices(store, single)
    ours, theirs = store.metrics(), single.metrics()
    assert set(ours) == set(theirs)
    for name in set(theirs) - OWN:
        scale = np.nanmax(np.abs(theirs[name].values), initial=1e-3)
        np.testing.assert_allclose(ours[name].values, theirs[name].values, rtol=2e-3, atol=2e-3 * scale, err_msg=name)


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """The folders of all stores, by world size."""
    folders = {}
    for world, ways in ((2, ("ddp", "fsdp", "tensor_parallel")), (4, ("fsdp", "hybrid", "both"))):
        folders[world] = tmp_path_factory.mktemp(f"world{world}")
        spawn(rank_runs.record_ways, world, folders[world], ways)
    return folders


@pytest.mark.parametrize(
    ("world", "way"), [(2, "ddp"), (2, "fsdp"), (2, "tensor_parallel"), (4, "fsdp"), (4, "hybrid"), (4, "both")]
)
def test_every_number_is_the_single_processes(world, way, spread, single):
    assert_same_run(open_store(spread[world] / f"{way}.zarr"), single)


def test_another_world_size_goes_on_with_the_run(tmp_path, single):
    spawn(rank_runs.stop_halfway, 2, tmp_path)
    assert open_store(tmp_path / "run.zarr").steps.tolist() == [0, 1, 2, 3]
    spawn(rank_runs.go_on, 4, tmp_path)
    assert_same_run(open_store(tmp_path / "run.zarr"), single)


def test_a_rank_that_dies_leaves_a_sound_store(tmp_path, single):
    context = spawn(rank_runs.die, 2, tmp_path, join=False)
    for process in context.processes:
        process.join(60)
    assert (tmp_path / "error-0").read_text()
    store = open_store(tmp_path / "run.zarr")
    assert store.steps.tolist() == [0, 1, 2]
    assert_same_matrices(store, single)


def test_what_rank_0_cannot_open_fails_everywhere(tmp_path):
    spawn(rank_runs.refused, 2, tmp_path)
    assert (tmp_path / "error-0").read_text() == "ValueError: no room"
    assert "rank 0 could not open the sinks: ValueError: no room" in (tmp_path / "error-1").read_text()
