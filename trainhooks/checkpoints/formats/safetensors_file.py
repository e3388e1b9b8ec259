"""Safetensors by header and offsets: the format's layout is 8 bytes of header length, a JSON header, the tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from trainhooks.checkpoints.base import CheckpointError, TensorEntry
from trainhooks.checkpoints.formats.dtypes import MOST_DIMS, SAFETENSORS, is_shape, is_sizes
from trainhooks.checkpoints.formats.stored_tensor import Part, StoredTensor, row_major
from trainhooks.checkpoints.sources.byte_source import HEADER_LIMIT, ByteSource, load_json

PROBLEMS_SHOWN = 5
SHARDING = "DCP_SHARDING_INFO"


def safetensors_tensors(source: ByteSource, *, file: str) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, unread: only the header is fetched, and checked against the file's size.

    `file` is the name entries carry. Tensors of any other dtype than those in `dtypes` are listed under the format's
    name for it and fail when read. Further names that the metadata has for a tensor (`save_model` of tied ones) are
    listed as aliases. Raises CheckpointError with each problem's location: a header longer than 100 MB or
    than the file, no JSON, offsets outside the file, overlapping tensors, bytes that belong to none, dtype x shape that
    is not the bytes announced; and for a piece of a distributed checkpoint that is not whole by itself.
    Format: huggingface/safetensors, README, "Format".
    """
    found, metadata = read_safetensors(source, file=file)
    if metadata.get(SHARDING, "{}") != "{}":
        raise CheckpointError(
            f"{source.name} is a rank's piece of a distributed checkpoint, and does not say how many rows its tensors "
            "have in all: give the folder with every shard-*.safetensors. Where there is one file for all ranks, they "
            "wrote it over each other: save with save_distributed=True, or consolidate."
        )
    return found


def read_safetensors(source: ByteSource, *, file: str) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of one file, aliases among them, and its metadata."""
    header, base = _header(source)
    metadata = _metadata(header)
    problems: list[str] = []
    found: dict[str, StoredTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for key, fields in header.items():
        if key == "__metadata__":
            continue
        try:
            entry, start, stop = _entry(key, fields, file=file, room=source.size - base)
        except ValueError as error:
            problems.append(f"{key!r}: {error}")
            continue
        spans.append((start, stop, key))
        part = Part(source, base + start, base + stop, entry.shape, row_major(entry.shape), (0,) * len(entry.shape))
        found[key] = StoredTensor(entry, lambda part=part: (part,))  # type: ignore[misc]
    problems += _overlaps(spans) or _holes(spans, room=source.size - base)
    if problems:
        more = f"; and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise CheckpointError(f"{source.name}: bad header: {'; '.join(problems[:PROBLEMS_SHOWN])}{more}.")
    for alias, key in metadata.items():
        if key in found and alias not in found:
            found[alias] = dataclasses.replace(
                found[key], entry=dataclasses.replace(found[key].entry, key=alias, alias_of=key)
            )
    return found, metadata


def _metadata(header: Mapping[str, Any]) -> dict[str, str]:
    said = header.get("__metadata__")
    said = said if isinstance(said, dict) else {}
    return {key: value for key, value in said.items() if isinstance(value, str)}


def _header(source: ByteSource) -> tuple[dict[str, Any], int]:
    if source.size < 8:
        raise CheckpointError(f"{source.name} has {source.size} bytes; safetensors begins with 8. It is truncated.")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > min(HEADER_LIMIT, source.size - 8):
        raise CheckpointError(
            f"{source.name} announces a header of {length} bytes; the file has {source.size} and the format allows "
            f"{HEADER_LIMIT}. It is truncated or no safetensors file: fetch it again."
        )
    try:
        header = load_json(bytes(source.read(8, 8 + length)), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source.name}: the header is no JSON a safetensors file may hold: {error}.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{source.name}: the header is a JSON {type(header).__name__}; it must be an object.")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key appears twice")
    return fields


def _entry(key: str, fields: dict[str, Any], *, file: str, room: int) -> tuple[TensorEntry, int, int]:
    if not isinstance(fields, dict):
        raise ValueError("is no object")
    shape, offsets, name = (fields.get(field) for field in ("shape", "data_offsets", "dtype"))
    if not is_shape(shape):
        raise ValueError(f"shape {_shown(shape)} must be a list of at most 64 whole numbers from 0")
    if not is_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"data_offsets {_shown(offsets)} must be two whole numbers")
    start, stop = offsets
    if not start <= stop <= room:
        raise ValueError(f"bytes {start} to {stop} lie outside the file, which holds {room} after the header")
    dtype = SAFETENSORS.get(name) if isinstance(name, str) else None
    if dtype is not None and math.prod(shape) * dtype.itemsize != stop - start:
        raise ValueError(f"{name} of shape {str(shape)[:80]} does not fill the {stop - start} bytes announced")
    spelled = str(name) if dtype is None else str(dtype).removeprefix("torch.")
    return TensorEntry(key, spelled, tuple(shape), file, stop - start), start, stop


def _shown(values: Any) -> str:
    if isinstance(values, list) and len(values) > MOST_DIMS:
        return f"of {len(values)} dimensions"
    return str(values)[:80]


def _overlaps(spans: list[tuple[int, int, str]]) -> list[str]:
    problems, reached, owner = [], 0, ""
    for start, stop, key in sorted(span for span in spans if span[0] < span[1]):
        if start < reached:
            problems.append(f"{key!r}: overlaps {owner!r}")
        if stop > reached:
            reached, owner = stop, key
    return problems


def _holes(spans: list[tuple[int, int, str]], *, room: int) -> list[str]:
    """Bytes after the header that no tensor covers: the format forbids them, and two writers of one file leave them."""
    reached = 0
    for start, stop, _ in [*sorted(span for span in spans if span[0] < span[1]), (room, room, "")]:
        if start > reached:
            return [f"bytes {reached} to {start} belong to no tensor: two processes wrote it, or it was cut"]
        reached = max(reached, stop)
    return []
