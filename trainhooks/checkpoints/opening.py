"""Open one checkpoint: a folder, a file, or a hub repository's revision, in the format that is found there."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from safetensors import SafetensorError
from torch import Tensor

from trainhooks.checkpoints.base import Checkpoint, CheckpointError, TensorEntry
from trainhooks.checkpoints.formats.dcp import dcp_tensors
from trainhooks.checkpoints.formats.safetensors_file import safetensors_tensors
from trainhooks.checkpoints.formats.safetensors_shards import joined_safetensors
from trainhooks.checkpoints.formats.stored_tensor import StoredTensor
from trainhooks.checkpoints.formats.torch_zip import torch_zip_tensors
from trainhooks.checkpoints.sources.byte_source import HEADER_LIMIT, ByteSource, LocalFile, load_json
from trainhooks.checkpoints.sources.hub import list_hub_folder
from trainhooks.checkpoints.tensor_cache import TensorCache
from trainhooks.checkpoints.weight_files import METADATA, may_be_weights, weights_folder

INDEX = ".index.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
HUB_PLACE = re.compile(r"(?:hf://)?([\w.-]+/[\w.-]+)(?:@(.+))?")


class Folder(Protocol):
    """Where a checkpoint's files lie: `files` are the names at its root; `open` takes a name, here or in an index."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def files(self) -> Mapping[str, object]:
        """The files at the root, by name."""
        ...

    def open(self, name: str) -> ByteSource:
        """A file. Raises CheckpointError."""
        ...


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this machine.

    Which files are read: any name without `..`, backslash or leading slash. A file listed in the folder may be a link
    to anywhere. One that only an index or metadata names must lie inside the folder once links are followed, or in
    `../../blobs`, where the hub's local cache keeps what its snapshots link to.
    """

    path: Path
    files: dict[str, Path]

    @classmethod
    def list(cls, path: Path) -> LocalFolder:
        """What lies at the root of `path`. Raises CheckpointError."""
        try:
            return cls(path, {entry.name: path / entry.name for entry in sorted(path.iterdir()) if not entry.is_dir()})
        except OSError as error:
            raise CheckpointError(f"{path} cannot be listed: {error.strerror}.") from error

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def open(self, name: str) -> LocalFile:
        """A file by its name, relative to the folder. Raises CheckpointError."""
        safe_name(name, where=self.name)
        if name not in self.files:
            try:
                real, root = (self.path / name).resolve(strict=True), self.path.resolve(strict=True)
            except (OSError, RuntimeError) as error:
                raise CheckpointError(f"{self.name} has no file {name} that can be read: {error}.") from error
            if not (real.is_relative_to(root) or real.is_relative_to(root.parent.parent / "blobs")):
                raise CheckpointError(f"{self.name}: {name} is a link out of the folder to {real}; it is not followed.")
        return LocalFile.open(self.path / name)


@dataclass(frozen=True)
class FileCheckpoint:
    """A `Checkpoint` over stored tensors; `digests` are the hub's file hashes as listed, `origins` where each
    of its files lies for good, `cache` keeps what was fetched."""

    name: str
    config: Mapping[str, object]
    stored: Mapping[str, StoredTensor]
    digests: Mapping[str, str] = field(default_factory=dict)
    cache: TensorCache | None = None
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """Entries by key, as stored."""
        return {key: stored.entry for key, stored in self.stored.items()}

    def read(self, key: str) -> Tensor:
        """The tensor `key` as stored, on the CPU, contiguous; from the cache where it holds it. Raises CheckpointError.

        A local tensor is a private mapping of its file: writing to it does not reach the file.
        """
        stored = self._stored(key)
        origin = self.origins.get(stored.entry.file)
        if self.cache is None or origin is None:
            return stored.read()
        held = self.cache.get(origin, entry=stored.entry)
        if held is None:
            held = stored.read()
            try:
                self.cache.put(origin, key=key, tensor=held)
            except (OSError, SafetensorError) as error:  # the tensor is right all the same
                warnings.warn(
                    f"{self.cache.folder} does not keep what was fetched: {error}. Set HF_HOME to a folder with room.",
                    stacklevel=2,
                )
        return held

    def identity(self, key: str, *, full: bool = False) -> str:
        """A hash that two checkpoints share where the tensor's bytes are the same. Raises CheckpointError.

        At a hub: the hash of the file the tensor lies in, which costs nothing; files that differ elsewhere differ here.
        On this machine: of dtype, shape, and first and last MiB, so that equal hashes may still differ in between.
        `full`: of every value, comparable over formats and places.
        """
        stored = self._stored(key)
        digest = self.digests.get(stored.entry.file)
        return f"{digest}:{key}" if digest and not full else stored.digest(full=full)

    def _stored(self, key: str) -> StoredTensor:
        if key not in self.stored:
            raise CheckpointError(f"{self.name} has no tensor {key!r}; it has {', '.join(sorted(self.stored)[:12])}.")
        return self.stored[key]


def open_checkpoint(
    place: str | os.PathLike[str], *, revision: str | None = None, cache: TensorCache | None = None
) -> Checkpoint:
    """A checkpoint's tensors, from headers alone: no weight is read.

    `place`: a folder, a file (.safetensors, or a `torch.save` file by .ckpt, .pt, .pth, .bin), or a hub repository as
    "org/name", "org/name@revision" or "hf://org/name@revision"; what exists on this machine comes first. In a folder
    or repository the first of these is taken: model.safetensors, its index, pytorch_model.bin, its index, a
    distributed checkpoint's .metadata, the only .safetensors file, the only `torch.save` file; what only resuming
    needs is left out. A folder here that has none is looked into one folder down (`weights_folder`). `cache` keeps
    tensors fetched from a hub (default: `TensorCache.default()`). Raises CheckpointError; ImportError where a hub is
    named and huggingface_hub is absent.
    """
    text = os.fspath(place)
    path = Path(text)
    if revision is None and not text.startswith("hf://") and (os.path.lexists(path) or not HUB_PLACE.fullmatch(text)):
        return _open_local(path)
    match = HUB_PLACE.fullmatch(text)
    if match is None:
        raise CheckpointError(f"{text!r} is neither here nor a hub repository, org/name[@revision].")
    folder = list_hub_folder(match[1], revision=revision or match[2])
    if isinstance(folder, Path):
        return _open_local(folder)
    config, stored = _config(folder), _tensors(folder)
    digests = {name: file.digest for name, file in folder.files.items()}  # after: opening a shard may list its folder
    origins = {name: file.origin for name, file in folder.files.items()}
    return FileCheckpoint(folder.name, config, stored, digests, cache or TensorCache.default(), origins)


def _open_local(path: Path) -> FileCheckpoint:
    try:
        path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if path.is_dir():
        folder = LocalFolder.list(path)
        inner = weights_folder(path)
        weights = folder if inner == path else LocalFolder.list(inner)
        return FileCheckpoint(folder.name, _config(weights) or _config(folder), _tensors(weights))
    stored = _file_tensors(LocalFile.open(path), file=path.name)
    return FileCheckpoint(str(path), _config(LocalFolder.list(path.parent)), stored)


def safe_name(name: str, *, where: str) -> str:
    """A file's name as an index may give it. Raises CheckpointError where it leads out of the checkpoint."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise CheckpointError(f"{where}: it names the file {name!r}, outside the checkpoint; it is not opened.")
    return name


def _tensors(folder: Folder) -> dict[str, StoredTensor]:
    for name in WEIGHTS:
        if name in folder.files:
            return _file_tensors(folder.open(name), file=name)
        if name + INDEX in folder.files:
            return _sharded(folder, name + INDEX)
    if METADATA in folder.files:
        return dcp_tensors(folder.open)
    for suffixes in ((".safetensors",), TORCH_SUFFIXES):
        named = [name for name in sorted(folder.files) if name.endswith(suffixes) and not name.startswith(".")]
        named = [name for name in named if may_be_weights(name)] or named
        if named and all(name.startswith("shard-") for name in named) and suffixes == (".safetensors",):
            joined = joined_safetensors({name: folder.open(name) for name in named})
            if joined is not None:
                return joined
        if len(named) == 1:
            return _file_tensors(folder.open(named[0]), file=named[0])
        if named:
            raise CheckpointError(f"{folder.name} holds {', '.join(named[:8])} and no index: give one file's path.")
    seen = ", ".join(sorted(folder.files)[:8]) or "nothing"
    raise CheckpointError(
        f"{folder.name} holds no weights: wanted model.safetensors, pytorch_model.bin, an index of either, .metadata, "
        f"or one .safetensors, .ckpt, .pt, .pth or .bin file; it holds {seen}."
    )


def _file_tensors(source: ByteSource, *, file: str) -> dict[str, StoredTensor]:
    if file.endswith(".safetensors"):
        return safetensors_tensors(source, file=file)
    if file.endswith(TORCH_SUFFIXES):
        return torch_zip_tensors(source, file=file, strict=file.endswith(".bin"))
    raise CheckpointError(f"{source.name}: wanted a file ending in .safetensors, {', '.join(TORCH_SUFFIXES)}.")


def _sharded(folder: Folder, index: str) -> dict[str, StoredTensor]:
    where = f"{folder.name}/{index}"
    weight_map = _json(folder.open(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{where} has no weight_map of tensors to files; it is no index. Fetch it again.")
    shards = {safe_name(file, where=where) for file in weight_map.values()}
    opened = {file: _file_tensors(folder.open(file), file=file) for file in sorted(shards)}
    lost = [f"{key!r} in {file}" for key, file in weight_map.items() if key not in opened[file]]
    if lost:
        raise CheckpointError(f"{where} names tensors that their files lack: {', '.join(lost[:5])}. Fetch it again.")
    return {key: opened[file][key] for key, file in weight_map.items()}


def _config(folder: Folder) -> Mapping[str, object]:
    return _json(folder.open("config.json")) if "config.json" in folder.files else {}


def _json(source: ByteSource) -> dict[str, Any]:
    if source.size > HEADER_LIMIT:
        raise CheckpointError(f"{source.name} has {source.size} bytes; {HEADER_LIMIT} are allowed.")
    try:
        fields = load_json(bytes(source.read(0, source.size)))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{source.name} is no JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{source.name} holds a JSON {type(fields).__name__}; it must be an object.")
    return fields
