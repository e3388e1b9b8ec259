"""nanotron's folder of a step: `model/` with a folder a module, a safetensors file for each parameter and rank.

Source: nanotron/serialize (`get_path`, `TensorMetadata`, `SlicesPair`): a sharded file's metadata holds the whole shape
and which slices of the file are which slices of the whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainhooks.checkpoints.base import CheckpointError, TensorEntry
from trainhooks.checkpoints.formats.dtypes import is_shape
from trainhooks.checkpoints.formats.format import Contents, Folder, Format
from trainhooks.checkpoints.formats.safetensors_file import read_safetensors
from trainhooks.checkpoints.formats.settings import padding_note, saved_settings, text_settings
from trainhooks.checkpoints.formats.stored_tensor import Part, StoredTensor, joined_notes, torch_dtype, unreadable
from trainhooks.checkpoints.formats.tensor_parallel import is_vocabulary
from trainhooks.checkpoints.sources.byte_source import read_json

OF_A_PARAMETER = re.compile(
    r"model_(?P<leaf>\w{1,80}?)(?:_pp-rank-(?P<stage>\d{1,4})-of-\d{1,4}_tp-rank-(?P<rank>\d{1,4})-of-(?P<ranks>\d{1,4}))?"
    r"\.safetensors"
)
METADATA, CONFIG, TEXT, WEIGHTS, DATA = "checkpoint_metadata.json", "model_config.json", "config.yaml", "model", "data"
PLAIN_BLOCK = "pp_block"  # what a module is wrapped in; not part of a name that heads have elsewhere
NO_BLOCK = ((0, -1),)
DEPTH, MOST_PIECES, MOST_FILES = 16, 10_000, 50_000
SLICE = re.compile(r"(None|\d{1,18}),(None|\d{1,18}),(None|1)")

Block = tuple[tuple[int, int], ...]  # first and stop on each axis


@dataclass(frozen=True)
class _Piece:
    """One rank's file of a parameter: its tensor, the whole shape, and which block of it is which of the whole."""

    stored: StoredTensor
    shape: tuple[int, ...]
    blocks: tuple[tuple[Block, Block], ...]

    def parts(self) -> Iterator[Part]:
        """The blocks, each at its place in the whole."""
        (part,) = self.stored.locate()
        itemsize = (part.stop - part.start) // max(math.prod(part.shape), 1)
        for own, there in self.blocks:
            shape = tuple(stop - first for first, stop in own)
            if 0 in shape:
                continue
            start = part.start + itemsize * sum(first * step for (first, _), step in zip(own, part.stride, strict=True))
            reach = 1 + sum((size - 1) * step for size, step in zip(shape, part.stride, strict=True))
            offsets = tuple(first for first, _ in there)
            yield Part(part.source, start, start + itemsize * reach, shape, part.stride, offsets)


def _read(folder: Folder) -> Contents:
    settings = text_settings(folder.open(TEXT)) if TEXT in folder.files else {}
    if CONFIG in folder.files:
        settings |= saved_settings(read_json(folder.open(CONFIG)))
    pieces: dict[str, list[_Piece]] = {}
    for count, (key, inside, name, path) in enumerate(_files(folder.below(WEIGHTS), "", WEIGHTS, DEPTH)):
        if count >= MOST_FILES:
            raise CheckpointError(f"{folder.name} lists more than {MOST_FILES} files; they are not read.")
        found, metadata = read_safetensors(inside.open(name), file=path)
        if DATA not in found:
            raise CheckpointError(f"{inside.name}/{name} holds no tensor {DATA!r}; nanotron writes one.")
        pieces.setdefault(key, []).append(_piece(found[DATA], metadata, name=f"{inside.name}/{name}"))
    if not pieces:
        raise CheckpointError(f"{folder.name} holds no model_*.safetensors under {WEIGHTS}/.")
    joined = {key: _joined(key, parts, name=folder.name, settings=settings) for key, parts in pieces.items()}
    return Contents(joined, settings)


def _files(folder: Folder, module: str, path: str, depth: int) -> Iterator[tuple[str, Folder, str, str]]:
    """The parameters below: key, folder, file's name, and its path from the checkpoint."""
    for name in sorted(folder.files):
        if fits := OF_A_PARAMETER.fullmatch(name):
            yield f"{module}{fits['leaf']}", folder, name, f"{path}/{name}"
    for name in folder.folders if depth else ():
        inner = module if name == PLAIN_BLOCK else f"{module}{name}."
        yield from _files(folder.below(name), inner, f"{path}/{name}", depth - 1)


def _piece(stored: StoredTensor, metadata: Mapping[str, str], *, name: str) -> _Piece:
    own = stored.entry.shape
    if "unsharded_shape" not in metadata:
        everything = tuple((0, size) for size in own)
        return _Piece(stored, own, ((everything, everything),))
    shape = tuple(int(size) for size in re.findall(r"\d{1,18}", metadata["unsharded_shape"][:400]))
    listed = metadata.get("local_global_slices_pairs", "").split(";", MOST_PIECES)
    if not is_shape(shape) or len(shape) != len(own) or len(listed) > MOST_PIECES:
        raise CheckpointError(f"{name}: its metadata has a whole shape {shape} that does not fit {own}.")
    blocks = []
    for pair in listed:
        ends = [_block(text, size) for text, size in zip(pair.split("#"), (own, shape), strict=False)]
        if (
            len(ends) != 2
            or NO_BLOCK in ends
            or any(b < a or b - a != d - c for (a, b), (c, d) in zip(*ends, strict=False))
        ):
            raise CheckpointError(f"{name}: the slices {pair[:200]!r} in its metadata are none of {own} and {shape}.")
        blocks.append((ends[0], ends[1]))
    return _Piece(stored, shape, tuple(blocks))


def _block(text: str, shape: tuple[int, ...]) -> Block:
    """Slices as nanotron writes them, `0,10,None|None,None,None`; those outside the shape give none."""
    found = [SLICE.fullmatch(one) for one in text.split("|", len(shape))]
    if len(found) != len(shape):
        return NO_BLOCK
    ends = []
    for fits, size in zip(found, shape, strict=True):
        first = 0 if fits is None or fits[1] == "None" else int(fits[1])
        stop = size if fits is None or fits[2] == "None" else int(fits[2])
        ends.append((first, stop) if fits is not None and first <= stop <= size else (0, -1))
    return tuple(ends)


def _joined(key: str, pieces: Sequence[_Piece], *, name: str, settings: Mapping[str, object]) -> StoredTensor:
    first = pieces[0]
    entries = [piece.stored.entry for piece in pieces]
    if len({(piece.shape, piece.stored.entry.dtype) for piece in pieces}) > 1:
        raise CheckpointError(f"{name}: the ranks' pieces of {key!r} have different whole shapes or dtypes.")
    try:
        size = math.prod(first.shape) * torch_dtype(entries[0]).itemsize
    except CheckpointError:  # of this tensor alone: it may not be wanted
        return unreadable(key, what=f"of dtype {entries[0].dtype}", shape=first.shape, file=entries[0].file)
    padding = padding_note(first.shape[0], settings) if first.shape and is_vocabulary(key) else ""
    note = joined_notes(f"joined from {len(pieces)} ranks" if len(pieces) > 1 else "", padding)
    files = ",".join(entry.file for entry in entries)
    whole = TensorEntry(key, entries[0].dtype, first.shape, files, size, note=note)
    return StoredTensor(whole, lambda: tuple(part for piece in pieces for part in piece.parts()))


NANOTRON = Format(
    "nanotron", lambda folder: WEIGHTS in folder.folders and (METADATA in folder.files or CONFIG in folder.files), _read
)
