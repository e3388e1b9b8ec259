"""A run on several processes gives the numbers of one process."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import rank_runs
from ranks import spawn

from trainhooks.store import open_store

OWN = ("recorder.", "loss")  # of the clock, and of rank 0's batch
TOLERANCE = 1e-5  # of a variable's largest value; float32 sums in another order differ by up to 1.1e-6


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "run.zarr"
    model = rank_runs.build()
    with rank_runs.recorder(model, path) as record:
        rank_runs.train(model, record, way="alone")
    return open_store(path)


def assert_same_matrices(store, single):
    for record, step in enumerate(store.steps):
        np.testing.assert_allclose(store.output_embedding(step), single.output_embedding(step), atol=1e-6)
        np.testing.assert_array_equal(store.label_counts(step), single.label_counts(step))
        np.testing.assert_allclose(store.sketch[record], single.sketch[record], atol=1e-6)


def assert_same_run(store, single):
    assert store.complete
    assert store.steps.tolist() == single.steps.tolist() == list(range(rank_runs.STEPS + 1))
    assert_same_matrices(store, single)
    ours, theirs = store.metrics(), single.metrics()
    assert set(ours) == set(theirs)
    for name in (name for name in theirs if not str(name).startswith(OWN)):
        atol = TOLERANCE * np.nanmax(np.abs(theirs[name].values), initial=1e-3)
        np.testing.assert_allclose(ours[name].values, theirs[name].values, rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """The folders of all stores, by world size."""
    folders = {world: tmp_path_factory.mktemp(f"world{world}") for world in (2, 4)}
    spawn(rank_runs.two_ranks, 2, folders[2])
    assert open_store(folders[2] / "half.zarr").steps.tolist() == [0, 1, 2, 3]
    spawn(rank_runs.four_ranks, 4, folders[4], folders[2])
    return folders


@pytest.mark.parametrize(
    ("world", "way"),
    [
        (2, "ddp"),
        (2, "fsdp"),
        (2, "columns"),
        (2, "tensor_parallel"),
        (4, "fsdp"),
        (4, "hybrid"),
        (4, "both"),
    ],
)
def test_every_number_is_the_single_processes(world, way, spread, single):
    assert_same_run(open_store(spread[world] / f"{way}.zarr"), single)


def test_the_plan_announces_what_is_gathered(spread, single):
    matrix = 4 * single.vocab * single.dim
    said = {path.stem: int(path.read_text()) for folder in spread.values() for path in folder.glob("*.gathered")}
    assert said == {"ddp": 0} | dict.fromkeys(["fsdp", "columns", "tensor_parallel", "hybrid", "both"], matrix)


def test_another_world_size_goes_on_with_the_run(spread, single):
    assert_same_run(open_store(spread[2] / "half.zarr"), single)


def test_what_rank_0_cannot_open_fails_everywhere(spread):
    assert (spread[2] / "error-0").read_text() == "ValueError: no room"
    assert "rank 0 could not open the sinks: ValueError: no room" in (spread[2] / "error-1").read_text()


def test_a_rank_that_is_killed_leaves_a_sound_store(tmp_path, single):
    context = spawn(rank_runs.die, 2, tmp_path, join=False)
    for process in context.processes:
        process.join(60)
    assert [process.exitcode for process in context.processes] == [0, -signal.SIGKILL]
    assert (tmp_path / "error-0").read_text()
    store = open_store(tmp_path / "run.zarr")
    assert store.steps.tolist() == [0, 1]  # rank 1's rows of record 2 never came
    assert_same_matrices(store, single)
