"""A recorder on some ranks only: said within seconds, by name; what one rank can record alone, it does."""

from __future__ import annotations

import missing_runs
import numpy as np
import pytest
import rank_runs
from loops import batches
from ranks import spawn

from trainhooks.store import open_store

RECORDED = list(range(rank_runs.STEPS + 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("missing")
    spawn(missing_runs.two_ranks, 2, folder)
    return folder


def told(folder, run):
    return [(folder / f"{run}-{rank}").read_text() for rank in (0, 1)]


def test_the_first_of_replicas_records_alone_and_leaves_out_the_labels_that_it_cannot_count(folder):
    first, other = told(folder, "first_alone")
    assert "rank 0 has made its recorder and waits for rank 1 of 2" in first
    assert "rank 0 records alone" in first
    assert "label counts are left out" in first
    assert other == ""
    store = open_store(folder / "first_alone.zarr")
    assert store.steps.tolist() == RECORDED
    np.testing.assert_array_equal(store.output_embedding(0), rank_runs.build().lm_head.weight.detach().numpy())
    assert not np.array_equal(store.output_embedding(3), store.output_embedding(0))
    with pytest.raises(ValueError, match="no label counts were recorded"):
        store.label_counts(3)


def test_the_last_stage_of_a_pipeline_records_alone_with_its_labels(folder):
    first, last = told(folder, "last_stage_alone")
    assert first == ""
    assert "rank 1 has made its recorder and waits for rank 0 of 2" in last
    assert "rank 1 records alone" in last
    store = open_store(folder / "last_stage_alone.zarr")
    assert store.steps.tolist() == RECORDED
    labels = batches(rank_runs.STEPS)[:, :, 1:].flatten().numpy()
    np.testing.assert_array_equal(store.label_counts(3), np.bincount(labels, minlength=len(store.label_counts(3))))


def test_of_a_sharded_model_it_is_refused(folder):
    first, _ = told(folder, "sharded_alone")
    assert "waits for rank 1 of 2" in first
    assert "raised: not every rank of 2 has made a recorder, and the model is sharded" in first


def test_a_rank_that_comes_late_is_not_stopped_and_the_run_is_recorded(folder):
    first, other = told(folder, "late")
    assert "rank 0 records alone" in first
    assert "the recorder of rank 1 does nothing: rank 0 records alone" in other
    assert "torch.distributed.barrier()" in other
    assert open_store(folder / "late.zarr").steps.tolist() == RECORDED
