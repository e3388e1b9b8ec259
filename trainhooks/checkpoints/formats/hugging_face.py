"""`save_pretrained`'s folder: one file of weights of a known name, or an index and its shards."""

from __future__ import annotations

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.formats.format import Contents, Folder, Format
from trainhooks.checkpoints.formats.shards import Shards
from trainhooks.checkpoints.formats.single_file import file_contents
from trainhooks.checkpoints.formats.stored_tensor import StoredTensor
from trainhooks.checkpoints.sources.byte_source import read_json
from trainhooks.checkpoints.sources.local_folder import LocalFolder, safe_name

INDEX = ".index.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
KNOWN = tuple(name + end for name in WEIGHTS for end in ("", INDEX))


def _fits(folder: Folder) -> bool:
    return any(name in folder.files for name in KNOWN)


def _read(folder: Folder) -> Contents:
    name = next(name for name in KNOWN if name in folder.files)
    if name.endswith(INDEX):
        return Contents(_sharded(folder, name))
    return file_contents(folder.open(name), file=name)


def _sharded(folder: Folder, index: str) -> dict[str, StoredTensor]:
    where = f"{folder.name}/{index}"
    weight_map = read_json(folder.open(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{where} has no weight_map of tensors to files; it is no index. Fetch it again.")
    names = {safe_name(file, where=where) for file in weight_map.values()}
    shards = Shards(
        weight_map,
        open_shard=lambda file: file_contents(folder.open(file), file=file).tensors,
        absent=[file for file in names if folder.lacks(file)],
        where=where,
    )
    return shards.open_all() if isinstance(folder, LocalFolder) else shards.tensors()  # here a header costs nothing


HUGGING_FACE = Format("save_pretrained", _fits, _read)
