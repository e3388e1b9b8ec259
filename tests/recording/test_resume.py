"""Going on: with metrics that were not there, into stores that are gone, and never into another run's."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from loops import VOCAB, TinyLM, batches, train

import trainhooks as th

COUNTS = np.arange(1, VOCAB + 1)


def begun(store, steps=3, *, seed=0, **settings):
    """A run that was closed after some steps: its model, its optimizer, and the recorder's state."""
    model = TinyLM(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with th.Recorder(model, store=store, counts=COUNTS, **settings) as recorder:
        train(model, batches(steps), recorder, optimizer=optimizer)
        state = recorder.state_dict()
    return model, optimizer, state


def go_on(run, upto=5, *, first=3, **settings):
    model, optimizer, state = run
    with th.Recorder(model, **{"counts": COUNTS, "mode": "resume", **settings}) as recorder:
        recorder.load_state_dict(state)
        train(model, batches(upto), recorder, optimizer=optimizer, first=first)


@pytest.mark.parametrize("mode", ["create", "overwrite", "resume"])
def test_a_store_that_is_gone_begins_anew_where_the_run_goes_on(mode, tmp_path):
    run = begun(tmp_path / "old.zarr")
    with pytest.warns(RuntimeWarning, match=r"goes on after step 3.*records from step 4 on") as said:
        go_on(run, store=tmp_path / "new.zarr", mode=mode)
    assert len(said) == 1
    new = th.open_store(tmp_path / "new.zarr")
    assert new.steps.tolist() == [4, 5]
    assert new.complete
    assert new.label_counts(5).sum() == batches(5)[:, :, 1:].numel()
    assert np.isfinite(new["convergence.distance_to_initial"]).all(), "references come from the state"


def test_resume_without_store_or_state_names_both(tmp_path):
    with pytest.raises(ValueError, match=r"no store at .*load_state_dict"):
        th.Recorder(TinyLM(), store=tmp_path / "none.zarr", mode="resume").begin_step()


def test_another_runs_store_is_not_gone_on_with(tmp_path):
    run = begun(tmp_path / "mine.zarr")
    begun(tmp_path / "other.zarr", 4, seed=1)
    before = th.open_store(tmp_path / "other.zarr").steps.tolist()
    with pytest.raises(ValueError, match=r"another run's store.*step 3"):
        go_on(run, store=tmp_path / "other.zarr")
    assert th.open_store(tmp_path / "other.zarr").steps.tolist() == before
    go_on(run, store=tmp_path / "mine.zarr")
    assert th.open_store(tmp_path / "mine.zarr").steps.tolist() == list(range(6))


def test_a_metric_without_state_starts_anew_and_is_named_once(tmp_path):
    run = begun(None, metrics=[])
    with pytest.warns(RuntimeWarning, match=r"state of step 3 holds nothing of FrequencyProbe") as said:
        go_on(run, store=None)
    assert len(said) == 1


def test_states_belong_to_metrics_by_name_in_any_order():
    metrics = th.default_metrics(COUNTS)
    recorder = th.Recorder(TinyLM(), metrics=metrics)
    recorder.begin_step()
    state = recorder.state_dict()
    memory = th.MemorySink()
    again = th.Recorder(TinyLM(), metrics=th.default_metrics(COUNTS)[::-1], sinks=[memory])
    again.load_state_dict(state)
    again.begin_step()
    again.after_update()
    assert memory.records[0].values["probe.drift"] == pytest.approx(1), "the slope of record 0 was kept"


def test_overwrite_is_for_every_sink(tmp_path):
    lines = tmp_path / "run.jsonl"
    for mode in ("create", "overwrite"):
        begun(tmp_path / "run.zarr", 2, mode=mode, sinks=[th.JsonLinesSink(lines)])
    assert [json.loads(line)["step"] for line in lines.read_text().splitlines()] == [0, 1, 2]
    lines.write_text("precious\n")
    with pytest.raises(ValueError, match="no record of a run"):
        begun(tmp_path / "run.zarr", 2, mode="overwrite", sinks=[th.JsonLinesSink(lines)])
    assert lines.read_text() == "precious\n"


@pytest.mark.parametrize("as_url", [False, True])
def test_a_store_below_the_home_folder_or_at_a_file_url_begins_and_goes_on(as_url, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    where = (tmp_path / "a b.zarr").as_uri() if as_url else "~/a b.zarr"
    run = begun(where)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go_on(run, store=where)
    assert th.open_store(tmp_path / "a b.zarr").steps.tolist() == list(range(6))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # torch's own
@pytest.mark.parametrize("as_object", [True, False])
def test_a_distributed_checkpoint_loads_into_a_fresh_recorder(tmp_path, as_object):
    """torch's reads into what the fresh recorder offers."""
    import torch.distributed.checkpoint as dcp

    data = batches(6)
    whole, half, again = th.MemorySink(), th.MemorySink(), th.MemorySink()
    model = TinyLM()
    with th.Recorder(model, counts=COUNTS, sinks=[whole]) as recorder:
        train(model, data, recorder, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    model = TinyLM()
    with th.Recorder(model, counts=COUNTS, sinks=[half]) as recorder:
        train(model, data[:3], recorder, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        saved = {"model": model.state_dict(), "recorder": recorder if as_object else recorder.state_dict()}
        dcp.save(saved, checkpoint_id=tmp_path / "step3", no_dist=True)
    model = TinyLM(seed=1)
    recorder = th.Recorder(model, counts=COUNTS, sinks=[again])
    loaded = {"model": model.state_dict(), "recorder": recorder if as_object else recorder.state_dict()}
    dcp.load(loaded, checkpoint_id=tmp_path / "step3", no_dist=True)
    model.load_state_dict(loaded["model"])
    if not as_object:
        recorder.load_state_dict(loaded["recorder"])
    assert recorder.step == 3
    with recorder:
        train(model, data[3:], recorder, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    for one, other in zip(whole.records[4:], again.records, strict=True):
        assert one.step == other.step
        np.testing.assert_array_equal(one.label_counts, other.label_counts)
        for name, value in one.values.items():
            if not name.startswith("recorder."):
                np.testing.assert_array_equal(value, other.values[name])
