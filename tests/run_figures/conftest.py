"""One small run for all tests here: its store, its events, its checkpoints; and a shorter one of another seed."""

import pytest
from figure_runs import record


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    return record(tmp_path_factory.mktemp("a"))


@pytest.fixture(scope="session")
def other_seed(tmp_path_factory):
    return record(tmp_path_factory.mktemp("b"), seed=1, steps=12)
