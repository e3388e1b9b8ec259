"""What the shape of an output embedding decides, kept from record to record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Built = TypeVar("Built")


class CachedByShape(Generic[Built]):
    """What an embedding's number of rows and its device decide: built at first use, again where either changes."""

    def __init__(self, build: Callable[[int, torch.device], Built]) -> None:
        self._build = build
        self._built: tuple[tuple[int, torch.device], Built] | None = None

    def of(self, embedding: Tensor) -> Built:
        """What fits this embedding."""
        key = (len(embedding), embedding.device)
        if self._built is None or self._built[0] != key:
            self._built = (key, self._build(*key))
        return self._built[1]
