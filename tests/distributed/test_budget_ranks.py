"""A budget on several ranks: rank 0's clock decides, all follow at a later step that they know beforehand."""

from __future__ import annotations

import json

import budget_runs
import numpy as np
import pytest
from budget_runs import LAST, REVIEW, STOP
from ranks import spawn

from trainhooks.store import open_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budget")
    spawn(budget_runs.different_clocks, 2, folder)
    return folder


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_ranks_with_other_clocks_compute_the_same_steps(way, folder):
    said = [json.loads((folder / f"{way}-{rank}.json").read_text()) for rank in (0, 1)]
    assert said[0] == said[1]
    (dear, observed), (cheap, _) = said[0][0]
    assert cheap == list(range(STOP + 1)), "what is dear on rank 1 alone is never thinned"
    assert dear[: 4 * REVIEW + 1] == list(range(4 * REVIEW + 1))
    assert len(dear) < len(cheap)
    assert observed == dear[1:], "what is not computed is not observed"


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_thinning_holds_from_the_agreed_step_and_is_recorded(way, folder):
    store = open_store(folder / f"{way}.zarr")
    assert store.steps.tolist() == list(range(LAST + 1))
    spacing = store["recorder.spacing"]
    # the first look begins; the next lap ends at 3 looks, the ranks have heard of it after 4, of the second after 6
    assert spacing[: 4 * REVIEW + 1].max() == 0
    assert spacing[4 * REVIEW + 1 : 6 * REVIEW + 1, 0].tolist() == [2.0] * 2 * REVIEW
    assert spacing[6 * REVIEW + 1, 0] == 4
    assert spacing[:, 1:].max() == 0
    assert len(store.snapshots) == LAST + 1


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_resumed_run_goes_on_with_its_spacing(way, folder):
    said = json.loads((folder / f"{way}-0.json").read_text())
    before, after = (part[0][0] for part in said)
    spacing = open_store(folder / f"{way}.zarr")["recorder.spacing"][:, 0]
    assert spacing[STOP + 1] == spacing[STOP] >= 4
    assert after[0] - before[-1] >= spacing[STOP]
    computed = np.flatnonzero(np.isfinite(open_store(folder / f"{way}.zarr")["dear.calls"]))
    assert computed.tolist() == [*before, *after]
