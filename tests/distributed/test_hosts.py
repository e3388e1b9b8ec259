"""Lightning's and the HF Trainer's data parallelism record the run that one process makes."""

from __future__ import annotations

import socket

import host_runs
import numpy as np
import pytest
from ranks import spawn

from trainhooks.store import open_store


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    host_runs.plain(folder / "plain.zarr")
    host_runs.plain(folder / "large.zarr", batch=host_runs.STEPS * host_runs.BATCH)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(host_runs.both, 2, folder, port)
    return {path.stem: open_store(path) for path in folder.glob("*.zarr")}


@pytest.mark.parametrize(
    ("host", "plain"),
    [("lightning", "plain"), ("sharded", "plain"), ("transformers", "plain"), ("accumulated", "large")],
)
def test_two_processes_of_a_host_are_one_plain_run(host, plain, runs):
    plain, store = runs[plain], runs[host]
    assert store.complete
    assert store.steps.tolist() == plain.steps.tolist() == list(range(2 if host == "accumulated" else 4))
    for step in store.steps.tolist():
        np.testing.assert_allclose(store.output_embedding(step), plain.output_embedding(step), atol=1e-6)
        np.testing.assert_array_equal(store.label_counts(step), plain.label_counts(step))
    assert store.label_counts(store.steps[-1]).sum() == host_runs.WINDOWS[:, 1:].numel()
    ours, theirs = store.metrics(), plain.metrics()
    assert set(ours) == set(theirs)
    for name in set(theirs) - {"recorder.milliseconds", "loss"}:
        atol = 1e-5 * np.nanmax(np.abs(theirs[name].values), initial=1e-3)
        np.testing.assert_allclose(ours[name].values, theirs[name].values, rtol=0, atol=atol, err_msg=name)
