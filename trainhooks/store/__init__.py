"""The store: one run's output embeddings and numbers as plain Zarr v3, and the journal that keeps them safe.

The format is described in `store/SPEC.md`. This package needs no torch.
"""

from trainhooks.store.background import BackgroundWriter
from trainhooks.store.errors import StoreError
from trainhooks.store.layout import LABEL_COUNTS, SKETCH, SNAPSHOT, SNAPSHOT_STEP, STEP, Layout
from trainhooks.store.opening import check_place
from trainhooks.store.pieces import PieceWriter
from trainhooks.store.place import is_url
from trainhooks.store.precision import round_mantissa
from trainhooks.store.reader import Store, open_store
from trainhooks.store.root import FORMAT, is_store
from trainhooks.store.schema import required_bytes
from trainhooks.store.snapshots import Snapshots
from trainhooks.store.writer import StoreWriter
from trainhooks.store.writing import Writing

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
