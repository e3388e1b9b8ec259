"""Distributed checkpoints that each rank wrote as a safetensors file of its own rows, put together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainhooks.checkpoints.base import CheckpointError, TensorEntry
from trainhooks.checkpoints.formats.dtypes import is_sizes
from trainhooks.checkpoints.formats.safetensors_file import SHARDING, read_safetensors
from trainhooks.checkpoints.formats.stored_tensor import Part, StoredTensor, placed
from trainhooks.checkpoints.sources.byte_source import ByteSource, load_json

Offsets = tuple[int, ...]
Pieces = list[tuple[StoredTensor, Offsets]]


def joined_safetensors(sources: Mapping[str, ByteSource]) -> dict[str, StoredTensor] | None:
    """The tensors of `shard-*.safetensors`, by file name, unread; None where the files are no such pieces.

    Each file's metadata `DCP_SHARDING_INFO` says where its tensors begin in the whole ones. A hole between pieces is
    noticed when a tensor is read; that the last piece is missing is not. Raises CheckpointError.
    Source: torch.distributed.checkpoint, `hf_storage.py` (`HuggingFaceStorageWriter(save_distributed=True)`).
    """
    pieces: dict[str, Pieces] = {}
    for file, source in sources.items():
        found, metadata = read_safetensors(source, file=file)
        offsets = _saved_offsets(metadata, name=source.name)
        if not file.startswith("shard-") or not found.keys() <= offsets.keys():
            return None
        for key, stored in found.items():
            if len(offsets[key]) != len(stored.entry.shape):
                raise CheckpointError(f"{source.name}: the offsets of {key!r} in its metadata do not fit its shape.")
            pieces.setdefault(key, []).append((stored, offsets[key]))
    return {key: _joined(key, parts) for key, parts in pieces.items()}


def _joined(key: str, pieces: Pieces) -> StoredTensor:
    entries = [stored.entry for stored, _ in pieces]
    if len(dtypes := {entry.dtype for entry in entries}) > 1:
        raise CheckpointError(f"the pieces of {key!r} have the dtypes {', '.join(sorted(dtypes))}: files of two runs.")
    ends = [_end(at, stored.entry.shape) for stored, at in pieces]
    shape = tuple(max(axis) for axis in zip(*ends, strict=True))
    files = ",".join(sorted(entry.file for entry in entries))
    whole = TensorEntry(key, entries[0].dtype, shape, files, sum(entry.nbytes for entry in entries))
    return StoredTensor(whole, lambda: _placed(pieces))


def _end(at: Offsets, shape: Sequence[int]) -> Offsets:
    return tuple(begin + size for begin, size in zip(at, shape, strict=True))


def _placed(pieces: Pieces) -> tuple[Part, ...]:
    return tuple(part for stored, at in pieces for part in placed(stored, at))


def _saved_offsets(metadata: Mapping[str, str], *, name: str) -> dict[str, Offsets]:
    """Where each tensor of the file begins in the whole one; empty where the file says nothing of it."""
    try:
        said = load_json(metadata.get(SHARDING, "{}").encode())
        offsets = {key: fields["saved_offsets"] for key, fields in said.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{name}: its {SHARDING} is none that torch writes.") from error
    if not all(is_sizes(at) for at in offsets.values()):
        raise CheckpointError(f"{name}: its {SHARDING} has offsets that are no whole numbers.")
    return {key: tuple(at) for key, at in offsets.items()}
