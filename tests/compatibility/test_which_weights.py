"""What docs/howto/averages.md says of weights that are averaged, and of rows that are scaled."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

import trainhooks as th

VOCAB, DIM, STEPS = 50, 16, 6
DATA = torch.randint(0, VOCAB, (STEPS, 4, 17), generator=torch.Generator().manual_seed(0))


def build(head=None):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("embed", nn.Embedding(VOCAB, DIM))
    model.add_module("lm_head", head or nn.Linear(DIM, VOCAB))
    return model


def loss_of(model, ids):
    return cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def heads(sink):
    return [torch.from_numpy(record.matrix.copy()) for record in sink.records]


@pytest.fixture
def schedule_free():
    return pytest.importorskip("schedulefree", reason="schedulefree is not installed")


@pytest.fixture
def optimizer_of(schedule_free):
    def make(kind, model):
        optimizer = {
            "AdamW": lambda: schedule_free.AdamWScheduleFree(model.parameters(), lr=1e-2),
            "SGD": lambda: schedule_free.SGDScheduleFree(model.parameters(), lr=1.0, momentum=0.9),
        }[kind]()
        optimizer.train()
        group = optimizer.param_groups[0]
        return optimizer, group["betas"][0] if "betas" in group else group["momentum"]

    return make


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_schedule_free_records_where_the_gradient_is_taken(kind, optimizer_of):
    model, sink, taken_at = build(), th.MemorySink(), []
    optimizer, _ = optimizer_of(kind, model)
    with th.Recorder(model, sinks=[sink], metrics=[]) as recorder:
        for ids in DATA:
            recorder.begin_step(ids[:, 1:])
            taken_at.append(model.lm_head.weight.detach().clone())
            loss_of(model, ids).backward()
            recorder.before_update()
            optimizer.step()
            optimizer.zero_grad()
            recorder.after_update()
    y = model.lm_head.weight.detach().clone()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(heads(sink), [*taken_at, y], strict=True))
    optimizer.eval()
    assert not torch.equal(heads(sink)[-1], model.lm_head.weight)


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_schedule_frees_average_is_followed_in_a_copy(kind, optimizer_of):
    model = build()
    average, sink = copy.deepcopy(model), th.MemorySink()
    optimizer, beta = optimizer_of(kind, model)
    with th.Recorder(average, sinks=[sink], metrics=[]) as recorder:
        for ids in DATA:
            recorder.begin_step(ids[:, 1:])
            loss_of(model, ids).backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for x, y in zip(average.parameters(), model.parameters(), strict=True):
                    x.copy_(y.lerp(optimizer.state[y]["z"], 1 - 1 / beta))
            recorder.after_update()
    optimizer.eval()
    assert torch.equal(heads(sink)[-1], model.lm_head.weight)


def test_switching_schedule_free_to_eval_and_back_changes_training(optimizer_of):
    def trained(*, switch):
        model = build()
        optimizer, _ = optimizer_of("AdamW", model)
        for ids in DATA:
            loss_of(model, ids).backward()
            optimizer.step()
            optimizer.zero_grad()
            if switch:
                optimizer.eval()
                optimizer.train()
        return model.lm_head.weight

    assert not torch.equal(trained(switch=True), trained(switch=False))
    assert torch.allclose(trained(switch=True), trained(switch=False), atol=1e-5)


class ScaledHead(nn.Linear):
    def __init__(self):
        super().__init__(DIM, VOCAB, bias=False)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, VOCAB))

    def forward(self, hidden):
        return self.scale * super().forward(hidden)


class ScaledOutside(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build(nn.Linear(DIM, VOCAB, bias=False))
        self.lm_head = self.inner.lm_head
        self.sz = nn.Parameter(torch.linspace(0.5, 1.5, VOCAB))

    def forward(self, ids):
        return self.sz * self.inner(ids)


def trained_with_unit_rows(model, sink):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with th.Recorder(model, sinks=[sink], metrics=[]) as recorder:
        for ids in DATA:
            recorder.begin_step(ids[:, 1:])
            loss_of(model, ids).backward()
            recorder.before_update()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                model.lm_head.weight.copy_(normalize(model.lm_head.weight, dim=1))
            recorder.after_update()
        return recorder.head.how


def test_a_scale_in_the_head_is_part_of_the_record():
    sink, model = th.MemorySink(), build(ScaledHead())
    assert trained_with_unit_rows(model, sink) == "asked"
    scale = model.lm_head.scale.detach()[:, None]
    assert not torch.allclose(scale, torch.linspace(0.5, 1.5, VOCAB)[:, None])
    torch.testing.assert_close(heads(sink)[-1], scale * model.lm_head.weight.detach(), rtol=1e-6, atol=1e-7)


def test_of_a_scale_outside_the_head_the_rows_of_length_one_are_recorded():
    sink, model = th.MemorySink(), ScaledOutside()
    assert trained_with_unit_rows(model, sink) == "weight"
    assert torch.equal(heads(sink)[-1], model.lm_head.weight.detach())
    torch.testing.assert_close(heads(sink)[-1].norm(dim=1), torch.ones(VOCAB))
