"""Documents, as text or as ids, counted one batch after the other into a tally.

Text is encoded by `tokenizers` without special tokens added (what a document spells out, such as "<|endoftext|>",
becomes the token, as in a plain `encode_batch`); truncation and padding that a tokenizer file asks for are switched
off. In the first process its own threads share a batch; in a worker process they are off (unless
TOKENIZERS_PARALLELISM says otherwise), for there the processes share the pieces.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from trainhooks.corpora.base import MAX_PROBLEMS, Settings, Tally
from trainhooks.corpora.splitting import BadDocument, cuttable, parts

_BATCH = 1 << 20  # characters encoded in one call
_BATCH_DOCUMENTS = 4096


class DocumentCounter:
    """Counts documents into `tally`.

    `locate` puts a document's place, an integer, into words; it is asked only where something is wrong. A bad
    document raises ValueError, or is left out whole and reported where `settings.skip_bad`. Positions of
    `settings.rule.window` go through all documents in turn. Call `finish` at the end.
    """

    def __init__(self, settings: Settings, locate: Callable[[int], str]) -> None:
        self.tally = Tally(np.zeros(settings.vocab_size, dtype=np.int64), documents=0)
        self._settings = settings
        self._locate = locate
        self._pending: list[tuple[list[str], int]] = []
        self._size = 0

    @property
    def may_cut(self) -> bool:
        """Whether long documents may be cut for the tokenizer in use."""
        return load_tokenizer(self._settings.tokenizer)[1]

    def add_text(self, document: str, place: int) -> None:
        """Counts one document."""
        try:
            pieces = parts(document, may_cut=self.may_cut)
        except BadDocument as error:
            self.bad(place, error)
            return
        self.add_parts(pieces, place)

    def add_parts(self, document: Iterable[str], place: int, *, continues: bool = False) -> None:
        """Counts one document that comes in parts; `continues` says that its beginning is in another piece."""
        batches = _batches(document)
        try:
            first, second = next(batches, [""]), next(batches, None)
            if second is None and not continues:
                self._queue(first, place)
                return
            self.flush()
            long = self._long(chain((first,), () if second is None else (second,), batches), not continues)
        except BadDocument as error:
            self.bad(place, error)
            return
        self._merge(long)

    def add_ids(self, documents: list[Int64[np.ndarray, " tokens"]], places: list[int]) -> None:
        """Counts documents that are ids already."""
        self.flush()
        self._settle(documents, places)

    def bad(self, place: int, error: Exception) -> None:
        """Reports a document that cannot be counted. Raises ValueError unless bad ones are skipped."""
        problem = f"{self._locate(place)}: {error}"
        if not self._settings.skip_bad:
            raise ValueError(
                f"{problem} (skip_bad, on the command line --skip-bad, leaves bad documents out)"
            ) from error
        self.tally.skipped += 1
        if len(self.tally.problems) < MAX_PROBLEMS:
            self.tally.problems.append(problem)

    def finish(self) -> Tally:
        """What was counted."""
        self.flush()
        return self.tally

    def flush(self) -> None:
        """Encodes and counts the documents that wait."""
        waiting, self._pending, self._size = self._pending, [], 0
        if waiting:
            found = iter(self._encoded([text for texts, _ in waiting for text in texts]))
            documents = [np.concatenate(list(islice(found, len(texts)))) for texts, _ in waiting]
            self._settle(documents, [place for _, place in waiting])

    def _queue(self, texts: list[str], place: int) -> None:
        self._pending.append((texts, place))
        self._size += sum(map(len, texts))
        if self._size >= _BATCH or len(self._pending) >= _BATCH_DOCUMENTS:
            self.flush()

    def _encoded(self, texts: list[str]) -> list[Int64[np.ndarray, " tokens"]]:
        encode = load_tokenizer(self._settings.tokenizer)[0].encode_batch_fast  # the same ids, offsets left out
        return [np.array(found.ids, dtype=np.int64) for found in encode(texts, add_special_tokens=False)]

    def _settle(self, documents: list[Int64[np.ndarray, " tokens"]], places: list[int]) -> None:
        """Counts documents in one go, or one by one where something is wrong with one of them."""
        if not documents:
            return
        lengths = np.array([len(ids) for ids in documents])
        starts = (np.cumsum(lengths) - lengths)[lengths > 0]
        found = Tally(self._none(), documents=len(documents))
        try:
            self._count(found, np.concatenate(documents), starts)
        except BadDocument as error:
            if len(documents) == 1:
                self.bad(places[0], error)
                return
            for ids, place in zip(documents, places, strict=True):
                self._settle([ids], [place])
            return
        self._merge(found)

    def _long(self, batches: Iterator[list[str]], begins: bool) -> Tally:
        """Counts a document of several batches apart from the rest, so that a bad end takes all of it back."""
        found = Tally(self._none(), documents=int(begins))
        for batch in batches:
            ids = np.concatenate(self._encoded(batch))
            first = begins and found.tokens == 0 and len(ids) > 0
            self._count(found, ids, np.zeros(int(first), dtype=np.int64))
        return found

    def _count(self, found: Tally, ids: Int64[np.ndarray, " tokens"], starts: Int64[np.ndarray, " begun"]) -> None:
        rule, size = self._settings.rule, self._settings.vocab_size
        kept = ids
        if rule.window is not None:
            first = -(self.tally.tokens + found.tokens) % rule.window
            starts = np.arange(first, len(ids), rule.window)
        left = np.isin(ids, rule.leave_out) if rule.leave_out else None
        if len(ids) and (ids.min() < 0 or ids.max() >= size):
            wrong = (ids < 0) | (ids >= size)
            if left is not None:
                wrong &= ~left
            self._refuse(found, ids, wrong)
        if rule.window is not None or rule.skip_first:
            keep = np.ones(len(ids), dtype=bool) if left is None else ~left
            keep[starts] = False
            kept = ids[keep]
        elif left is not None:
            kept = ids[~left]
        found.counts += np.bincount(kept, minlength=size)
        found.tokens += len(ids)

    def _refuse(self, found: Tally, ids: Int64[np.ndarray, " tokens"], wrong: Bool[np.ndarray, " tokens"]) -> None:
        if wrong.any():
            at, size = int(wrong.argmax()), self._settings.vocab_size
            raise BadDocument(
                f"token {found.tokens + at} has id {ids[at]}, and the vocabulary has {size}: ids 0 to {size - 1}. "
                "Give the tokenizer that belongs to this vocabulary, or its size, or leave this id out."
            )

    def _merge(self, found: Tally) -> None:
        self.tally.counts += found.counts
        self.tally.tokens += found.tokens
        self.tally.documents = (self.tally.documents or 0) + (found.documents or 0)

    def _none(self) -> Int64[np.ndarray, " vocab"]:
        return np.zeros(self._settings.vocab_size, dtype=np.int64)


def load_tokenizer(path: str | None) -> tuple[Any, bool]:
    """The tokenizer of a `tokenizer.json`, read once a process, and whether its documents may be cut.

    Raises ValueError where no tokenizer is given, where the file is not one, and where it draws lots (dropout).
    """
    if multiprocessing.parent_process() is not None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a forked worker has the tokenizer already
    if path is None:
        raise ValueError("text needs a tokenizer, and none is given: pass the path of a tokenizer.json.")
    try:
        status = Path(path).stat()
    except OSError as error:
        raise ValueError(
            f"the tokenizer {path} cannot be read ({error}): pass the path of a tokenizer.json."
        ) from error
    return _tokenizer(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=2)
def _tokenizer(path: str, size: int, modified: int) -> tuple[Any, bool]:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("counting text needs tokenizers: pip install 'trainhooks[corpora]'.") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"{path} is no tokenizer.json of the tokenizers library: {error}") from error
    if getattr(tokenizer.model, "dropout", None):
        raise ValueError(f"the tokenizer {path} has BPE dropout, so its counts would differ each time: set it to null.")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, cuttable(tokenizer)


def _batches(pieces: Iterable[str]) -> Iterator[list[str]]:
    held: list[str] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _BATCH:
            yield held
            held, size = [], 0
    if held:
        yield held
