"""What every kind of corpus is cut into, and what counting one piece of it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

MAX_PROBLEMS = 8  # skipped documents that a report spells out


@dataclass(frozen=True)
class LabelRule:
    """Which positions count.

    `window`: the stream is cut into windows of this many tokens, and the first token of each is left out, for
    it is never a label (Pythia trains on windows of 2049); every file is a stream of its own. `skip_first`: the
    first token of each sequence that the source itself knows (a document, a row) is left out. `leave_out`: ids
    that never count (separators, an ignore index; negative ids are allowed here).
    """

    window: int | None = None
    skip_first: bool = False
    leave_out: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 2:
            raise ValueError(f"window is {self.window}; needed 2 or more tokens, the first of which is never a label.")
        if self.window is not None and self.skip_first:
            raise ValueError("window and skip_first are both given: choose fixed windows, or the source's sequences.")

    def words(self) -> str:
        """The rule as the counts keep it: counts of two rules are not comparable."""
        first = "every position counted"
        if self.window is not None:
            first = f"the first of every {self.window} tokens left out"
        elif self.skip_first:
            first = "the first token of each sequence left out"
        return first + (f"; ids {', '.join(map(str, self.leave_out))} left out" if self.leave_out else "")


@dataclass(frozen=True)
class Settings:
    """How pieces are counted; picklable, so that workers get it whole.

    `tokenizer`: path of a `tokenizer.json`, for text. `text_field`: the field of a JSON line or a table's column
    that holds text; a column of ids is recognised by its type. `skip_bad`: bad documents are left out and
    reported instead of raising.
    """

    vocab_size: int
    rule: LabelRule = LabelRule()
    tokenizer: str | None = None
    text_field: str = "text"
    skip_bad: bool = False


@dataclass
class Tally:
    """What was found in one piece: `counts` int64 [vocab], documents (None where the source knows none), tokens
    read (left-out ones included), the bad documents that were skipped, and the first few of them in words."""

    counts: np.ndarray
    documents: int | None = None
    tokens: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take in what another piece of the corpus gave; documents stay known only where both know them."""
        self.counts += other.counts
        known = self.documents is not None and other.documents is not None
        self.documents = (self.documents or 0) + (other.documents or 0) if known else None
        self.tokens += other.tokens
        self.skipped += other.skipped
        self.problems = (self.problems + other.problems)[:MAX_PROBLEMS]


class CorpusChunk(Protocol):
    """A share of a source that one worker counts in one go: small, picklable, and the same on every call.

    `key` is unique among a corpus' pieces and stable between runs as long as the file is untouched (file, its
    modification time, span): resumption goes by it. `size` is what the piece weighs in bytes, for progress.
    `fingerprint` says which content it is, wherever it lies (size, checksum): the corpus' hash is made of these.
    """

    @property
    def key(self) -> str:
        """Which piece: file and span."""
        ...

    @property
    def size(self) -> int:
        """Bytes, as they lie on the disk."""
        ...

    @property
    def fingerprint(self) -> str:
        """Which content."""
        ...

    def tally(self, settings: Settings) -> Tally:
        """Count this piece. Raises ValueError naming file and position for what cannot be counted."""
        ...
