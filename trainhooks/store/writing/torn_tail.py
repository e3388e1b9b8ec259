"""The journal's end as a machine leaves it that lost power: files with their names, and without their bytes."""

from __future__ import annotations

import warnings
import zlib
from collections import defaultdict

from trainhooks.store.format.journal import Piece, list_pieces, survives
from trainhooks.store.format.root import Root
from trainhooks.store.storage.base import Storage


def drop_torn_tail(storage: Storage, root: Root) -> list[int]:
    """Delete the torn files behind the last record that is whole; returns the steps of the records they were of.

    Only for who holds the lock. A record that is torn with a whole one behind it stays: that is no crash, and whoever
    reads it is told. Says once which steps are lost, and where the store goes on.

    Raises StoreError where what lies there is no plain file, and deletes nothing of it.
    """
    records: dict[tuple[int, int], list[Piece]] = defaultdict(list)
    for piece in list_pieces(storage):
        if survives(piece, root.restarts):
            records[piece.step, piece.attempt].append(piece)
    lost: list[int] = []
    for (step, _), pieces in sorted(records.items(), reverse=True):
        torn = [piece for piece in pieces if not _is_whole(storage, piece)]
        if not torn and len({piece.piece for piece in pieces}) == pieces[0].pieces:
            break
        for piece in torn:
            storage.delete(piece.key)
        lost += [step] if torn else []
    if lost:
        _say(storage, sorted(set(lost)))
    return sorted(set(lost))


def _is_whole(storage: Storage, piece: Piece) -> bool:
    # by the checksum alone: what has all its bytes, and cannot be read, is another fault and is kept
    return f"{zlib.crc32(storage.mmap(piece.key)):08x}" == piece.crc32


def _say(storage: Storage, lost: list[int]) -> None:
    steps = ", ".join(map(str, lost[:8])) + (f" ... {lost[-1]} ({len(lost)} in all)" if len(lost) > 8 else "")
    warnings.warn(
        f"the last records in the journal of {storage} were torn, as when a machine stops before its disk has "
        f'everything: the steps {steps} are lost, and the store goes on without them. Writing(durability="power") '
        "syncs each record.",
        RuntimeWarning,
        stacklevel=6,  # whoever opens the store
    )
