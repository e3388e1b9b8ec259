"""Keeps every record in a list: for notebooks and tests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trainhooks.sinks.base import Record, Sink


class MemorySink(Sink):
    """`records` in order, and `final`, the variables that needed the last record.

    >>> sink = MemorySink()
    >>> sink.write(Record(0, {"loss": np.array(2.5)}))
    >>> sink.write(Record(10, {"loss": np.array(1.5)}))
    >>> [values.tolist() for values in sink.series("loss")]
    [[0, 10], [2.5, 1.5]]
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.final: dict[str, np.ndarray] = {}

    def write(self, record: Record) -> None:
        """Append the record."""
        self.records.append(record)

    def finish(self, values: Mapping[str, np.ndarray]) -> None:
        """Keep the final variables."""
        self.final = dict(values)

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of one variable, for the records that have it."""
        having = [record for record in self.records if name in record.values]
        steps = np.array([record.step for record in having], dtype=np.int64)
        return steps, np.array([record.values[name] for record in having])
