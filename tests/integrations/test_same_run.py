"""Three loops make the same run, bit for bit, and the recorder does not change it."""

from __future__ import annotations

from dataclasses import replace

import hosted_loops
import numpy as np
import pytest
import torch
from hosted_loops import Run, train_lightning, train_plain, train_transformers

from trainhooks.core.token_counts import TokenCounts
from trainhooks.store import open_store

STEPS, BATCH = 4, 2  # 2 windows of 16 labels: a power of two, so that 1/k and 1/labels round alike


@pytest.fixture
def make_run(build_tiny, make_windows, tmp_path):
    def make(name: str, *, accumulate: int, **recorder) -> Run:
        windows = make_windows(STEPS * BATCH * accumulate)
        counts = TokenCounts.count(windows[:, 1:].numpy(), vocab_size=200)
        out = tmp_path / name
        return Run(
            model=build_tiny(),
            data=windows,
            steps=STEPS,
            batch=BATCH,
            accumulate=accumulate,
            out=out,
            recorder={"store": out / "run.zarr", "counts": counts, **recorder},
        )

    return make


def trajectory(run: Run):
    store = open_store(run.out / "run.zarr")
    labels = np.stack([store.label_counts(int(step)) for step in store.snapshot_steps])
    kept = {"snapshots": np.stack(list(store.snapshots)), "labels": labels, "sketches": store.sketch}
    return kept, store.metrics().drop_vars("recorder.milliseconds")


@pytest.mark.parametrize("accumulate", [1, 3])
def test_three_loops_give_one_trajectory(accumulate, make_run):
    loops = {
        "plain-mean": train_plain,
        "plain-labels": lambda run: train_plain(run, loss_scaling="labels"),
        "lightning": train_lightning,
        "transformers": train_transformers,
    }
    results = {}
    for name, train in loops.items():
        run = make_run(name, accumulate=accumulate)
        train(run)
        results[name] = trajectory(run)
    kept, metrics = results.pop("plain-mean")
    assert len(kept["snapshots"]) == STEPS + 1
    assert not np.array_equal(kept["snapshots"][0], kept["snapshots"][-1])
    assert kept["labels"][-1].sum() == STEPS * BATCH * accumulate * 16
    assert np.isfinite(metrics["loss"].values[1:]).all()
    for name, (other, other_metrics) in results.items():
        for what, array in kept.items():
            assert np.array_equal(array, other[what]), (name, what)
        for variable, values in metrics.data_vars.items():
            assert values.equals(other_metrics[variable]), (name, variable)


def test_losses_and_weights_without_the_recorder_are_the_same_bits(make_run, monkeypatch):
    losses = {}

    class Nothing:
        """Takes the recorder's place and does nothing but note the losses."""

        def __init__(self, model, **settings):
            self.losses = losses["without"] = []

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def begin_step(self, labels):
            pass

        def before_update(self):
            pass

        def after_update(self, *, loss, learning_rate):
            self.losses.append(loss.item())

    recorded, bare = make_run("recorded", accumulate=2), make_run("bare", accumulate=2, metrics=[])
    train_plain(recorded)
    losses["with"] = open_store(recorded.out / "run.zarr").metrics()["loss"].values[1:].tolist()
    with monkeypatch.context() as patch:
        patch.setattr(hosted_loops.th, "Recorder", Nothing)
        train_plain(bare)
    assert losses["with"] == losses["without"]
    for (name, ours), theirs in zip(recorded.model.named_parameters(), bare.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_another_order_of_the_data_is_another_run(make_run):
    one, other = (make_run(name, accumulate=1, metrics=[]) for name in ("one", "other"))
    train_plain(one)
    train_plain(replace(other, data=other.data.flip(0)))
    assert not np.array_equal(trajectory(one)[0]["snapshots"][-1], trajectory(other)[0]["snapshots"][-1])
