"""Fixed pseudorandom words that are the same on every device: the permuted null's order, the sketches' signs."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_SIGN_BIT = -(1 << 63)


def splitmix64(ids: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any"]:
    """The splitmix64 hash of each id; the 64 bits of the unsigned result are read as a signed integer.

    A bijection of 64-bit words, hence without collisions. Integer operations with wraparound only, so CPU and
    GPU agree bit by bit. splitmix64(0) is 0xE220A8397B1DCDAF. Source: Steele, Lea and Flood 2014, "Fast splittable
    pseudorandom number generators" (doi:10.1145/2660193.2660195), with Stafford's mixing constants.
    """
    z = ids + _signed(_GAMMA)
    z = (z ^ _shift_right(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shift_right(z, 27)) * _signed(_MIX_2)
    return z ^ _shift_right(z, 31)


def splitmix64_stream(seed: int, *, length: int) -> Int64[Tensor, "length"]:
    """The first `length` outputs of splitmix64 from a seed below 2^63, as int64 bit patterns, on the host."""
    return splitmix64(torch.arange(length, dtype=torch.int64) * _signed(_GAMMA) + seed)


def permutation(ids: Int64[Tensor, "row"]) -> Int64[Tensor, "row"]:
    """Positions of `ids` in the unsigned order of their hashes: `y[permutation(ids)]` is the permuted target.

    A permutation of 0 ... rows - 1 that depends on the ids alone. An empty input gives an empty output.
    """
    return (splitmix64(ids) ^ _SIGN_BIT).argsort()


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask drops the copies of the sign bit
    return (z >> bits) & ((1 << (64 - bits)) - 1)
