"""What a checkpoint format is to the rest of the package: how a folder of it is known, and what is read out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from trainhooks.checkpoints.formats.stored_tensor import StoredTensor
from trainhooks.checkpoints.sources.byte_source import ByteSource


class Folder(Protocol):
    """Where a checkpoint's files lie: `files` and `folders` are the names right in it; `open` takes a name, here or
    further down as an index gives it."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def files(self) -> Mapping[str, object]:
        """The files right in it, by name."""
        ...

    @property
    def folders(self) -> Sequence[str]:
        """The names of the folders right below, links left out."""
        ...

    def lacks(self, name: str) -> bool:
        """Whether it is known, without asking, that there is no such file, here or further down."""
        ...

    def open(self, name: str) -> ByteSource:
        """A file. Raises CheckpointError."""
        ...

    def below(self, name: str) -> Folder:
        """One of `folders`. Raises CheckpointError."""
        ...


@dataclass(frozen=True)
class Contents:
    """What a format reads from headers: the `tensors` by key, unread, and what it knows of the model beside them.

    `config`: settings that the files themselves state, under the names of a config.json (`vocab_size`,
    `tie_word_embeddings`); a config.json beside them comes first. `doubt`: why tensors may be missing unseen (a model
    in a file a layer, of which one may lack), so that only a setting can say that the head is the input embedding.
    """

    tensors: Mapping[str, StoredTensor]
    config: Mapping[str, object] = field(default_factory=dict)
    doubt: str = ""


@dataclass(frozen=True)
class Format:
    """One format. `fits` looks at names alone, `read` at headers, and raises CheckpointError where they are wrong.

    `is_certain`: its names are its own, so that it is looked for in the folders below a checkpoint's too.
    """

    name: str
    fits: Callable[[Folder], bool]
    read: Callable[[Folder], Contents]
    is_certain: bool = True
