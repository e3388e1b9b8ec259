"""A verdict on a suite that was analyzed without keeping its matrices, as the README prints it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from analyzed import OFTEN, write_checkpoint, write_suite

from trainhooks.analyze import analyze_suite
from trainhooks.cli import app
from trainhooks.core.formatting import plain
from trainhooks.core.token_counts import TokenCounts
from trainhooks.lead.from_store import analyze_store
from trainhooks.lead.verdict import verdict
from trainhooks.store import open_store

STEPS = (0, 2, 4, 8, 16, 32, 48, 64)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return write_suite(tmp_path_factory.mktemp("suite"), STEPS)


def analyzed(suite, out, **settings):
    settings = {"counts": OFTEN, "workers": 1, "audit": False, **settings}
    analyze_suite(suite, out=out, **settings)
    return open_store(out)


@pytest.fixture(scope="module")
def store(suite, tmp_path_factory):
    return analyzed(suite, tmp_path_factory.mktemp("out") / "a.zarr")


def test_the_verdict_is_that_of_the_snapshots(suite, store, tmp_path):
    whole = analyze_store(analyzed(suite, tmp_path / "b.zarr", snapshots=True))
    kept = analyze_store(store)
    assert len(store.snapshots) == 0
    assert kept.picture is None
    assert whole.picture is not None
    assert {**plain(kept), "picture": None} == {**plain(whole), "picture": None}
    assert kept.leads[0].cut_step == 48
    assert verdict([kept]).sentence == verdict([whole]).sentence
    assert "probe correlation against distance" not in verdict([kept]).render()
    json.dumps(verdict([kept]).to_dict(), allow_nan=False)


def test_the_commands_as_the_readme_has_them(suite, tmp_path, capsys):
    TokenCounts(torch.as_tensor(OFTEN), rule="").save(tmp_path / "counts.npz")
    out = tmp_path / "c.zarr"
    for command in (["analyze", suite, "--counts", tmp_path / "counts.npz", "--out", out], ["verdict", out]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(word) for word in command])
        assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(("Not shown: ", "Cannot be tested here: ", "Suggested by one run: "))
    assert "sign flips: " in said


def test_thinned_records_keep_the_end_of_the_cut_run(store):
    got = analyze_store(store, max_records=4)
    assert got.records_used <= 5 < got.records_total == len(STEPS)
    assert got.leads[0].cut_step == 48


def test_other_draws_than_those_kept_are_refused(store):
    with pytest.raises(ValueError, match="the store has 99 draws at seed 0"):
        analyze_store(store, draws=199)


def test_the_error_speaks_to_an_analysis_without_what_a_verdict_needs(tmp_path):
    short = analyzed(write_suite(tmp_path / "short", (0, 5)), tmp_path / "short.zarr")
    assert not [name for name in short.names if name.startswith("lead.")]
    with pytest.raises(ValueError, match=r"fewer than 3 checkpoints .* Analyze the suite again"):
        analyze_store(short)
    without = analyzed(write_suite(tmp_path / "none", (0, 5, 9)), tmp_path / "none.zarr", counts=None)
    with pytest.raises(ValueError, match=r"no token counts: analyze the suite again with counts \(--counts\)"):
        analyze_store(without)


def test_a_broken_checkpoint_is_named(tmp_path):
    folder = write_suite(tmp_path / "s", STEPS)
    spoilt = {"lm_head.weight": torch.full((60, 8), torch.nan), "lm_head.bias": torch.zeros(60)}
    sound = {"embed.weight": torch.ones(60, 8), "norm.weight": torch.ones(8), "norm.bias": torch.ones(8)}
    write_checkpoint(
        folder, 16, {**spoilt, **sound, "layers.0.weight": torch.ones(8, 8), "layers.1.weight": torch.ones(8, 8)}
    )
    with pytest.raises(ValueError, match=r"no lead could be measured at steps \[16\]"):
        analyze_store(analyzed(folder, tmp_path / "n.zarr"))


def test_constant_counts_leave_no_lead_and_the_rest_is_measured(suite, tmp_path):
    flat = analyzed(suite, tmp_path / "f.zarr", counts=np.full(60, 5))
    assert np.isfinite(flat["convergence.head_distance_to_final"]).all()
    with pytest.raises(ValueError, match="counts are constant"):
        analyze_store(flat)
