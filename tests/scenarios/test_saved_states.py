"""A checkpoint and the store beside it: which of them may be ahead, and what a run that goes on makes of it."""

import threading

import pytest
import torch
from loops import TinyLM, batches, train

import trainhooks as th
from trainhooks.store import StoreWriter, open_store
from trainhooks.store.maintenance.verify import verify


def record(path, steps, *, model=None, mode="create"):
    model = model or TinyLM()
    with th.Recorder(model, store=path, metrics=[], mode=mode) as recorder:
        train(model, batches(steps), recorder)
    return recorder


def test_a_checkpoint_ahead_of_a_store_that_was_killed_goes_on_with_a_gap_that_is_named(tmp_path):
    path = tmp_path / "run.zarr"
    state = record(path, 6).state_dict()
    kept = StoreWriter(path, open_store(path)._layout, mode="resume", restart_step=2)
    kept.release()  # as a kill leaves it
    again = th.Recorder(TinyLM(), store=path, metrics=[], mode="resume")
    again.load_state_dict(state)
    with pytest.warns(RuntimeWarning, match=r"recorded up to step 6.*ends at step 2.*gap"):
        again.begin_step()
    again.after_update()
    again.close()
    store = open_store(path)
    assert store.steps.tolist() == [0, 1, 2, 7]
    assert store.gaps == [{"attempt": 2, "after": 2, "until": 6}]
    assert store.summary()["gaps"] == store.gaps
    found = verify(path)
    assert found.sound
    assert any("after step 2 up to step 6 were lost" in str(note) for note in found.notes)
    older = StoreWriter(path, store._layout, mode="resume", restart_step=1)
    older.close()
    assert open_store(path).gaps == []


def test_a_gap_is_not_made_in_another_runs_store(tmp_path):
    path = tmp_path / "run.zarr"
    state = record(path, 6).state_dict()
    with torch.no_grad():
        other = TinyLM()
        other.lm_head.weight.add_(1)
    record(path, 2, model=other, mode="overwrite")
    StoreWriter(path, open_store(path)._layout, mode="resume").release()
    again = th.Recorder(TinyLM(), store=path, metrics=[], mode="resume")
    again.load_state_dict(state)
    with pytest.raises(ValueError, match=r"ends at step 2. Name the store"):
        again.begin_step()


def test_a_checkpoint_waits_until_its_records_are_durable(tmp_path):
    recorder = th.Recorder(TinyLM(), store=tmp_path / "run.zarr", metrics=[])
    for _ in range(40):
        recorder.begin_step()
        recorder.after_update()
    recorder.state_dict()
    assert recorder.durable_step == 40
    recorder.close()


def test_a_checkpoint_never_waits_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("trainhooks.recording.pipeline.SETTLE_SECONDS", 0.2)
    recorder = th.Recorder(TinyLM(), store=tmp_path / "run.zarr", metrics=[])
    recorder.begin_step()
    gate, writer = threading.Event(), recorder._sink_group.store._writer._writer
    plain = writer.journal
    monkeypatch.setattr(writer, "journal", lambda *a, **k: (gate.wait(120), plain(*a, **k))[1])
    recorder.after_update()
    with pytest.warns(RuntimeWarning, match="the checkpoint is ahead of the store"):
        assert recorder.state_dict()["step"] == 1
    gate.set()
    recorder.close()
    assert open_store(tmp_path / "run.zarr").steps.tolist() == [0, 1]
