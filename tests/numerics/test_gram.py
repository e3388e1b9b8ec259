import numpy as np
import pytest
import torch
from naive_metrics import centred, draw
from torch.utils._python_dispatch import TorchDispatchMode

from trainhooks.numerics import gram as module
from trainhooks.numerics.gram import centred_gram, cross_grams, row_mean


@pytest.fixture(params=[1024, 16])
def block(request, monkeypatch):
    monkeypatch.setattr(module, "HOST_BLOCK", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_gram_matches_its_twin(dtype, tolerance):
    rows = (draw(100, 12) + 5 * draw(12, seed=1)).to(dtype)
    twin = centred(rows).T @ centred(rows)
    np.testing.assert_allclose(centred_gram(rows).numpy(), twin, rtol=0, atol=tolerance * twin.max())


@pytest.mark.usefixtures("block")
def test_mask_leaves_rows_out_whatever_they_hold():
    rows = draw(50, 6)
    mask = torch.arange(50) % 3 != 0
    expected = centred_gram(rows[mask])
    rows[~mask] = float("nan")
    torch.testing.assert_close(centred_gram(rows, mask=mask), expected)
    torch.testing.assert_close(row_mean(rows, mask=mask), rows[mask].mean(dim=0))


@pytest.mark.usefixtures("block")
def test_cross_grams_match_their_twin():
    x, y = draw(70, 5), draw(70, 8, seed=1)
    a, b = centred(x), centred(y)
    k, l = (a * a).sum(1), (b * b).sum(1)  # noqa: E741
    sums = cross_grams(x, y)
    for got, expected in [(sums.xx, a.T @ a), (sums.xy, a.T @ b), (sums.yy, b.T @ b)]:
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-10)
    scalars = [float(v) for v in (sums.count, sums.k, sums.l, sums.kk, sums.kl, sums.ll)]
    np.testing.assert_allclose(scalars, [70, k.sum(), l.sum(), k @ k, k @ l, l @ l], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_rows_have_exactly_no_gram(dtype):
    rows = draw(1, 9).to(dtype).expand(1001, 9)
    assert not centred_gram(rows).any()


def test_shift_of_all_rows_changes_nothing():
    rows = draw(80, 7)
    torch.testing.assert_close(centred_gram(rows + draw(7, seed=1)), centred_gram(rows), rtol=0, atol=1e-10)


def test_small_spread_round_a_large_mean_is_not_taken_for_rounding():
    rows = 1e-4 * draw(500, 6) + 1.0
    assert float(centred_gram(rows.float()).trace()) == pytest.approx(float((centred(rows) ** 2).sum()), rel=1e-3)


def test_no_rows():
    assert not centred_gram(draw(4, 3), mask=torch.zeros(4, dtype=torch.bool)).any()
    assert not centred_gram(torch.zeros(0, 3)).any()


class ProductSettings(TorchDispatchMode):
    """Notes how float32 products were allowed to run, at each product."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            self.seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="one setting before torch 2.9")
def test_no_product_runs_in_a_lossy_precision():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with ProductSettings() as settings:
            centred_gram(draw(20, 3).float())
            cross_grams(draw(20, 3).float(), draw(20, 3).float())
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert settings.seen == [("ieee", "ieee")] * 4


@pytest.mark.parametrize("flush", [1, 40, 10**6])
def test_when_products_join_the_float64_sum_changes_only_rounding(monkeypatch, flush):
    rows = draw(100, 5).float()
    monkeypatch.setattr(module, "HOST_BLOCK", 16)
    monkeypatch.setattr(module, "FLUSH_ROWS", flush)
    twin = centred(rows).T @ centred(rows)
    np.testing.assert_allclose(centred_gram(rows).numpy(), twin, rtol=0, atol=1e-5 * twin.max())


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="mask has 3 entries; the matrix has 4 rows"):
        centred_gram(draw(4, 2), mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="4 and 5 rows"):
        cross_grams(draw(4, 2), draw(5, 2))
