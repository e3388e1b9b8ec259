"""Hosts that go on: twice in one process, without a state, elsewhere, and after an attempt that was given up."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from trainhooks.integrations.host import HostedRecorder
from trainhooks.integrations.trained_labels import causal_labels
from trainhooks.sinks import JsonLinesSink
from trainhooks.store import open_store

COUNTS = np.arange(1, 201)
IDS = torch.arange(1, 13).view(2, 6)


def updates(hosted, n):
    for _ in range(n):
        hosted.begin_step({"labels": IDS})
        hosted.recorder.before_update()
        with torch.no_grad():
            hosted.recorder.head.weight.mul_(0.9)
        hosted.recorder.after_update(loss=1.0, learning_rate=0.1)


def hosted_of(store, **settings):
    return HostedRecorder({"store": store, "counts": COUNTS, **settings}, labels=causal_labels)


def test_a_second_fit_of_the_same_model_is_the_same_run(build_tiny, tmp_path):
    hosted, model = hosted_of(tmp_path / "run.zarr"), build_tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step, total in ((0, 2), (2, 4)):
            hosted.start(model, step=step, total_steps=total, saved=None)
            updates(hosted, 2)
            hosted.close()
    store = open_store(tmp_path / "run.zarr")
    assert store.steps.tolist() == [0, 1, 2, 3, 4]
    assert [store.label_counts(step).sum() for step in (0, 2, 4)] == [0, 20, 40]
    assert np.isfinite(store["probe.drift"][1:]).all()


def test_a_second_fit_of_another_model_is_not(build_tiny, tmp_path):
    hosted = hosted_of(tmp_path / "run.zarr")
    hosted.start(build_tiny(), step=0, total_steps=2, saved=None)
    updates(hosted, 2)
    hosted.close()
    with pytest.warns(RuntimeWarning, match="resumes at step 2.*every metric starts anew"):
        hosted.start(build_tiny(), step=2, total_steps=4, saved=None)
    updates(hosted, 1)
    hosted.close()
    assert open_store(tmp_path / "run.zarr").label_counts(3).sum() == 10


def test_a_state_of_another_step_is_refused_by_both_names(build_tiny):
    hosted = hosted_of(None)
    hosted.start(build_tiny(), step=0, total_steps=9, saved=None)
    updates(hosted, 2)
    state = hosted.recorder.state_dict()
    with pytest.raises(ValueError, match=r"checkpoint is of step 3.*state in it of step 2"):
        hosted_of(None).start(build_tiny(), step=3, total_steps=9, saved=state)


@pytest.mark.parametrize(("done", "gives_up"), [(0, False), (2, True)])
def test_an_attempt_that_was_given_up_is_replaced(done, gives_up, build_tiny, tmp_path):
    lines = JsonLinesSink(tmp_path / "run.jsonl")
    hosted = hosted_of(tmp_path / "run.zarr", sinks=[lines])
    hosted.start(build_tiny(), step=0, total_steps=3, saved=None)
    hosted.begin_step({"labels": IDS})
    updates(hosted, done)
    hosted.start(build_tiny(), step=0, total_steps=3, saved=None, gives_up=gives_up)
    updates(hosted, 3)
    hosted.close()
    store = open_store(tmp_path / "run.zarr")
    assert store.steps.tolist() == [0, 1, 2, 3]
    assert store.label_counts(3).sum() == 30
    assert len(lines.path.read_text().splitlines()) == 4


@pytest.mark.parametrize("ended", [True, False])
def test_an_attempt_with_updates_is_not_replaced_unasked(ended, build_tiny, tmp_path):
    hosted = hosted_of(tmp_path / "run.zarr")
    hosted.start(build_tiny(), step=0, total_steps=3, saved=None)
    updates(hosted, 2)
    hosted.close(failed=not ended)
    with pytest.raises(ValueError, match="holds a store already"):
        hosted.start(build_tiny(), step=0, total_steps=3, saved=None, gives_up=ended)
    assert open_store(tmp_path / "run.zarr").steps.tolist() == [0, 1, 2]


@pytest.mark.parametrize("as_url", [False, True])
def test_hosts_find_the_store_below_the_home_folder_or_at_a_file_url(as_url, build_tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    where = (tmp_path / "run.zarr").as_uri() if as_url else "~/run.zarr"
    hosted, model = hosted_of(where), build_tiny()
    hosted.start(model, step=0, total_steps=4, saved=None)
    updates(hosted, 2)
    state = hosted.recorder.state_dict()
    hosted.close()
    again = hosted_of(where)
    again.start(model, step=2, total_steps=4, saved=state)
    updates(again, 1)
    again.close()
    assert open_store(tmp_path / "run.zarr").steps.tolist() == [0, 1, 2, 3]
