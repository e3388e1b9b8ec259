"""`save_pretrained`'s folder: one file of weights of a known name, or an index and its shards."""

from __future__ import annotations

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.formats.format import Contents, Folder, Format
from trainhooks.checkpoints.formats.single_file import file_contents
from trainhooks.checkpoints.formats.stored_tensor import StoredTensor
from trainhooks.checkpoints.sources.byte_source import read_json
from trainhooks.checkpoints.sources.local_folder import safe_name

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
    shards = {safe_name(file, where=where) for file in weight_map.values()}
    opened = {file: file_contents(folder.open(file), file=file).tensors for file in sorted(shards)}
    lost = [f"{key!r} in {file}" for key, file in weight_map.items() if key not in opened[file]]
    if lost:
        raise CheckpointError(f"{where} names tensors that their files lack: {', '.join(lost[:5])}. Fetch it again.")
    return {key: opened[file][key] for key, file in weight_map.items()}


HUGGING_FACE = Format("save_pretrained", _fits, _read)
