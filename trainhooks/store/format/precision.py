"""Rounding float32 to fewer mantissa bits, and packing the result into 16 bits where it fits.

zarr 3.1 has no bfloat16 data type, so matrices stay float32 and lose mantissa bits instead: with 7 kept bits a
float32 holds exactly the bfloat16 values, and its zero bits compress away.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt16

FLOAT32_MANTISSA_BITS = 23
BFLOAT16_MANTISSA_BITS = 7
# sign, 8 exponent bits and 7 mantissa bits fill the upper half of a float32
PACKABLE_BITS = BFLOAT16_MANTISSA_BITS
_NAMES = {"float32": FLOAT32_MANTISSA_BITS, "bfloat16": BFLOAT16_MANTISSA_BITS}
_EXPONENT = np.uint32(0x7F800000)
_HALF = np.uint32(16)
_TILE = 1 << 18  # elements; a tile and its temporaries stay in the cache


def kept_mantissa_bits(precision: str | int) -> int:
    """Explicit mantissa bits, 1 to 23, that a precision keeps: "float32" 23, "bfloat16" 7, a number itself.

    Raises ValueError for anything else.
    """
    if isinstance(precision, str):
        if precision in _NAMES:
            return _NAMES[precision]
    elif type(precision) is int and 1 <= precision <= FLOAT32_MANTISSA_BITS:  # True is no number of bits
        return precision
    raise ValueError(
        f'precision {precision!r} is not known; use "float32", "bfloat16" or the mantissa bits to keep, 1 to 23.'
    )


def precision_name(kept_bits: int) -> str | int:
    """The canonical way to write a precision: "float32", "bfloat16" or the number of kept bits."""
    return {bits: name for name, bits in _NAMES.items()}.get(kept_bits, kept_bits)


def round_mantissa(values: Float32[np.ndarray, "..."], *, kept_bits: int) -> Float32[np.ndarray, "..."]:
    """Round each float32 to the nearest one with `kept_bits` (1 to 23) explicit mantissa bits, ties to even.

    The result has the shape of `values` and is a copy. A normal number moves by at most 2^-(kept_bits + 1) of
    itself, a subnormal one by at most 2^-(127 + kept_bits). What lies beyond the largest value that can be kept
    becomes infinite, as in IEEE 754; NaN (payload included), infinities and signed zeros stay as they are.

    Source: IEEE 754-2019, 4.3.1 (roundTiesToEven). Raises ValueError where `kept_bits` is out of range.
    """
    dropped = np.uint32(FLOAT32_MANTISSA_BITS - kept_mantissa_bits(kept_bits))
    rounded = np.array(values, dtype=np.float32, order="C", copy=True)
    if dropped:
        bits = rounded.reshape(-1).view(np.uint32)
        for start in range(0, bits.size, _TILE):
            _round_in_place(bits[start : start + _TILE], dropped)
    return rounded


def _round_in_place(bits: np.ndarray, dropped: np.uint32) -> None:
    # adding just under half a unit, plus the bit that decides a tie, carries into the kept bits (and on into the
    # exponent, up to infinity) exactly where rounding goes up
    one = np.uint32(1)
    carry = (bits >> dropped) & one
    carry += (one << (dropped - one)) - one
    # NaN would be carried into infinity or zero, so what is not finite keeps its bits
    finite = (bits & _EXPONENT) != _EXPONENT
    carry += bits
    carry &= ~((one << dropped) - one)
    np.copyto(bits, carry, where=finite)


def round_and_pack(values: Float32[np.ndarray, "..."], *, kept_bits: int) -> UInt16[np.ndarray, "..."]:
    """The upper 16 bits of `round_mantissa(values)` for 1 to 7 kept bits: nothing else is left of them.

    A NaN stays a NaN, but its payload's lower bits go. Goes without the rounded matrix between: 5 times as fast.

    Raises ValueError where `kept_bits` is out of range.
    """
    if not 1 <= kept_bits <= PACKABLE_BITS:
        raise ValueError(f"got kept_bits={kept_bits}; needed 1 to {PACKABLE_BITS}.")
    bits = np.ascontiguousarray(values).reshape(-1).view(np.uint32)
    upper = np.empty(bits.size, dtype=np.uint16)
    scratch = np.empty(min(bits.size, _TILE), dtype=np.uint32)
    for start in range(0, bits.size, _TILE):
        part = bits[start : start + _TILE]
        _round_and_pack_tile(part, upper[start : start + _TILE], scratch[: part.size], kept_bits=kept_bits)
    return upper.reshape(np.shape(values))


def _round_and_pack_tile(bits: np.ndarray, upper: np.ndarray, scratch: np.ndarray, *, kept_bits: int) -> None:
    dropped = np.uint32(FLOAT32_MANTISSA_BITS - kept_bits)
    one = np.uint32(1)
    np.bitwise_and(bits, np.uint32(0x7FFFFFFF), out=scratch)
    has_nan = bool(scratch.max() > _EXPONENT)
    # as in _round_in_place; an infinity has no mantissa bits, so that nothing carries
    np.right_shift(bits, dropped, out=scratch)
    scratch &= one
    scratch += (one << (dropped - one)) - one
    scratch += bits
    scratch >>= dropped
    np.copyto(upper, scratch, casting="unsafe")  # at most 1 + 8 + 7 bits are left
    if dropped > _HALF:
        upper <<= np.uint16(dropped - _HALF)
    if has_nan:
        nan = np.isnan(bits.view(np.float32))
        # a NaN whose payload lies in the lower half alone would turn into infinity
        upper[nan] = (bits[nan] >> _HALF).astype(np.uint16) | np.uint16(0x0040)


def unpack(upper: UInt16[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """Float32 values from their upper 16 bits, the reverse of `round_and_pack`."""
    return (upper.astype(np.uint32) << np.uint32(16)).view(np.float32)


def error_bounds(kept_bits: int) -> dict[str, float]:
    """What rounding to `kept_bits` can change, for an array's attributes; both are 0 where nothing is rounded."""
    if kept_bits == FLOAT32_MANTISSA_BITS:
        return {"relative_error_bound": 0.0, "subnormal_absolute_error_bound": 0.0}
    return {
        "relative_error_bound": 2.0 ** -(kept_bits + 1),
        "subnormal_absolute_error_bound": 2.0 ** -(127 + kept_bits),
    }
