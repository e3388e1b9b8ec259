"""Checkpoints that a signal's handler saves in the middle of a record, and updates that are taken back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loops import CONTEXT, VOCAB, TinyLM, batches, train

import trainhooks as th

COUNTS = np.arange(1, VOCAB + 1)
STEPS = 6


class Saves(th.Metric):
    """Saves a checkpoint, as a signal's handler would, while the record of `at` is being measured."""

    variables = (th.Variable("saves.ones"),)

    def __init__(self, at):
        self.at, self.save = at, None

    def compute(self, state):
        if self.save is not None and state.step == self.at:
            self.save()
        return {"saves.ones": 1.0}


def settings_of(place, at=None):
    metrics = th.default_metrics(COUNTS)
    place = {} if place is None else {"store": place}
    return {"counts": COUNTS, "metrics": [*metrics[:2], Saves(at), *metrics[2:], th.ProbabilityProbe(COUNTS)], **place}


@pytest.mark.parametrize("killed", [True, False])
def test_a_checkpoint_saved_inside_after_update_lacks_no_record(killed, tmp_path):
    whole = TinyLM()
    with th.Recorder(whole, **settings_of(tmp_path / "whole.zarr")) as recorder:
        train(whole, batches(STEPS), recorder)

    model, saved = TinyLM(), {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    settings = settings_of(tmp_path / "parts.zarr", at=3)
    recorder = th.Recorder(model, **settings)

    def save():
        tensors = {name: value.clone() for name, value in model.state_dict().items()}
        saved.update(model=tensors, recorder=recorder.state_dict())
        moments = optimizer.state_dict()
        saved["optimizer"] = {
            **moments,
            "state": {k: {n: v.clone() for n, v in m.items()} for k, m in moments["state"].items()},
        }
        if killed:
            raise KeyboardInterrupt

    settings["metrics"][2].save = save
    if killed:
        with pytest.raises(KeyboardInterrupt), recorder:
            train(model, batches(STEPS), recorder, optimizer=optimizer)
    else:  # the handler returns, and the run goes on to its end; it is resumed from that checkpoint later
        with recorder:
            train(model, batches(STEPS), recorder, optimizer=optimizer)
    assert saved["recorder"]["step"] == 3
    assert saved["recorder"]["recorded"] == 2

    again = TinyLM()
    again.load_state_dict(saved["model"])
    optimizer = torch.optim.AdamW(again.parameters(), lr=1e-2)
    optimizer.load_state_dict(saved["optimizer"])
    with th.Recorder(again, mode="resume", **settings_of(tmp_path / "parts.zarr")) as recorder:
        recorder.load_state_dict(saved["recorder"])
        assert recorder.state_dict()["unrecorded"] == saved["recorder"]["unrecorded"], "saved again before a step"
        train(again, batches(STEPS), recorder, optimizer=optimizer, first=3)
    one, other = th.open_store(tmp_path / "whole.zarr"), th.open_store(tmp_path / "parts.zarr")
    assert other.steps.tolist() == list(range(STEPS + 1))
    for name, values in one.metrics().data_vars.items():
        assert name == "recorder.milliseconds" or values.equals(other.metrics()[name]), name
    for step in range(STEPS + 1):
        assert np.array_equal(one.label_counts(step), other.label_counts(step))
        assert np.array_equal(one.output_embedding(step), other.output_embedding(step))


def test_hidden_states_of_an_update_that_failed_are_taken_back():
    memory, data = th.MemorySink(), batches(2)
    model = TinyLM()
    with th.Recorder(model, metrics=[th.ProbabilityProbe()], sinks=[memory]) as recorder:
        for attempt, ids in enumerate(data):
            recorder.begin_step(ids[:, 1:])
            model(ids[:, :-1])
            if attempt == 0:
                recorder.discard_step()
        recorder.before_update()
        recorder.after_update()
    assert memory.records[-1].values["probability.positions"] == 4 * CONTEXT
    assert int(memory.records[-1].label_counts.sum()) == 4 * CONTEXT


def test_labels_of_an_update_that_failed_are_taken_back():
    memory, data = th.MemorySink(), batches(4)
    recorder = th.Recorder(TinyLM(), metrics=[], sinks=[memory])
    recorder.discard_step()  # nothing has been counted yet
    recorder.begin_step(data[0])
    recorder.begin_step(data[1])
    recorder.discard_step()
    recorder.begin_step(data[2])
    recorder.begin_step(data[3])
    recorder.discard_step(last_pass=True)
    recorder.after_update()
    assert np.array_equal(memory.records[-1].label_counts, torch.bincount(data[2].flatten(), minlength=VOCAB).numpy())
