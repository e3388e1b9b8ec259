"""Open one checkpoint: a folder, a file, or a hub repository's revision, in the format that is found there."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from trainhooks.checkpoints.base import Checkpoint, CheckpointError, TensorEntry
from trainhooks.checkpoints.formats.format import Contents, Folder
from trainhooks.checkpoints.formats.layouts import as_told, by_name
from trainhooks.checkpoints.formats.registry import located
from trainhooks.checkpoints.formats.single_file import file_contents
from trainhooks.checkpoints.formats.stored_tensor import StoredTensor
from trainhooks.checkpoints.kept_begin import KeptBegin
from trainhooks.checkpoints.places import HubPlace, hub_place, is_remote
from trainhooks.checkpoints.sources.byte_source import LocalFile, read_json
from trainhooks.checkpoints.sources.http_files import HttpFile
from trainhooks.checkpoints.sources.hub import HubFile, HubFolder, list_hub_folder
from trainhooks.checkpoints.sources.local_folder import LocalFolder
from trainhooks.checkpoints.sources.object_files import ObjectFile
from trainhooks.checkpoints.sources.remote import open_remote_folder
from trainhooks.checkpoints.tensor_cache import TensorCache
from trainhooks.checkpoints.weight_files import WEIGHT_SUFFIXES


@dataclass(frozen=True)
class FileCheckpoint:
    """A `Checkpoint` over stored tensors; `hub_files` are a server's files as listed so far, by name, `cache`
    keeps what was fetched of them; `doubt` as in `Contents`."""

    name: str
    config: Mapping[str, object]
    stored: Mapping[str, StoredTensor]
    hub_files: Mapping[str, HubFile | HttpFile | ObjectFile | None] = field(default_factory=dict)
    cache: TensorCache | None = None
    doubt: str = ""
    _ahead: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    @property
    def digests(self) -> Mapping[str, str]:
        """The hub's hashes of its files, as listed."""
        return {name: file.digest for name, file in self.hub_files.items() if file is not None and file.digest}

    @property
    def is_at_hub(self) -> bool:
        """Whether a hub has listed its files; elsewhere a tensor's identity is read from it."""
        return any(isinstance(file, HubFile) for file in self.hub_files.values())

    @property
    def sizes(self) -> Mapping[str, int]:
        """A server's files by name, in bytes, as listed."""
        return {name: file.size for name, file in self.hub_files.items() if file is not None}

    @cached_property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """Entries by key, as stored."""
        return {key: stored.entry for key, stored in self.stored.items()}

    def read(self, key: str) -> Tensor:
        """The tensor `key` as stored, on the CPU, contiguous; from the cache where it holds it. Raises CheckpointError.

        A local tensor is a private mapping of its file: writing to it does not reach the file.
        """
        stored = self._stored(key)
        file = self.hub_files.get(stored.entry.file)
        if self.cache is None or file is None or not file.digest:
            return stored.read()
        held = self.cache.get(file.origin, entry=stored.entry)
        if held is None:
            held = stored.read()
            try:
                self.cache.put(file.origin, key=key, tensor=held)
            except (OSError, SafetensorError) as error:  # the tensor is right all the same
                warnings.warn(
                    f"{self.cache.folder} does not keep what was fetched: {error}. Set HF_HOME to a folder with room.",
                    stacklevel=2,
                )
        return held

    def expect(self, key: str) -> None:
        """Have a local tensor read ahead while something else is done; one at a hub is not asked for."""
        self._stored(key).expect()

    def fetch(self, key: str, *, first_bytes: int) -> None:
        """Bring a hub's tensor into the cache, which is thought to lie in the first bytes of its file: where the file's
        header is not known yet, these come with it in one request. Raises CheckpointError."""
        file = self.hub_files.get(self._stored(key).entry.file)
        if self.cache is None or not isinstance(file, HubFile) or self.cache.path(file.origin, key=key).exists():
            return
        self._ahead[file.url] = first_bytes
        self.read(key)

    def identity(self, key: str, *, full: bool = False) -> str:
        """A hash that two checkpoints share where the tensor's bytes are the same. Raises CheckpointError.

        At a hub: the hash of the file the tensor lies in, which costs nothing; files that differ elsewhere differ here.
        Elsewhere: of dtype, shape, and first and last MiB, so that equal hashes may still differ in between. An ETag
        is none: a server may give files of one size and time the same.
        `full`: of every value, comparable over formats and places.
        """
        stored = self._stored(key)
        file = self.hub_files.get(stored.entry.file)
        own = isinstance(file, HubFile) and bool(file.digest) and not full
        return f"{file.digest}:{key}" if file is not None and own else stored.digest(full=full)

    def _stored(self, key: str) -> StoredTensor:
        if key not in self.stored:
            raise CheckpointError(f"{self.name} has no tensor {key!r}; it has {', '.join(sorted(self.stored)[:12])}.")
        return self.stored[key]


def is_local(place: str | os.PathLike[str], *, revision: str | None = None) -> bool:
    """Whether a place is one of this machine: it is there, or it is none that a hub could have."""
    text = os.fspath(place)
    here = os.path.lexists(text) or (hub_place(text) is None and not is_remote(text))
    return revision is None and not text.startswith("hf://") and here


def open_checkpoint(
    place: str | os.PathLike[str],
    *,
    revision: str | None = None,
    commit: str | None = None,
    cache: TensorCache | None = None,
    transposed: str | None = None,
    listings: MutableMapping[str, HubFolder] | None = None,
) -> Checkpoint:
    """A checkpoint's tensors, from headers alone: no weight is read.

    `place`: a folder, a file, a hub repository as "org/name", "org/name@revision", "org/name@revision:folder" or
    "hf://org/name@revision", or the URL of a folder or file ("https://", "s3://", "gs://"); what exists on this machine
    comes first. A folder or repository is held against the formats in the order of `formats/registry.py`; what only
    resuming needs is left out, and one that has no weights itself is looked into at most two folders down. `transposed`
    is the key of a matrix that is stored [dim, vocab]; heads whose names say so are seen as [vocab, dim] without it.
    `cache` keeps what was fetched from a hub (default: `TensorCache.default()`), `commit` is what the revision stands
    for, where that is known; `listings` are those of a hub's places, taken where they are there and kept where they are
    not. Of the files of an index those at a hub are opened when one of their tensors is asked for;
    one that is not there leaves its tensors absent. Raises CheckpointError; ImportError where a hub is named and
    huggingface_hub is absent, or a format's own package.
    """
    if is_local(place, revision=revision):
        return _turned(_open_local(Path(place)), transposed)
    text = os.fspath(place)
    hub = hub_place(text)
    if hub is None and not is_remote(text):
        raise CheckpointError(f"{text!r} is neither here nor a hub repository, org/name[@revision].")
    where, file = _split_file(text if hub is None else hub.folder)
    folder: Any = None
    ahead: dict[str, int] = {}
    if hub is None:
        folder, held = open_remote_folder(where), cache
    else:
        held = cache or TensorCache.default()
        place_at = replace(hub, revision=revision or hub.revision or "main", folder=where)
        folder = _hub_folder(place_at, commit=commit, listings={} if listings is None else listings)
        if isinstance(folder, Path):
            return _turned(_open_local(folder / file), transposed)
        folder = replace(folder, opened_as=lambda file: KeptBegin(file, held, ahead=ahead.get(file.url, 0)))
    config, contents, weights = _contents_of_file(folder, file) if file else _contents(folder)
    found = FileCheckpoint(
        folder.name, config, contents.tensors, weights.files, held, doubt=contents.doubt, _ahead=ahead
    )
    return _turned(found, transposed)


def _hub_folder(place: HubPlace, *, commit: str | None, listings: MutableMapping[str, HubFolder]) -> HubFolder | Path:
    """A hub's folder, from `listings` or asked for and kept there: of a revision whose files are all listed its root
    alone, since each of its folders would hold them all again."""
    at, root_at = str(place), str(replace(place, folder=""))
    if place.folder and (root := listings.get(root_at)) is not None and root.further is not None:
        return root.below(place.folder)
    if at in listings:
        return listings[at]
    folder = list_hub_folder(place.repo, revision=place.revision, commit=commit, under=place.folder)
    if isinstance(folder, HubFolder):
        root = folder.root()
        listings[at if root is None else root_at] = folder if root is None else root
    return folder


def _turned(checkpoint: FileCheckpoint, key: str | None) -> FileCheckpoint:
    stored = by_name(checkpoint.stored)
    return replace(checkpoint, stored=stored if key is None else as_told(stored, key, name=checkpoint.name))


def _open_local(path: Path) -> FileCheckpoint:
    try:
        path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if path.is_dir():
        config, contents, _ = _contents(LocalFolder.list(path))
    else:
        contents = file_contents(LocalFile.open(path), file=path.name)
        config = {**contents.config, **_config(LocalFolder.list(path.parent))}
    return FileCheckpoint(str(path), config, contents.tensors, doubt=contents.doubt)


def _split_file(place: str) -> tuple[str, str]:
    """A place's folder and, where it names a file of weights, that file."""
    folder, _, last = place.rpartition("/")
    return (folder, last) if last.endswith(WEIGHT_SUFFIXES) else (place, "")


def _contents_of_file(folder: Any, file: str) -> tuple[Mapping[str, object], Contents, Any]:
    contents = file_contents(folder.open(file), file=file)
    return {**contents.config, **_config(folder)}, contents, folder


def _contents(folder: Any) -> tuple[Mapping[str, object], Contents, Any]:
    """The settings of a checkpoint's folder, what its format reads, and the folder that the weights lie in."""
    found = located(folder)
    if found is None:
        seen = ", ".join([*sorted(folder.files), *(f"{name}/" for name in folder.folders)][:8]) or "nothing"
        raise CheckpointError(
            f"{folder.name} holds no weights: wanted model.safetensors, pytorch_model.bin, an index of either, "
            ".metadata, one .safetensors, .ckpt, .pt, .pth, .bin or .gguf file, or another layout of docs/formats.md; "
            f"it holds {seen}."
        )
    form, weights = found
    contents = form.read(weights)
    return {**contents.config, **(_config(weights) or _config(folder))}, contents, weights


def _config(folder: Folder) -> Mapping[str, object]:
    return read_json(folder.open("config.json")) if "config.json" in folder.files else {}
