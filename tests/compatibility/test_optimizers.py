"""Whatever moves the weights: record t is the head after step t to the bit, and training is what it is without it."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import trainhooks as th

VOCAB, DIM, STEPS = 40, 8, 4
COUNTS = np.arange(1, VOCAB + 1)
NOT_HERE = {
    "Optimizer": "the base class",
    "SparseAdam": "takes sparse gradients alone, and a head's are dense",
}
OPTIMIZERS = sorted(
    name
    for name, found in vars(torch.optim).items()
    if inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)
)


def build():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("embed", nn.Embedding(VOCAB, DIM))
    model.add_module("lm_head", nn.Linear(DIM, VOCAB, bias=False))
    return model


def train(model, optimizer, *, recorder=None, after_step=lambda: None):
    """The head after each step."""
    heads = [model.lm_head.weight.detach().clone().numpy()]
    batches = torch.randint(0, VOCAB, (STEPS, 4, 9), generator=torch.Generator().manual_seed(1))
    for ids in batches:
        if recorder:
            recorder.begin_step(labels=ids[:, 1:])

        def closure(ids=ids):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            return loss

        loss = closure()
        if recorder:
            recorder.before_update()
        optimizer.step(closure)
        after_step()
        if recorder:
            recorder.after_update(loss=loss.detach())
        heads.append(model.lm_head.weight.detach().clone().numpy())
    return heads


def recorded(tmp_path, model, optimizer, **kwargs):
    with th.Recorder(model, store=tmp_path / "run.zarr", counts=COUNTS, metrics=[]) as recorder:
        heads = train(model, optimizer, recorder=recorder, **kwargs)
    store = th.open_store(tmp_path / "run.zarr")
    assert store.steps.tolist() == list(range(STEPS + 1))
    for step, head in enumerate(heads):
        np.testing.assert_array_equal(store.output_embedding(step), head)
    return heads


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torchs_own(name, tmp_path):
    if name in NOT_HERE:
        pytest.skip(NOT_HERE[name])
    make = getattr(torch.optim, name)
    bare, watched = build(), build()
    expected = train(bare, make(bare.parameters()))
    heads = recorded(tmp_path, watched, make(watched.parameters()))
    np.testing.assert_array_equal(heads, expected)
    assert not np.array_equal(heads[0], heads[-1]), "the optimizer moved nothing: this shows nothing"


def test_a_moving_average_is_another_model(tmp_path):
    """EMA weights live in a model of their own; the recorder follows the one that it was given."""
    model = build()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    recorded(
        tmp_path,
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        after_step=lambda: average.update_parameters(model),
    )
    assert not torch.equal(average.module.lm_head.weight, model.lm_head.weight)


def test_the_average_can_be_followed_itself(tmp_path):
    model = build()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    heads = []
    with th.Recorder(average, store=tmp_path / "run.zarr", counts=COUNTS, metrics=[]) as recorder:
        for ids in torch.randint(0, VOCAB, (STEPS, 4, 9), generator=torch.Generator().manual_seed(1)):
            recorder.begin_step()
            loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
            recorder.after_update()
            heads.append(average.module.lm_head.weight.detach().clone().numpy())
    store = th.open_store(tmp_path / "run.zarr")
    for step, head in enumerate(heads, start=1):
        np.testing.assert_array_equal(store.output_embedding(step), head)
