"""Loops as they are: each leaves the records that it should, and the recorder leaves each alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from loops import DIM, VOCAB, TinyLM, batches, train
from torch import nn
from torch.utils.checkpoint import checkpoint

import trainhooks as th

STEPS = 3
COUNTS = np.bincount(batches(STEPS)[:, :, 1:].flatten().numpy(), minlength=VOCAB)


def remembering(model, **settings):
    memory = th.MemorySink()
    return th.Recorder(model, counts=COUNTS, sinks=[memory], **settings), memory


def snapshots(memory):
    return np.stack([record.snapshot for record in memory.records])


@pytest.fixture(scope="module")
def plain():
    """The records of the plain loop, which others must equal."""
    model = TinyLM()
    recorder, memory = remembering(model)
    with recorder:
        train(model, batches(STEPS), recorder)
    return memory


def assert_same_records(memory, plain):
    np.testing.assert_array_equal(snapshots(memory), snapshots(plain))
    for record, other in zip(memory.records, plain.records, strict=True):
        assert record.step == other.step
        np.testing.assert_array_equal(record.label_counts, other.label_counts)
        for name in set(other.values) - {name for name in other.values if name.startswith("recorder.")}:
            np.testing.assert_array_equal(record.values[name], other.values[name], err_msg=name)


def test_frozen_head():
    model = TinyLM()
    model.lm_head.requires_grad_(False)
    recorder, memory = remembering(model)
    with recorder, pytest.warns(RuntimeWarning, match=r"step 0: .*lm_head\.weight is frozen"):
        train(model, batches(STEPS), recorder)
    assert (snapshots(memory) == snapshots(memory)[0]).all()
    groups, last = memory.records[-1].groups, memory.records[-1].values
    moved = dict(zip(groups, last["convergence.distance_to_initial"], strict=True))
    assert moved["output_embedding"] == 0
    assert moved["layers.0"] > 0


def lora(**settings):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(TinyLM(), peft.LoraConfig(r=2, target_modules=["lm_head"], **settings))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nn.init.normal_(model.base_model.model.lm_head.lora_A["default"].weight)
    return model


@pytest.mark.parametrize("head", [None, "base_model.model.lm_head.base_layer"])
def test_lora_head_is_recorded_as_the_matrix_that_scores(head):
    model = lora()
    recorder, memory = remembering(model, head=head)
    with recorder:
        train(model, batches(STEPS), recorder)
    layer = model.base_model.model.lm_head
    assert torch.equal(torch.tensor(memory.records[0].snapshot), layer.base_layer.weight)
    scores = layer(torch.eye(DIM)) - layer.base_layer.bias
    torch.testing.assert_close(torch.tensor(memory.records[-1].snapshot), scores.detach().T)
    assert not np.array_equal(memory.records[-1].snapshot, memory.records[0].snapshot)
    groups, last = memory.records[-1].groups, memory.records[-1].values
    assert dict(zip(groups, last["convergence.distance_to_initial"], strict=True))["output_embedding"] > 0


def test_lora_that_is_no_sum_is_refused():
    with pytest.raises(ValueError, match="DoRA"):
        th.Recorder(lora(use_dora=True))


def test_resized_vocabulary_ends_the_run_and_keeps_its_records(tmp_path):
    model = TinyLM()
    with pytest.raises(ValueError, match=r"\(60, 8\) and is \(64, 8\) at step 3"):
        grow_in_the_middle(model, tmp_path / "run.zarr")
    assert th.open_store(tmp_path / "run.zarr").steps.tolist() == [0, 1, 2]


def grow_in_the_middle(model, path):
    with th.Recorder(model, store=path, metrics=[]) as recorder:
        train(model, batches(2), recorder)
        model.embed, model.lm_head = nn.Embedding(VOCAB + 4, DIM), nn.Linear(DIM, VOCAB + 4)
        train(model, batches(1), recorder)


def test_averaged_weights_have_a_recorder_of_their_own():
    model = TinyLM()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    (live, of_live), (ema, of_average) = remembering(model), remembering(average)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with live, ema:
        for ids in batches(STEPS):
            for recorder in (live, ema):
                recorder.begin_step(ids[:, 1:])
            loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
            for recorder in (live, ema):
                recorder.after_update(loss=loss)
    expected = snapshots(of_live).astype(np.float64)
    for step in range(2, STEPS + 1):  # the first update copies
        expected[step] = (expected[step - 1] + expected[step]) / 2
    np.testing.assert_allclose(snapshots(of_average), expected, rtol=1e-5, atol=1e-6)
    assert "n_averaged" not in ema.head.name
    assert ema.head.name == live.head.name


def test_two_recorders_on_one_model_are_one_twice(plain):
    model = TinyLM()
    (one, first), (other, second) = remembering(model), remembering(model, schedule=th.Steps([0, STEPS]))

    class Both:
        def __getattr__(self, moment):
            return lambda *args, **kwargs: [getattr(recorder, moment)(*args, **kwargs) for recorder in (one, other)]

    with one, other:
        train(model, batches(STEPS), Both())
    assert_same_records(first, plain)
    assert [record.step for record in second.records] == [0, STEPS]
    np.testing.assert_array_equal(second.records[-1].snapshot, plain.records[-1].snapshot)


def test_compiled_model(plain):
    compiled = torch.compile(TinyLM(), backend="eager")
    recorder, memory = remembering(compiled)
    with recorder:
        train(compiled, batches(STEPS), recorder)
    assert recorder.head.name == "lm_head.weight"
    assert_same_records(memory, plain)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at every tensor's
def test_compiled_step_with_the_hidden_states_observed(plain):
    torch.compiler.reset()  # its caches are of code, not of models: hooks of this one are not those of the last
    model = TinyLM()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    memory = th.MemorySink()
    metrics = [*th.default_metrics(COUNTS), th.ProbabilityProbe()]
    recorder = th.Recorder(model, metrics=metrics, sinks=[memory])  # before the first compiled call

    @torch.compile(backend="eager")
    def gradients(ids):
        loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        return loss

    with recorder:
        for ids in batches(STEPS):
            recorder.begin_step(ids[:, 1:])
            loss = gradients(ids)
            recorder.before_update()
            optimizer.step()
            optimizer.zero_grad()
            recorder.after_update(loss=loss, learning_rate=1e-2)
    assert_same_records(memory, plain)
    assert memory.series("probability.positions")[1].tolist() == [4 * 16] * STEPS


class Checkpointed(TinyLM):
    """Forgets the activations of its blocks and of its head, and makes them again in the backward pass."""

    def forward(self, ids):
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = hidden + checkpoint(lambda x, layer=layer: torch.tanh(layer(x)), hidden, use_reentrant=False)
        return checkpoint(self.lm_head, self.norm(hidden), use_reentrant=False)


def test_activation_checkpointing(plain):
    model, memory = Checkpointed(), th.MemorySink()
    metrics = [*th.default_metrics(COUNTS), th.ProbabilityProbe()]
    with th.Recorder(model, metrics=metrics, sinks=[memory]) as recorder:
        train(model, batches(STEPS), recorder)
    assert_same_records(memory, plain)
    assert memory.series("probability.positions")[1].tolist() == [4 * 16] * STEPS  # not twice


def test_tied_embeddings():
    model = TinyLM()
    model.embed.weight = model.lm_head.weight
    recorder, memory = remembering(model)
    with recorder:
        train(model, batches(STEPS), recorder)
    assert recorder.head.tied
    np.testing.assert_array_equal(memory.records[-1].snapshot, model.embed.weight.detach())
    groups = memory.records[-1].groups
    moved = dict(zip(groups, memory.records[-1].values["convergence.distance_to_initial"], strict=True))
    assert moved["embedding"] > 0
    assert "output_embedding" in moved


def test_update_that_a_loss_scaler_skips():
    model = TinyLM()
    recorder, memory = remembering(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    with recorder:
        for step, ids in enumerate(batches(STEPS), start=1):
            recorder.begin_step(ids[:, 1:])
            loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            scaler.scale(loss).backward()
            if step == 2:
                model.lm_head.weight.grad[0, 0] = torch.inf
            scaler.unscale_(optimizer)
            recorder.before_update()
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            recorder.after_update(loss=loss, learning_rate=1.0, skipped=scaler.get_scale() < scale)
    assert memory.series("skipped")[1].tolist() == [0, 0, 1, 0]
    kept = snapshots(memory)
    assert np.array_equal(kept[2], kept[1])
    assert not np.array_equal(kept[3], kept[2])
    seen = [int(record.label_counts.sum()) for record in memory.records]
    assert seen == [0, 64, 64, 128]


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_is_one_update(accumulate):
    model = TinyLM()
    recorder, memory = remembering(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    data = batches(STEPS)
    with recorder:
        for ids in data:
            for part in ids.chunk(accumulate):
                recorder.begin_step(part[:, 1:])
                nn.functional.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten()).backward()
            recorder.before_update()
            optimizer.step()
            optimizer.zero_grad()
            recorder.after_update()
    assert [record.step for record in memory.records] == [0, 1, 2, 3]
    for record in memory.records:
        expected = np.bincount(data[: record.step, :, 1:].flatten().numpy(), minlength=VOCAB)
        np.testing.assert_array_equal(record.label_counts, expected)


def test_evaluation_in_the_middle_is_not_seen(plain):
    model, memory = TinyLM(), th.MemorySink()
    metrics = [*th.default_metrics(COUNTS), th.ProbabilityProbe()]

    class Evaluates:
        """Hands the moments on, and evaluates the model in the middle of each update."""

        def __getattr__(self, moment):
            return getattr(recorder, moment)

        def before_update(self):
            model.eval()
            with torch.no_grad():
                model(batches(1, seed=9)[0])
            model.train()
            recorder.before_update()

    with th.Recorder(model, metrics=metrics, sinks=[memory]) as recorder:
        train(model, batches(STEPS), Evaluates())
    assert_same_records(memory, plain)
    assert memory.series("probability.positions")[1].tolist() == [4 * 16] * STEPS


@pytest.mark.parametrize("moment", ["begin_step", "before_update", "after_update"])
def test_keyboard_interrupt_at_any_moment_keeps_what_was_recorded(tmp_path, plain, moment):
    model = TinyLM()
    with pytest.raises(KeyboardInterrupt):
        interrupt(model, tmp_path / "run.zarr", moment=moment)
    store = th.open_store(tmp_path / "run.zarr")
    assert store.complete
    assert store.steps.tolist() == [0, 1]
    np.testing.assert_array_equal(store.output_embedding(1), plain.records[1].snapshot)


def interrupt(model, path, *, moment):
    """Ctrl-C in the second update, right before the recorder's moment."""

    class Stops:
        calls = 0

        def __getattr__(self, name):
            if name == moment:
                self.calls += 1
                if self.calls == 2:
                    raise KeyboardInterrupt
            return getattr(recorder, name)

    with th.Recorder(model, store=path, counts=COUNTS) as recorder:
        train(model, batches(STEPS), Stops())


def test_model_that_moves_to_another_place_in_memory_or_precision():
    """`.to()` gives the parameters new storage, as a move between devices does; the records follow it."""
    model = TinyLM()
    recorder, memory = remembering(model)
    with recorder:
        train(model, batches(1), recorder)
        model.double()
        train(model, batches(1), recorder)
        assert recorder.head.weight.dtype == torch.float64
        model.lm_head.weight.data = model.lm_head.weight.data.clone()
        train(model, batches(1), recorder)
    assert [record.step for record in memory.records] == [0, 1, 2, 3]
    for record in memory.records:
        assert record.snapshot.dtype == np.float32
        assert np.isfinite(record.values["probe.heldout_spearman"])
    np.testing.assert_array_equal(memory.records[-1].snapshot, model.lm_head.weight.detach().float())


def test_copies_of_the_model_are_other_models(plain):
    model = TinyLM()
    recorder, memory = remembering(model)
    teacher = copy.deepcopy(model)
    with recorder:
        train(model, batches(STEPS), recorder)
        train(teacher, batches(STEPS, seed=7))
    assert_same_records(memory, plain)
