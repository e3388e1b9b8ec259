"""torch distributed checkpoints: a `.metadata` pickle, read inert, and pieces by offset in the ranks' files."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from trainhooks.checkpoints.base import CheckpointError, TensorEntry
from trainhooks.checkpoints.formats.dtypes import MOST_TENSORS, is_shape, is_sizes
from trainhooks.checkpoints.formats.format import Contents, Format
from trainhooks.checkpoints.formats.pickled import Dtype, Inert, Strided, read_pickle
from trainhooks.checkpoints.formats.stored_tensor import Part, StoredTensor, unreadable
from trainhooks.checkpoints.formats.torch_zip import TorchZip
from trainhooks.checkpoints.sources.byte_source import HEADER_LIMIT, ByteSource, Slice
from trainhooks.checkpoints.weight_files import METADATA

Open = Callable[[str], ByteSource]
Offsets = tuple[int, ...]


def dcp_tensors(open_file: Open) -> dict[str, StoredTensor]:
    """Every tensor of a distributed checkpoint, unread; `open_file` opens one of its files by name.

    Each piece is a small `torch.save` file at an offset of a rank's file; a tensor is put together from its pieces
    when it is read. Raises CheckpointError: metadata that is none, a piece missing, outside its file, or transformed
    (compressed). Source: torch.distributed.checkpoint, `metadata.py` and `filesystem.py` (`_StorageInfo`).
    """
    source = open_file(METADATA)
    if source.size > HEADER_LIMIT:
        raise CheckpointError(f"{source.name} has {source.size} bytes; {HEADER_LIMIT} are allowed for metadata.")
    saved, _ = read_pickle(bytes(source.read(0, source.size)), name=source.name, strict=False)
    if not isinstance(saved, Inert) or not isinstance(saved.field("state_dict_metadata"), dict):
        raise CheckpointError(f"{source.name} is no metadata of torch.distributed.checkpoint.")
    pieces = _pieces(saved.field("storage_data"), name=source.name)
    found: dict[str, StoredTensor] = {}
    chunks = 0
    for key, described in saved.field("state_dict_metadata").items():
        if _named(described, "TensorStorageMetadata") and isinstance(key, str):
            listed = described.field("chunks")
            # one list may stand for many tensors: what is walked is counted, not what the file holds
            chunks += 1 + (len(listed) if isinstance(listed, list) else 0)
            if chunks > MOST_TENSORS:
                raise CheckpointError(f"{source.name} lists more than {MOST_TENSORS} pieces; they are not read.")
            found[key] = _stored(key, described, pieces, open_file=open_file, name=source.name)
    return found


def _named(value: Any, name: str) -> bool:
    return isinstance(value, Inert) and value.global_name.endswith(f".{name}")


def _sizes(value: Any, *, name: str) -> tuple[int, ...]:
    # not shown: a tuple that holds itself many times over is short in the file and endless as text
    if not isinstance(value, tuple) or not is_shape(value):
        raise CheckpointError(f"{name}: a shape or offset in it is a {type(value).__name__} of no sizes.")
    return tuple(value)


def _text(record: Inert, field: str, *, name: str) -> str:
    text = record.field(field)
    if not isinstance(text, str):
        raise CheckpointError(f"{name}: the {field} of a piece in it is a {type(text).__name__}, no text.")
    return text


def _pieces(storage: Any, *, name: str) -> dict[tuple[str, Offsets], Inert]:
    """Storage infos by tensor and the piece's offsets."""
    pieces: dict[tuple[str, Offsets], Inert] = {}
    for index, info in (storage if isinstance(storage, dict) else {}).items():
        if isinstance(index, Inert) and isinstance(info, Inert) and index.field("offset") is not None:
            pieces[_text(index, "fqn", name=name), _sizes(index.field("offset"), name=name)] = info
    return pieces


def _stored(
    key: str, described: Inert, pieces: dict[tuple[str, Offsets], Inert], *, open_file: Open, name: str
) -> StoredTensor:
    shape = _sizes(described.field("size"), name=name)
    properties, chunks = described.field("properties"), described.field("chunks")
    dtype = properties.state[0] if isinstance(properties, Inert) and isinstance(properties.state, tuple) else None
    if isinstance(dtype, Inert):
        what = f"a tensor of dtype {dtype.global_name}, which this torch does not know"
        return unreadable(key, what=what, shape=shape, file=METADATA)
    if not isinstance(dtype, Dtype) or not isinstance(chunks, list):
        raise CheckpointError(f"{name}: {key!r} has no dtype or no chunks that can be read.")
    blocks: list[tuple[Offsets, tuple[int, ...], Inert]] = []
    for chunk in chunks:
        if not isinstance(chunk, Inert):
            raise CheckpointError(f"{name}: a piece of {key!r} is a {type(chunk).__name__}, no record.")
        offsets, sizes = (_sizes(chunk.field(field), name=name) for field in ("offsets", "sizes"))
        inside = len(offsets) == len(sizes) == len(shape) and all(
            at + size <= length for at, size, length in zip(offsets, sizes, shape, strict=True)
        )
        if not inside or (key, offsets) not in pieces:
            raise CheckpointError(f"{name}: the piece of {key!r} at {offsets} lies outside it or in no file.")
        blocks.append((offsets, sizes, pieces[key, offsets]))
    files = sorted({_text(info, "relative_path", name=name) for _, _, info in blocks})
    nbytes = math.prod(shape) * getattr(torch, dtype.name).itemsize
    entry = TensorEntry(key, dtype.name, shape, ",".join(files), nbytes)
    return StoredTensor(
        entry, lambda: tuple(_part(info, at, size, entry=entry, open_file=open_file) for at, size, info in blocks)
    )


def _part(info: Inert, offsets: Offsets, sizes: tuple[int, ...], *, entry: TensorEntry, open_file: Open) -> Part:
    path, offset, length = (info.field(field) for field in ("relative_path", "offset", "length"))
    if info.field("transform_descriptors"):
        raise CheckpointError(f"{path}: {entry.key!r} was transformed when saved (compressed); save it without.")
    if not isinstance(path, str) or not is_sizes((offset, length)):
        raise CheckpointError(f"the metadata of {entry.key!r} does not say where its pieces lie.")
    archive = TorchZip(Slice(open_file(path), offset, length))
    saved, _ = read_pickle(archive.pickle(), name=archive.source.name, strict=True)
    if not isinstance(saved, Strided) or (saved.storage.dtype, saved.shape) != (entry.dtype, sizes):
        raise CheckpointError(
            f"{archive.source.name} is no {entry.dtype} tensor of shape {sizes}, as its metadata says."
        )
    part = archive.part(saved, itemsize=getattr(torch, entry.dtype).itemsize)
    return Part(part.source, part.start, part.stop, part.shape, part.stride, offsets)


DISTRIBUTED = Format(
    "torch distributed checkpoint",
    fits=lambda folder: METADATA in folder.files,
    read=lambda folder: Contents(dcp_tensors(folder.open)),
)
