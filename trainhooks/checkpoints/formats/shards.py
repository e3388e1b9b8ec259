"""Checkpoints in several files: an index says which tensor lies where; a file's header is read when it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from trainhooks.checkpoints.base import CheckpointError, PromisedEntry, TensorEntry
from trainhooks.checkpoints.formats.stored_tensor import Part, StoredTensor

OpenShard = Callable[[str], Mapping[str, StoredTensor]]


class Shards:
    """The files that an index names, each opened once, when the first of its tensors is asked for.

    `weight_map` is the index's, tensor to file; `open_shard` reads a file's header; `absent` are the files known not to
    be there, and `where` is the index in messages.
    """

    def __init__(
        self, weight_map: Mapping[str, str], *, open_shard: OpenShard, absent: Collection[str], where: str
    ) -> None:
        self._weight_map, self._open_shard, self._where = weight_map, open_shard, where
        self._absent = frozenset(absent)
        self._opened: dict[str, Mapping[str, StoredTensor]] = {}

    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor of the index; nothing is opened for it."""
        return {key: self._placed(key, file) for key, file in self._weight_map.items()}

    def open_all(self) -> dict[str, StoredTensor]:
        """The same, with the header of each file that is there read. Raises CheckpointError."""
        for file in sorted(set(self._weight_map.values()) - self._absent):
            self._shard(file)
        own = {file: self._opened.get(file, {}) for file in set(self._weight_map.values())}
        return {key: own[file].get(key) or self._placed(key, file) for key, file in self._weight_map.items()}

    def _placed(self, key: str, file: str) -> StoredTensor:
        if file in self._absent:
            return _absent(key, file, where=self._where)

        def found() -> StoredTensor:
            return self._shard(file)[key]

        promised = PromisedEntry(key, file, read=lambda: found().entry, announced=lambda: file in self._opened)
        return StoredTensor(promised, lambda: found().locate())

    def _shard(self, file: str) -> Mapping[str, StoredTensor]:
        """A file's tensors. Raises CheckpointError where it lacks one that the index puts there."""
        if file not in self._opened:
            found = self._open_shard(file)
            lost = [f"{key!r} in {file}" for key, at in self._weight_map.items() if at == file and key not in found]
            if lost:
                raise CheckpointError(
                    f"{self._where} names tensors that their files lack: {', '.join(lost[:5])}. Fetch it again."
                )
            self._opened[file] = found
        return self._opened[file]


def _absent(key: str, file: str, *, where: str) -> StoredTensor:
    """A tensor of a file that is not there: listed, and an error when it is read."""

    def refuse() -> tuple[Part, ...]:
        raise CheckpointError(f"{where} puts {key!r} in {file}, which is not there. Fetch that file.")

    said = f"a tensor in {file}, which is not there"
    return StoredTensor(TensorEntry(key, "unknown", (), file, 0, unreadable=said, absent=True), refuse)
