"""The same numbers whatever measures them; and workers that die."""

import pytest
from analyzed import OFTEN, deadly_metrics, same_numbers, write_suite

from trainhooks.analyze import analyze_suite
from trainhooks.store import open_store

STEPS = tuple(range(10))


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("suite"), STEPS)


@pytest.fixture(scope="module")
def alone(suite, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "a.zarr"
    analyze_suite(suite, counts=OFTEN, out=out, params="all", workers=1, audit=False, metrics=deadly_metrics)
    return open_store(out)


def test_local_processes_and_a_death(suite, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_DIES_ONCE", str(tmp_path / "died"))
    settings = {"counts": OFTEN, "params": "all", "audit": False, "metrics": deadly_metrics}
    report = analyze_suite(suite, out=tmp_path / "a.zarr", workers=2, **settings)
    assert (tmp_path / "died").exists()
    assert report.steps == STEPS
    same_numbers(alone, open_store(tmp_path / "a.zarr"), exact=True)


def test_a_checkpoint_that_kills_is_reported(suite, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_DIES_AT", "7")
    report = analyze_suite(
        suite, counts=OFTEN, out=tmp_path / "a.zarr", workers=2, steps="5:9", audit=False, metrics=deadly_metrics
    )
    assert list(report.failed) == [7]
    assert report.steps == (5, 6, 8, 9)


def test_a_cluster_and_a_death(suite, alone, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setenv("TEST_DIES_ONCE", str(tmp_path / "died"))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        report = analyze_suite(
            suite,
            counts=OFTEN,
            out=tmp_path / "a.zarr",
            params="all",
            audit=False,
            metrics=deadly_metrics,
            scheduler=cluster.scheduler_address,
        )
    assert (tmp_path / "died").exists()
    assert report.steps == STEPS
    same_numbers(alone, open_store(tmp_path / "a.zarr"), exact=True)
