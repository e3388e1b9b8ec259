"""Heads that are stored [dim, vocab], by names that say so or because the user does: seen as [vocab, dim]."""

from __future__ import annotations

from collections.abc import Mapping

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.formats.stored_tensor import StoredTensor, transposed
from trainhooks.model.head_names import HEADS, is_named

UNEMBED = "unembed.W_U"  # TransformerLens
KERNEL = ".kernel"  # flax's Dense is [in, out]
NOTE = "stored as [dim, vocab], read transposed"


def by_name(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """All tensors, a head under a name that says [dim, vocab] the other way round."""
    return {
        key: transposed(stored, note=NOTE) if _is_turned(key, stored) else stored for key, stored in tensors.items()
    }


def as_told(tensors: Mapping[str, StoredTensor], key: str, *, name: str) -> dict[str, StoredTensor]:
    """All tensors, the one that the user says is [dim, vocab] the other way round; once, whatever its name says."""
    if key not in tensors or len(tensors[key].entry.shape) != 2:
        raise CheckpointError(f"{name} has no matrix {key!r} that could be transposed.")
    if tensors[key].entry.note.endswith(NOTE):
        return dict(tensors)
    return {**tensors, key: transposed(tensors[key], note=NOTE)}


def _is_turned(key: str, stored: StoredTensor) -> bool:
    flax_head = key.endswith(KERNEL) and is_named(key.removesuffix(KERNEL), HEADS)
    is_head = flax_head or is_named(key, (UNEMBED,))  # first: a shape may cost a request
    return is_head and len(stored.entry.shape) == 2 and not stored.entry.unreadable
