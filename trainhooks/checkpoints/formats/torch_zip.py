"""`torch.save` files as the zip they are: stored entries, a pickle read inert, tensors by byte range."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from trainhooks.checkpoints.base import CheckpointError, TensorEntry
from trainhooks.checkpoints.formats.dtypes import MOST_TENSORS
from trainhooks.checkpoints.formats.pickled import Foreign, Inert, Strided, read_pickle
from trainhooks.checkpoints.formats.stored_tensor import Part, StoredTensor, unreadable
from trainhooks.checkpoints.sources.byte_source import HEADER_LIMIT, ByteSource, SourceFile, check_range

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, name length, extra length
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
DEPTH = 8


def torch_zip_tensors(source: ByteSource, *, file: str, strict: bool = False) -> dict[str, StoredTensor]:
    """Every tensor of a `torch.save` file's state dict, unread: the zip's directory and its pickle are fetched.

    The state dict is the mapping saved, or the one under `state_dict`, `model_state_dict`, `model` or `module` in
    it; mappings inside are flattened with dots. `strict` refuses a pickle that names anything but tensors; otherwise
    such objects stand as inert placeholders (a Lightning checkpoint's hyperparameters). A tensor of a class or dtype
    that is not known is listed, and fails when it is read. A single tensor saved alone has the key "". Raises
    CheckpointError: no zip (torch before 1.6), truncated, compressed, big-endian, no tensor.
    """
    saved = Saved.read(source, file=file, strict=strict)
    found = saved.tensors(dict(_state_dict(saved.content)))
    if not found:
        named = f" Its pickle names {', '.join(sorted(saved.unknown)[:5])}, which is not run." if saved.unknown else ""
        raise CheckpointError(f"{source.name} holds no tensor in a mapping.{named} Save the model's state dict.")
    return found


@dataclass(frozen=True)
class Saved:
    """What one `torch.save` file holds: `content` inert, tensors as records; `unknown` are the globals it names."""

    archive: TorchZip
    content: Any
    unknown: set[str]
    file: str

    @classmethod
    def read(cls, source: ByteSource, *, file: str, strict: bool = False) -> Saved:
        """Directory and pickle of a file. Raises CheckpointError."""
        archive = TorchZip(source)
        content, unknown = read_pickle(archive.pickle(), name=source.name, strict=strict)
        return cls(archive, content, unknown, file)

    def field(self, name: str) -> Any:
        """What the mapping that was saved holds under a name; None where it holds nothing or is no mapping."""
        return self.content.get(name) if isinstance(self.content, dict) else None

    def tensors(self, content: Any) -> dict[str, StoredTensor]:
        """The tensors in a part of `content`, unread; mappings inside are flattened. Raises CheckpointError."""
        found = {}
        for key, tensor in _flat(content, prefix="", seen=set(), depth=0) if isinstance(content, dict) else ():
            found[key] = self.archive.stored(key, tensor, file=self.file)
            if len(found) > MOST_TENSORS:
                raise CheckpointError(
                    f"{self.archive.source.name} holds more than {MOST_TENSORS} tensors; they are not read."
                )
        return found


class TorchZip:
    """One `torch.save` zip: its pickle, and where each storage's bytes begin."""

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self._archive = _open_zip(source)
        self._infos = {info.filename: info for info in self._archive.infolist()}
        pickles = [name for name in self._infos if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(
                f"{source.name} is a zip with {len(pickles)} entries named data.pkl; torch.save writes one. "
                "It is no such file (a TorchScript archive needs its state dict saved)."
            )
        self.prefix = pickles[0].removesuffix("data.pkl")
        order = self.prefix + "byteorder"
        if order in self._infos and self._small(order).strip() != b"little":
            raise CheckpointError(f"{source.name} was written big-endian; only little-endian files are read.")

    def pickle(self) -> bytes:
        """data.pkl, at most 100 MB of it."""
        return self._small(self.prefix + "data.pkl")

    def _small(self, name: str) -> bytes:
        info = self._stored_info(name)
        if info.file_size > HEADER_LIMIT:
            raise CheckpointError(f"{self.source.name}: {name} has {info.file_size} bytes; {HEADER_LIMIT} are allowed.")
        try:
            return self._archive.read(info)
        except CheckpointError:
            raise
        except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, ValueError, struct.error) as error:
            raise CheckpointError(f"{self.source.name}: {name} cannot be read: {error}.") from error

    def _stored_info(self, name: str) -> zipfile.ZipInfo:
        info = self._infos.get(name)
        if info is None:
            raise CheckpointError(
                f"{self.source.name} has no entry {name}, which its pickle refers to. Fetch it again."
            )
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
            raise CheckpointError(f"{self.source.name}: {name} is compressed; torch.save stores. It was repacked.")
        return info

    def stored(self, key: str, tensor: Strided | Foreign, *, file: str, note: str = "") -> StoredTensor:
        """The tensor's entry; the storage's place is looked up when it is wanted."""
        if isinstance(tensor, Foreign):
            return unreadable(key, what=tensor.what, shape=tensor.shape, file=file)
        itemsize = getattr(torch, tensor.storage.dtype).itemsize
        size = math.prod(tensor.shape) * itemsize
        entry = TensorEntry(key, tensor.storage.dtype, tensor.shape, file, size, note=note)
        return StoredTensor(entry, lambda: (self.part(tensor, itemsize=itemsize),))

    def part(self, tensor: Strided, *, itemsize: int) -> Part:
        """The bytes from the tensor's first element to its last. Raises CheckpointError."""
        name = f"{self.prefix}data/{tensor.storage.key}"
        info = self._stored_info(name)
        if info.file_size < tensor.storage.length * itemsize:
            raise CheckpointError(
                f"{self.source.name}: {name} has {info.file_size} bytes; its pickle announces "
                f"{tensor.storage.length} elements of {tensor.storage.dtype}. Fetch it again."
            )
        start = self._data_start(info) + tensor.offset * itemsize
        stop = start + tensor.reach * itemsize
        check_range(self.source, start, stop)
        return Part(self.source, start, stop, tensor.shape, tensor.stride, (0,) * len(tensor.shape))

    def _data_start(self, info: zipfile.ZipInfo) -> int:
        at = info.header_offset
        # the local header's own lengths: torch pads its extra field to align the data, the directory does not say
        signature, name, extra = LOCAL_HEADER.unpack(self.source.read(at, at + LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise CheckpointError(f"{self.source.name}: no entry begins where its directory puts {info.filename}.")
        return int(at + LOCAL_HEADER.size + name + extra)


def _open_zip(source: ByteSource) -> zipfile.ZipFile:
    try:
        file = SourceFile(source)
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, struct.error, ValueError, NotImplementedError) as error:
        if isinstance(error, CheckpointError):
            raise
        if bytes(source.read(0, min(4, source.size))) == b"PK\x03\x04":
            raise CheckpointError(
                f"{source.name} begins as a zip and has no directory: truncated, fetch it again."
            ) from error
        raise CheckpointError(
            f"{source.name} is no zip: torch before 1.6 wrote plain pickles, which are not read here. Load it with "
            "torch and save it again with torch.save or as safetensors."
        ) from error
    file.limit = HEADER_LIMIT  # the directory is read; what follows is data.pkl
    return archive


def _state_dict(saved: Any) -> Iterator[tuple[str, Strided | Foreign]]:
    if isinstance(saved, (Strided, Foreign)):
        yield "", saved
    elif isinstance(saved, dict):
        for _ in range(DEPTH):
            inside = [saved[name] for name in WRAPPERS if isinstance(saved.get(name), dict)]
            if not inside or any(isinstance(value, (Strided, Foreign)) for value in saved.values()):
                break
            saved = inside[0]
        yield from _flat(saved, prefix="", seen=set(), depth=0)


def _flat(
    mapping: dict[Any, Any], *, prefix: str, seen: set[int], depth: int
) -> Iterator[tuple[str, Strided | Foreign]]:
    # each mapping once: one that holds another twice, and so on down, would unfold without end
    if id(mapping) in seen or depth > DEPTH:
        return
    seen.add(id(mapping))
    for key, value in mapping.items():
        if isinstance(value, (Strided, Foreign)) and isinstance(key, (str, int)):
            yield f"{prefix}{key}", value
        elif isinstance(value, Inert) and str(key).endswith("weight"):
            yield f"{prefix}{key}", Foreign(f"a {value.global_name or 'kind of object'}")
        elif isinstance(value, dict) and isinstance(key, (str, int)):
            yield from _flat(value, prefix=f"{prefix}{key}.", seen=seen, depth=depth + 1)
