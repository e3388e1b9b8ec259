"""The rows of the output embedding that the metrics of a target take, and the frequency target on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from trainhooks.metrics.base import of_settings
from trainhooks.probe.target import as_counts, counts_for_rows, frequency_target, token_mask

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


@dataclass(frozen=True)
class TargetRows:
    """For each row of an embedding, on the host: whether it enters, its count, and y = -log(c / N), NaN outside.

    Counts and target are None where there are no counts. `key` is the same for the same counts and mask.
    """

    mask: Bool[Tensor, "vocab"]
    counts: Int64[Tensor, "vocab"] | None
    target: Float[Tensor, "vocab"] | None
    key: bytes


class RowSelection:
    """Which rows enter: the settings `counts`, `min_count`, `exclude`, `mask` and `vocab_size`, as in `token_mask`.

    Without counts these are all rows below `vocab_size` in the mask that are not excluded.

    Raises ValueError for settings that do not fit together or leave no token.
    """

    def __init__(
        self,
        counts: Any,
        *,
        min_count: int = 1,
        exclude: Iterable[int] = (),
        mask: Bool[Tensor, "vocab"] | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self.counts = None if counts is None else as_counts(counts)
        self._vocab_size = vocab_size
        self._exclude, self._mask = tuple(exclude), mask
        if self.counts is None:
            if min_count != 1:
                raise ValueError(
                    f"min_count is {min_count}, but there are no counts: pass `counts`, or select by `mask`."
                )
            return
        self._mask = self._select(self.counts, min_count=min_count)
        if not bool(self._mask.any()):
            raise ValueError("no token is left to fit on: lower min_count, or check counts and mask.")

    @property
    def mask(self) -> Bool[Tensor, "vocab"] | None:
        """The tokens that enter, one for each count; without counts the mask that was given."""
        return self._mask

    def for_rows(self, vocab: int) -> TargetRows:
        """The rows of an embedding of `vocab` rows. Raises ValueError where counts or mask do not fit it."""
        if self.counts is None:
            with of_settings():
                mask = self._select(torch.ones(vocab, dtype=torch.int64), min_count=1)
            return TargetRows(mask, None, None, _key(mask))
        assert self._mask is not None
        with of_settings():
            counts = counts_for_rows(self.counts, rows=vocab, vocab_size=self._vocab_size)
        mask = torch.zeros(vocab, dtype=torch.bool)
        mask[: len(self._mask)] = self._mask
        return TargetRows(mask, counts, frequency_target(counts, mask=mask), _key(mask, counts))

    def _select(self, counts: Tensor, *, min_count: int) -> Tensor:
        return token_mask(
            counts, min_count=min_count, exclude=self._exclude, mask=self._mask, vocab_size=self._vocab_size
        )


def _key(*tensors: Tensor) -> bytes:
    return hashlib.blake2b(b"".join(tensor.numpy().tobytes() for tensor in tensors)).digest()
