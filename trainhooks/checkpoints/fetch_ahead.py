"""The output embedding of a hub's shards, fetched with its file's header: what names, sizes and settings foretell."""

from __future__ import annotations

from collections.abc import Container, Mapping

from trainhooks.checkpoints.base import Checkpoint, TensorEntry
from trainhooks.checkpoints.declared_head import declared_by
from trainhooks.checkpoints.head_key import named_as_head
from trainhooks.checkpoints.opening import FileCheckpoint
from trainhooks.model.head_names import vocabulary_of

MOST_AHEAD = 1 << 30
ENTRY_BYTES = 160  # of a header, beside a tensor's key
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
WIDTHS = ("hidden_size", "n_embd", "d_model")


def fetch_head(checkpoint: Checkpoint, *, key: str | None = None, known: Container[str] = ()) -> None:
    """Bring the output embedding of a hub's checkpoint into the cache in one request, with its file's header.

    Done where an index says that the tensor that is the head by its name lies alone in its file, or first, as the
    format's writers lay names out, and how long it is follows from the file's size or the settings; else nothing is
    asked for. The header then says where it lies and how long it is, as it does for everybody. `key` is the head's
    where that is known; of what has one of the identities `known` nothing is fetched. Raises CheckpointError where the
    file cannot be read.
    """
    if not isinstance(checkpoint, FileCheckpoint) or not checkpoint.is_at_hub:
        return
    tensors = checkpoint.tensors
    names = _names(checkpoint) if key is None else [key]
    if len(names) != 1 or names[0] not in tensors or tensors[names[0]].announced or tensors[names[0]].absent:
        return
    length = _length(names[0], tensors, config=checkpoint.config, sizes=checkpoint.sizes)
    if 0 < length <= MOST_AHEAD and checkpoint.identity(names[0]) not in known:
        checkpoint.fetch(names[0], first_bytes=length)


def _names(checkpoint: Checkpoint) -> list[str]:
    declared = declared_by(checkpoint.config)
    if declared is not None and declared.head in checkpoint.tensors:
        return [declared.head]
    return named_as_head(checkpoint)


def _length(
    key: str, tensors: Mapping[str, TensorEntry], *, config: Mapping[str, object], sizes: Mapping[str, int]
) -> int:
    """Bytes from the file's begin to the tensor's end, or a little more; 0 where nobody can say.

    Settings that name a wider type than is stored make it up to twice as much.
    """
    file = tensors[key].file
    beside = [name for name, entry in tensors.items() if entry.file == file]
    if not file.endswith(".safetensors") or min(beside) != key:
        return 0
    if len(beside) == 1:
        return sizes.get(file, 0)
    rows, width = vocabulary_of(config), next((config[name] for name in WIDTHS if name in config), None)
    stored = BYTES.get(str(config.get("torch_dtype", config.get("dtype"))), 0)
    if rows is None or not isinstance(width, int) or width < 0:
        return 0
    header = sum(len(name) + ENTRY_BYTES for name in beside)
    return header + max(rows, 0) * width * stored if stored else 0
