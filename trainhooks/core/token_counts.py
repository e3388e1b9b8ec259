"""Token counts: how often each token of a vocabulary occurs, counted, merged, saved and fitted to a model."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from trainhooks.core.array_files import read_arrays
from trainhooks.core.html import card

_MOST_PADDING = 512  # Pythia 12B has 411 rows beyond its ids; a tokenizer of another size differs by more
_INT64_MAX = 2**63 - 1
_BLOCK = 1 << 22  # ids a pass: bincount widens its input, so a block bounds the copy at 32 MB
_MOST_PROBLEMS, _MOST_DIGITS = 1000, 100  # of a table that is read on, and characters of one number
_MOST_TEXT = 1 << 16  # bytes of a text field
_SHOWN = 8  # problems of one file that an error spells out
_NUMBER_FIELDS = ("documents", "tokens_read")
_TEXT_FIELDS = ("tokenizer_hash", "corpus_hash", "rule")


@dataclass(frozen=True, eq=False)
class TokenCounts:
    """Occurrences of each token id in a corpus: `counts` int64 [vocab], read-only, in tokens.

    `documents` is the number of documents counted, None where it is not known. `tokenizer_hash` and
    `corpus_hash` say what was counted, None where not known. `rule` says in words how the first positions
    (never a label) and special tokens were treated; counts of two rules are not comparable. `tokens_read` is
    the number of tokens before the rule left some out, None where it is not known.

    Raises ValueError for counts that are not one-dimensional, empty, not whole numbers, negative, all zero,
    or whose sum passes int64, and for fewer tokens read than counted.

    >>> counts = TokenCounts.count([0, 2, 2, 1, 2], vocab_size=4)
    >>> counts.counts.tolist(), counts.n_tokens
    ([1, 1, 3, 0], 5)
    """

    counts: np.ndarray
    documents: int | None = None
    tokenizer_hash: str | None = None
    corpus_hash: str | None = None
    rule: str = ""
    tokens_read: int | None = None

    def __post_init__(self) -> None:
        checked = _checked(self.counts)
        if self.documents is not None and self.documents < 0:
            raise ValueError(f"documents is {self.documents}; needed 0 or more, or None where it is not known.")
        object.__setattr__(self, "counts", checked)
        if self.tokens_read is not None and self.tokens_read < self.n_tokens:
            raise ValueError(
                f"tokens_read is {self.tokens_read}, but {self.n_tokens} were counted; needed at least as many, or "
                "None where it is not known."
            )

    def __repr__(self) -> str:
        return f"TokenCounts({', '.join(f'{name}={value}' for name, value in self._told())})"

    def _repr_html_(self) -> str:
        return card("Token counts", [*self._told(), ("rule", self.rule or "not said")])

    def _told(self) -> list[tuple[str, str]]:
        """What a notebook shows of it."""
        known = [] if self.documents is None else [("documents", f"{self.documents:,}")]
        counted = int(np.count_nonzero(self.counts))
        return [
            ("vocab_size", f"{self.vocab_size:,}"),
            ("n_tokens", f"{self.n_tokens:,}"),
            ("seen", f"{counted:,}"),
            *known,
        ]

    @property
    def vocab_size(self) -> int:
        """Number of entries: the ids are 0 ... vocab_size - 1."""
        return int(self.counts.size)

    @property
    def n_tokens(self) -> int:
        """Sum of the counts, N, in tokens; 1 or more."""
        return int(self.counts.sum())

    @classmethod
    def count(
        cls,
        ids: Iterable[Any],
        *,
        vocab_size: int,
        tokenizer_hash: str | None = None,
        corpus_hash: str | None = None,
        rule: str = "every position counted",
    ) -> TokenCounts:
        """Counts one array of token ids (list, NumPy, CPU tensor; any shape), or an iterable of them, one a document.

        Every position counts; leave out what is not to be counted before, and say so in `rule`. `documents`
        is the number of arrays, None for a single array. Memory beside the ids is bounded, so a memory map of
        any length will do.

        Raises ValueError, with the position, for an id outside 0 ... vocab_size - 1, for ids that are not
        whole numbers, and where there is nothing to count.
        """
        if vocab_size < 1:
            raise ValueError(f"vocab_size is {vocab_size}; needed 1 or more, the number of the tokenizer's ids.")
        total = np.zeros(vocab_size, dtype=np.int64)
        arrays, single = _arrays(ids)
        documents = 0
        for documents, array in enumerate(arrays, start=1):
            _add_counts(total, array, where="" if single else f" of array {documents - 1}")
        if not total.any():
            raise ValueError("no token ids were given, so there is nothing to count: pass at least one id.")
        return cls(total, None if single else documents, tokenizer_hash, corpus_hash, rule)

    def __add__(self, other: TokenCounts) -> TokenCounts:
        """Counts of both corpora together. What only one side knows of the tokenizer is kept; `documents` and
        `tokens_read` where both know them, `corpus_hash` where both agree.

        Raises ValueError where vocabulary, tokenizer or rule differ.
        """
        if not isinstance(other, TokenCounts):
            return NotImplemented
        if self.vocab_size != other.vocab_size:
            raise ValueError(
                f"cannot merge counts of {self.vocab_size} and {other.vocab_size} entries: count both with one "
                "tokenizer and one vocab_size."
            )
        _agree("tokenizer_hash", self.tokenizer_hash, other.tokenizer_hash)
        _agree("rule", self.rule or None, other.rule or None)
        if self.n_tokens + other.n_tokens > _INT64_MAX:
            raise ValueError(f"the merged counts sum to more than int64 holds ({_INT64_MAX}): keep them apart.")
        return TokenCounts(
            self.counts + other.counts,
            documents=_sum_known(self.documents, other.documents),
            tokenizer_hash=self.tokenizer_hash or other.tokenizer_hash,
            corpus_hash=self.corpus_hash if self.corpus_hash == other.corpus_hash else None,
            rule=self.rule or other.rule,
            tokens_read=_sum_known(self.tokens_read, other.tokens_read),
        )

    def for_rows(self, rows: int, *, vocab_size: int | None = None) -> Int64[np.ndarray, " rows"]:
        """Counts for the `rows` rows of an output embedding: int64 [rows].

        An output embedding often has more rows than the tokenizer has ids (Pythia: 50304 and 50277). Such
        padding gets 0 only where `vocab_size`, the number of the tokenizer's ids, says that it is padding.

        Raises ValueError where the lengths differ without `vocab_size`, or where it contradicts the counts.
        """
        have = self.vocab_size
        got = f"token counts have {have} entries; the output embedding has {rows} rows."
        if have > rows:
            raise ValueError(
                f"{got} Every row needs one count and every count a row: count with the model's own tokenizer, or pass "
                f"counts of length {rows}."
            )
        if vocab_size is not None:
            self._check_vocab_size(vocab_size, got)
        elif have < rows:
            raise ValueError(f"{got} {_padding(have, rows)}")
        return np.pad(self.counts, (0, rows - have))

    def _check_vocab_size(self, vocab_size: int, got: str) -> None:
        if vocab_size > self.vocab_size or vocab_size < 1:
            raise ValueError(
                f"{got} vocab_size={vocab_size} does not fit: pass the number of the tokenizer's ids, "
                f"1 ... {self.vocab_size}, or counts of length {vocab_size}."
            )
        beyond = np.flatnonzero(self.counts[vocab_size:])
        if beyond.size:
            token = vocab_size + int(beyond[0])
            raise ValueError(
                f"{got} vocab_size={vocab_size} calls id {token} padding, but its count is {self.counts[token]}: "
                "pass the number of the tokenizer's ids, special tokens included."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `.npz` (every field), `.npy` (the counts alone) or `.csv` (columns id,count), by the suffix.

        The file appears whole or not at all. Raises ValueError for another suffix.
        """
        target = Path(path)
        suffix = _suffix(target)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            if suffix == ".csv":
                self._write_csv(partial)
            else:
                with partial.open("wb") as file:
                    if suffix == ".npy":
                        np.save(file, self.counts, allow_pickle=False)
                    else:
                        np.savez_compressed(file, **self._fields())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _fields(self) -> dict[str, Any]:
        known = {name: getattr(self, name) for name in ("counts", *_NUMBER_FIELDS, *_TEXT_FIELDS)}
        return {name: np.asarray(value) for name, value in known.items() if value is not None}

    def _write_csv(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("id", "count"))
            writer.writerows(enumerate(self.counts.tolist()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TokenCounts:
        """Reads what `save` wrote, or such a file from elsewhere; nothing in it is executed or unpickled.

        A `.csv` needs the header id,count and each id from 0 up once, in any order. Raises ValueError for
        another suffix and, naming the file, for content that is not counts; FileNotFoundError where there is
        no file.
        """
        source = Path(path)
        suffix = _suffix(source)
        try:
            if suffix == ".csv":
                return cls(_read_csv(source))
            fields = read_arrays(source, ("counts", *_NUMBER_FIELDS, *_TEXT_FIELDS))
            known: dict[str, Any] = {name: int(fields[name]) for name in _NUMBER_FIELDS if name in fields}
            known |= {name: _text(fields[name], name) for name in _TEXT_FIELDS if name in fields}
            counts = fields["counts"]
            if counts.ndim == 2 and 1 in counts.shape:  # a row or a column of a table
                counts = counts.reshape(-1)
            return cls(counts, **known)
        except (ValueError, TypeError, OverflowError, csv.Error) as error:
            raise ValueError(f"{source} holds no token counts: {error}") from error


def _text(field: np.ndarray, name: str) -> str:
    if field.size != 1 or field.nbytes > _MOST_TEXT:
        raise ValueError(f"its {name} is an array of {field.size} entries; needed one short text.")
    return str(field.reshape(())[()])


def _suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".npy", ".csv"):
        raise ValueError(
            f"{path} ends in {suffix or 'nothing'}; needed .npz (every field), .npy or .csv (counts alone)."
        )
    return suffix


def _padding(have: int, rows: int) -> str:
    extra = rows - have
    if extra > _MOST_PADDING or 2 * have < rows:
        return (
            f"{extra} rows without a count are more than padding: the counts are of another tokenizer. Count with the "
            f"model's own; if its tokenizer has {have} ids all the same, pass `vocab_size={have}`."
        )
    span = f"{have}-{rows - 1}" if extra > 1 else f"{have}"
    row, verb = ("rows", "are") if extra > 1 else ("row", "is")
    return f"The extra {extra} {row} ({span}) {verb} padding: pass `vocab_size={have}`, or counts of length {rows}."


def _sum_known(ours: int | None, theirs: int | None) -> int | None:
    return None if ours is None or theirs is None else ours + theirs


def _agree(name: str, ours: str | None, theirs: str | None) -> None:
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(f"cannot merge counts whose {name} differ ({ours!r} and {theirs!r}): count both in one way.")


def _checked(counts: np.ndarray) -> Int64[np.ndarray, " vocab"]:
    """A read-only int64 copy of `counts`, or a ValueError that says what is wrong with it."""
    array = np.asarray(counts)
    if array.ndim != 1:
        raise ValueError(
            f"token counts have shape {array.shape}; needed one dimension, one entry a token id: pick a row, flatten "
            "one (counts.reshape(-1)) or sum over several (counts.sum(axis=0))."
        )
    if array.size == 0:
        raise ValueError("token counts are empty; needed one entry a token id.")
    if array.dtype.kind not in "iu":
        raise ValueError(_not_whole(array))
    if array.dtype.kind == "i" and array.min() < 0:
        _refuse(array, array < 0, "are negative", "a count is 0 or more; an overflow or an uninitialised array?")
    if array.dtype.kind == "u":
        _refuse(array, array > _INT64_MAX, "are beyond int64", "is the array initialised?")
    array = array.astype(np.int64)  # copies: the caller may go on counting in their array
    total = (int((array >> 32).sum()) << 32) + int((array & 0xFFFFFFFF).sum())  # exact, where .sum() would wrap
    if total > _INT64_MAX:
        raise ValueError(f"token counts sum to {total}, more than int64 holds ({_INT64_MAX}): are they counts?")
    if total == 0:
        raise ValueError(f"all {array.size} token counts are zero: count at least one token.")
    array.setflags(write=False)
    return array


def _not_whole(array: np.ndarray) -> str:
    """What to say of counts that are not an integer array."""
    got = f"token counts have dtype {array.dtype}; needed an integer dtype."
    if array.dtype.kind != "f":
        return f"{got} Pass whole numbers, one a token id."
    bad = np.flatnonzero(~np.isfinite(array) | (array < 0) | (array != np.rint(array)))
    if bad.size == 0:
        return f"{got} Every entry is whole: pass counts.astype(numpy.int64)."
    return (
        f"{got} {bad.size} of {array.size} entries are no counts (first: id {bad[0]} = {array[bad[0]]}); was the "
        "array ever filled in? Count again."
    )


def _refuse(array: np.ndarray, bad: np.ndarray, what: str, hint: str) -> None:
    where = np.flatnonzero(bad)
    if where.size:
        first = f"id {where[0]} = {array[where[0]]}"
        raise ValueError(f"{where.size} of {array.size} token counts {what} (first: {first}): {hint}")


def _arrays(ids: Iterable[Any]) -> tuple[Iterator[np.ndarray], bool]:
    """`ids` as arrays, and whether they were one array (an ndarray, a tensor or a list of numbers)."""
    is_numbers = isinstance(ids, (list, tuple)) and bool(ids) and np.ndim(ids[0]) == 0
    if hasattr(ids, "__array__") or is_numbers:
        return iter([np.asarray(ids)]), True
    return (np.asarray(array) for array in ids), False


def _add_counts(total: np.ndarray, ids: np.ndarray, *, where: str) -> None:
    """Adds the occurrences of `ids` to `total` in place, block by block."""
    if ids.size and ids.dtype.kind not in "iu":
        raise ValueError(f"token ids{where} have dtype {ids.dtype}; needed whole numbers, as a tokenizer returns.")
    flat = ids.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        if block.min() < 0 or block.max() >= total.size:
            position = int(np.flatnonzero((block < 0) | (block >= total.size))[0])
            raise ValueError(
                f"token id {block[position]} at position {start + position}{where} is outside 0 ... {total.size - 1}: "
                "pass the vocab_size of the tokenizer that made the ids."
            )
        total += np.bincount(block.astype(np.intp, copy=False), minlength=total.size)


def _read_csv(path: Path) -> Int64[np.ndarray, " vocab"]:
    """The counts in a file of lines id,count; every bad line is in the error, with its number."""
    found: dict[int, int] = {}
    problems: list[str] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        if (header := [name.strip() for name in next(reader, [])]) != ["id", "count"]:
            raise ValueError(f"line 1 is {str(header)[:200]}; needed the header id,count.")
        for row in reader:
            if len(problems) >= _MOST_PROBLEMS:
                break
            try:
                token, count = (int(cell if len(cell) <= _MOST_DIGITS else "") for cell in row)
            except ValueError:
                problems.append(f"line {reader.line_num}: {str(row)[:80]} is not two whole numbers")
                continue
            if token in found:
                problems.append(f"line {reader.line_num}: id {str(token)[:20]} stands twice")
            if not 0 <= count <= _INT64_MAX:
                problems.append(f"line {reader.line_num}: count {str(count)[:20]} is not in 0 ... {_INT64_MAX}")
            found[token] = count
    missing = (f"id {token} is missing" for token in range(len(found)) if token not in found)
    problems += islice(missing, _MOST_PROBLEMS)
    if problems:
        least = "at least " if len(problems) >= _MOST_PROBLEMS else ""
        more = f"; and {least}{len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError("; ".join(problems[:_SHOWN]) + more + ". Needed each id from 0 up once.")
    return np.array([found[token] for token in range(len(found))], dtype=np.int64)
