import numpy as np
import pytest

from trainhooks.lead.change import BLOCK, Change, blocks_of, farthest_element
from trainhooks.lead.lead_sums import LeadAccumulator

ROWS, DIMS = BLOCK + 600, 5


def ends(seed=0):
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((ROWS, DIMS)).astype(np.float32)
    return first, first + rng.standard_normal((ROWS, DIMS)).astype(np.float32) + 2.0


def masked_ids():
    return np.flatnonzero(np.arange(ROWS) % 7 != 3)


@pytest.mark.parametrize("ids", [None, masked_ids()], ids=["all rows", "some rows"])
@pytest.mark.parametrize("scale", [0.25, 1.0, 8.0])
def test_blocks_make_up_the_centred_change(ids, scale):
    first, last = ends()
    change = Change(last, first=first, ids=ids, scale=np.float32(scale))
    rows = slice(None) if ids is None else ids
    expected = scale * (last.astype(np.float64)[rows] - first[rows])
    expected -= expected.mean(axis=0)
    np.testing.assert_allclose(change.whole(), expected, atol=1e-5 * scale)
    covered = [where for where, _ in change.blocks()]
    assert [where.stop for where in covered] == sorted({min(BLOCK, len(expected)), len(expected)})
    assert len(change) == len(expected)


def test_neither_matrix_is_written_to():
    first, last = ends()
    for one in (first, last):
        one.flags.writeable = False
    for _, block in Change(last, first=first).blocks():
        block.fill(1.0)
    array = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks_of(array)]), array)


def test_differences_beyond_float32_are_scaled_first():
    first = np.full((20, 2), -3e38, np.float32)
    last = np.where(np.arange(40).reshape(20, 2) % 3 == 0, 3e38, -3e38).astype(np.float32)
    assert np.isfinite(Change(last, first=first, scale=np.float32(2.0**-120)).whole()).all()


def test_farthest_element_is_of_the_rows_that_count():
    matrix = np.array([[1.0, -2.0], [9.0, 0.0], [0.5, np.nan]], np.float32)
    assert farthest_element(matrix, np.array([0])) == 2.0
    assert farthest_element(matrix, np.array([0, 1])) == 9.0
    assert np.isnan(farthest_element(matrix))


def test_a_lead_of_some_rows_is_that_of_a_matrix_without_the_others():
    first, last = ends()
    middle, ids = (first + 0.4 * (last - first)).astype(np.float32), masked_ids()
    targets = np.random.default_rng(4).standard_normal(len(ids))
    settings = {"targets": targets, "draws": 19, "resamples": 5}
    by_id = LeadAccumulator(first, last, middle, ids=ids, **settings)
    alone = LeadAccumulator(first[ids], last[ids], middle[ids], **settings)
    one, other = by_id.measure(middle, within_cut=True), alone.measure(middle[ids], within_cut=True)
    assert set(one) == set(other)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_what_is_known_of_the_ends_is_what_measuring_them_gives():
    first, last = ends()
    middle = (first + 0.4 * (last - first)).astype(np.float32)
    targets = np.random.default_rng(4).standard_normal(ROWS)
    reader = LeadAccumulator(first, last, middle, targets=targets, draws=19, resamples=5)
    for end, matrix in (("first", first), ("cut", middle), ("last", last)):
        known = reader.measure(matrix, within_cut=end != "last", end=end)
        anew = reader.measure(matrix, within_cut=end != "last")
        assert set(known) == set(anew)
        for name, value in anew.items():
            np.testing.assert_allclose(known[name], value, rtol=1e-12, err_msg=f"{name} at the {end}")
