import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_metrics import biased_hsic, centred, cka, draw, rotation, unbiased_hsic

from trainhooks.numerics.gram import centred_gram
from trainhooks.numerics.similarity import linear_cka, procrustes_distance, subspace_overlap


def pair(vocab: int = 60, dim: int = 10, *, noise: float = 0.7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = draw(vocab, dim, seed=seed) + 1.5
    return x, x @ draw(dim, dim, seed=seed + 1) + noise * draw(vocab, dim, seed=seed + 2)


def procrustes_twin(x: torch.Tensor, y: torch.Tensor) -> float:
    a, b = (centred(m) / np.linalg.norm(centred(m)) for m in (x, y))
    q, _ = scipy.linalg.orthogonal_procrustes(a, b)
    return float(np.linalg.norm(a @ q - b))


@pytest.mark.parametrize(("vocab", "dim"), [(60, 10), (5, 3), (40, 64)])
@pytest.mark.parametrize(("debiased", "hsic"), [(True, unbiased_hsic), (False, biased_hsic)])
def test_cka_matches_the_kernel_form(vocab, dim, debiased, hsic):
    x, y = pair(vocab, dim)
    assert float(linear_cka(x, y, debiased=debiased)) == pytest.approx(cka(x, y, hsic), abs=1e-8)
    z = draw(vocab, 7, seed=9)
    assert float(linear_cka(x, z, debiased=debiased)) == pytest.approx(cka(x, z, hsic), abs=1e-8)


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_in_float32(debiased):
    x, y = pair(3000, 48)
    exact = float(linear_cka(x, y, debiased=debiased))
    assert float(linear_cka(x.float(), y.float(), debiased=debiased)) == pytest.approx(exact, abs=1e-4)


def test_unrelated_gaussians():
    x, y = draw(97, 128), draw(97, 128, seed=1)
    assert float(linear_cka(x, y, debiased=False)) == pytest.approx(0.56, abs=0.03)
    values = [float(linear_cka(draw(97, 128, seed=2 * s), draw(97, 128, seed=2 * s + 1))) for s in range(150)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(150)
    assert min(values) < 0


@settings(max_examples=20)
@given(scale=st.floats(1e-4, 1e4), seed=st.integers(0, 1000), debiased=st.booleans())
def test_rotation_scale_shift_and_joint_order_change_nothing(scale, seed, debiased):
    x, y = pair(seed=seed)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    moved = scale * (x[order] @ rotation(10, seed=seed)) + draw(10, seed=seed)
    assert float(linear_cka(moved, y[order], debiased=debiased)) == pytest.approx(
        float(linear_cka(x, y, debiased=debiased)), abs=1e-9
    )
    assert float(procrustes_distance(moved, y[order])) == pytest.approx(float(procrustes_distance(x, y)), abs=1e-7)


def test_equal_up_to_rotation_is_one_and_zero():
    x, _ = pair()
    turned = 2 * x @ rotation(10) + 3
    assert float(linear_cka(x, turned)) == pytest.approx(1, abs=1e-12)
    assert float(linear_cka(x, turned, debiased=False)) == pytest.approx(1, abs=1e-12)
    assert float(procrustes_distance(x, turned)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_procrustes_matches_scipy(seed):
    x, y = pair(seed=seed)
    assert float(procrustes_distance(x, y)) == pytest.approx(procrustes_twin(x, y), abs=1e-8)
    assert float(procrustes_distance(x.float(), y.float())) == pytest.approx(procrustes_twin(x, y), rel=1e-4)


def test_procrustes_of_orthogonal_embeddings_is_its_largest():
    x, y = torch.zeros(40, 2).double(), torch.zeros(40, 2).double()
    x[:20:2], x[1:20:2] = 1, -1
    y[20::2], y[21::2] = 1, -1
    assert float(procrustes_distance(x, y)) == pytest.approx(math.sqrt(2))
    assert float(linear_cka(x, y, debiased=False)) == 0


@pytest.mark.parametrize("measure", [linear_cka, procrustes_distance])
@pytest.mark.parametrize("bad", [torch.zeros(30, 4), torch.full((30, 4), 7.0), torch.full((30, 4), float("nan"))])
def test_nothing_to_compare_is_nan(measure, bad):
    bad = bad.double()
    assert measure(bad, draw(30, 4)).isnan()
    assert measure(draw(30, 4), bad).isnan()


def test_too_few_rows_for_the_unbiased_estimate():
    assert linear_cka(draw(3, 2), draw(3, 2, seed=1)).isnan()
    assert linear_cka(draw(4, 2), draw(4, 2)).isfinite()
    assert linear_cka(draw(3, 2), draw(3, 2, seed=1), debiased=False).isfinite()


def test_mask():
    x, y = pair()
    mask = torch.arange(60) < 45
    torch.testing.assert_close(linear_cka(x, y, mask=mask), linear_cka(x[:45], y[:45]))
    torch.testing.assert_close(procrustes_distance(x, y, mask=mask), procrustes_distance(x[:45], y[:45]))


def test_other_tokens_are_refused():
    for measure in (linear_cka, procrustes_distance):
        with pytest.raises(ValueError, match="row w must be the same token"):
            measure(draw(30, 4), draw(31, 4))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_overlap_matches_principal_angles(k):
    x, y = pair()
    _, _, a = np.linalg.svd(centred(x))
    _, _, b = np.linalg.svd(centred(y))
    angles = scipy.linalg.subspace_angles(a[:k].T, b[:k].T)
    got = float(subspace_overlap(centred_gram(x), centred_gram(y), k=k))
    assert got == pytest.approx(float(np.mean(np.cos(angles) ** 2)), abs=1e-9)


def test_overlap_known_answers_and_joint_rotation():
    first, second = torch.diag(torch.tensor([9.0, 4, 1, 0.1])), torch.diag(torch.tensor([4.0, 0.1, 9, 1]))
    assert float(subspace_overlap(first, first, k=2)) == 1
    assert float(subspace_overlap(first, second, k=2)) == 0.5
    q = rotation(4).float()
    assert float(subspace_overlap(q.T @ first @ q, q.T @ second @ q, k=2)) == pytest.approx(0.5, abs=1e-6)


def test_overlap_degenerate():
    rank_one = torch.diag(torch.tensor([1.0, 0, 0]))
    assert subspace_overlap(rank_one, torch.eye(3), k=2).isnan()
    assert subspace_overlap(torch.zeros(3, 3), torch.eye(3), k=1).isnan()
    assert subspace_overlap(torch.full((3, 3), float("nan")), torch.eye(3), k=1).isnan()
    rounding = torch.diag(torch.tensor([1.0, 1e-9, 0]))
    assert subspace_overlap(rounding, rounding, k=2, tolerance=1e-7).isnan()
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k = {k}"):
            subspace_overlap(rank_one, rank_one, k=k)
