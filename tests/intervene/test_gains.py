import math

import pytest
import torch

from trainhooks.intervene.deletion.curves import DeletionCurves
from trainhooks.intervene.deletion.gains import document_draws, fraction_intervals, largest_fraction, saliency_gain
from trainhooks.intervene.deletion.orders import Order
from trainhooks.intervene.deletion.variants import plain_code


def curves(slopes, *, documents=8):
    """JS rises linearly at each code's slope; the first code is `ascending`, the rest random."""
    fractions = (0.25, 0.5, 0.75, 1.0)
    orders = [Order("random" if i else "ascending", torch.arange(3), seed=i or None) for i in range(len(slopes))]
    sums = torch.zeros(len(slopes), 4, 4, documents, dtype=torch.float64)
    sums[:, :, 1] = torch.tensor(slopes).double()[:, None, None] * torch.tensor(fractions).double()[:, None] * 10
    positions = torch.full((documents,), 10.0, dtype=torch.float64)
    codes = tuple(map(plain_code, orders))
    return DeletionCurves(
        codes, fractions, (1, 2, 3, 4), sums, positions.expand(len(codes), -1), positions, positions, dim=4
    )


def test_the_largest_fraction_is_the_crossing_of_a_line():
    found = fraction_intervals(curves([0.05, 0.02, 0.001]), js_bound=0.02)
    assert [interval.value for interval in found] == pytest.approx([0.4, 1.0, 1.0])
    assert found[0].low == pytest.approx(0.4)
    alone = fraction_intervals(curves([0.05], documents=1), js_bound=0.02)[0]
    assert alone.value == pytest.approx(0.4)
    assert math.isnan(alone.low)


def test_a_curve_that_comes_back_under_the_bound_stays_passed():
    means = torch.zeros(3, 4, dtype=torch.float64)
    means[:, 3] = torch.tensor([0.0, -0.1, 0.0])
    assert float(largest_fraction(means, fractions=(0.2, 0.4, 0.6))) == pytest.approx(0.3)


def test_one_more_random_order_is_no_gain_and_a_far_better_one_is():
    spread = [0.05, 0.055, 0.06, 0.065, 0.07]
    assert not saliency_gain(curves([0.05, *spread])).significant
    better = saliency_gain(curves([0.02, *spread]))
    assert better.significant
    assert better.js.value == pytest.approx((0.06 - 0.02) * 0.25)
    with pytest.raises(ValueError, match="at least 3"):
        saliency_gain(curves([0.02, 0.05]))


def test_fractions_are_of_whole_dimensions():
    """At 64 dimensions 5% comes to 3 of them: lines go through what was deleted, not through what was meant."""
    sums = torch.zeros(1, 2, 4, 1, dtype=torch.float64)
    sums[0, :, 1, 0] = torch.tensor([0.010, 0.030])
    one = torch.ones(1, dtype=torch.float64)
    code = plain_code(Order("ascending", torch.arange(64)))
    found = DeletionCurves((code,), (0.05, 0.1), (3, 6), sums, one[None], one, one, dim=64)
    assert found.shares == (3 / 64, 6 / 64)
    assert fraction_intervals(found, js_bound=0.02)[0].value == pytest.approx(4.5 / 64)


def test_draws_keep_the_number_of_documents():
    assert (document_draws(7, draws=20).sum(1) == 7).all()
    assert len(document_draws(1)) == 0


def test_bounds_must_be_positive():
    with pytest.raises(ValueError, match="above 0"):
        largest_fraction(torch.zeros(1, 4).double(), fractions=(1.0,), js_bound=0.0)
