"""What an interrupted count leaves behind: the pieces that are done and their merged tally, in one file.

Both are replaced together in one atomic rename, so that a piece is in the tally if and only if it is called done.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainhooks.core.array_files import read_arrays
from trainhooks.corpora.base import CorpusChunk, Settings, Tally

_FORMAT = 1
_EVERY_SECONDS = 3.0
_COST_SHARE = 0.05  # of the time at most goes into keeping, however many pieces there are


def tokenizer_hash(settings: Settings) -> str | None:
    """SHA-256 of the tokenizer's file, None without one."""
    if settings.tokenizer is None:
        return None
    return hashlib.sha256(Path(settings.tokenizer).read_bytes()).hexdigest()


@dataclass
class Partial:
    """The merged tally and the fingerprints of the pieces in it, by key; kept in `path`, or in memory where None."""

    path: Path | None
    settings: dict[str, Any]
    tally: Tally
    done: dict[str, str] = field(default_factory=dict)
    _saved: float = field(default_factory=time.monotonic)
    _pause: float = _EVERY_SECONDS
    _unsaved: bool = False

    @classmethod
    def open(cls, path: Path | None, *, pieces: Sequence[CorpusChunk], settings: Settings) -> Partial:
        """A fresh start, or what `path` holds of this very count.

        Raises ValueError where the file is damaged, or was made of other settings or of a corpus that differs.
        """
        known = _identity(settings)
        fresh = cls(path, known, Tally(np.zeros(settings.vocab_size, dtype=np.int64), documents=0))
        if path is None or not path.exists():
            return fresh
        state, counts = _read(path, settings.vocab_size)
        _check_same(path, state, known, {piece.key: piece.fingerprint for piece in pieces})
        fresh.done = state["done"]
        fresh.tally = Tally(counts, state["documents"], state["tokens"], state["skipped"], state["problems"])
        return fresh

    def add(self, pieces: Sequence[CorpusChunk], tally: Tally) -> None:
        """Take in pieces that were counted together, and keep the whole every few seconds."""
        self.tally.add(tally)
        self.done |= {piece.key: piece.fingerprint for piece in pieces}
        self._unsaved = True
        if self._is_due():
            self.save()

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved > self._pause

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps what is done at the end of the block, whichever way it ends."""
        try:
            yield
        finally:
            if self._unsaved:
                self.save()

    def save(self) -> None:
        """Replace the file by the present state, whole or not at all."""
        if self.path is None:
            return
        began = time.monotonic()
        state = {"format": _FORMAT, "settings": self.settings, "done": self.done, "documents": self.tally.documents}
        state |= {name: getattr(self.tally, name) for name in ("tokens", "skipped", "problems")}
        text = np.frombuffer(json.dumps(state).encode(), dtype=np.uint8)
        target = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            with target.open("wb") as file:
                np.savez(file, counts=self.tally.counts, state=text)
                file.flush()
                os.fsync(file.fileno())
            target.replace(self.path)
        finally:
            target.unlink(missing_ok=True)
        self._saved, self._unsaved = time.monotonic(), False
        self._pause = max(_EVERY_SECONDS, (self._saved - began) / _COST_SHARE)


def _identity(settings: Settings) -> dict[str, Any]:
    """What must be the same for two counts to add up, in JSON's types."""
    return {
        "vocab_size": settings.vocab_size,
        "rule": settings.rule.words(),
        "tokenizer": tokenizer_hash(settings),
        "text_field": settings.text_field,
        "skip_bad": settings.skip_bad,
    }


def _read(path: Path, vocab_size: int) -> tuple[dict[str, Any], np.ndarray]:
    wrong = f"{path} is no partial count that can be gone on from"
    try:
        arrays = read_arrays(path, ("counts", "state"))
        state, counts = json.loads(arrays["state"].tobytes()), arrays["counts"]
        version = state["format"]
        missing = {"settings", "done", "documents", "tokens", "skipped", "problems"} - state.keys()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{wrong}: {error}. Delete it to count from the start.") from error
    if version != _FORMAT or missing:
        raise ValueError(f"{wrong}: format {version}; needed {_FORMAT}. Delete it to count from the start.")
    if counts.dtype != np.int64 or (state["settings"].get("vocab_size") == vocab_size) != (
        counts.shape == (vocab_size,)
    ):
        raise ValueError(f"{wrong}: its counts do not fit its vocabulary. Delete it to count from the start.")
    return state, counts


def _check_same(path: Path, state: dict[str, Any], settings: dict[str, Any], pieces: dict[str, str]) -> None:
    for name, value in settings.items():
        if state["settings"].get(name) != value:
            raise ValueError(
                f"{path} was counted with {name} {state['settings'].get(name)!r}, this is {value!r}: use the same "
                "settings to go on, or delete it to count from the start."
            )
    for key, fingerprint in state["done"].items():
        if pieces.get(key) != fingerprint:
            what = "has changed" if key in pieces else "is not among the sources, or has changed,"
            raise ValueError(
                f"{path} holds counts of {key}, which {what} since: name the same sources to go on, or delete it to "
                "count from the start."
            )
