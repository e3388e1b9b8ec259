"""The first screen of TensorBoard, live and from a store: what answers stands first, what says nothing is not there."""

import json
import logging

import numpy as np
import pytest
import torch
from loops import VOCAB, TinyLM, batches, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

import trainhooks as th
from trainhooks.cli import app
from trainhooks.sinks import overview, pictures
from trainhooks.sinks.projector import count_bin, label
from trainhooks.sinks.replay import store_layout
from trainhooks.sinks.run_events import run_names
from trainhooks.sinks.run_texts import plain

COUNTS = np.arange(1, VOCAB + 1)
TEXTS = [f" t{i}\t\x1b[2J<b>" for i in range(VOCAB)]
UPDATES = 9


def trained(folder, *sinks, steps=UPDATES):
    torch.manual_seed(0)
    model, losses = TinyLM(), []
    where = {"store": folder / "run.zarr", "sinks": sinks} if sinks else {}
    with th.Recorder(model, counts=COUNTS, token_texts=TEXTS, provenance={"size": "tiny | <b>"}, **where) as recorder:
        losses.append(train(model, batches(steps), recorder))
    return [value.clone() for value in model.state_dict().values()], losses


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("overview")
    trained(folder, th.TensorBoardSink(folder / "live"))
    with pytest.raises(SystemExit) as ended:
        app(["tensorboard", str(folder / "run.zarr"), "--logdir", str(folder / "offline"), "--json"])
    assert ended.value.code == 0
    return folder


def opened(folder):
    everything = dict.fromkeys(("scalars", "images", "tensors", "histograms"), 0)
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def offline(run):
    (folder,) = (run / "offline").iterdir()
    return folder


def folders(run):
    return [run / "live", offline(run)]


def test_the_overview_stands_before_all_and_repeats_what_the_families_say(run):
    for folder in folders(run):
        events = opened(folder)
        scalars = events.Tags()["scalars"]
        assert min(scalars).startswith("overview/1")
        for tag, name in overview._ROWS.items():
            one, other = (
                [(e.step, e.value) for e in events.Scalars(t)] for t in (f"overview/{name}", f"trainhooks/{tag}")
            )
            assert one == other, tag


def test_events_hold_what_the_store_holds(run):
    store = th.open_store(run / "run.zarr")
    for folder in folders(run):
        events, compared = opened(folder), 0
        for name in store.names:
            values, tag = store[name], f"trainhooks/{name.replace('.', '/')}"
            columns = {tag: values} if values.ndim == 1 else {}
            if values.ndim == 2 and values.shape[1] == len(store.groups):
                columns = {f"{tag}/{group}": values[:, i] for i, group in enumerate(store.groups)}
            for one, column in columns.items():
                if one in events.Tags()["scalars"]:
                    found = {event.step: event.value for event in events.Scalars(one)}
                    expected = {step: x for step, x in zip(store.steps.tolist(), column, strict=True) if np.isfinite(x)}
                    assert found == pytest.approx(expected, rel=1e-6, abs=1e-30), one
                    compared += 1
        assert compared > 60


def test_what_says_nothing_is_not_written(run):
    for folder in folders(run):
        assert not {"trainhooks/skipped", "trainhooks/nonfinite_rows"} & set(opened(folder).Tags()["scalars"])


def test_a_store_draws_what_the_run_drew_and_no_less(run):
    """A learning rate that stands still, or a part of the model that does, is drawn from a store too."""
    live, again = (
        {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        for events in map(opened, folders(run))
    )
    assert {tag: curve for tag, curve in again.items() if not tag.startswith("verdict/")} == live
    assert any(len({value for _, value in curve}) == 1 < len(curve) for curve in live.values())


def test_a_quiet_row_is_heard_from_when_it_changes():
    quiet = overview.Quiet()
    heard = [quiet.of(th.Record(step, {"skipped": np.array(float(x))})) for step, x in enumerate([0, 0, 1, 0])]
    assert heard == [{}, {}, {"skipped": 1.0}, {"skipped": 0.0}]
    assert overview.Quiet().of(th.Record(0, {"skipped": np.array(1.0)})) == {"skipped": 1.0}, "from the first"


def test_steps_rise_in_every_file(run):
    for folder in folders(run):
        for path in folder.glob("events*"):
            steps = [event.step for event in EventFileLoader(str(path)).Load() if event.summary.value]
            assert steps == sorted(steps), path.name


def test_pictures_come_at_log_spaced_steps_and_say_the_end_when_it_is_known(run):
    for folder in folders(run):
        events = opened(folder)
        steps = {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}
        assert steps[overview.SCATTER] == steps[overview.SALIENCY] == [0, 1, 4]
        assert steps[overview.FREQUENCY_SO_FAR] == steps[overview.CONVERGENCE_SO_FAR] == [0, 1, 4, UPDATES]
        image = events.Images(overview.FREQUENCY_SO_FAR)[-1]
        assert (image.width, image.height) == (740, 400)
        assert [e.step for e in events.Histograms(overview.NORMS)] == [0, 1, 4]


def test_the_scatter_shows_the_probe_that_the_store_has(run):
    store = th.open_store(run / "run.zarr")
    drawn = pictures.Pictures(store_layout(store))
    values = {name: np.asarray(store[name][8]) for name in store.names if name.startswith("probe.")}
    panel = drawn._scatter(th.Record(8, values, snapshot=store.output_embedding(8))).panels[0]
    fit = th.fit_probe(torch.from_numpy(store.output_embedding(8)), torch.from_numpy(panel.curves[0].x))
    squares = (panel.curves[0].y - panel.curves[0].x) ** 2
    assert squares.mean() == pytest.approx(float(store["probe.heldout_mse"][8]), rel=1e-4)
    assert float(fit.heldout_mse) == pytest.approx(squares.mean(), rel=1e-3)


def test_charts_texts_and_projector(run):
    for folder in folders(run):
        events = opened(folder)
        layout = layout_pb2.Layout()
        layout.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
        assert layout.category[0].title == "Is frequency there yet, and has the rest converged?"
        drawn = set(events.Tags()["scalars"])
        assert {tag for part in layout.category for chart in part.chart for tag in chart.multiline.tag} <= drawn
        said = events.Tensors("overview/provenance/text_summary")[0].tensor_proto.string_val[0].decode()
        assert "tiny \\| \\<b\\>" in said
        lines = (folder / "trainhooks-projector" / "metadata.tsv").read_text().splitlines()
        assert lines[:2] == ["token\tid\tcount\tbin", "' t59\\x09\\x1b[2J<b>'\t59\t60\t10 to 99"]
        rows = np.loadtxt(folder / "trainhooks-projector" / "tensors.tsv")
        expected = th.open_store(run / "run.zarr").output_embedding(UPDATES)[np.arange(VOCAB)[::-1]]
        np.testing.assert_allclose(rows, expected, rtol=1e-4)
        assert "step 9" in (folder / "projector_config.pbtxt").read_text()


def test_offline_has_the_verdict_and_its_figures(run):
    events = opened(offline(run))
    said = events.Tensors("overview/verdict/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "lead" in said
    metadata = events.SummaryMetadata("_hparams_/session_start_info")
    settings = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info.hparams
    assert settings["size"].string_value == "tiny | <b>"
    assert any(tag.startswith("verdict/") for tag in events.Tags()["scalars"])


def test_several_runs_have_names_of_their_own():
    assert run_names(["a/run.zarr", "b/run.zarr"]) == ["a", "b"]
    assert run_names(["x/seed0.zarr", "x/seed1.zarr"]) == ["seed0", "seed1"]
    assert run_names(["x/a/seed.zarr", "x/b/seed.zarr"]) == ["a-seed", "b-seed"]
    assert run_names(["s3://bucket/one/run.zarr"]) == ["one"]
    assert run_names(["a/run.zarr", "a/run.zarr"])[1].endswith("-2")
    assert run_names(["/x/seed", "s3://x/seed", "/x/seed-2"]) == ["x-seed", "x-seed-3", "x-seed-2"]
    assert run_names(["/x/seed", "/x/Seed"]) == ["x-seed", "x-Seed-2"]
    assert run_names(["../e vil/$(x).zarr"]) == ["_x_"]
    assert run_names(["/x/seed/loss/.."]) == ["seed"]
    assert run_names(["s3://bucket/seed/.."]) == ["seed"]
    assert run_names(["/x/.zarr"]) == ["x"]


def test_drawing_changes_nothing_of_training(tmp_path):
    pytest.importorskip("matplotlib")
    bare, drawn = trained(tmp_path / "a"), trained(tmp_path / "b", th.TensorBoardSink(tmp_path / "b" / "events"))
    assert all(torch.equal(one, other) for one, other in zip(bare[0], drawn[0], strict=True))


def test_without_matplotlib_there_are_scalars_and_it_is_said_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING, "trainhooks"):
        trained(tmp_path, th.TensorBoardSink(tmp_path / "events"), steps=3)
    assert sum("matplotlib is not installed" in line for line in caplog.messages) == 1
    tags = opened(tmp_path / "events").Tags()
    assert tags["images"] == []
    assert "trainhooks/probe/heldout_spearman" in tags["scalars"]


def test_a_picture_that_fails_is_said_once_and_ends_no_run(tmp_path, monkeypatch, caplog):
    pytest.importorskip("matplotlib")

    def broken(drawing):
        raise RuntimeError("no ink")

    monkeypatch.setattr(pictures, "draw", broken)
    with caplog.at_level(logging.WARNING, "trainhooks"):
        trained(tmp_path, th.TensorBoardSink(tmp_path / "events"), steps=3)
    assert sum("no ink" in line for line in caplog.messages) == 1
    assert len(opened(tmp_path / "events").Scalars("overview/8 loss, nats a token")) == 3


def test_a_run_that_goes_on_draws_its_past_too(tmp_path):
    pytest.importorskip("matplotlib")
    model, events = TinyLM(), tmp_path / "events"
    where = {"store": tmp_path / "run.zarr", "counts": COUNTS}
    with th.Recorder(model, sinks=[th.TensorBoardSink(events)], **where) as recorder:
        train(model, batches(3), recorder)
        state = recorder.state_dict()
    sink = th.TensorBoardSink(events)
    with th.Recorder(model, sinks=[sink], mode="resume", **where) as recorder:
        recorder.load_state_dict(state)
        train(model, batches(5), recorder, first=3)
        recorder.flush()
        sink.settle(seconds=60.0)
        drawn = sink._screen._pictures
    stored = th.open_store(tmp_path / "run.zarr")["probe.heldout_spearman"]
    np.testing.assert_allclose(drawn.series[overview.HELD_OUT], stored, rtol=1e-6)
    assert len(list(events.glob("*.trainhooks-about"))) == 1


def test_labels_can_drive_nothing():
    assert label(" the") == "' the'"
    assert label("a\tb\n") == "'a\\x09b\\n'"
    assert [count_bin(count) for count in (0, 1, 9, 10, 1234)] == [
        "0",
        "1 to 9",
        "1 to 9",
        "10 to 99",
        "1,000 to 9,999",
    ]
    assert plain("[x](javascript:1)\n<img>") == "\\[x\\]\\(javascript:1\\)\\\\n\\<img\\>"
    assert json.loads(json.dumps(plain("x" * 1000))).endswith("\\.\\.\\.")


def test_pictures_fall_at_powers_of_four():
    assert [step for step in range(300) if pictures.WHEN(step)] == [0, 1, 4, 16, 64, 256]
