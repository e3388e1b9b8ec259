"""What hurried loops do to a recorder: training is left alone, other records are kept, and errors are clear."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest
import torch
from loops import DIM, VOCAB, TinyLM, batches, train
from torch import nn
from torch.nn.utils import parametrizations

import trainhooks as th

STEPS = 3
COUNTS = np.bincount(batches(STEPS)[:, :, 1:].flatten().numpy(), minlength=VOCAB)


class NormedLM(TinyLM):
    """Its embedding and first block compute their weights, and go an iteration on at each reading."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for module in (self.embed, self.layers[0]):
                parametrizations.spectral_norm(module)


def test_weights_that_are_computed_are_left_alone():
    losses = []
    for recorded in (False, True):
        model = NormedLM()
        if not recorded:
            losses.append(train(model, batches(STEPS)))
            continue
        with th.Recorder(model, counts=COUNTS, sinks=[th.MemorySink()]) as recorder:
            losses.append(train(model, batches(STEPS), recorder))
    assert losses[0] == losses[1]


def test_a_norm_with_statistics_is_left_alone():
    model = TinyLM()
    model.norm = nn.BatchNorm1d(DIM)
    assert th.Recorder(model).head.norm_scale is None
    assert model.norm.num_batches_tracked == 0


class Fails(th.Sink):
    def write(self, record):
        if record.step == 1:
            raise OSError("no room")

    def finish(self, values):
        raise OSError("no room at the end")


def test_a_sink_that_fails_keeps_no_record_from_the_store(tmp_path):
    with pytest.raises(OSError, match="no room at the end"):
        record_with(Fails(), tmp_path / "run.zarr")
    store = th.open_store(tmp_path / "run.zarr")
    assert store.steps.tolist() == [0, 1]
    assert np.isfinite(store.metrics()["convergence.distance_to_final"].values).any()


def record_with(sink, path):
    model = TinyLM()
    with th.Recorder(model, store=path, counts=COUNTS, sinks=[sink]) as recorder:
        train(model, batches(STEPS), recorder)


def test_what_a_sink_gets_cannot_be_written_into():
    model, memory = TinyLM(), th.MemorySink()
    with th.Recorder(model, counts=COUNTS, metrics=[*th.default_metrics(COUNTS)], sinks=[memory]) as recorder:
        train(model, batches(STEPS), recorder)
    for record in memory.records:
        arrays = [record.snapshot, record.label_counts, record.sketch, *record.values.values(), *memory.final.values()]
        assert not any(array.flags.writeable for array in arrays if array is not None)


def test_float64_with_the_hidden_states_observed():
    model, memory = TinyLM().double(), th.MemorySink()
    with th.Recorder(model, metrics=[th.ProbabilityProbe()], sinks=[memory]) as recorder:
        train(model, batches(STEPS), recorder)
    assert memory.series("probability.positions")[1].tolist() == [4 * 16] * STEPS


def test_a_matrix_resized_in_place_is_said():
    model = TinyLM()
    model.embed.weight = model.lm_head.weight
    with th.Recorder(model, counts=COUNTS, head="lm_head") as recorder:
        train(model, batches(1), recorder)
        model.lm_head.weight.data = torch.zeros(VOCAB + 4, DIM)
        with pytest.raises(ValueError, match=r"\(60, 8\) and is \(64, 8\) at step 2"):
            recorder.after_update()


def test_copies_and_pickles_of_the_model_are_not_observed():
    model, memory = TinyLM(), th.MemorySink()
    with th.Recorder(model, metrics=[th.ProbabilityProbe()], sinks=[memory]) as recorder:
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for ids in batches(STEPS):
            recorder.begin_step(ids[:, 1:])
            for other in (model, *twins):
                other(ids[:, :-1])
            recorder.before_update()
            recorder.after_update()
    assert memory.series("probability.positions")[1].tolist() == [4 * 16] * STEPS


@pytest.mark.parametrize(
    "labels", [[1, 2], np.arange(3), torch.ones(2, dtype=torch.complex64), torch.ones(2).long().to_sparse()]
)
def test_labels_that_are_no_tensor_of_ids_are_refused(labels):
    with th.Recorder(TinyLM()) as recorder, pytest.raises(ValueError, match="labels are"):
        recorder.begin_step(labels)


@pytest.mark.parametrize("loss", [torch.ones(4), torch.ones(0), "4.2", [1.0], {"loss": 1.0}, np.ones(2)])
def test_a_loss_that_is_no_number_is_refused_before_anything_moves(loss):
    with th.Recorder(TinyLM(), schedule=th.Steps([0, 9])) as recorder:
        recorder.begin_step()
        with pytest.raises(ValueError, match="the loss"):
            recorder.after_update(loss=loss)
        assert recorder.step == 0


def test_the_default_device_is_the_loops():
    model, data, memory = TinyLM(), batches(STEPS), th.MemorySink()
    texts = [f" t{token}" for token in range(VOCAB)]
    torch.set_default_device("meta")  # what is made there cannot be read
    try:
        metrics = [*th.default_metrics(COUNTS, token_texts=texts), th.ProbabilityProbe()]
        with th.Recorder(model, metrics=metrics, sinks=[memory]) as recorder:
            train(model, data, recorder)
            recorder.state_dict()
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
    assert len(memory.records) == STEPS + 1


def test_a_model_without_values_is_refused():
    with torch.device("meta"):
        model = TinyLM()
    with th.Recorder(model) as recorder, pytest.raises(ValueError, match="meta device"):
        recorder.begin_step()


def test_labels_first_given_in_inference_mode():
    model, memory = TinyLM(), th.MemorySink()
    with th.Recorder(model, counts=COUNTS, sinks=[memory]) as recorder:
        with torch.inference_mode():
            recorder.begin_step()
            recorder.begin_step(batches(1)[0][:0, 1:])
        train(model, batches(STEPS), recorder)
    assert int(memory.records[-1].label_counts.sum()) == STEPS * 64


@pytest.mark.parametrize("budget", ["0.02", [0.02]])
def test_a_budget_that_is_no_number_is_refused(budget):
    with pytest.raises(ValueError, match="a budget of"):
        th.Recorder(TinyLM(), budget=budget)


def test_a_budget_of_numpy_is_a_budget():
    model = TinyLM()
    with th.Recorder(model, counts=COUNTS, budget=np.float32(0.5)) as recorder:
        train(model, batches(1), recorder)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks beside threads
def test_a_forked_child_that_closes_ends_nothing(tmp_path):
    model = TinyLM()
    with th.Recorder(model, store=tmp_path / "run.zarr", counts=COUNTS) as recorder:
        train(model, batches(1), recorder)
        if (child := os.fork()) == 0:
            recorder.close()
            os._exit(0)
        os.waitpid(child, 0)
        train(model, batches(STEPS), recorder)
    store = th.open_store(tmp_path / "run.zarr")
    assert store.complete
    assert store.steps.tolist() == [0, 1, 2, 3, 4]
