"""A recorder whose records arrive late has the same records as one on the host, and loses none."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from delayed_streams import DelayedStreams
from loops import VOCAB, TinyLM, batches, train

import trainhooks as th
from trainhooks.recording.plan import StagingPlan
from trainhooks.recording.staging import RECORDS_AT_ONCE, PinnedStager
from trainhooks.recording.timing import DeviceTimer

COUNTS = np.bincount(batches(200).numpy().ravel(), minlength=VOCAB)
STEPS = 23


@pytest.fixture(params=[None, 0, 1], ids=["never by itself", "at once", "one behind"])
def late(request, monkeypatch):
    """Lets every recorder have a pinned stager over streams of this lag; the stager that were made."""
    made = []

    def stager(staging_plan):
        made.append(PinnedStager(DelayedStreams(lag=request.param), slot_bytes=staging_plan.slot_bytes))
        return made[-1]

    monkeypatch.setattr(StagingPlan, "stager", stager)
    return made


def run(**settings):
    """Losses and records of a run whose every part has a schedule of its own."""
    model, memory = TinyLM(), th.MemorySink()
    metrics = [*th.default_metrics(COUNTS), th.LeadParts(COUNTS, schedule=th.Every(4))]
    recorder = th.Recorder(
        model, metrics=metrics, snapshot_schedule=th.Steps([0, 1, 2, 9, STEPS]), sinks=[memory], **settings
    )
    with recorder:
        losses = train(model, batches(STEPS), recorder)
    return losses, memory.records, recorder


def same(records, expected):
    assert [record.step for record in records] == [record.step for record in expected]
    for one, other in zip(records, expected, strict=True):
        assert set(one.values) == set(other.values)
        for name, value in one.values.items():
            if not name.startswith("recorder."):
                np.testing.assert_array_equal(value, other.values[name], err_msg=f"{name} at {one.step}")
        for part in ("snapshot", "sketch", "label_counts"):
            assert (getattr(one, part) is None) == (getattr(other, part) is None)
            if getattr(one, part) is not None:
                np.testing.assert_array_equal(getattr(one, part), getattr(other, part))


HOST = run()


def test_late_records_are_the_same_records(late):
    losses, records, recorder = run()
    assert losses == HOST[0]
    same(records, HOST[1])
    [stager] = late
    assert len(stager._streams.pinned_bytes) == 4, "two slots, the initial and the previous output embedding"
    staging_plan = replace(recorder._pipeline.staging_plan, device=torch.device("cuda", 0))
    assert sum(stager._streams.pinned_bytes) == staging_plan.pinned_bytes


def test_the_store_has_the_head_of_each_step(late, tmp_path):
    model, heads = TinyLM(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with th.Recorder(model, store=tmp_path / "run.zarr", counts=COUNTS, metrics=[]) as recorder:
        for ids in batches(STEPS):
            recorder.begin_step(ids[:, 1:])
            heads.append(model.lm_head.weight.detach().clone())
            model(ids[:, :-1]).square().mean().backward()
            recorder.before_update()
            optimizer.step()
            optimizer.zero_grad()
            recorder.after_update()
    store = th.open_store(tmp_path / "run.zarr")
    assert store.snapshot_steps.tolist() == list(range(STEPS + 1))
    for step, head in enumerate(heads):
        assert np.array_equal(store.output_embedding(step), head.numpy())


@pytest.mark.parametrize("metrics", [None, []], ids=["compared", "stored alone"])
def test_bfloat16_is_rounded_before_it_travels(late, tmp_path, metrics):
    model, heads = TinyLM(), []
    with th.Recorder(model, store=tmp_path / "run.zarr", metrics=metrics, precision="bfloat16") as recorder:
        recorder.begin_step()
        heads.append(model.lm_head.weight.detach().clone())
        for _ in range(4):
            with torch.no_grad():
                model.lm_head.weight.mul_(1.01)
            heads.append(model.lm_head.weight.detach().clone())
            recorder.after_update()
    store = th.open_store(tmp_path / "run.zarr")
    for step, head in enumerate(heads):
        assert np.array_equal(store.output_embedding(step), head.bfloat16().float().numpy())
    [stager] = late
    bytes_of_a_number = 4 if metrics is None else 2
    assert [place.nbytes for place in stager._places.values()] == [bytes_of_a_number * heads[0].numel()]


def test_a_state_has_everything_that_was_recorded(late, tmp_path):
    def begin(**settings):
        model = TinyLM()
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2), th.Recorder(
            model, store=tmp_path / "run.zarr", counts=COUNTS, snapshot_schedule=th.Every(100), **settings
        )  # fmt: skip

    model, optimizer, recorder = begin()
    train(model, batches(STEPS)[:7], recorder, optimizer=optimizer)
    state = recorder.state_dict()
    assert recorder._sink_group._last == 7
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "recorder": state}
    torch.save(saved, tmp_path / "checkpoint.pt")
    train(model, batches(STEPS)[7:9], recorder, optimizer=optimizer)
    recorder.close()

    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    model, optimizer, recorder = begin(mode="resume")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    recorder.load_state_dict(saved["recorder"])
    with recorder:
        train(model, batches(STEPS), recorder, optimizer=optimizer, first=7)
    store = th.open_store(tmp_path / "run.zarr")
    assert store.steps.tolist() == list(range(STEPS + 1))
    for record in HOST[1]:
        for name in ("geometry.relative_step", "geometry.distance_to_initial", "probe.heldout_r2"):
            if name in record.values:
                np.testing.assert_array_equal(store[name][record.step], record.values[name], err_msg=name)


def test_an_exception_in_the_loop_loses_no_record(late):
    memory = th.MemorySink()

    def interrupted():
        model = TinyLM()
        with th.Recorder(model, snapshot_schedule=th.Every(100), sinks=[memory]) as recorder:
            train(model, batches(5), recorder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [record.step for record in memory.records] == list(range(6))
    assert memory.final, "what needs the last record was given"


def test_what_is_wrong_is_said_with_its_own_step(late):
    model = TinyLM()
    recorder = th.Recorder(model, metrics=[], snapshot_schedule=th.Every(100))
    recorder.begin_step(torch.tensor([[1, VOCAB]]))
    for _ in range(3):
        recorder.after_update()
    with pytest.warns(RuntimeWarning, match="step 1: labels beyond the 60 rows"):
        recorder.close()


def test_a_sink_that_fails_is_heard_and_keeps_no_other_record_back(late):
    steps = []

    class Failing(th.Sink):
        def write(self, record):
            steps.append(record.step)
            if record.step == 1:
                raise OSError("full")

    recorder = th.Recorder(TinyLM(), metrics=[], snapshot_schedule=th.Every(100), sinks=[Failing()])
    recorder.begin_step()
    for _ in range(3):
        recorder.after_update()
    with pytest.raises(OSError, match="full"):
        recorder.state_dict()
    assert steps == [0, 1]
    recorder.after_update()
    recorder.close()
    assert steps == [0, 1, 2, 3, 4]


def test_a_model_that_moves_takes_its_references_along(late):
    model, memory = TinyLM(), th.MemorySink()
    recorder = th.Recorder(model, counts=COUNTS, sinks=[memory])
    train(model, batches(3), recorder)
    last = model.lm_head.weight.detach().clone()
    recorder._carry(recorder._layout())
    assert [record.step for record in memory.records] == [0, 1, 2, 3], "what was on its way has arrived"
    assert torch.equal(recorder.state_dict()["references"]["previous_head"], last), "and what was kept on its way too"
    train(model, batches(1), recorder)
    recorder.close()
    assert len(late) == 2
    assert np.isfinite(memory.records[4].values["geometry.distance_to_initial"])


def test_sinks_are_closed_where_the_device_has_failed():
    closed = []

    class Closing(th.Sink):
        def close(self):
            closed.append(True)

    def failed():
        raise RuntimeError("device-side assert")

    recorder = th.Recorder(TinyLM(), metrics=[], sinks=[Closing()])
    recorder.begin_step()
    recorder._watch.set_device_timer(DeviceTimer(failed))
    with pytest.raises(RuntimeError, match="device-side assert"):
        recorder.close()
    assert closed


def test_a_loop_that_had_to_wait_hears_how_often(late, caplog):
    recorder = th.Recorder(TinyLM(), metrics=[], snapshot_schedule=th.Every(1000))
    with caplog.at_level("INFO", "trainhooks"):
        recorder.begin_step()
        for _ in range(3 * RECORDS_AT_ONCE):
            recorder.after_update()
        recorder.close()
    # the matrix and three loads of scalars through two slots
    never = late[0]._streams.lag is None
    assert late[0].waits == (2 if never else 0)
    assert ("the loop waited 2 times" in caplog.text) == never
