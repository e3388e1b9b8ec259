"""How much of a table is held at once, and what claims more than its bytes can hold.

A Parquet column of a few kB may announce billions of values (one, repeated), and a page of a few kB unpacks to
gigabytes: the footer's own numbers are held against the bytes before anything is unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

VALUES, MOST_VALUES = 1 << 22, 1 << 25  # ids held at once, and those of one row at most
TEXT_BYTES = 1 << 27  # of a column's rows that are held at once, if each were all the text there is
UNQUESTIONED_BYTES = 1 << 26  # of text that no file is too small for
# values a byte, and bytes of text a byte, beyond which nothing real is packed: token ids take a byte and more each
DENSEST_VALUES, DENSEST_TEXT = 64, 256


class Broken(Exception):
    """A file, or the rest of it, cannot be read."""


def rows_at_once(metadata: Any, groups: range, column: str, name: str) -> int:
    """Rows of these Parquet row groups that may be held at once, by what the footer says of `column`.

    Raises Broken for rows that are too long, and for more values or bytes than the column's own bytes can hold.
    """
    rows = VALUES
    for group in map(metadata.row_group, groups):
        for part in map(group.column, range(group.num_columns)):
            if part.path_in_schema.split(".")[0] == column and group.num_rows > 0:
                _check(part, name)
                average = part.num_values / group.num_rows
                if average > MOST_VALUES:
                    raise Broken(f"{name} has rows of {average:.0f} ids; at most {MOST_VALUES} are read at once")
                rows = min(rows, int(VALUES // max(average, 1)))
                if part.physical_type == "BYTE_ARRAY":
                    rows = min(rows, TEXT_BYTES // max(part.total_uncompressed_size, 1))
    return max(1, rows)


def _check(part: Any, name: str) -> None:
    held, values, unpacked = part.total_compressed_size, part.num_values, part.total_uncompressed_size
    if values > max(MOST_VALUES, DENSEST_VALUES * held) or unpacked > max(UNQUESTIONED_BYTES, DENSEST_TEXT * held):
        raise Broken(
            f"{name} claims {values} values and {unpacked} bytes in a column chunk of {held} bytes, more than that "
            "can hold: it was made so, or is damaged"
        )


def check_text(read: int, held: int, name: str) -> None:
    """Raise Broken where `read` bytes of text come out of a file of `held` bytes, more than anything real packs."""
    if read > max(UNQUESTIONED_BYTES, DENSEST_TEXT * held):
        raise Broken(
            f"{name} holds {held} bytes and gives more than {read} bytes of text: it was made so, or is damaged"
        )


def runs(column: Any) -> Iterator[tuple[int, Any]]:
    """A column of lists in slices of at most `VALUES` values, or of one row: the first row's number and the slice."""
    ends, start = np.cumsum(row_lengths(column)), 0
    while start < len(column):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + VALUES, side="right")))
        yield start, column.slice(start, stop - start)
        start = stop


def row_lengths(column: Any) -> np.ndarray:
    """The lengths of the lists in a column, 0 for what is null."""
    if not hasattr(column, "value_lengths"):  # of one size
        return np.full(len(column), column.type.list_size, dtype=np.int64)
    return np.asarray(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
