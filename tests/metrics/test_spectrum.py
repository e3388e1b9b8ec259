import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_states import make_state
from naive_metrics import draw, entropy_rank, rotation, singular_values

from trainhooks.metrics.spectrum import Spectrum
from trainhooks.numerics.gram import centred_gram
from trainhooks.numerics.spectrum import singular_spectrum, spectrum_from_gram

SCALARS = ("effective_rank_energy", "effective_rank_amplitude", "stable_rank", "top_share", "top_ratio")


def twin(rows: torch.Tensor) -> list[float]:
    s = singular_values(rows)
    return [
        entropy_rank(s**2),
        entropy_rank(s),
        float((s**2).sum() / s[0] ** 2),
        float(s[0] / s.sum()),
        float(s[0] / s[1]),
    ]


def scalars(spectrum) -> list[float]:
    return [float(getattr(spectrum, name)) for name in SCALARS]


def embedding(vocab: int, dim: int, *, seed: int = 0) -> torch.Tensor:
    """Rows with a decaying spectrum round a common mean."""
    return draw(vocab, dim, seed=seed) * torch.linspace(3, 0.1, dim, dtype=torch.float64) + 2.0


@pytest.mark.parametrize(("vocab", "dim"), [(500, 32), (97, 128), (3, 2), (20, 20)])
def test_matches_the_svd_in_float64(vocab, dim):
    rows = embedding(vocab, dim)
    spectrum = singular_spectrum(rows)
    kept = min(vocab - 1, dim)
    np.testing.assert_allclose(spectrum.singular_values[:kept].numpy(), singular_values(rows)[:kept], rtol=1e-6)
    if kept > 1:
        # the SVD's own rounding leaves a singular value of 1e-15 where centring took one away
        np.testing.assert_allclose(scalars(spectrum)[:4], twin(rows)[:4], rtol=1e-6)
    assert not spectrum.singular_values[kept:].any()


def test_matches_the_svd_in_float32():
    rows = embedding(2000, 64).float()
    np.testing.assert_allclose(scalars(singular_spectrum(rows)), twin(rows), rtol=1e-4)


def test_identity_has_full_rank():
    spectrum = spectrum_from_gram(torch.eye(16, dtype=torch.float64))
    np.testing.assert_allclose(scalars(spectrum), [16, 16, 16, 1 / 16, 1], rtol=1e-12)


def test_known_spectrum():
    spectrum = spectrum_from_gram(torch.diag(torch.tensor([4.0, 1.0])))
    assert spectrum.singular_values.tolist() == [2.0, 1.0]
    energy = math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2))
    amplitude = math.exp(-2 / 3 * math.log(2 / 3) - 1 / 3 * math.log(1 / 3))
    np.testing.assert_allclose(scalars(spectrum), [energy, amplitude, 1.25, 2 / 3, 2], rtol=1e-12)


@settings(max_examples=25)
@given(scale=st.floats(1e-8, 1e8), seed=st.integers(0, 1000))
def test_scale_rotation_shift_and_order_of_rows_change_nothing(scale, seed):
    rows = embedding(60, 8, seed=seed)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    moved = scale * (rows[order] @ rotation(8, seed=seed) + draw(8, seed=seed))
    np.testing.assert_allclose(scalars(singular_spectrum(moved)), scalars(singular_spectrum(rows)), rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rank_one(dtype):
    rows = torch.outer(draw(300), draw(40, seed=1)).to(dtype)
    spectrum = singular_spectrum(rows)
    np.testing.assert_allclose(scalars(spectrum)[:4], [1, 1, 1, 1], rtol=1e-6)
    assert scalars(spectrum)[4] == math.inf


@pytest.mark.parametrize("rows", [torch.zeros(50, 6), torch.full((50, 6), 0.1), draw(1, 6)], ids=["0", "same", "one"])
def test_equal_rows_have_rank_zero_and_no_shape(rows):
    values = scalars(singular_spectrum(rows))
    assert values[:3] == [0, 0, 0]
    assert np.isnan(values[3:]).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_is_nan_throughout(bad):
    rows = draw(30, 4)
    rows[3, 1] = bad
    spectrum = singular_spectrum(rows)
    assert all(getattr(spectrum, f.name).isnan().all() for f in fields(spectrum))


def test_one_dimension_is_rank_one():
    values = scalars(singular_spectrum(draw(30, 1)))
    assert values == [1, 1, 1, 1, math.inf]


def test_extreme_scales_neither_overflow_nor_vanish():
    gram = centred_gram(embedding(60, 8))
    for scale in (1e-290, 1e290):
        np.testing.assert_allclose(scalars(spectrum_from_gram(scale * gram)), scalars(spectrum_from_gram(gram)))


def test_metric_declares_what_it_returns_and_folds_the_norm():
    state = make_state(vocab=80, dim=8, norm=True)
    metric = Spectrum()
    values = metric.compute(state)
    assert set(values) == {variable.name for variable in metric.variables}
    rows = state.output_embedding
    folded = rows * state.head.norm_weight.detach()
    for prefix, matrix in (("", rows), ("folded_", folded)):
        got = [float(values[f"spectrum.{prefix}{name}"]) for name in SCALARS]
        np.testing.assert_allclose(got, twin(matrix), rtol=1e-4)
        assert values[f"spectrum.{prefix}singular_values"].shape == (8,)


def test_metric_without_a_norm_and_with_a_mask():
    state = make_state(vocab=80, dim=8)
    mask = torch.arange(80) < 60
    values = Spectrum(mask=mask).compute(state)
    assert not any("folded" in name for name in values)
    expected = twin(state.output_embedding[:60])
    np.testing.assert_allclose([float(values[f"spectrum.{name}"]) for name in SCALARS], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="80 rows"):
        Spectrum(mask=mask[:70]).compute(state)


@pytest.mark.parametrize("norm", [True, False])
def test_a_gram_that_has_travelled_gives_what_compute_gives(norm):
    state = make_state(norm=norm)
    metric = Spectrum()
    wanted = metric.compute(state)
    sent = metric.gram_values(state)
    assert sent[" gram"].shape == (6, 6)
    there = {name: value.numpy() for name, value in sent.items()} | {"loss": np.array(2.5)}
    concluded = metric.conclude(there)
    assert concluded.pop("loss") == 2.5
    assert set(concluded) == set(wanted)
    for name, value in concluded.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-12, err_msg=name)
    on_host = {name: value.numpy() for name, value in metric.enqueue(state).items()}
    assert metric.conclude(on_host) is on_host


def test_a_gram_that_will_travel_is_announced():
    assert Spectrum().sent_bytes(torch.empty(40, 6)) == 0
    assert Spectrum().sent_bytes(torch.empty(40, 6, device="meta")) == 8 * 6 * 7


def test_a_norm_that_scales_by_one_plus_its_weight_is_folded_so():
    state = make_state(vocab=80, dim=8, norm=True)
    weight = state.head.norm_weight.detach()
    plus_one = replace(state, head=replace(state.head, norm_offset=1.0), shared={})
    values = Spectrum().compute(plus_one)
    got = [float(values[f"spectrum.folded_{name}"]) for name in SCALARS]
    np.testing.assert_allclose(got, twin(state.output_embedding * (weight + 1)), rtol=1e-4)
    unknown = replace(state, head=replace(state.head, norm_offset=None), shared={})
    assert not any("folded" in name for name in Spectrum().compute(unknown)), "how it scales is not known"
