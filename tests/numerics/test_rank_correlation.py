import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainhooks.probe import average_ranks, pearson, spearman

few_values = st.lists(st.integers(-3, 3), min_size=1, max_size=40)


@settings(max_examples=60)
@given(few_values)
def test_average_ranks_agree_with_scipy(values):
    ranks = average_ranks(torch.tensor(values, dtype=torch.float64))
    assert np.array_equal(ranks.numpy(), scipy.stats.rankdata(values))


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_ranks_of_several_lines_do_not_mix(rows):
    """Ties at the end of a line and at the beginning of the next are no ties."""
    values = torch.tensor(np.random.default_rng(0).integers(0, 3, size=(4, 5, rows)).astype(np.float32))
    expected = [[scipy.stats.rankdata(line) for line in lines] for lines in values.numpy()]
    np.testing.assert_array_equal(average_ranks(values), np.reshape(expected, values.shape))
    np.testing.assert_array_equal(average_ranks(values.bfloat16().requires_grad_()), np.reshape(expected, values.shape))


def test_average_ranks_of_rows_with_infinities_zeros_and_nan():
    values = torch.tensor([[2.0, -torch.inf, 0.0, -0.0], [torch.nan, 1.0, torch.inf, torch.inf]])
    ranks = average_ranks(values)
    assert ranks[0].tolist() == [4, 1, 2.5, 2.5]
    assert ranks[1].isnan().tolist() == [True, False, False, False]
    assert ranks[1, 1:].tolist() == [1, 2.5, 2.5]


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_agree_with_scipy(ties):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 500))
    b += 0.4 * a
    if ties:
        a, b = a.round(1), b.round(1)
    ours, ranked = (f(torch.tensor(a), torch.tensor(b)).numpy() for f in (pearson, spearman))
    for row in range(3):
        assert ours[row] == pytest.approx(scipy.stats.pearsonr(a[row], b[row])[0], abs=1e-12)
        assert ranked[row] == pytest.approx(scipy.stats.spearmanr(a[row], b[row])[0], abs=1e-12)


def test_left_out_rows_have_no_say():
    rng = np.random.default_rng(1)
    a, b = torch.tensor(rng.normal(size=(2, 300)).round(1))
    keep = torch.tensor(rng.random(300) < 0.6)
    assert float(spearman(a, b, keep=keep)) == pytest.approx(float(spearman(a[keep], b[keep])), abs=1e-12)
    assert float(pearson(a, b, weights=keep.double())) == pytest.approx(float(pearson(a[keep], b[keep])), abs=1e-12)


def test_rank_correlation_does_not_see_monotone_maps():
    a, b = torch.tensor(np.random.default_rng(2).normal(size=(2, 200)))
    assert float(spearman(a.exp(), b)) == pytest.approx(float(spearman(a, b)), abs=1e-14)
    assert float(spearman(a, a**3)) == pytest.approx(1)
    assert float(spearman(a, -a)) == pytest.approx(-1)


@pytest.mark.parametrize("b", [[0.1, 0.1, 0.1], [1.0, torch.nan, 2.0]])
def test_constant_or_nan_gives_nan(b):
    a = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert pearson(a, torch.tensor(b)).isnan()
    assert spearman(a, torch.tensor(b)).isnan()


def test_one_row_gives_nan():
    one = torch.ones(1, dtype=torch.float64)
    assert pearson(one, one).isnan()
    assert spearman(one, one).isnan()
