import jaxtyping
import pytest
import torch
from synthetic_deletion import planted

from trainhooks.intervene.deletion.orders import ORDERS, deletion_orders, probability_slope, rising, second_moment


def test_orders_are_permutations_sorted_by_their_definition():
    weight, hidden, *_ = planted()
    slope = probability_slope(weight, hidden)
    found = {order.name: order.dimensions for order in deletion_orders(weight, hidden, slope=slope, random=0)}
    spread = weight.double().std(0, correction=0)
    expected = {
        "ascending": slope.abs() * spread,
        "norm": spread,
        "logit_variance": spread**2 * hidden.double().square().mean(0),
    }
    assert tuple(found) == ORDERS
    for name, score in expected.items():
        assert (score[found[name]].diff() >= -1e-6).all(), name
    for dimensions in found.values():
        assert dimensions.sort().values.tolist() == list(range(24))


def test_unique_saliency_spares_no_collinear_twin():
    weight, hidden, *_ = planted()
    weight[:, 20] = weight[:, 21]
    slope = probability_slope(weight, hidden)
    order = deletion_orders(weight, hidden, slope=slope, names=("unique",), random=0)[0]
    assert {20, 21} <= set(order.dimensions[:8].tolist())


def test_random_orders_are_their_seeds_and_leave_torchs_generator_alone():
    weight, hidden, *_ = planted()
    before = torch.get_rng_state()
    first, second = (
        deletion_orders(weight, hidden, slope=torch.ones(24), names=(), random=2, seed=seed) for seed in (0, 1)
    )
    assert torch.equal(first[1].dimensions, second[0].dimensions)
    assert not torch.equal(first[0].dimensions, first[1].dimensions)
    assert torch.equal(before, torch.get_rng_state())


def test_equal_scores_go_by_falling_index():
    assert rising(torch.tensor([1.0, 0, 1, 0])).tolist() == [3, 1, 2, 0]


def test_widths_and_emptiness_are_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the code's own check is what is tested
    weight, hidden, *_ = planted()
    with pytest.raises(ValueError, match="24 dimensions"):
        deletion_orders(weight, hidden, slope=torch.ones(23))
    with pytest.raises(ValueError, match="no order"):
        deletion_orders(weight, hidden, slope=torch.ones(24), names=(), random=0)
    with pytest.raises(ValueError, match="no calibration"):
        second_moment(hidden[:0])
