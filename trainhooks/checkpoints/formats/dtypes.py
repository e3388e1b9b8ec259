"""The dtypes that stored tensors may have, by the names that safetensors and torch's pickles give them."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import torch

from trainhooks.checkpoints.sources.byte_source import MOST_SIZE

SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
# UntypedStorage counts bytes; the tensor on it says its dtype. torch writes it for dtypes newer than these classes.
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
PICKLED = frozenset(
    str(found).removeprefix("torch.") for found in vars(torch).values() if isinstance(found, torch.dtype)
)


MOST_DIMS = 64  # torch's own limit


MOST_TENSORS = 400_000  # of one file, or pieces of one distributed checkpoint; each takes some 1,000 bytes of memory


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
