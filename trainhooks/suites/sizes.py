"""What counts as a shape, strides or offsets in a file."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

MOST_DIMS = 64  # torch's own limit
MOST_TENSORS = 400_000  # of one file, or pieces of one distributed checkpoint; each takes some 1,000 bytes of memory
MOST_SIZE = 1 << 63  # torch counts elements in int64


def is_sizes(values: Any) -> TypeGuard[tuple[int, ...] | list[int]]:
    """Whether `values` is a list or tuple of at most 64 whole numbers from 0 to 2^63 - 1."""
    return (
        isinstance(values, (tuple, list))
        and len(values) <= MOST_DIMS
        and all(type(value) is int and 0 <= value < MOST_SIZE for value in values)
    )


def is_shape(values: Any) -> TypeGuard[tuple[int, ...] | list[int]]:
    """Whether `values` are sizes whose product, zeros left out (torch multiplies the rest), is below 2^63."""
    return is_sizes(values) and math.prod(value or 1 for value in values) < MOST_SIZE
