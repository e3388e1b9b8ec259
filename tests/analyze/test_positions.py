"""Where records stand is kept beside the axis: own steps, tokens, stages; a store for each seed."""

import contextlib

import numpy as np
import pytest
from analyzed import OFTEN, write_checkpoint, write_suite
from safetensors.torch import load_file

from trainhooks.analyze import analyze_suite
from trainhooks.cli import app
from trainhooks.core.token_counts import TokenCounts
from trainhooks.store import open_store

B = 10**9


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    folder = write_suite(tmp_path_factory.mktemp("plain"), [1, 2, 4, 8], vocab=60, dim=4)
    return [load_file(folder / f"step{step}" / "model.safetensors") for step in (1, 2, 4, 8)]


def made(root, states, names):
    for state, name in zip(states, names, strict=True):
        write_checkpoint(root, 0, state)
        (root / "step0").rename(root / name)
    return root


def analyzed(suite, out, **settings):
    analyze_suite(suite, counts=OFTEN, out=out, workers=1, audit=False, **settings)
    return open_store(out)


NAMES = ("stage1-step10-tokens1B", "stage1-step20-tokens2B", "stage2-step5-tokens1B", "stage2-step9-tokens2B")


@pytest.mark.parametrize(("by", "steps"), [(None, [10, 20, 25, 29]), ("tokens", [B, 2 * B, 3 * B, 4 * B])])
def test_both_axes_and_the_stage_are_kept(tmp_path, states, by, steps):
    store = analyzed(made(tmp_path / "run", states, NAMES), tmp_path / "a.zarr", by=by)
    assert store.steps.tolist() == steps
    np.testing.assert_array_equal(store["position.tokens"], [B, 2 * B, 3 * B, 4 * B])
    np.testing.assert_array_equal(store["position.own_step"], [10, 20, 5, 9])
    np.testing.assert_array_equal(store["position.stage"], [0, 0, 1, 1])
    assert store.attributes["stages"] == ["stage1", "stage2"]
    assert store.attributes.get("axis", "step") == (by or "step")


def test_the_axis_changes_no_number(tmp_path, states):
    suite = made(tmp_path / "run", states, NAMES)
    one, other = (analyzed(suite, tmp_path / f"{by}.zarr", by=by) for by in ("step", "tokens"))
    for name in ("geometry.row_norm", "probe.heldout_spearman", "convergence.head_distance_to_final"):
        np.testing.assert_array_equal(one[name], other[name])


def test_plain_suites_have_none_of_it(tmp_path, states):
    store = analyzed(made(tmp_path / "run", states, ("step1", "step2", "step4", "step8")), tmp_path / "a.zarr")
    assert not [name for name in store.names if name.startswith("position.")]
    assert not {"axis", "stages"} & set(store.attributes)


def test_each_seed_is_a_store(tmp_path, states):
    suite = made(tmp_path / "run", states, [f"step{n}-seed-{s}" for s in ("a", "b") for n in (1, 2)])
    TokenCounts(OFTEN).save(tmp_path / "counts.npz")
    arguments = ["--counts", str(tmp_path / "counts.npz"), "--out", str(tmp_path / "x.zarr"), "--workers", "1"]
    with pytest.raises(SystemExit) as left:
        app(["analyze", str(suite), *arguments, "--no-audit"])
    assert left.value.code == 1
    with contextlib.suppress(SystemExit):
        app(["analyze", str(suite), *arguments, "--no-audit", "--seed", "all", "--json", str(tmp_path / "x.json")])
    for seed in ("a", "b"):
        store = open_store(tmp_path / f"x-seed-{seed}.zarr")
        assert store.steps.tolist() == [1, 2]
        assert store.attributes["suite_seed"] == seed
        assert (tmp_path / f"x-seed-{seed}.json").is_file()
    assert not (tmp_path / "x.zarr").exists()


def test_seeds_that_would_share_a_store_are_refused_before_work(tmp_path, states, capsys):
    names = ("one", "two", "three", "four")
    made(tmp_path / "run", states, names)
    cells = zip(names, (1, 2, 1, 2), ("a/b", "a/b", "a b", "a b"), strict=True)
    rows = [f"run/{name},{step},{seed}" for name, step, seed in cells]
    (tmp_path / "run.csv").write_text("\n".join(["place,step,seed", *rows, ""]))
    TokenCounts(OFTEN).save(tmp_path / "counts.npz")
    arguments = ["--counts", str(tmp_path / "counts.npz"), "--out", str(tmp_path / "x.zarr"), "--workers", "1"]
    with pytest.raises(SystemExit) as left:
        app(["analyze", str(tmp_path / "run.csv"), *arguments, "--no-audit", "--seed", "all"])
    assert left.value.code == 1
    assert "share a store's name" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.zarr"))
