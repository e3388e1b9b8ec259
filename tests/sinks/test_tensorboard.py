"""TensorBoard's files: one tag in every host, steps that rise in each file, no curve of another run or another end."""

from __future__ import annotations

import gc
import json

import numpy as np
import torch
from loops import DIM, VOCAB, TinyLM, batches, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch.utils.tensorboard import SummaryWriter

import trainhooks as th

COUNTS = np.arange(1, VOCAB + 1)
DISTANCE, TO_FINAL = (
    "trainhooks/convergence/distance_to_initial/whole",
    "trainhooks/convergence/distance_to_final/whole",
)


def record(folder, steps, sink, *, model=None, state=None, **settings):
    model = TinyLM() if model is None else model
    with th.Recorder(model, store=folder / "run.zarr", counts=COUNTS, sinks=[sink], **settings) as recorder:
        if state is not None:
            recorder.load_state_dict(state)
        train(model, batches(steps), recorder, first=0 if state is None else state["step"])
        return model, recorder.state_dict()


def series(folder, tag):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [event.step for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


def check_rising(folder):
    for path in folder.glob("events*"):
        steps = [event.step for event in EventFileLoader(str(path)).Load() if event.summary.value]
        assert steps == sorted(steps), path.name


def test_an_extended_run_has_the_curves_of_its_new_end(tmp_path):
    events = tmp_path / "events"
    model, state = record(tmp_path, 3, th.TensorBoardSink(events))
    assert series(events, TO_FINAL) == [0, 1, 2, 3]
    record(tmp_path, 5, th.TensorBoardSink(events), model=model, state=state, mode="resume")
    assert series(events, "trainhooks/loss") == [1, 2, 3, 4, 5]
    assert series(events, TO_FINAL) == [0, 1, 2, 3, 4, 5]
    found = EventAccumulator(str(events)).Reload().Scalars(TO_FINAL)
    stored = th.open_store(tmp_path / "run.zarr")
    whole = stored.groups.index("whole")
    expected = stored["convergence.distance_to_final"][:, whole]
    np.testing.assert_allclose([event.value for event in found], expected, rtol=1e-6)
    check_rising(events)


def test_a_restart_cuts_what_lies_beyond_it(tmp_path):
    events, model = tmp_path / "events", TinyLM()
    sink = th.TensorBoardSink(events)
    with th.Recorder(model, store=tmp_path / "run.zarr", counts=COUNTS, sinks=[sink]) as recorder:
        train(model, batches(2), recorder)
        weights, state = {n: v.clone() for n, v in model.state_dict().items()}, recorder.state_dict()
        train(model, batches(4), recorder, first=2)
    model.load_state_dict(weights)
    record(tmp_path, 3, th.TensorBoardSink(events), model=model, state=state, mode="resume")
    assert series(events, "trainhooks/loss") == [1, 2, 3]


def test_old_events_do_not_mix_with_those_of_another_run(tmp_path):
    events = tmp_path / "events"
    record(tmp_path, 4, th.TensorBoardSink(events))
    record(tmp_path, 2, th.TensorBoardSink(events), mode="overwrite")
    assert series(events, "trainhooks/loss") == [1, 2]
    assert series(events, TO_FINAL) == [0, 1, 2]
    assert not list(events.glob("earlier-*"))
    record(tmp_path / "next", 1, th.TensorBoardSink(events))  # a new run without a word: nothing is lost
    assert series(events, "trainhooks/loss") == [1]
    assert series(events / "earlier-1", "trainhooks/loss") == [1, 2]


def test_a_loops_own_writer_keeps_its_own_curves(tmp_path):
    for mode in ("create", "overwrite"):
        with SummaryWriter(str(tmp_path / "events")) as writer:
            sink = th.TensorBoardSink(writer=writer)
            model = TinyLM()
            with th.Recorder(model, store=tmp_path / "run.zarr", counts=COUNTS, sinks=[sink], mode=mode) as recorder:
                for step, ids in enumerate(batches(3), start=1):
                    recorder.begin_step(ids[:, 1:])
                    writer.add_scalar("loss", float(step), step)
                    with torch.no_grad():
                        model.lm_head.weight.mul_(0.9)
                    recorder.after_update(loss=1.0, learning_rate=0.1)
        tags = EventAccumulator(str(tmp_path / "events")).Reload().Tags()["scalars"]
        assert {"loss", DISTANCE, TO_FINAL} <= set(tags)
        assert not {"trainhooks/loss", "trainhooks/learning_rate"} & set(tags)
        assert all(tag == "loss" or tag.startswith("trainhooks/") for tag in tags)
        check_rising(tmp_path / "events")
    assert series(tmp_path / "events", "loss") == [1, 2, 3] * 2, "what the loop wrote stays"
    assert series(tmp_path / "events", TO_FINAL) == [0, 1, 2, 3]


class Axes(th.Metric):
    """A vector along each of the model's axes; one entry of the first is infinite."""

    needs = frozenset({"sketch"})
    variables = (
        th.Variable("own.by_token", dims=("token",)),
        th.Variable("own.by_dim", dims=("dim",)),
        th.Variable("own.by_bucket", dims=("sketch_bucket",)),
        th.Variable("own.named", dims=("side",), sizes={"side": 2}, labels=("left", "right")),
    )

    def compute(self, state):
        by_token = torch.arange(float(VOCAB))
        by_token[1] = torch.inf
        return {
            "own.by_token": by_token,
            "own.by_dim": torch.arange(float(DIM)),
            "own.by_bucket": torch.ones(state.sketch.shape[1]),
            "own.named": torch.tensor([1.0, 2.0]),
        }


def test_vectors_along_the_models_own_axes_reach_every_sink(tmp_path):
    memory = th.MemorySink()
    sinks = [memory, th.JsonLinesSink(tmp_path / "run.jsonl"), th.TensorBoardSink(tmp_path / "events")]
    with th.Recorder(TinyLM(), metrics=[Axes()], sinks=sinks) as recorder:
        train(recorder._model, batches(2), recorder)
    assert set(memory.records[-1].vectors) == {"own/by_token", "own/by_dim", "own/by_bucket"}
    line = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[-1])
    assert line["own/by_dim"] == list(range(DIM))
    assert line["own/by_token"] == [0, None, *range(2, VOCAB)]
    assert set(line["own/by_bucket"]) == {1}
    assert line["own/named/right"] == 2
    assert "own/named" not in line
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"histograms": 0}).Reload()
    drawn = events.Histograms("trainhooks/own/by_token")
    assert [event.step for event in drawn] == [0, 1, 2]
    assert drawn[0].histogram_value.num == VOCAB - 1, "what is finite"
    assert drawn[0].histogram_value.max == VOCAB - 1
    check_rising(tmp_path / "events")


def of_one_number(**more):
    return th.store.Layout(vocab=4, dim=2, groups=("whole",), sketch_size=0, variables=(th.Variable("loss"),), **more)


def test_a_run_that_ends_without_close_keeps_its_last_events(tmp_path, monkeypatch):
    flush, flushed = SummaryWriter.flush, []
    monkeypatch.setattr(SummaryWriter, "flush", lambda writer: flushed.append(flush(writer)))
    sink = th.TensorBoardSink(tmp_path, pictures=None)
    sink.open(of_one_number())
    for step in range(5):
        sink.write(th.Record(step, {"loss": np.array(1.0)}))
    del sink
    gc.collect()
    assert flushed  # the writer's own thread would be ended with what it still has
    assert series(tmp_path, "trainhooks/loss") == list(range(5))


def test_a_configuration_of_the_projector_that_cannot_be_read_stays_and_stops_nothing(tmp_path, caplog):
    theirs = tmp_path / "projector_config.pbtxt"
    theirs.write_text("embeddings { no_such_field: 1 }")
    sink = th.TensorBoardSink(tmp_path, pictures=None)
    sink.open(of_one_number())
    sink.write(th.Record(0, {"loss": np.array(1.0)}, snapshot=np.ones((4, 2), dtype=np.float32)))
    sink.close()
    assert theirs.read_text() == "embeddings { no_such_field: 1 }"
    assert "stays as it is" in caplog.text
