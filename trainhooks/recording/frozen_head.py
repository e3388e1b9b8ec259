"""A followed matrix that does not move while the rest trains: said once, for its records are all the same."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from trainhooks.model import OutputEmbedding
from trainhooks.sinks import Record

PATIENCE = 20  # updates
ADVICE = (
    "Its records are all the same. Is it the matrix that scores the tokens? Name another by head=, or leave it at this "
    "where it is meant to stand still"
)


def warn_where_frozen(head: OutputEmbedding, parameters: Iterable[Tensor], *, step: int) -> bool:
    """Say it where the matrix gets no gradients while other parameters do; whether it was said."""
    own = head.module.parameters() if head.how == "sum" else [head.weight]
    if head.how == "asked" or any(p.requires_grad for p in own) or not any(p.requires_grad for p in parameters):
        return False
    warnings.warn(
        f"step {step}: the output embedding {head.name} is frozen (requires_grad=False) while other parameters train. "
        f"{ADVICE} (said once).",
        RuntimeWarning,
        stacklevel=6,
    )
    return True


class Standstill:
    """Looks at records' sketches, on the host, whether the group of the output embedding moves.

    `told`: nothing is said any more.
    """

    def __init__(self) -> None:
        self.told = False
        self._since: int | None = None
        self._first: np.ndarray | None = None

    def look(self, record: Record) -> str:
        """What there is to say of a record, in words; mostly nothing."""
        if self.told or record.sketch is None or not {"whole", "output_embedding"} <= set(record.groups):
            return ""
        sketch, head = record.sketch, record.groups.index("output_embedding")
        if self._first is None or self._since is None or not _same(sketch[head], self._first[head]):
            self._since, self._first = record.step, sketch
            return ""
        whole = record.groups.index("whole")
        if record.step - self._since < PATIENCE or _same(sketch[whole], self._first[whole]):
            return ""
        self.told = True
        return f"the output embedding has not moved since step {self._since} while other parameters do. {ADVICE}"


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=True)
