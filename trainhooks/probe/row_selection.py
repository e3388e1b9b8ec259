"""Which rows of an output embedding enter a fit: the settings, checked once, and the frequency target on those rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from operator import index
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import pad

from trainhooks.core.errors import of_settings
from trainhooks.core.token_counts import TokenCounts
from trainhooks.probe.target import as_counts, counts_for_rows, frequency_target, token_mask


@dataclass(frozen=True)
class TargetRows:
    """For each row of an embedding, on the host: whether it enters, its count, and y = -log(c / N), NaN outside.

    Counts and target are None where there are no counts. `key` is the same for the same counts and mask.
    """

    mask: Bool[Tensor, "vocab"]
    counts: Int64[Tensor, "vocab"] | None
    target: Float[Tensor, "vocab"] | None
    key: bytes


@dataclass(frozen=True, init=False, eq=False)
class RowSelection:
    """Which rows enter: `counts`, `min_count`, `exclude`, `mask` and `vocab_size`, as in `token_mask`.

    Whatever takes these settings as keywords takes one of these as its `counts` too. `counts` may be `TokenCounts`, a
    numpy array, a tensor or None, and are int64 on the host. `mask` are the tokens that enter, one for each count;
    without counts it is the mask that was given, and all rows below `vocab_size` in it enter that are not excluded.
    `source` are the counts with what is known of them, None where an array was given.

    Raises ValueError for settings that do not fit together or leave no token.
    """

    counts: Int64[Tensor, "vocab"] | None
    min_count: int
    exclude: tuple[int, ...]
    mask: Bool[Tensor, "vocab"] | None
    vocab_size: int | None
    source: TokenCounts | None

    def __init__(
        self,
        counts: Any,
        *,
        min_count: int = 1,
        exclude: Iterable[int] = (),
        mask: Bool[Tensor, "vocab"] | None = None,
        vocab_size: int | None = None,
        source: TokenCounts | None = None,
    ) -> None:
        self._set(counts=None if counts is None else as_counts(counts), min_count=min_count, mask=mask)
        self._set(exclude=tuple(index(token) for token in exclude), vocab_size=vocab_size)
        self._set(source=counts if isinstance(counts, TokenCounts) else source)
        if self.counts is not None:
            self._set(mask=self._select(self.counts))
        elif min_count != 1:
            raise ValueError(f"min_count is {min_count}, but there are no counts: pass `counts`, or select by `mask`.")

    @classmethod
    def of(
        cls,
        counts: Any,
        *,
        min_count: int = 1,
        exclude: Iterable[int] = (),
        mask: Bool[Tensor, "vocab"] | None = None,
        vocab_size: int | None = None,
    ) -> RowSelection:
        """A selection as it is, else one of these counts and settings.

        Raises ValueError for settings beside a selection, and as the class does.
        """
        exclude = tuple(exclude)
        if not isinstance(counts, RowSelection):
            return cls(counts, min_count=min_count, exclude=exclude, mask=mask, vocab_size=vocab_size)
        given = {"min_count": min_count != 1, "exclude": exclude, "mask": mask is not None, "vocab_size": vocab_size}
        if beside := [name for name, is_given in given.items() if is_given]:
            raise ValueError(
                f"{' and '.join(beside)} beside a RowSelection, which has settings of its own: say them in it."
            )
        return counts

    def counted(self) -> RowSelection:
        """Itself. Raises ValueError without counts."""
        if self.counts is None:
            raise ValueError("the frequency of tokens is the target here, and there are no counts: pass `counts`.")
        return self

    @property
    def token_counts(self) -> TokenCounts | None:
        """The counts, with what is known of them."""
        return self.source if self.source is not None or self.counts is None else TokenCounts(self.counts.numpy())

    def fitted(self, vocab: int) -> RowSelection:
        """The same for a matrix of `vocab` rows: a count for each row, 0 for padding.

        Raises ValueError where the counts do not fit it (`TokenCounts.for_rows`), and without counts.
        """
        if self.counts is None or self.mask is None:
            raise ValueError("rows that are selected without counts have none to fit to a matrix: pass counts.")
        counts = counts_for_rows(self.counts, rows=vocab, vocab_size=self.vocab_size)
        return replace(self, counts=counts, mask=_padded(self.mask, vocab), vocab_size=None)

    def for_rows(self, vocab: int) -> TargetRows:
        """The rows of an embedding of `vocab` rows. Raises SettingsError where counts or mask do not fit it."""
        with of_settings():
            if self.counts is None or self.mask is None:
                mask = self._mask_of(torch.ones(vocab, dtype=torch.int64))
                return TargetRows(mask, None, None, _key(mask))
            counts = counts_for_rows(self.counts, rows=vocab, vocab_size=self.vocab_size)
        mask = _padded(self.mask, vocab)
        return TargetRows(mask, counts, frequency_target(counts, mask=mask), _key(mask, counts))

    def _select(self, counts: Tensor) -> Tensor:
        mask = self._mask_of(counts)
        if not bool(mask.any()):
            counted = int((counts >= self.min_count).sum())
            raise ValueError(
                f"no token is left to fit on: {counted} of {len(counts)} ids are counted {self.min_count} times or more"
                f", {len(self.exclude)} are excluded. Lower min_count, or check counts, exclude and mask."
            )
        return mask

    def _mask_of(self, counts: Tensor) -> Tensor:
        return token_mask(
            counts, min_count=self.min_count, exclude=self.exclude, mask=self.mask, vocab_size=self.vocab_size
        )

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __getstate__(self) -> dict[str, object]:
        """Arrays in place of tensors, which a worker process would be sent as shared memory."""
        return {name: v.numpy() if isinstance(v, Tensor) else v for name, v in vars(self).items()}

    def __setstate__(self, state: Mapping[str, object]) -> None:
        self._set(**{name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in state.items()})


def rows_of_matrix(
    counts: Any, *, vocab: int, min_count: int = 1, exclude: Iterable[int] = (), vocab_size: int | None = None
) -> RowSelection:
    """The selection for a matrix of `vocab` rows. `exclude` may name padding rows, since counts are fitted first.

    Raises ValueError as `RowSelection` and `TokenCounts.for_rows` do.
    """
    if isinstance(counts, RowSelection):
        return RowSelection.of(counts, min_count=min_count, exclude=exclude, vocab_size=vocab_size).fitted(vocab)
    fitting = counts_for_rows(counts, rows=vocab, vocab_size=vocab_size)
    source = counts if isinstance(counts, TokenCounts) else None
    return RowSelection(fitting, min_count=min_count, exclude=exclude, source=source)


def settings_of_run(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords `min_count` and `exclude` of the rows that a store's attributes name."""
    excluded = tuple(int(token) for token in attributes.get("excluded_tokens", ()))
    return {"min_count": int(attributes.get("min_count", 1)), "exclude": excluded}


def _padded(mask: Tensor, vocab: int) -> Bool[Tensor, "vocab"]:
    return pad(mask, (0, vocab - len(mask)))


def _key(*tensors: Tensor) -> bytes:
    return hashlib.blake2b(b"".join(tensor.numpy().tobytes() for tensor in tensors)).digest()
