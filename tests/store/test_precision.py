import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainhooks.store import round_mantissa
from trainhooks.store.format.precision import error_bounds, kept_mantissa_bits, precision_name, round_and_pack, unpack

PATTERNS = st.integers(0, 2**32 - 1)


def slow_round(value: np.float32, kept: int) -> float:
    """Round by whole multiples of the last kept place, in float64, where nothing else is rounded."""
    x = float(value)
    if not math.isfinite(x) or x == 0:
        return x
    exponent = max(math.frexp(x)[1] - 1, -126)
    storage = 2.0 ** (exponent - kept)
    rounded = round(x / storage) * storage  # round() takes ties to even
    return math.copysign(math.inf, x) if abs(rounded) >= 2.0**128 else math.copysign(rounded, x)


def from_bits(*patterns: int) -> np.ndarray:
    return np.array(patterns, dtype=np.uint32).view(np.float32)


@settings(max_examples=150)
@given(st.lists(PATTERNS, min_size=1, max_size=8), st.integers(1, 23))
def test_agrees_with_the_slow_twin_on_any_bit_pattern(patterns, kept):
    values = from_bits(*patterns)
    rounded = round_mantissa(values, kept_bits=kept)
    for value, got in zip(values, rounded, strict=True):
        if np.isnan(value):
            assert got.tobytes() == value.tobytes()
        else:
            assert float(got) == slow_round(value, kept)
            assert np.signbit(got) == np.signbit(value)


@settings(max_examples=100)
@given(PATTERNS, st.integers(1, 22))
def test_is_idempotent_odd_and_within_its_bounds(pattern, kept):
    value = from_bits(pattern)
    once = round_mantissa(value, kept_bits=kept)
    assert round_mantissa(once, kept_bits=kept).tobytes() == once.tobytes()
    if np.isfinite(value).all():
        assert round_mantissa(-value, kept_bits=kept) == -once
    if np.isfinite(once).all():
        bounds = error_bounds(kept)
        error = abs(float(once[0]) - float(value[0]))
        assert error <= max(
            bounds["relative_error_bound"] * abs(float(value[0])), bounds["subnormal_absolute_error_bound"]
        )


def test_known_answers():
    one = 0x3F800000
    # 1 + 2^-8 lies half-way between two bfloat16 values, and the even one is below; 1 + 3 * 2^-8 goes up
    rounded = round_mantissa(from_bits(one | 0x8000, one | 0x18000, one | 0x8001), kept_bits=7)
    np.testing.assert_array_equal(rounded, [1.0, 1.015625, 1.0078125])


def test_what_is_not_finite_stays_and_overflow_becomes_infinite():
    quiet, tiny_payload, all_ones = 0x7FC00000, 0x7F800001, 0xFFFFFFFF
    values = from_bits(quiet, tiny_payload, all_ones, 0x7F800000, 0xFF800000, 0x80000000, 0x7F7FFFFF)
    rounded = round_mantissa(values, kept_bits=7)
    assert rounded[:6].tobytes() == values[:6].tobytes()
    assert rounded[6] == np.inf


def test_all_bits_kept_is_a_copy_and_empty_is_empty():
    values = np.linspace(-1, 1, 7, dtype=np.float32)
    rounded = round_mantissa(values, kept_bits=23)
    np.testing.assert_array_equal(rounded, values)
    assert not np.shares_memory(rounded, values)
    assert round_mantissa(np.empty((0, 3), np.float32), kept_bits=7).shape == (0, 3)


def test_strides_and_tiles_do_not_matter():
    values = np.random.default_rng(0).standard_normal((600, 900)).astype(np.float32)
    whole = round_mantissa(values, kept_bits=5)
    np.testing.assert_array_equal(round_mantissa(values.T, kept_bits=5), whole.T)
    np.testing.assert_array_equal(round_mantissa(values[::3, 1::2], kept_bits=5), whole[::3, 1::2])


@settings(max_examples=100)
@given(st.lists(PATTERNS, min_size=1, max_size=8), st.integers(1, 7))
def test_packing_loses_nothing_but_payloads(patterns, kept):
    rounded = round_mantissa(from_bits(*patterns), kept_bits=kept)
    back = unpack(round_and_pack(from_bits(*patterns), kept_bits=kept))
    np.testing.assert_array_equal(back, rounded)  # NaN equals NaN here
    assert (np.signbit(back) == np.signbit(rounded)).all()


def test_packing_does_not_depend_on_tiles_strides_and_shape(monkeypatch):
    values = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    whole = round_and_pack(values, kept_bits=7)
    monkeypatch.setattr("trainhooks.store.format.precision._TILE", 7)
    np.testing.assert_array_equal(round_and_pack(values, kept_bits=7), whole)
    np.testing.assert_array_equal(round_and_pack(values[::3, 1::2], kept_bits=7), whole[::3, 1::2])
    assert round_and_pack(values[:0], kept_bits=7).shape == (0, 30)
    with pytest.raises(ValueError, match="needed 1 to 7"):
        round_and_pack(values, kept_bits=8)


def test_names():
    assert [kept_mantissa_bits(p) for p in ("float32", "bfloat16", 7, 1, 23)] == [23, 7, 7, 1, 23]
    assert [precision_name(bits) for bits in (23, 7, 10)] == ["float32", "bfloat16", 10]


@pytest.mark.parametrize("precision", ["float16", 0, 24, True, -1])
def test_unknown_precision_is_refused(precision):
    with pytest.raises(ValueError, match="mantissa bits to keep, 1 to 23"):
        kept_mantissa_bits(precision)


@settings(max_examples=200)
@given(st.lists(PATTERNS, min_size=1, max_size=40))
def test_a_cast_to_bfloat16_gives_the_same_bits(patterns):
    values = from_bits(*patterns)
    cast = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
    packed = round_and_pack(values, kept_bits=7)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(cast[number], packed[number])
    assert np.isnan(unpack(cast[~number])).all()


def test_a_cast_of_many_subnormals_gives_the_same_bits():
    values = np.arange(0, 1 << 23, 1000, dtype=np.uint32).view(np.float32)  # enough for the vectorised path
    cast = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(cast, round_and_pack(values, kept_bits=7))
