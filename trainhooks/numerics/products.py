"""Keep matrix products in the precision they are written in, whatever the training loop chose for its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


@contextmanager
def exact_products(device_type: str) -> Iterator[None]:
    """Inside, float32 products are float32: no TF32, no bfloat16 splits, no autocast. Settings come back after.

    Without it, a loop that calls `torch.set_float32_matmul_precision("high")` would give Gram matrices of 10
    mantissa bits, too coarse to solve with.
    """
    backends: list[Any] = [getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn)]
    if not all(hasattr(backend, "fp32_precision") for backend in backends):
        with _legacy_precision(), torch.autocast(device_type, enabled=False):
            yield
        return
    saved = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, saved, strict=True):
            backend.fp32_precision = precision


@contextmanager
def _legacy_precision() -> Iterator[None]:
    # torch below 2.9 has one setting for all backends
    saved = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(saved)


def upper_strips(dim: int) -> list[slice]:
    """Four row strips of a symmetric product, each to be computed from its diagonal on: 5/8 of the whole's work."""
    width = max(64, -(-dim // 4))  # narrower ones cost more than they save
    return [slice(start, min(start + width, dim)) for start in range(0, dim, width)]


def mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrices [..., dim, dim] whose upper triangle is that of `upper`, made in place and returned."""
    # by strips: a fifth of the time of two triangles of the whole
    for strip in upper_strips(upper.shape[-1]):
        corner = upper[..., strip, strip]
        corner.copy_(corner.triu() + corner.triu(1).mT)
        upper[..., strip.stop :, strip] = upper[..., strip, strip.stop :].mT
    return upper


def symmetric(upper: Tensor) -> Tensor:
    """The same as a new tensor, in one operation: what counts on a device is their number."""
    return torch.where(_upper(upper.shape[-1], upper.device), upper, upper.mT)


@lru_cache(maxsize=16)
def _upper(dim: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.ones(dim, dim, dtype=torch.bool, device="cpu").triu().to(device)
