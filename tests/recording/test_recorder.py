import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from loops import COUNTS, DIM, VOCAB, TinyLM, batches, train
from torch import nn

import trainhooks as th


def record(tmp_path, steps=6, model=None, **settings):
    model = model or TinyLM()
    settings.setdefault("store", tmp_path / "run.zarr")
    settings.setdefault("counts", COUNTS)
    with th.Recorder(model, **settings) as recorder:
        train(model, batches(steps), recorder)
    return recorder


def test_n_updates_give_n_plus_one_records(tmp_path):
    record(tmp_path, 6)
    store = th.open_store(tmp_path / "run.zarr")
    assert store.steps.tolist() == list(range(7))
    assert store.snapshot_steps.tolist() == list(range(7))
    assert store.complete


def test_snapshots_are_the_weights_before_and_after(tmp_path):
    model = TinyLM()
    first = model.lm_head.weight.detach().clone()
    record(tmp_path, 3, model)
    store = th.open_store(tmp_path / "run.zarr")
    assert np.array_equal(store.output_embedding(0), first.numpy())
    assert np.array_equal(store.output_embedding(3), model.lm_head.weight.detach().numpy())


def test_offline_equals_live(tmp_path):
    record(tmp_path, 5)
    store = th.open_store(tmp_path / "run.zarr")
    names = th.default_metrics(COUNTS)
    probe, spectrum, geometry, _ = names
    for step in (0, 3, 5):
        matrix = torch.from_numpy(store.output_embedding(step))
        previous = torch.from_numpy(store.output_embedding(step - 1)) if step else None
        head = th.OutputEmbedding(matrix, "lm_head.weight", nn.Linear(1, 1))
        state = th.State(
            step=step, model=nn.Linear(1, 1), head=head, groups={}, previous_head=previous,
            initial_head=torch.from_numpy(store.output_embedding(0)) if step else None,
        )  # fmt: skip
        for metric in (probe, spectrum, geometry):
            for name, value in metric.compute(state).items():
                if name.startswith(("probe.drift", "probe.norm_folded")):
                    continue  # needs the slope before, or the norm's weight
                np.testing.assert_allclose(store[name][step], np.asarray(value), rtol=2e-5, atol=2e-6, err_msg=name)


def test_to_final_comes_from_the_stored_sketches(tmp_path):
    model = TinyLM()
    record(tmp_path, 8, model)
    store = th.open_store(tmp_path / "run.zarr")
    sketches = store.sketch
    group = store.groups.index("whole")
    expected = np.linalg.norm(sketches[2, group] - sketches[-1, group]) / store["convergence.norm"][-1, group]
    assert store["convergence.distance_to_final"][2, group] == pytest.approx(expected, rel=1e-5)
    assert store["convergence.distance_to_final"][-1, group] == pytest.approx(0, abs=1e-6)


def test_each_part_follows_its_own_schedule(tmp_path):
    class Late(th.Metric):
        variables = (th.Variable("late.ones"),)
        schedule = th.Steps([4])

        def compute(self, state):
            return {"late.ones": 1.0}

    record(
        tmp_path,
        6,
        schedule=th.Every(3),
        snapshot_schedule=th.Steps([0, 5]),
        metrics=[Late(), *th.default_metrics(None)],
    )
    store = th.open_store(tmp_path / "run.zarr")
    assert store.steps.tolist() == [0, 3, 4, 5, 6]
    assert store.snapshot_steps.tolist() == [0, 5]
    assert np.isfinite(store["late.ones"]).tolist() == [False, False, True, False, False]
    assert np.isfinite(store["spectrum.stable_rank"]).tolist() == [True, True, False, False, True]


def test_metric_before_update_sees_gradients(tmp_path):
    class HeadGradient(th.Metric):
        variables = (th.Variable("gradient.head_norm"),)
        moment = "before_update"

        def compute(self, state):
            return {"gradient.head_norm": state.head.weight.grad.norm()}

    memory = th.MemorySink()
    record(tmp_path, 3, store=None, metrics=[HeadGradient()], sinks=[memory])
    steps, norms = memory.series("gradient.head_norm")
    assert steps.tolist() == [1, 2, 3]
    assert (norms > 0).all()


def test_labels_are_counted_once_their_update_is_done(tmp_path):
    model = TinyLM()
    data = batches(3)
    recorder = th.Recorder(model, store=tmp_path / "run.zarr")
    padded = data[0].clone()
    padded[:, 1] = -100
    recorder.begin_step(padded[:, 1:])
    recorder.begin_step(data[1][:, 1:])
    recorder.after_update()
    recorder.begin_step(data[2][:, 1:])
    recorder.after_update(skipped=True)
    recorder.close()
    store = th.open_store(tmp_path / "run.zarr")
    seen = np.concatenate([padded[:, 2:].numpy().ravel(), data[1][:, 1:].numpy().ravel()])
    expected = np.bincount(seen, minlength=VOCAB)
    assert np.array_equal(store.label_counts(1), expected)
    assert np.array_equal(store.label_counts(2), expected)
    assert store["skipped"].tolist() == [0, 0, 1]


def test_non_finite_weights_warn_once_and_are_recorded(tmp_path):
    model = TinyLM()
    recorder = th.Recorder(model, store=tmp_path / "run.zarr", counts=COUNTS)
    recorder.begin_step()
    with torch.no_grad():
        model.lm_head.weight[7, 2] = float("nan")
    with pytest.warns(RuntimeWarning, match="step 1.*output_embedding"):
        recorder.after_update()
    recorder.after_update()  # warnings are errors: a second one would raise
    recorder.close()
    store = th.open_store(tmp_path / "run.zarr")
    assert np.isnan(store.output_embedding(1)[7, 2])
    assert store["nonfinite_rows"].tolist() == [0, 1, 1]
    assert np.isfinite(store["probe.heldout_spearman"]).all()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_an_exception_in_the_loop_closes_the_store(tmp_path, stop):
    model = TinyLM()

    def interrupted():
        with th.Recorder(model, store=tmp_path / "run.zarr") as recorder:
            train(model, batches(2), recorder)
            raise stop

    with pytest.raises(stop):
        interrupted()
    assert th.open_store(tmp_path / "run.zarr").steps.tolist() == [0, 1, 2]


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    def begin(path, **settings):
        model = TinyLM()
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2), th.Recorder(
            model, store=path, counts=COUNTS, **settings
        )  # fmt: skip

    model, optimizer, recorder = begin(tmp_path / "whole.zarr")
    with recorder:
        train(model, batches(8), recorder, optimizer=optimizer)

    model, optimizer, recorder = begin(tmp_path / "parts.zarr")
    train(model, batches(8)[:4], recorder, optimizer=optimizer)
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "recorder": recorder.state_dict()}
    torch.save(saved, tmp_path / "checkpoint.pt")
    train(model, batches(8)[4:6], recorder, optimizer=optimizer)  # lost: beyond the checkpoint
    recorder.close()

    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    model, optimizer, recorder = begin(tmp_path / "parts.zarr", mode="resume")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    recorder.load_state_dict(saved["recorder"])
    with recorder:
        train(model, batches(8), recorder, optimizer=optimizer, first=4)

    whole, parts = th.open_store(tmp_path / "whole.zarr"), th.open_store(tmp_path / "parts.zarr")
    assert parts.steps.tolist() == whole.steps.tolist()
    for step in range(9):
        assert np.array_equal(parts.output_embedding(step), whole.output_embedding(step))
        assert np.array_equal(parts.label_counts(step), whole.label_counts(step))
    for name in whole.names:
        if not name.startswith("recorder."):
            np.testing.assert_array_equal(parts[name], whole[name], err_msg=name)


class Never(th.Metric):
    variables = (th.Variable("never.value"),)
    schedule = th.Steps([500])

    def compute(self, state):
        return {}


BAD = {
    "counts shorter than the vocabulary": (
        {"counts": COUNTS[:50]}, ValueError, r"50 entries.*60 rows.*padding.*vocab_size=50",
    ),
    "negative counts": ({"counts": COUNTS - 10**6}, ValueError, "negative"),
    "float counts": ({"counts": COUNTS * 1.5}, ValueError, "int"),
    "unknown head": ({"head": "nothing"}, ValueError, "lm_head 60 x 8"),
    "schedule that never fires": (
        {"schedule": th.Steps([50]), "total_steps": 10}, ValueError, r"never fires in steps 0 \.\.\. 10",
    ),
    "precision": ({"precision": "float8"}, ValueError, "precision"),
    "mode": ({"mode": "append"}, ValueError, "create"),
    "resume without a state": ({"mode": "resume"}, ValueError, "no store at"),
    "provenance": ({"provenance": {"model": nn.Linear(1, 1)}}, ValueError, "JSON"),
    "counts of no known kind": ({"counts": [1] * VOCAB}, ValueError, "th.TokenCounts"),
    "schedule of no known kind": ({"schedule": 10}, ValueError, r"th\.Every\(10\)"),
    "no steps": ({"total_steps": 0}, ValueError, "total_steps is 0"),
    "a metric's class": ({"metrics": [th.Metric]}, ValueError, "instances"),
    "a metric that never fires": ({"metrics": [Never()], "total_steps": 10}, ValueError, "Never.*never fires"),
    "token texts with a hole": ({"token_texts": ["a", None]}, ValueError, r"token_texts\[1\]"),
    "rows beside metrics": (
        {"metrics": [], "min_count": 5, "exclude": [0]}, ValueError, r"min_count=5 and exclude=\[0\] to each metric",
    ),
    "metric twice": ({"metrics": [*th.default_metrics(None), *th.default_metrics(None)]}, ValueError, "more than once"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_error_before_any_step(tmp_path, case):
    settings, kind, message = BAD[case]
    model = TinyLM()
    with pytest.raises(kind, match=message):
        th.Recorder(model, **{"store": tmp_path / "run.zarr", **settings}).begin_step()
    assert not (tmp_path / "run.zarr").exists()


def test_model_without_output_embedding(tmp_path):
    with pytest.raises(ValueError, match="head=NAME"):
        th.Recorder(nn.Sequential(nn.Linear(3, 4)), store=tmp_path / "run.zarr")


def test_an_existing_store_is_not_touched(tmp_path):
    record(tmp_path, 2)
    with pytest.raises(ValueError, match=r"overwrite.*resume"):
        th.Recorder(TinyLM(), store=tmp_path / "run.zarr")
    assert th.open_store(tmp_path / "run.zarr").steps.tolist() == [0, 1, 2]
    record(tmp_path, 1, mode="overwrite")
    assert th.open_store(tmp_path / "run.zarr").steps.tolist() == [0, 1]


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    precious = tmp_path / "run.zarr" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("ten years of work")
    with pytest.raises(ValueError, match="not a trainhooks store"):
        th.Recorder(TinyLM(), store=tmp_path / "run.zarr", mode="overwrite")
    assert precious.read_text() == "ten years of work"


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file"):
        th.Recorder(TinyLM(), store=tmp_path / "file" / "run.zarr")


def test_a_full_disk_is_refused_with_bytes_needed_and_free(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 1234, 1234))
    recorder = th.Recorder(TinyLM(), store=tmp_path / "run.zarr", total_steps=100)
    with pytest.raises(OSError, match=r"needs up to \d+ bytes.*1234 bytes.*force=True"):
        recorder.begin_step()
    assert not (tmp_path / "run.zarr").exists()
    record(tmp_path, 1, force=True)


def test_plan_bounds_what_the_store_takes(tmp_path):
    recorder = record(tmp_path, 40, total_steps=40)
    plan = recorder.plan()
    on_disk = sum(path.stat().st_size for path in (tmp_path / "run.zarr").rglob("*") if path.is_file())
    assert plan.records == plan.snapshots == 41
    assert on_disk <= plan.disk_bytes
    assert plan.device_bytes >= 2 * VOCAB * DIM * 4


def test_own_cost_is_reported(tmp_path):
    recorder = record(tmp_path, 4)
    assert recorder.cost.steps == 4
    assert recorder.cost.milliseconds_per_step > 0
    assert recorder.cost.fraction > 0
    milliseconds = th.open_store(tmp_path / "run.zarr")["recorder.milliseconds"]
    assert (milliseconds > 0).all()
    assert milliseconds.sum() <= 1000 * recorder.cost.seconds * 1.001


def test_json_lines_and_tensorboard_get_the_same_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record(tmp_path, 3, sinks=[th.JsonLinesSink(tmp_path / "run.jsonl"), th.TensorBoardSink(tmp_path / "events")])
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    drawn = {event.step: event.value for event in events.Scalars("trainhooks/probe/heldout_r2")}
    assert drawn == pytest.approx({line["step"]: line["probe/heldout_r2"] for line in lines}, rel=1e-6)
    assert "trainhooks/convergence/distance_to_final/layers.1" in events.Tags()["scalars"]


def test_moments_out_of_order_are_refused():
    recorder = th.Recorder(TinyLM())
    with pytest.raises(RuntimeError, match="begin_step"):
        recorder.after_update()
    recorder.begin_step()
    with pytest.raises(RuntimeError, match="before"):
        recorder.add_sink(th.MemorySink())
    with pytest.raises(RuntimeError, match="before"):
        recorder.load_state_dict(recorder.state_dict())


def test_a_nan_anywhere_in_the_model_is_said(tmp_path):
    model = TinyLM()
    recorder = th.Recorder(model, store=tmp_path / "run.zarr", metrics=[])
    recorder.begin_step()
    with torch.no_grad():
        model.layers[0].weight[0, 0] = float("inf")
    with pytest.warns(RuntimeWarning, match=r"step 1.*parameter groups whole, layers\.0"):
        recorder.after_update()
    recorder.close()


def test_large_finite_weights_are_finite():
    model = TinyLM()
    with torch.no_grad():
        model.lm_head.weight.fill_(3e38)
    memory = th.MemorySink()
    th.Recorder(model, metrics=[], sinks=[memory]).begin_step()
    assert memory.records[0].values["nonfinite_rows"] == 0


def test_labels_beyond_the_vocabulary_are_said_and_not_counted(tmp_path):
    recorder = th.Recorder(TinyLM(), store=tmp_path / "run.zarr")
    recorder.begin_step(torch.tensor([[1, VOCAB, 2]]))
    with pytest.warns(RuntimeWarning, match="step 1: labels beyond the 60 rows"):
        recorder.after_update()
    recorder.close()
    assert th.open_store(tmp_path / "run.zarr").label_counts(1).sum() == 2


@pytest.mark.parametrize("labels", [torch.ones(3), torch.ones(3, dtype=torch.bool)])
def test_labels_that_are_no_ids_are_refused(labels):
    with pytest.raises(ValueError, match="token ids"):
        th.Recorder(TinyLM()).begin_step(labels)


def test_the_loops_precision_is_not_the_metrics():
    plain, mixed = th.MemorySink(), th.MemorySink()
    th.Recorder(TinyLM(), counts=COUNTS, sinks=[plain]).begin_step()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            model = TinyLM().float()
            with torch.no_grad():
                model.load_state_dict(TinyLM().float().state_dict())
            recorder = th.Recorder(model, counts=COUNTS, sinks=[mixed])
            recorder.begin_step()
    finally:
        torch.set_default_dtype(before)
    again = th.MemorySink()
    th.Recorder(model, counts=COUNTS, sinks=[again]).begin_step()
    for name, value in again.records[0].values.items():
        if not name.startswith("recorder."):
            np.testing.assert_array_equal(mixed.records[0].values[name], value, err_msg=name)
    np.testing.assert_array_equal(mixed.records[0].sketch, again.records[0].sketch)


@pytest.mark.parametrize("metrics", [None, []])
def test_random_numbers_and_modes_are_left_alone(metrics):
    def states():
        # not Python's own: beartype, which checks shapes in these tests, draws from it
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()

    before, threads = states(), torch.get_num_threads()
    recorder = th.Recorder(TinyLM(), counts=COUNTS, metrics=metrics)
    recorder.begin_step(torch.tensor([1, 2]))
    recorder.before_update()
    recorder.after_update()
    recorder.close()
    assert states() == before
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_new_parameters_are_followed():
    model, memory = TinyLM(), th.MemorySink()
    recorder = th.Recorder(model, sinks=[memory])
    model.load_state_dict({name: 0 * value for name, value in model.state_dict().items()}, assign=True)
    recorder.begin_step()
    assert not memory.records[0].snapshot.any()
    model.lm_head.weight = nn.Parameter(torch.ones(VOCAB, DIM))
    recorder.after_update()
    assert memory.records[1].snapshot.all()
    model.embed, model.lm_head = nn.Embedding(VOCAB + 4, DIM), nn.Linear(DIM, VOCAB + 4)
    with pytest.raises(ValueError, match=r"\(60, 8\) and is \(64, 8\) at step 2"):
        recorder.after_update()


def test_a_state_saved_before_record_0_loses_nothing():
    state = th.Recorder(TinyLM()).state_dict()
    memory = th.MemorySink()
    recorder = th.Recorder(TinyLM(), sinks=[memory])
    recorder.load_state_dict(state)
    recorder.begin_step()
    recorder.after_update()
    assert [record.step for record in memory.records] == [0, 1]


def test_a_checkpoint_ahead_of_its_store_is_refused(tmp_path):
    recorder = record(tmp_path, 6)
    state = recorder.state_dict()
    record(tmp_path, 2, mode="overwrite")
    again = th.Recorder(TinyLM(), store=tmp_path / "run.zarr", counts=COUNTS, mode="resume")
    again.load_state_dict(state)
    with pytest.raises(ValueError, match=r"recorded up to step 6.*ends at step 2"):
        again.begin_step()


def test_a_state_of_other_metrics_is_refused():
    recorder = th.Recorder(TinyLM(), counts=COUNTS)
    recorder.begin_step()
    state = recorder.state_dict()
    with pytest.raises(ValueError, match="FrequencyProbe"):
        th.Recorder(TinyLM()).load_state_dict(state)


def test_a_closed_recorder_stays_closed():
    recorder = th.Recorder(TinyLM())
    recorder.close()
    with pytest.raises(RuntimeError, match="closed"):
        recorder.begin_step()


def test_sinks_that_opened_are_closed_when_another_fails():
    class Failing(th.Sink):
        def open(self, layout, *, restart_step=None):
            raise OSError("no")

    class Watching(th.Sink):
        closed = False

        def close(self):
            self.closed = True

    first = Watching()
    with pytest.raises(OSError, match="no"):
        th.Recorder(TinyLM(), sinks=[first, Failing()]).begin_step()
    assert first.closed


def test_json_lines_does_not_touch_a_file_that_is_there(tmp_path):
    (tmp_path / "notes.jsonl").write_text("precious\n")
    with pytest.raises(ValueError, match="exists"):
        th.Recorder(TinyLM(), sinks=[th.JsonLinesSink(tmp_path / "notes.jsonl")]).begin_step()
    assert (tmp_path / "notes.jsonl").read_text() == "precious\n"


def test_initial_is_step_0_whatever_the_schedule():
    memory = th.MemorySink()
    recorder = th.Recorder(TinyLM(), schedule=th.Steps([2, 3]), sinks=[memory])
    train(recorder._model, batches(3), recorder)
    steps, distance = memory.series("geometry.distance_to_initial")
    assert steps.tolist() == [2, 3]
    assert (distance > 0).all()


def test_the_verdict_uses_the_rows_of_the_probe(tmp_path):
    from trainhooks.lead.from_store import analyze_store

    record(tmp_path, 12, min_count=20, exclude=[0])
    rows = int(((COUNTS >= 20) & (np.arange(VOCAB) != 0)).sum())
    assert analyze_store(tmp_path / "run.zarr", draws=19).rows == rows < (COUNTS > 0).sum()


def test_token_texts_bring_the_covariate_baseline(tmp_path):
    texts = [" " * (token % 2) + "x" * (token % 7 + 1) for token in range(VOCAB)]
    record(tmp_path, 3, token_texts=texts)
    store = th.open_store(tmp_path / "run.zarr")
    gain = store["covariates.joint_r2"] - store["covariates.heldout_r2"]
    np.testing.assert_array_equal(store["covariates.r2_gain"], gain)
    assert np.isfinite(gain).all()
    assert np.ptp(store["covariates.heldout_r2"]) < 1e-12  # no model in it
    metrics = [th.CovariateBaseline(COUNTS, texts, schedule=th.Steps([0, 2]))]
    bytes_more = th.Recorder(TinyLM(), metrics=metrics).plan().host_bytes
    assert bytes_more - th.Recorder(TinyLM(), metrics=[]).plan().host_bytes == 3 * 8 * VOCAB
    record(tmp_path, 3, metrics=metrics, mode="overwrite")
    series = th.open_store(tmp_path / "run.zarr")["covariates.r2_gain"]
    assert np.isfinite(series).tolist() == [True, False, True, False]


def test_slopes_of_all_folds_are_kept(tmp_path):
    record(tmp_path, 2)
    store = th.open_store(tmp_path / "run.zarr")
    assert store["probe.fold_slope"].shape == (3, 5, DIM)
    assert store["probe.fold_intercept"].shape == (3, 5)
    assert store["probe.fold_slope"].dtype == np.float32
    assert np.isfinite(store["probe.fold_slope"]).all()


def test_rows_of_given_metrics_are_named_by_provenance(tmp_path):
    from trainhooks.lead.from_store import analyze_store

    named = {"min_count": 20, "excluded_tokens": [0]}
    record(tmp_path, 12, metrics=th.default_metrics(COUNTS, min_count=20, exclude=[0]), provenance=named)
    rows = int(((COUNTS >= 20) & (np.arange(VOCAB) != 0)).sum())
    assert analyze_store(tmp_path / "run.zarr", draws=19).rows == rows


def test_exact_convergence_goes_on_after_a_restart():
    def run(*, stop):
        model, memory, state = TinyLM(), th.MemorySink(), None
        optimizer, data = torch.optim.AdamW(model.parameters(), lr=1e-2), batches(4)
        for part in (data[:stop], data[stop:]):
            recorder = th.Recorder(model, metrics=[th.ExactConvergence(["whole"])], sinks=[memory])
            if state is not None:
                recorder.load_state_dict(state)
            train(model, part, recorder, optimizer=optimizer)
            state = recorder.state_dict()
        records = {record.step: record.values for record in memory.records}
        names = ("distance_to_initial", "relative_step")
        return {(step, name): records[step][f"exact_convergence.{name}"] for step in (3, 4) for name in names}

    assert run(stop=4) == run(stop=2)


def test_average_probability_is_measured_from_the_heads_input(tmp_path):
    record(tmp_path, 3, metrics=[th.ProbabilityProbe(COUNTS, positions_per_sequence=4)])
    store = th.open_store(tmp_path / "run.zarr")
    assert np.isnan(store["probability.step"][0])
    assert store["probability.step"][1:].tolist() == [0, 1, 2]
    assert store["probability.sequences"][1:].tolist() == [4, 4, 4]
    assert np.isfinite(store["probability.heldout_mse"][1:]).all()
    assert (store["probability.untrained_r2"][1:] == store["probability.heldout_r2"][1]).all()


def test_observe_serves_losses_that_bypass_the_head():
    def run(*, fused):
        model, memory = TinyLM(), th.MemorySink()
        recorder = th.Recorder(model, metrics=[th.ProbabilityProbe(COUNTS)], sinks=[memory])
        for ids in batches(2):
            recorder.begin_step(ids[:, 1:])
            if fused:
                hidden = model.embed(ids[:, :-1])
                for layer in model.layers:
                    hidden = hidden + torch.tanh(layer(hidden))
                hidden = model.norm(hidden)
                recorder.observe(hidden)
            else:
                model(ids[:, :-1])
            recorder.before_update()
            recorder.after_update()
        recorder.close()
        return memory.series("probability.heldout_mse")[1]

    np.testing.assert_array_equal(run(fused=True), run(fused=False))


def test_hooks_go_when_the_recorder_closes():
    model = TinyLM()
    recorder = th.Recorder(model, metrics=[th.ProbabilityProbe(COUNTS)])
    assert model.lm_head._forward_pre_hooks
    recorder.begin_step()
    recorder.close()
    assert not model.lm_head._forward_pre_hooks


def test_copies_that_a_metric_keeps_are_in_the_plan():
    bare = th.Recorder(TinyLM(), metrics=[]).plan()
    plan = th.Recorder(TinyLM(), metrics=[th.ExactConvergence(patterns=["layers.*"])]).plan()
    layers = 2 * (DIM * DIM + DIM) * 4
    assert plan.host_bytes - bare.host_bytes == 2 * layers  # initial and previous
    with pytest.raises(ValueError, match="no parameter matches"):
        th.Recorder(TinyLM(), metrics=[th.ExactConvergence(patterns=["nothing*"])]).begin_step()
