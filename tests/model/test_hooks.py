"""Hooks see each training pass once and change nothing."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trainhooks.model.hooks import watch_forward
from trainhooks.numerics.host import cloned, to_host
from trainhooks.recording.label_counts import add_label_counts


@pytest.fixture
def model():
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        attention_dropout=0.1, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).train()


IDS = torch.arange(24).view(2, 12) % 40


def gradients(model):
    torch.manual_seed(3)
    model(input_ids=IDS, labels=IDS).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pass_is_seen_once_and_not_changed(model, checkpointing):
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    bare = gradients(model)
    model.zero_grad()
    seen = []
    handle = watch_forward(model, lambda kwargs: seen.append(kwargs["labels"]))
    watched = gradients(model)
    (labels,) = seen
    assert labels is IDS
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))
    handle.remove()
    gradients(model)
    assert len(seen) == 1


def test_what_a_callback_returns_does_not_replace_the_input(model):
    model.eval()
    bare = model(input_ids=IDS).logits
    model.train()
    model.config.attention_dropout = 0.0
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.0
    watch_forward(model, lambda kwargs: {"input_ids": None})
    assert torch.equal(model(input_ids=IDS).logits, bare)


def test_evaluation_is_not_seen(model):
    seen = []
    watch_forward(model, seen.append)
    with torch.no_grad():
        model(input_ids=IDS)
    model.eval()
    model(input_ids=IDS)
    assert not seen


def test_to_host_keeps_names_shapes_and_whole_numbers():
    given = {"a": torch.tensor(2**40 + 1), "b": 1.5, "c": torch.ones(2, 3, requires_grad=True)}
    moved = to_host(given)
    assert list(moved) == ["a", "b", "c"]
    assert moved["a"] == 2**40 + 1
    assert moved["c"].shape == (2, 3)
    assert all(array.dtype == np.float64 for array in moved.values())


def test_label_counts_against_a_plain_loop():
    labels = torch.tensor([[0, 3, 3], [-100, 9, -1]])
    bins = torch.zeros(4 + 2, dtype=torch.int64)
    add_label_counts(bins, labels)
    add_label_counts(bins, labels.to(torch.int32))
    assert bins.tolist() == [4, 2, 0, 0, 4, 2]  # no label; ids 0 ... 3; beyond


def test_results_stay_what_they_were_when_parameters_move():
    weight = torch.nn.Parameter(torch.ones(2, 3))
    with torch.no_grad():
        found = cloned({"row": weight[0], "number": 2.0})
        weight.mul_(5)
    assert found["row"].tolist() == [1.0, 1.0, 1.0]
    assert found["number"] == 2.0
