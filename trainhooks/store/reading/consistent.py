"""Root, manifest and journal of a store that may be written meanwhile, all of one moment."""

from __future__ import annotations

from trainhooks.store.errors import StoreError
from trainhooks.store.format.journal import JournalPiece, list_pieces
from trainhooks.store.format.root import Root, read_manifest, read_root
from trainhooks.store.storage.base import Storage

READ_ATTEMPTS = 10


def read_consistently(storage: Storage) -> tuple[Root, list[JournalPiece], dict[str, tuple[int, str]]]:
    """The journal, then the root and its manifest: what is folded in between is in both, and dropped here later.

    Open files stay readable when a writer deletes them; where one goes before it is opened, look again.
    """
    for _ in range(READ_ATTEMPTS):
        restarts = read_root(storage).restarts
        try:
            files = [JournalPiece(storage, piece) for piece in list_pieces(storage)]
        except FileNotFoundError:
            continue
        root = read_root(storage)
        try:
            listed = read_manifest(storage, root)
        except StoreError:
            if read_root(storage).manifest == root.manifest:
                raise
            continue
        if root.restarts == restarts:
            return root, files, listed
    raise StoreError(f"{storage} changes faster than it can be read. Try again when the run is slower or has ended.")
