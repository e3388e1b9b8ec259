"""Ranks that were set up differently are told so, all of them and before a step, where they would wait for ever."""

from __future__ import annotations

import agreement_runs
import numpy as np
import pytest
import rank_runs
from ranks import spawn

from trainhooks.store import open_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agreement")
    spawn(agreement_runs.two_ranks, 2, folder)
    return folder


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("other_metrics", "the recorder of rank 1 has other metrics than rank 0's"),
        ("other_schedules", "the recorder of rank 1 has other schedules than rank 0's"),
        ("one_budget", "the recorder of rank 1 has other budgets than rank 0's"),
        ("store_of_one", "the recorder of rank 1 has other store than rank 0's"),
        ("other_precision", "the recorder of rank 1 has other output embedding than rank 0's"),
        ("loaded_by_one", "the recorder of rank 1 has other steps than rank 0's"),
        ("sharded_later", "Make the recorder after init_process_group"),
    ],
)
def test_every_rank_is_told(mistake, said, folder):
    for rank in (0, 1):
        error = (folder / f"{mistake}-{rank}").read_text()
        assert error.startswith("ValueError")
        assert said in error


def test_a_store_that_cannot_be_made_stops_every_rank(folder):
    assert "is not a trainhooks store" in (folder / "store_is_there-0").read_text()
    assert "rank 0 could not use the sinks" in (folder / "store_is_there-1").read_text()


def test_a_model_that_was_evaluated_before_is_recorded_as_it_is(folder):
    store = open_store(folder / "evaluated.zarr")
    assert store.steps.tolist() == list(range(rank_runs.STEPS + 1))
    np.testing.assert_array_equal(store.output_embedding(0), rank_runs.build().lm_head.weight.detach().numpy())
    assert (store.label_counts(store.steps[-1]) > 0).any()
