"""What a checkpoint is to everybody above: named tensors, read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as its file announces it, unread: `dtype` in torch's words ("float16"), `shape`, the `file` it lies in
    (relative to the checkpoint) and its `nbytes`.

    `unreadable` says what it is where it is there and cannot be read (a class of tensors, a dtype); reading it raises
    CheckpointError. Its shape is () where the file does not tell. `alias_of` is the name under which the file stores
    the same tensor, where it says that it does. `absent`: an index names it, and its file is not there. `note` says
    what is done with its numbers on the way (joined from ranks' pieces, dequantised, transposed), and which of its rows
    are padding.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    nbytes: int
    unreadable: str = ""
    alias_of: str = ""
    absent: bool = False
    note: str = ""

    @property
    def announced(self) -> bool:
        """Whether the file's header has been read; where not, asking for dtype, shape or size reads it."""
        return True


class PromisedEntry(TensorEntry):
    """A tensor that an index places in a `file`: `read` gives the file's own entry, which is asked for when one of the
    other fields is. Any field but `key`, `file` and `absent` then raises what `read` raises (CheckpointError)."""

    def __init__(self, key: str, file: str, *, read: Callable[[], TensorEntry], announced: Callable[[], bool]) -> None:
        self.__dict__.update(key=key, file=file, absent=False, _read=read, _announced=announced)

    @property
    def announced(self) -> bool:
        """Whether the file's header has been read."""
        return bool(self.__dict__["_announced"]())

    @property
    def dtype(self) -> str:
        """As the file announces it."""
        return self._own.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """As the file announces it."""
        return self._own.shape

    @property
    def nbytes(self) -> int:
        """As the file announces it."""
        return self._own.nbytes

    @property
    def unreadable(self) -> str:
        """As the file announces it."""
        return self._own.unreadable

    @property
    def alias_of(self) -> str:
        """As the file announces it."""
        return self._own.alias_of

    @property
    def _own(self) -> TensorEntry:
        read: Callable[[], TensorEntry] = self.__dict__["_read"]
        return read()


@runtime_checkable
class Checkpoint(Protocol):
    """One checkpoint, wherever it lies; opening it has read headers only.

    `name` for messages. `tensors` by key as stored (`embed_out.weight`). `config` is the checkpoint's config.json,
    empty where there is none. `read` gives one tensor as stored (its own dtype, on the CPU); `identity` is a short
    hash that two checkpoints share where the tensor's bytes are the same: the hub's own file hash, or one of header
    plus first and last MiB (`full` hashes all).
    """

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """Entries by key as stored."""
        ...

    @property
    def config(self) -> Mapping[str, object]:
        """The checkpoint's config.json."""
        ...

    def read(self, key: str) -> Tensor:
        """The tensor `key` as stored, on the CPU. Raises CheckpointError."""
        ...

    def identity(self, key: str, *, full: bool = False) -> str:
        """A short hash of the tensor's bytes. Raises CheckpointError."""
        ...


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: what was found, what was needed, what to do. The suite goes on without it."""
