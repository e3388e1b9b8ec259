"""The store: one run's output embeddings and numbers as plain Zarr v3, and the journal that keeps them safe.

The format is described in `store/SPEC.md`. This package needs no torch.
"""

from trainhooks.store.errors import StoreError
from trainhooks.store.format.layout import LABEL_COUNTS, SKETCH, SNAPSHOT, SNAPSHOT_STEP, STEP, Layout
from trainhooks.store.format.precision import round_mantissa
from trainhooks.store.format.root import FORMAT, is_store
from trainhooks.store.format.schema import required_bytes
from trainhooks.store.reading.reader import Store, open_store
from trainhooks.store.reading.snapshots import Snapshots
from trainhooks.store.storage.opening import is_url
from trainhooks.store.writing.background import BackgroundWriter
from trainhooks.store.writing.lifecycle import check_place
from trainhooks.store.writing.options import Writing
from trainhooks.store.writing.rank_pieces import PieceWriter
from trainhooks.store.writing.writer import StoreWriter

__all__ = [
    "FORMAT",
    "LABEL_COUNTS",
    "SKETCH",
    "SNAPSHOT",
    "SNAPSHOT_STEP",
    "STEP",
    "BackgroundWriter",
    "Layout",
    "PieceWriter",
    "Snapshots",
    "Store",
    "StoreError",
    "StoreWriter",
    "Writing",
    "check_place",
    "is_store",
    "is_url",
    "open_store",
    "required_bytes",
    "round_mantissa",
]
