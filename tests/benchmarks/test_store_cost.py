"""The benchmark of the store's threads keeps what it is given, and its parts are those of the whole."""

from itertools import islice
from pathlib import Path

import numpy as np

from trainhooks.store import open_store


def test_a_round_is_a_block_of_records_of_the_run_that_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import store_cost

    matrices = list(islice(store_cost.trained(64, 4), 1 + store_cost.BLOCK))
    cost = store_cost.Cost(tmp_path, iter(matrices))
    took = cost.round(0)
    block = store_cost.BLOCK
    assert took["journal"] > 0
    assert took["together"] >= took["fold"]
    store = open_store(tmp_path / "run.zarr")
    assert store.steps.tolist() == list(range(block))
    again = list(islice(store_cost.recorded(tmp_path / "run.zarr"), block))
    for index, matrix in enumerate(again):  # the first gave the shape; from the middle on and around
        np.testing.assert_array_equal(matrix, matrices[1 + (block // 2 + index) % block])
