"""The noise ceiling against counts whose rates are known."""

import numpy as np
import pytest
import torch

from trainhooks.probe import noise_ceiling, small_share


def zipf_counts(exponent, total, *, vocab=8192, seed=0):
    """Poisson counts and the rates they were drawn with, of the tokens that were counted at all."""
    rates = 1 / np.arange(1, vocab + 1) ** exponent
    rates *= total / rates.sum()
    counts = np.random.default_rng(seed).poisson(rates)
    return counts, np.log(rates)


def reached(counts, log_rates):
    """The R^2 of the true log rates."""
    seen = counts > 0
    return np.corrcoef(log_rates[seen], np.log(counts[seen]))[0, 1] ** 2


@pytest.mark.parametrize("total", [1e4, 1e5, 1e6, 1e7, 1e9])
@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.2, 1.5])
def test_true_rates_do_not_pass_it(exponent, total):
    counts, log_rates = zipf_counts(exponent, total)
    ceiling = noise_ceiling(counts)
    if small_share(counts) > 0.5:
        assert np.isnan(ceiling)
        return
    assert reached(counts, log_rates) <= 1.02 * ceiling
    assert ceiling <= 1
    assert ceiling - reached(counts, log_rates) < 0.03, "it is a ceiling, not any number above"


def test_one_over_c_is_not_the_variance_of_small_counts():
    """Where the delta method would call a reachable figure impossible."""
    counts, log_rates = zipf_counts(0.8, 1e4, vocab=2048)
    seen = counts > 0
    by_delta = 1 - np.mean(1 / counts[seen]) / np.var(np.log(counts[seen]))
    assert by_delta < 0.5
    assert 0.65 < reached(counts, log_rates) <= 1.02 * noise_ceiling(counts)


def test_min_count_is_part_of_the_condition():
    counts, log_rates = zipf_counts(1.0, 1e5)
    mask = torch.from_numpy(counts >= 5)
    kept = counts >= 5
    found = np.corrcoef(log_rates[kept], np.log(counts[kept]))[0, 1] ** 2
    assert found <= 1.02 * noise_ceiling(counts, mask=mask)


def test_degenerate_answers():
    assert np.isnan(noise_ceiling(np.array([7, 7, 0, 7])))
    assert np.isnan(noise_ceiling(np.array([1, 2, 1, 2])))  # counted once or twice
    assert np.isnan(noise_ceiling(np.array([5, 0, 3]), mask=torch.zeros(3, dtype=torch.bool)))
    assert small_share(np.array([0, 1, 2, 3, 9])) == 0.5
    assert noise_ceiling(10 ** np.arange(3, 9)) > 0.999
