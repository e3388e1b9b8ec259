import numpy as np
import pytest

from trainhooks.lead import Series, onset, series_onset, settled_from
from trainhooks.lead.onset import NO_ONSET, crossing, crossing_steps, isotonic

RNG = np.random.default_rng(0)


def pool_adjacent_violators(values):
    """The slow twin: averages neighbouring blocks until they increase."""
    blocks = [[float(value)] for value in values]
    index = 0
    while index < len(blocks) - 1:
        if np.mean(blocks[index]) > np.mean(blocks[index + 1]):
            blocks[index] += blocks.pop(index + 1)
            index = max(index - 1, 0)
        else:
            index += 1
    return np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])


def naive_onset(steps, values, q):
    fitted = pool_adjacent_violators((np.asarray(values) - values[0]) / (values[-1] - values[0]))
    for i in range(1, len(steps)):
        if fitted[i - 1] < q <= fitted[i]:
            share = (q - fitted[i - 1]) / (fitted[i] - fitted[i - 1])
            low, high = np.log(1 + steps[i - 1]), np.log(1 + steps[i])
            return np.exp(low + share * (high - low)) - 1
    return np.nan


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_naive_twin(q, seed):
    rng = np.random.default_rng(seed)
    steps = np.unique(rng.integers(1, 500, 40))
    steps[0] = 0
    values = 3.0 - np.cumsum(rng.random(len(steps)) - 0.2)
    found = onset(steps, values, q=q)
    assert found.status == "found"
    assert found.step == pytest.approx(naive_onset(steps, values, q), rel=1e-12)
    assert found.low <= found.step <= found.high


def test_a_rise_in_log_steps_crosses_half_at_half_the_log():
    steps = np.array([0, 1, 3, 7, 15, 31, 63])
    found = onset(steps, np.arange(7.0), q=0.5)
    assert found.step == pytest.approx(7.0)
    assert onset(steps, np.arange(7.0), q=0.25).step == pytest.approx(2.0 ** (1.5) - 1)


def test_is_the_same_for_a_falling_series_and_any_unit():
    steps = np.arange(30)
    values = np.cumsum(RNG.random(30))
    assert onset(steps, values, q=0.3).step == pytest.approx(onset(steps, 5.0 - 0.01 * values, q=0.3).step)


def test_one_early_outlier_is_pooled_away():
    steps = np.arange(101)
    values = steps / 100.0
    spiked = values.copy()
    spiked[3] = 0.8
    assert values[3] < 0.5 < spiked[3]
    assert onset(steps, spiked, q=0.5).step == pytest.approx(50.0, abs=1.0)


def test_no_onset_where_the_change_is_within_noise():
    steps, values = np.arange(5), np.array([0.0, 0.1, 0.2, 0.25, 0.29])
    assert onset(steps, values, error=0.1) == NO_ONSET
    assert onset(steps, values, error=0.09).status == "found"
    assert onset(steps, np.ones(5)).status == "none"
    assert onset(steps, np.array([0.0, 1.0, np.nan, 1.0, 2.0])).status == "none"
    assert np.isnan(NO_ONSET.step)


def test_before_the_first_record_where_the_series_starts_high():
    found = onset(np.array([0, 10, 20]), np.array([0.6, 0.8, 1.0]), start=0.0, q=0.5)
    assert (found.status, found.low, found.high) == ("before the first record", 0.0, 0.0)
    assert np.isnan(found.step)


def test_before_the_first_record_where_the_series_starts_late():
    values = np.array([0.0, 0.7, 1.0])
    assert onset(np.array([0, 2000, 3000]), values).status == "found"
    late = onset(np.array([1000, 2000, 3000]), values)
    assert (late.status, late.low, late.high) == ("before the first record", 0.0, 2000.0)
    assert onset(np.array([1000, 2000, 3000]), values, q=0.8).status == "found"


def test_isotonic_and_crossing_say_none_to_what_is_not_finite():
    assert np.isnan(isotonic(np.array([0.0, np.nan, 1.0]))).all()
    assert crossing(np.arange(3), np.full(3, np.nan), q=0.5) == NO_ONSET
    np.testing.assert_allclose(isotonic(np.array([0.0, 2.0, 1.0])), [0.0, 1.5, 1.5])


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("start", [0, 7])
def test_many_series_cross_where_each_alone_does(q, start):
    rng = np.random.default_rng(5)
    steps = start + np.cumsum(rng.integers(1, 9, size=30))
    steps[0] = start
    rows = np.linspace(0.0, 1.0, 30) ** rng.uniform(0.05, 3.0, (60, 1)) + 0.2 * rng.standard_normal((60, 30))
    rows[0, 4], rows[1] = np.nan, 0.0
    expected = [crossing(steps, isotonic(row), q=q).step for row in rows]
    np.testing.assert_allclose(crossing_steps(steps, rows, q=q), expected, rtol=1e-9)
    assert 10 < np.isfinite(expected).sum() < 60


def test_a_series_leaves_out_records_without_a_number():
    values = np.array([0.0, np.nan, 1.0, np.nan, 2.0])
    assert series_onset(Series(np.arange(5), values), q=0.5).step == pytest.approx(2.0)
    assert series_onset(Series(np.arange(5), np.full(5, np.nan)), q=0.5).status == "none"
    assert series_onset(Series(np.arange(5), values, error=1.0), q=0.5).status == "none"


def test_settled_from_is_the_end_of_the_last_dip():
    steps = np.array([0, 10, 20, 30, 40])
    assert settled_from(steps, np.array([0.0, 0.95, 0.5, 0.95, 1.0]), above=0.9) == 30.0
    assert settled_from(steps, np.ones(5), above=0.9) == 0.0
    assert np.isnan(settled_from(steps, np.zeros(5), above=0.9))
    assert np.isnan(settled_from(steps, np.array([1.0, 1.0, 1.0, 1.0, np.nan]), above=0.9))


@pytest.mark.parametrize("q", [0.0, 1.0, -0.5])
def test_refuses_a_share_that_is_none(q):
    with pytest.raises(ValueError, match="between 0 and 1"):
        onset(np.arange(3), np.arange(3.0), q=q)


@pytest.mark.parametrize("steps", [[0, 0, 1], [0, 2, 1], [-1, 0, 1]])
def test_refuses_steps_that_do_not_increase(steps):
    with pytest.raises(ValueError, match="increase strictly"):
        onset(np.array(steps), np.arange(3.0))


def test_refuses_a_series_of_two_lengths():
    with pytest.raises(ValueError, match="3 steps and 2 values"):
        Series(np.arange(3), np.ones(2))
