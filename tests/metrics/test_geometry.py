import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_states import Tiny, make_state
from naive_metrics import centred, cka, draw, rotation, unbiased_hsic

from trainhooks.metrics import geometry
from trainhooks.metrics.geometry import HeadGeometry, mean_row_norm, movement, row_cosines, row_norms
from trainhooks.numerics import gram
from trainhooks.numerics.binning import count_bins, mean_by_bin
from trainhooks.numerics.norms import ratio

FIELDS = ("norm", "reference_norm", "distance", "cosine", "radial", "angular")


def movement_twin(current: torch.Tensor, reference: torch.Tensor) -> list[float]:
    """Row by row, with the angle itself."""
    x, y = centred(current), centred(reference)
    radial = angular = 0.0
    for a, b in zip(x, y, strict=True):
        la, lb = np.linalg.norm(a), np.linalg.norm(b)
        radial += (la - lb) ** 2
        angular += 2 * la * lb - 2 * a @ b
    nx, ny = np.linalg.norm(x), np.linalg.norm(y)
    return [nx, ny, np.linalg.norm(x - y), (x * y).sum() / nx / ny, math.sqrt(radial), math.sqrt(angular)]


def values(moved) -> list[float]:
    return [float(getattr(moved, name)) for name in FIELDS]


@pytest.fixture(params=[1024, 16])
def block(request, monkeypatch):
    monkeypatch.setattr(gram, "HOST_BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_movement_matches_its_twin(dtype, tolerance):
    before = (draw(50, 7) + 2).to(dtype)
    now = before + (0.3 * draw(50, 7, seed=1)).to(dtype)
    np.testing.assert_allclose(values(movement(now, before)), movement_twin(now, before), rtol=tolerance)


def test_a_tiny_step_keeps_its_digits_in_float32():
    before = draw(400, 16).float()
    now = before + 1e-5 * draw(400, 16, seed=1).float()
    np.testing.assert_allclose(values(movement(now, before)), movement_twin(now, before), rtol=1e-3)


def test_growth_is_radial_and_rotation_is_angular():
    rows = draw(30, 6)
    grown = movement(1.5 * rows, rows)
    assert float(grown.radial) == pytest.approx(0.5 * float(grown.reference_norm))
    assert float(grown.angular) == pytest.approx(0, abs=1e-6)
    turned = movement(rows @ rotation(6), rows)
    assert float(turned.radial) == pytest.approx(0, abs=1e-10)
    assert float(turned.angular) == pytest.approx(float(turned.distance))


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-6, 1e6))
def test_the_two_parts_make_up_the_distance_and_nothing_depends_on_the_frame(seed, scale):
    before, now = draw(20, 5, seed=seed), draw(20, 5, seed=seed + 1)
    moved = movement(now, before)
    assert float(moved.radial**2 + moved.angular**2) == pytest.approx(float(moved.distance**2))
    q, shift = scale * rotation(5, seed=seed), draw(5, seed=seed)
    other = movement(now @ q + shift, before @ q - shift)
    factors = np.array([scale, scale, scale, 1, scale, scale])
    np.testing.assert_allclose(values(other), factors * values(moved), rtol=1e-6)


def test_unmoved_zero_and_not_finite():
    rows = draw(10, 3)
    still = movement(rows, rows)
    assert [float(still.distance), float(still.radial), float(still.angular)] == [0, 0, 0]
    assert float(still.cosine) == pytest.approx(1)
    zero = movement(torch.zeros(10, 3).double(), rows)
    assert float(zero.norm) == 0
    assert zero.cosine.isnan()
    assert float(zero.radial) == pytest.approx(float(zero.distance))
    rows[2, 0] = float("nan")
    assert all(math.isnan(v) for v in values(movement(rows, draw(10, 3)))[2:])


@pytest.mark.usefixtures("block")
def test_row_norms_and_cosines_match_their_twins():
    before, now = draw(40, 5) + 1, draw(40, 5, seed=1) - 2
    x, y = centred(now), centred(before)
    np.testing.assert_allclose(row_norms(now).numpy(), np.linalg.norm(x, axis=1))
    expected = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(row_cosines(now, before).numpy(), expected, rtol=1e-10)
    assert float(mean_row_norm(now)) == pytest.approx(np.linalg.norm(x, axis=1).mean())


def test_row_norm_known_answer_mask_and_nothing():
    rows = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [float("nan"), 9.0]])
    mask = torch.tensor([True, True, False])
    assert float(mean_row_norm(rows, mask=mask)) == 5
    assert row_norms(rows, mask=mask).tolist() == [5, 5, 0]
    assert row_cosines(rows, rows, mask=mask)[2].isnan()
    assert mean_row_norm(rows).isnan()
    assert mean_row_norm(rows, mask=torch.zeros(3, dtype=torch.bool)).isnan()
    assert row_norms(torch.zeros(0, 2)).shape == (0,)


def test_bins_at_their_edges():
    counts = torch.tensor([0, 1, 9, 10, 99, 100, 1000, 10**15 - 1, 10**15])
    assert count_bins(counts).tolist() == [-1, 0, 0, 1, 1, 2, 3, 14, 15]
    assert count_bins(torch.tensor([1, 3, 4, 9, 10, 31, 32]), bins_per_decade=2).tolist() == [0, 0, 1, 1, 2, 2, 3]
    with pytest.raises(ValueError, match="0 bins a decade"):
        count_bins(counts, bins_per_decade=0)


def test_mean_by_bin_matches_its_twin():
    x = draw(200, dtype=torch.float32)
    x[5] = float("nan")
    bins = torch.randint(-1, 4, (200,), generator=torch.Generator().manual_seed(0))
    expected = [np.nanmean(x.double().numpy()[bins.numpy() == b]) for b in range(4)]
    np.testing.assert_allclose(mean_by_bin(x, bins, count=4).numpy(), expected, rtol=1e-12)
    assert mean_by_bin(x, bins, count=5)[4].isnan()
    assert mean_by_bin(x, bins, count=0).shape == (0,)


def test_ratio_never_gives_infinity():
    result = ratio(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 0.0, 2.0]))
    assert result[:2].isnan().all()
    assert result[2] == 1.5


def two_records(counts=None):
    model = Tiny(60, 6)
    initial = make_state(model=model)
    old = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight.add_(0.1 * draw(60, 6, seed=77))
    now = replace(make_state(model=model, step=3), initial_head=old, previous_head=old)
    return initial, now, HeadGeometry(counts=counts)


def test_metric_at_the_first_record():
    first = make_state(vocab=60)
    result = HeadGeometry().compute(first)
    assert float(result["geometry.distance_to_initial"]) == 0
    assert float(result["geometry.cosine_to_initial"]) == pytest.approx(1)
    assert "geometry.relative_step" not in result


def test_metric_declares_and_computes_every_variable():
    counts = torch.arange(60) * 7
    _, now, metric = two_records(counts)
    result = metric.compute(now)
    assert set(result) == {variable.name for variable in metric.variables}
    norm, before, distance, cosine, radial, angular = movement_twin(now.output_embedding, now.initial_head)
    expected = {
        "relative_step": distance / norm,
        "distance_to_initial": distance / before,
        "cosine_to_initial": cosine,
        "cosine_to_previous": cosine,
        "radial_step": radial / norm,
        "angular_step": angular / norm,
        "cka_to_previous": cka(now.output_embedding, now.initial_head, unbiased_hsic),
        "row_norm": np.linalg.norm(centred(now.output_embedding), axis=1).mean(),
    }
    for name, value in expected.items():
        assert float(result[f"geometry.{name}"]) == pytest.approx(value, rel=1e-4), name
    by_count = next(v for v in metric.variables if v.name == "geometry.row_norm_by_count")
    assert by_count.sizes["count_bin"] == len(result["geometry.row_norm_by_count"]) == 3
    inside = (counts >= 10) & (counts < 100)
    norms = np.linalg.norm(centred(now.output_embedding), axis=1)
    assert float(result["geometry.row_norm_by_count"][1]) == pytest.approx(norms[inside.numpy()].mean(), rel=1e-5)


def test_metric_leaves_masked_rows_out_everywhere():
    mask = torch.arange(60) < 50
    _, now, _ = two_records()
    metric = HeadGeometry(mask=mask, counts=torch.full((60,), 5))
    expected = metric.compute(now)
    with torch.no_grad():
        now.head.weight[50:] = 1e6
    for name, value in metric.compute(now).items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_metric_says_what_lengths_are_wrong():
    state = make_state(vocab=60)
    with pytest.raises(ValueError, match="50 entries"):
        HeadGeometry(mask=torch.ones(50, dtype=torch.bool)).compute(state)
    with pytest.raises(ValueError, match="counts have 50 entries; the output embedding has 60 rows"):
        HeadGeometry(counts=torch.ones(50, dtype=torch.int64)).compute(state)
    with pytest.raises(ValueError, match=r"\(3, 2\) to \(4, 2\)"):
        movement(draw(4, 2), draw(3, 2))


def test_metric_of_an_embedding_without_any_token_counted():
    result = HeadGeometry(counts=torch.zeros(60, dtype=torch.int64)).compute(make_state(vocab=60))
    assert not any("by_count" in name for name in result)


@pytest.mark.parametrize("between", [1, 3])
def test_one_pass_compares_whatever_lies_between_two_records(between, monkeypatch):
    passes = []
    compare = geometry.compare
    monkeypatch.setattr(geometry, "compare", lambda *a, **k: passes.append(1) or compare(*a, **k))
    model = Tiny(300, 12)
    heads = [draw(300, 12, seed=step).float() + 2 for step in range(between + 1)]
    metric = HeadGeometry()

    def computed(by, step, **references):
        with torch.no_grad():
            model.head.weight.copy_(heads[step])
        return by.compute(replace(make_state(model=model, step=step), **references))

    computed(metric, 0)
    references = {"initial_head": heads[0], "previous_head": heads[between - 1]}
    found = computed(metric, between, **references)
    assert len(passes) == 2, "one of each record"
    for name, value in computed(HeadGeometry(), between, **references).items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-6), name
