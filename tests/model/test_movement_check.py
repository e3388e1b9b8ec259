"""What is measured before the update belongs to the matrix that made it: an update inside backward is never paired."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loops import VOCAB, TinyLM, batches
from torch import nn

import trainhooks as th
from trainhooks.model import find_output_embedding
from trainhooks.model.movement_check import SAMPLE, Mark
from trainhooks.recording import update_measurement as measuring

STEPS = 4
COUNTS = np.bincount(batches(STEPS)[:, :, 1:].flatten().numpy(), minlength=VOCAB)


class GradientNorm(th.Metric):
    """Needs gradients, and nothing else."""

    variables = (th.Variable("gradient.norm"),)
    moment = "before_update"

    def compute(self, state):
        gradient = state.head.weight.grad
        return {"gradient.norm": torch.zeros(()) if gradient is None else gradient.norm()}


def by_add(parameter):
    with torch.no_grad():
        parameter.add_(parameter.grad, alpha=-0.1)


def by_data(parameter):
    parameter.data.add_(parameter.grad, alpha=-0.1)


def by_new_data(parameter):
    parameter.data = parameter.data - 0.1 * parameter.grad


def loop(model, recorder, *, hooks=(), micro=1):
    """SGD; parameters with a hook step inside the backward pass, the others after it. Returns losses and heads."""
    optimizer, heads, losses = torch.optim.SGD(model.parameters(), lr=0.1), [], []
    for ids in batches(STEPS):
        heads.append(model.lm_head.weight.detach().clone())
        for part in ids.chunk(micro):
            if recorder is not None:
                recorder.begin_step(part[:, 1:])
            loss = nn.functional.cross_entropy(model(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())
            loss.backward()
        if recorder is not None:
            recorder.before_update()
        optimizer.step()
        optimizer.zero_grad()
        if recorder is not None:
            recorder.after_update(loss=loss)
        losses.append(loss.item())
    return losses, heads


def in_backward(model, update, *, parameters=None):
    """The parameters step as soon as their gradients are there."""

    def hook(parameter):
        update(parameter)
        parameter.grad = None

    for parameter in model.lm_head.parameters() if parameters is None else parameters:
        parameter.register_post_accumulate_grad_hook(hook)


def recorded(model, **how):
    memory = th.MemorySink()
    metrics = [th.ProbabilityProbe(COUNTS), GradientNorm()]
    with th.Recorder(model, counts=COUNTS, metrics=metrics, sinks=[memory]) as recorder:
        losses, heads = loop(model, recorder, **how)
    return memory, losses, heads


def values(memory, name):
    return [float(record.values.get(name, np.nan)) for record in memory.records[1:]]


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("update", [by_add, by_data, by_new_data])
def test_an_update_inside_backward_is_not_paired_and_is_said(update, micro):
    bare, model = TinyLM(), TinyLM()
    in_backward(bare, update)
    in_backward(model, update)
    with pytest.warns(RuntimeWarning, match=r"step 1: the output embedding had moved.*backward pass") as said:
        memory, losses, heads = recorded(model, micro=micro)
    assert len([warning for warning in said if "had moved" in str(warning.message)]) == 1
    bare_losses, bare_heads = loop(bare, None, micro=micro)
    assert losses == bare_losses
    assert all(torch.equal(a, b) for a, b in zip(heads, bare_heads, strict=True)), "training is unchanged"
    for name in ("probability.heldout_r2", "probability.step", "gradient.norm"):
        assert np.isnan(values(memory, name)).all(), name
    for record, head in zip(memory.records, heads, strict=False):
        assert torch.equal(torch.tensor(record.snapshot), head), "the records are right all the same"


def test_the_bias_alone_is_a_part_of_the_scores():
    model = TinyLM()
    in_backward(model, by_data, parameters=[model.lm_head.bias])
    with pytest.warns(RuntimeWarning, match="had moved"):
        memory, *_ = recorded(model)
    assert np.isnan(values(memory, "probability.heldout_r2")).all()


def test_other_parameters_may_step_inside_backward():
    bare, model = TinyLM(), TinyLM()
    plain, *_ = recorded(bare)
    in_backward(model, by_data, parameters=model.layers.parameters())
    memory, *_ = recorded(model)
    assert values(memory, "gradient.norm") == pytest.approx(values(plain, "gradient.norm"))
    assert values(memory, "probability.step") == list(range(STEPS))


def test_only_the_updates_that_moved_it_are_void():
    model, seen = TinyLM(), []

    def every_other(parameter):
        seen.append(parameter)
        if len(seen) % 4 in (3, 0):  # matrix and bias of updates 2 and 4
            by_data(parameter)

    for parameter in model.lm_head.parameters():
        parameter.register_post_accumulate_grad_hook(every_other)
    with pytest.warns(RuntimeWarning, match=r"step 2: the output embedding had moved"):
        memory, *_ = recorded(model)
    assert np.isnan(values(memory, "gradient.norm")).tolist() == [False, True, False, True]
    assert np.isnan(values(memory, "probability.r2_mean_hidden")).tolist() == [False, True, False, True]
    # what later records compare with is of an update that counted
    assert values(memory, "probability.untrained_step")[0] == 0


def test_where_the_host_may_not_ask_the_answer_travels_with_the_record(monkeypatch):
    monkeypatch.setattr(measuring.UpdateMeasurement, "_may_ask", lambda self, moved: False)
    model = TinyLM()
    in_backward(model, by_data)
    with pytest.warns(RuntimeWarning, match="step 1: the output embedding had moved"):
        memory, *_ = recorded(model)
    assert np.isnan(values(memory, "gradient.norm")).all()


def test_a_call_after_the_step_is_said():
    model, memory = TinyLM(), th.MemorySink()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with th.Recorder(model, metrics=[GradientNorm()], sinks=[memory]) as recorder:
        for ids in batches(1):
            recorder.begin_step(ids[:, 1:])
            nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
            optimizer.step()
            recorder.before_update()
            with pytest.warns(RuntimeWarning, match="or before_update\\(\\) came after the step"):
                recorder.after_update()
    assert np.isnan(values(memory, "gradient.norm")).all()


def test_lora_on_the_head_is_seen_by_its_adapter():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = peft.get_peft_model(TinyLM(), peft.LoraConfig(r=2, target_modules=["lm_head", "layers.0"]))
    mark = Mark.of(find_output_embedding(model))
    assert not mark.moved()
    model.base_model.model.layers[0].lora_B["default"].weight.data.add_(1)
    assert not mark.moved()
    model.base_model.model.lm_head.lora_B["default"].weight.data.add_(1)
    assert mark.moved()


def test_nan_stands_still_and_large_matrices_are_marked_in_all_columns():
    head = nn.Linear(64, 5 * SAMPLE // 16, bias=False)
    head.weight.data[:, 3] = torch.nan
    mark = Mark.of(find_output_embedding(nn.ModuleDict({"lm_head": head})))
    assert not mark.moved()
    for column in range(64):
        if column != 3:
            before = head.weight.data[:, column].clone()
            head.weight.data[:, column] += 1
            assert mark.moved(), column
            head.weight.data[:, column] = before
            assert not mark.moved()
    head.weight.data = head.weight.data[:8]
    assert not mark.moved(), "another shape tells nothing"
