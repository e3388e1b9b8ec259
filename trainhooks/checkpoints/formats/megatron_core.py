"""Megatron-core's `torch_dist`: a torch distributed checkpoint, and `common.pt` with the trainer's arguments."""

from __future__ import annotations

from trainhooks.checkpoints.formats.dcp import dcp_tensors
from trainhooks.checkpoints.formats.format import Contents, Folder, Format
from trainhooks.checkpoints.formats.settings import padding_note, saved_settings
from trainhooks.checkpoints.formats.stored_tensor import renamed
from trainhooks.checkpoints.formats.tensor_parallel import is_vocabulary
from trainhooks.checkpoints.formats.torch_zip import Saved
from trainhooks.checkpoints.weight_files import METADATA

COMMON = "common.pt"


def _read(folder: Folder) -> Contents:
    settings = saved_settings(Saved.read(folder.open(COMMON), file=COMMON).field("args"))
    tensors = dcp_tensors(folder.open)
    for key, stored in tensors.items():
        note = padding_note(stored.entry.shape[0], settings) if is_vocabulary(key) and stored.entry.shape else ""
        if note:
            tensors[key] = renamed(stored, note=note)
    return Contents(tensors, settings)


MEGATRON_CORE = Format(
    "Megatron-core torch_dist", lambda folder: METADATA in folder.files and COMMON in folder.files, _read
)
