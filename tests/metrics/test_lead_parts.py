from dataclasses import replace

import numpy as np
import pytest
import torch
from metric_states import Tiny, make_state
from naive_metrics import centred, draw, rotation

from trainhooks.metrics.lead_parts import LeadParts, frequency_parts
from trainhooks.numerics import gram
from trainhooks.probe import frequency_target


def twin(current, initial, y):
    change, target = centred(current) - centred(initial), y.double().numpy() - y.double().numpy().mean()
    part = change.T @ target / (target @ target)
    share = (np.outer(target, part) ** 2).sum() / (change**2).sum()
    return part, np.linalg.norm(change), share


@pytest.mark.parametrize("block", [1024, 16])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_parts_match_their_twin(monkeypatch, block, dtype, tolerance):
    monkeypatch.setattr(gram, "HOST_BLOCK", block)
    before, y = draw(70, 5).to(dtype) + 3, draw(70, seed=2)
    now = before + 0.01 * draw(70, 5, seed=1).to(dtype)
    got, expected = frequency_parts(now, before, y), twin(now, before, y)
    for ours, theirs in zip(vars(got).values(), expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=tolerance, atol=tolerance * 0.01)


def test_a_change_along_y_is_all_frequency_and_one_across_it_is_none():
    y, direction, before = draw(40, seed=2), draw(5, seed=3), draw(40, 5)
    along = frequency_parts(before + 0.7 * y[:, None] * direction, before, y)
    torch.testing.assert_close(along.frequency_part, 0.7 * direction)
    assert float(along.frequency_share) == pytest.approx(1)
    target = y - y.mean()
    noise = draw(40, seed=4)
    across = noise - noise.mean() - target * (noise @ target) / (target @ target)
    none = frequency_parts(before + across[:, None] * direction, before, y)
    assert float(none.frequency_share) == pytest.approx(0, abs=1e-20)


def test_shifts_do_nothing_and_a_rotation_turns_the_part():
    before, now, y, q = draw(40, 5), draw(40, 5, seed=1), draw(40, seed=2), rotation(5)
    plain = frequency_parts(now, before, y)
    moved = frequency_parts(3 * now @ q + draw(5, seed=5), 3 * before @ q - draw(5, seed=6), y + 4)
    torch.testing.assert_close(moved.frequency_part, 3 * plain.frequency_part @ q)
    assert float(moved.change_norm) == pytest.approx(3 * float(plain.change_norm))
    assert float(moved.frequency_share) == pytest.approx(float(plain.frequency_share))


def test_a_tiny_change_keeps_its_digits_in_float32():
    before, y = draw(400, 16).float(), draw(400, seed=2)
    now = before + 1e-5 * draw(400, 16, seed=1).float()
    part, norm, share = twin(now, before, y)
    got = frequency_parts(now, before, y)
    np.testing.assert_allclose(got.frequency_part.numpy(), part, rtol=0, atol=1e-3 * np.abs(part).max())
    assert float(got.change_norm) == pytest.approx(norm, rel=1e-3)
    assert float(got.frequency_share) == pytest.approx(share, rel=1e-3)


def test_degenerate_answers():
    before, y = draw(30, 4), draw(30, seed=2)
    still = frequency_parts(before, before, y)
    assert float(still.change_norm) == 0
    assert not still.frequency_part.any()
    assert still.frequency_share.isnan()
    constant = frequency_parts(draw(30, 4, seed=1), before, torch.full((30,), 0.1))
    assert constant.frequency_part.isnan().all()
    assert constant.frequency_share.isnan()
    assert constant.change_norm.isfinite()
    now = before.clone()
    now[3, 1] = torch.nan
    assert all(value.isnan().all() for value in vars(frequency_parts(now, before, y)).values())
    mask = torch.arange(30) != 3
    torch.testing.assert_close(
        vars(frequency_parts(2 * now, before, y, mask=mask)),
        vars(frequency_parts(2 * now[mask], before[mask], y[mask])),
        equal_nan=True,
    )
    with pytest.raises(ValueError, match=r"\(29, 4\) to \(30, 4\)"):
        frequency_parts(before, before[:29], y)


def test_metric_declares_what_it_returns_and_is_its_twin():
    counts = torch.arange(60) % 9 * 50
    model = Tiny(60, 6)
    old = model.head.weight.detach().clone()
    metric = LeadParts(counts, min_count=60)
    first = metric.compute(make_state(model=model))
    assert float(first["lead.change_norm"]) == 0
    assert first["lead.frequency_share"].isnan()
    with torch.no_grad():
        model.head.weight.add_(0.1 * draw(60, 6, seed=77))
    values = metric.compute(replace(make_state(model=model, step=3), initial_head=old))
    assert set(values) == {variable.name for variable in metric.variables}
    mask = counts >= 60
    expected = twin(model.head.weight.detach()[mask], old[mask], frequency_target(counts)[mask])
    for (name, value), theirs in zip(values.items(), expected, strict=True):
        np.testing.assert_allclose(value.numpy(), theirs, rtol=1e-4, atol=1e-6, err_msg=name)


def test_metric_with_padding_and_wrong_counts():
    counts = torch.arange(50) + 1
    with pytest.raises(ValueError, match="vocab_size=50"):
        LeadParts(counts).compute(make_state(vocab=60))
    assert float(LeadParts(counts, vocab_size=50).compute(make_state(vocab=60))["lead.change_norm"]) == 0
    with pytest.raises(ValueError, match="no token is left"):
        LeadParts(counts, min_count=1000)
