"""What a metric sends from a device gives, on the host, the values that it computes."""

import numpy as np
import pytest
import torch
from torch import nn

from trainhooks.metrics.base import State
from trainhooks.metrics.geometry import HeadGeometry
from trainhooks.metrics.group_convergence import GroupConvergence
from trainhooks.model import OutputEmbedding
from trainhooks.numerics.host import pack
from trainhooks.numerics.movement import compare
from trainhooks.numerics.sketch import Sketcher

CASES = {"moving": 0.1, "frozen": 0.0, "not finite": float("nan"), "of zeros": -1.0}


def states(change):
    """Three records of a head and a bias that move by a share each time."""
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(60, 8, generator=generator)]
    heads += [heads[0] + change * scale * torch.randn(60, 8, generator=generator) for scale in (1, 2)]
    if change < 0:
        heads = [torch.zeros(60, 8)] * 3
    sketcher = Sketcher({"head": [("head", heads[0])]}, size=31)
    sketches = [sketcher.sketch({"head": [("head", head)]}) for head in heads]
    for step, head in enumerate(heads):
        yield State(
            step=step,
            model=nn.Linear(1, 1),
            head=OutputEmbedding(head, "head", nn.Linear(1, 1)),
            groups={"head": [head]},
            initial_head=heads[0] if step else None,
            previous_head=heads[step - 1] if step else None,
            sketch=sketches[step],
            initial_sketch=sketches[0] if step else None,
            previous_sketch=sketches[step - 1] if step else None,
            learning_rate_sum=0.5 if step else None,
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [HeadGeometry, GroupConvergence])
def test_values_are_those_of_compute(kind, case):
    here, there = kind(), kind()
    for state in states(CASES[case]):
        expected, sent = here.compute(state), pack(there.parts(state))
        declared = sum(np.asarray(value).size for value in expected.values())
        assert 8 * len(sent.flat) <= 8 * declared + there.sent_bytes(torch.empty(60, 8, device="meta"))
        found = there.conclude(sent.unpack(sent.flat) | {"other": np.ones(2)})
        assert set(found) == {*expected, "other"}
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], np.asarray(value), rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("rows", [3, 64, 100, 203])
def test_products_that_a_device_takes_in_chunks(monkeypatch, rows):
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(rows, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    monkeypatch.setattr("trainhooks.numerics.gram.HOSTS", ())
    monkeypatch.setattr("trainhooks.numerics.gram.DEVICE_BLOCK", 33)
    found = compare(x.float(), [y.float()], ids=None, means=None, cross=True, last_gram=True)
    x, y = x - x.mean(0), y - y.mean(0)
    np.testing.assert_allclose(found.cross, x.T @ y, atol=1e-4)
    np.testing.assert_allclose(found.last_gram, y.T @ y, atol=1e-4)


def test_movement_is_that_of_explicit_rows_in_float64():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(90, 5, dtype=torch.float64, generator=generator)
    y = x + 1e-6 * torch.randn(90, 5, dtype=torch.float64, generator=generator)
    found = compare(x, [y], ids=None, means=None).pairs[0].movement()
    x, y = x - x.mean(0), y - y.mean(0)
    radial = (x.norm(dim=1) - y.norm(dim=1)).norm()
    assert float(found.distance) == pytest.approx(float((x - y).norm()), rel=1e-12)
    assert float(found.radial) == pytest.approx(float(radial), rel=1e-7)
    assert float(found.angular) == pytest.approx(float(((x - y).norm() ** 2 - radial**2).sqrt()), rel=1e-7)
