"""On a device all folds are worked on at once: the figures are those of the host's blocks."""

import math

import pytest
import torch

from trainhooks.metrics.base import State
from trainhooks.metrics.frequency_probe import FrequencyProbe
from trainhooks.model import find_output_embedding
from trainhooks.numerics.rank_correlation import average_ranks, spearman
from trainhooks.probe import fit_probe


@pytest.fixture
def as_on_a_device(monkeypatch):
    def change() -> None:
        monkeypatch.setattr("trainhooks.probe.rows.HOSTS", ())
        monkeypatch.setattr("trainhooks.numerics.rank_correlation.HOSTS", ())
        monkeypatch.setattr("trainhooks.probe.rows.LINE_ROWS", 7)

    return change


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cases():
    embedding = draw(203, 6) + 3
    y = embedding @ draw(6, 2, seed=1) + draw(203, 2, seed=2)
    mask = torch.arange(203) % 7 != 3
    collinear = embedding.clone()
    collinear[:, 5] = collinear[:, 0] + collinear[:, 1]
    constant = embedding.clone()
    constant[:, 2] = 1
    return {
        "plain": (embedding, y, {}),
        "masked": (embedding, y, {"mask": mask}),
        "weighted": (embedding, y, {"weights": torch.rand(203, generator=torch.Generator().manual_seed(3)) + 0.5}),
        "one empty fold": (embedding, y, {"mask": torch.arange(203) % 5 != 4}),
        "wide strips": (draw(900, 130), draw(900, 1), {}),
        "few rows": (embedding[:9], y[:9], {}),
        "collinear": (collinear, y, {}),
        "constant column": (constant, y, {}),
        "half precision": (embedding.bfloat16(), y, {}),
        "ties": (embedding, y.round(), {}),
    }


@pytest.mark.parametrize("name", cases())
def test_a_fit_is_the_same(as_on_a_device, name):
    embedding, y, settings = cases()[name]
    expected = fit_probe(embedding, y, **settings)
    as_on_a_device()
    found = fit_probe(embedding, y, **settings)
    for figure, value in vars(expected).items():
        torch.testing.assert_close(getattr(found, figure), value, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_record_leaves_bad_rows_out(as_on_a_device, bad):
    counts = torch.arange(1, 104).numpy()
    model = torch.nn.Sequential(torch.nn.Embedding(103, 8), torch.nn.Linear(8, 103, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(draw(103, 8))
        model[1].weight[[4, 17, 102], 3] = bad

    def figures():
        head = find_output_embedding(model, name="1")
        state = State(step=1, model=model, head=head, groups={})
        return FrequencyProbe(counts).compute(state)

    expected = figures()
    as_on_a_device()
    found = figures()
    assert expected.keys() == found.keys()
    assert float(found["probe.excluded_rows"]) == 3
    for name, value in expected.items():
        torch.testing.assert_close(
            torch.as_tensor(found[name]), torch.as_tensor(value), rtol=1e-5, atol=1e-6, equal_nan=True
        )


def test_ranks(as_on_a_device):
    values = torch.tensor([[3.0, 1, 3, math.nan, -math.inf, 2], [0, 0, 0, math.inf, 5, -1]])
    expected = [[4.5, 2, 4.5, math.nan, 1, 3], [3, 3, 3, 6, 5, 1]]
    keep = torch.tensor([True, True, False, True, True, True])
    kept = spearman(values[1], values[1].square(), keep=keep)
    torch.testing.assert_close(average_ranks(values), torch.tensor(expected).double(), equal_nan=True)
    as_on_a_device()
    torch.testing.assert_close(average_ranks(values), torch.tensor(expected).double(), equal_nan=True)
    torch.testing.assert_close(spearman(values[1], values[1].square(), keep=keep), kept)
