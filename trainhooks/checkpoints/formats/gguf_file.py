"""GGUF by its header and offsets; quantised blocks are made numbers by the `gguf` package, and said so.

Layout: magic, version, counts, settings, one record a tensor, then the data, aligned (ggml's docs/gguf.md). The header
is read here, since the package maps the whole file and makes an object of every token.
"""

from __future__ import annotations

import importlib
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainhooks.checkpoints.base import CheckpointError, TensorEntry
from trainhooks.checkpoints.formats.dtypes import is_shape
from trainhooks.checkpoints.formats.format import Contents, Folder, Format
from trainhooks.checkpoints.formats.stored_tensor import DecodedTensor, Part, StoredTensor, row_major, unreadable
from trainhooks.checkpoints.sources.byte_source import HEADER_LIMIT, ByteSource, check_range

SUFFIX = ".gguf"
MAGIC, VERSIONS = b"GGUF", (2, 3)
PLAIN = {0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16"}
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MOST_SETTINGS, MOST_TEXTS, MOST_TENSORS, MOST_NAME, MOST_AXES = 2_000, 1_000_000, 20_000, 4096, 4
WINDOW = 1 << 20
OF_MANY = re.compile(r".+-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
OF_SEVERAL = "it is one file of several"
EXTRA = "pip install 'trainhooks[gguf]'"


def gguf_contents(source: ByteSource, *, file: str) -> Contents:
    """Every tensor of a GGUF file, unread, and what its settings say of the model; `file` is the name entries carry.

    Without `output.weight` the model is tied: that is llama.cpp's rule. Of one file of several that is not known.
    Raises CheckpointError for a header that is none, lies about counts and lengths, or puts a tensor outside the file.
    """
    found = _one_file(source, file=file)
    named = OF_MANY.fullmatch(file)
    if found.settings.get("split.count", 1) in (0, 1) and (named is None or int(named["count"]) == 1):
        return _contents(found)
    config = {key: value for key, value in _contents(found).config.items() if key != "tie_word_embeddings"}
    return Contents(found.tensors, config, doubt=OF_SEVERAL)


@dataclass(frozen=True)
class _Read:
    tensors: dict[str, StoredTensor]
    settings: Mapping[str, Any]


def _contents(read: _Read) -> Contents:
    config: dict[str, object] = {"tie_word_embeddings": "output.weight" not in read.tensors}
    kind = read.settings.get("general.architecture")
    ids = read.settings.get(f"{kind}.vocab_size", read.settings.get("tokenizer.ggml.tokens"))
    if isinstance(ids, int) and ids > 0:
        config["vocab_size"] = ids
    return Contents(read.tensors, config)


class _Cursor:
    """Reads a header forward, in windows; every length is held against the file before it is used."""

    def __init__(self, source: ByteSource) -> None:
        self.source, self.at = source, 0
        self._begin, self._window = 0, b""
        self.texts = 0

    def take(self, size: int) -> bytes:
        stop = self.at + size
        if stop > (most := min(self.source.size, HEADER_LIMIT)):
            raise CheckpointError(
                f"{self.source.name}: its header reaches beyond {most} bytes: cut short, or its lengths are wrong. "
                "Fetch it again."
            )
        if stop > self._begin + len(self._window) or self.at < self._begin:
            self._begin = self.at
            self._window = bytes(self.source.read(self.at, min(self.source.size, self.at + max(size, WINDOW))))
        piece = self._window[self.at - self._begin : stop - self._begin]
        self.at = stop
        return piece

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self, *, most: int) -> str:
        length = self.number("Q")
        if length > most:
            raise CheckpointError(f"{self.source.name}: a name in its header has {length} bytes; {most} are allowed.")
        return self.take(length).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """A setting's value: a number or a text; of an array its length."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.text(most=1 << 24)
        if kind != ARRAY:
            raise CheckpointError(f"{self.source.name}: a setting in its header is of type {kind}, which is none.")
        inner, count = self.number("I"), self.number("Q")
        if inner in NUMBERS:
            self._skip(count * struct.calcsize("<" + NUMBERS[inner]))
        elif inner == STRING:
            self.texts += min(count, MOST_TEXTS + 1)
            if self.texts > MOST_TEXTS:
                raise CheckpointError(f"{self.source.name} announces more than {MOST_TEXTS} texts; they are not read.")
            self._skip_texts(count)
        else:
            raise CheckpointError(f"{self.source.name}: an array in its header is of type {inner}, which is not read.")
        return count

    def _skip_texts(self, count: int) -> None:
        # a vocabulary of 260,000 and its merges: each by two additions, not by a call for each number
        for _ in range(count):
            here = self.at - self._begin
            if not 0 <= here <= len(self._window) - 8:
                self.take(8)
                self.at, here = self.at - 8, self.at - 8 - self._begin
            self.at += 8 + int.from_bytes(self._window[here : here + 8], "little")
            if self.at > self.source.size:
                self.take(0)

    def _skip(self, size: int) -> None:
        if self.at + size > self.source.size:
            self.take(size)
        self.at += size


def _one_file(source: ByteSource, *, file: str) -> _Read:
    cursor = _Cursor(source)
    if source.size < 24 or cursor.take(4) != MAGIC:
        raise CheckpointError(f"{source.name} does not begin with GGUF: it is cut short or no such file.")
    version, count, settings = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in VERSIONS:
        raise CheckpointError(f"{source.name} is GGUF version {version}; {VERSIONS} are read. Convert it anew.")
    if count > MOST_TENSORS or settings > MOST_SETTINGS:
        raise CheckpointError(
            f"{source.name} announces {count} tensors and {settings} settings; {MOST_TENSORS} and {MOST_SETTINGS} are "
            "the limits. Its header is wrong."
        )
    told = {cursor.text(most=1 << 16): cursor.value(cursor.number("I")) for _ in range(settings)}
    records = [_record(cursor) for _ in range(count)]
    if not records:
        raise CheckpointError(f"{source.name} holds no tensor: a vocabulary alone, or cut short.")
    alignment = told.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
        raise CheckpointError(f"{source.name} announces an alignment of {str(alignment)[:40]} bytes, which is none.")
    base = -(-cursor.at // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    for key, shape, kind, offset in records:
        if key in tensors:
            raise CheckpointError(f"{source.name} names the tensor {key[:200]!r} twice; its header is wrong.")
        tensors[key] = _stored(source, key, shape, kind=kind, start=base + offset, file=file)
    return _Read(tensors, told)


def _record(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """A tensor's name, shape as torch has it, type and offset."""
    key, axes = cursor.text(most=MOST_NAME), cursor.number("I")
    if axes > MOST_AXES:
        raise CheckpointError(f"{cursor.source.name}: {key[:200]!r} has {axes} axes; GGUF has at most {MOST_AXES}.")
    shape = tuple(cursor.number("Q") for _ in range(axes))[::-1]
    if not is_shape(shape):
        raise CheckpointError(f"{cursor.source.name}: {key[:200]!r} has a shape that is none: {shape}.")
    return key, tuple(shape), cursor.number("I"), cursor.number("Q")


def _stored(source: ByteSource, key: str, shape: tuple[int, ...], *, kind: int, start: int, file: str) -> StoredTensor:
    plain = PLAIN.get(kind)
    if plain is not None:
        size = math.prod(shape) * getattr(torch, plain).itemsize
        check_range(source, start, start + size)
        part = Part(source, start, start + size, shape, row_major(shape), (0,) * len(shape))
        return StoredTensor(TensorEntry(key, plain, shape, file, size), lambda: (part,))
    try:
        package: Any = importlib.import_module("gguf")
    except ImportError:
        return unreadable(key, what=f"quantised (GGUF type {kind}); to dequantise it: {EXTRA}", shape=shape, file=file)
    if kind not in {int(known) for known in package.GGML_QUANT_SIZES}:
        raise CheckpointError(f"{source.name}: {key[:200]!r} is of type {kind}, which GGUF does not have.")
    quantised = package.GGMLQuantizationType(kind)
    block, block_bytes = package.GGML_QUANT_SIZES[quantised]
    if not shape or shape[-1] % block:
        raise CheckpointError(f"{source.name}: rows of {key[:200]!r} {shape} are no whole blocks of {quantised.name}.")
    row = shape[-1] // block * block_bytes
    coded = (*shape[:-1], row)
    size = math.prod(coded)
    check_range(source, start, start + size)
    part = Part(source, start, start + size, coded, row_major(coded), (0,) * len(coded))
    note = f"dequantised from {quantised.name}"
    entry = TensorEntry(key, "float32", shape, file, 4 * math.prod(shape), note=note)
    return DecodedTensor(entry, lambda: (part,), lambda: _dequantised(package, part, quantised, entry))


def _dequantised(package: Any, part: Part, quantised: Any, entry: TensorEntry) -> Tensor:
    try:
        values = package.quants.dequantize(part.read(torch.uint8).numpy(), quantised)
    except NotImplementedError as error:
        raise CheckpointError(
            f"{entry.file}: {entry.key!r} is {quantised.name}, which the gguf package does not dequantise. "
            "Convert it to F16."
        ) from error
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(entry.shape)


def _files(folder: Folder) -> list[str]:
    return sorted(name for name in folder.files if name.endswith(SUFFIX) and not name.startswith("."))


def _read(folder: Folder) -> Contents:
    files = _files(folder)
    named = [OF_MANY.fullmatch(name) for name in files]
    if len(files) > 1 and not all(named):
        raise CheckpointError(f"{folder.name} holds {', '.join(files[:8])}: give one file's path.")
    counts = {fits["count"] for fits in named if fits}
    if len(counts) > 1 or (counts and int(next(iter(counts))) != len(files)):
        raise CheckpointError(
            f"{folder.name} holds {len(files)} of {' or '.join(sorted(counts))} files: fetch the others."
        )
    opened = [_one_file(folder.open(name), file=name) for name in files]
    tensors = {key: stored for one in opened for key, stored in one.tensors.items()}
    return _contents(_Read(tensors, opened[0].settings))


GGUF = Format("GGUF", lambda folder: bool(_files(folder)), _read)
