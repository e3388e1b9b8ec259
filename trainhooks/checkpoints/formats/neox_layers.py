"""GPT-NeoX and other pipelines of DeepSpeed: `layer_NN-model_MM-model_states.pt`, one a layer and tensor rank."""

from __future__ import annotations

import re

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.formats.format import Contents, Folder, Format
from trainhooks.checkpoints.formats.settings import saved_settings, text_settings
from trainhooks.checkpoints.formats.stored_tensor import StoredTensor, renamed
from trainhooks.checkpoints.formats.tensor_parallel import joined_ranks
from trainhooks.checkpoints.formats.torch_zip import Saved, torch_zip_tensors

OF_A_LAYER = re.compile(r"layer_(?P<layer>\d{2,4})-model_(?P<rank>\d{2,4})-model_states\.pt")
STATES = "mp_rank_00_model_states.pt"
CONFIGS, WORLD = "configs", "mp_world_size"
DOUBT = "the model lies in a file a layer, and the last one's file may be missing"


def _layers(folder: Folder) -> dict[int, list[str]]:
    """The files of each layer, by tensor rank. Raises CheckpointError where a rank's is missing."""
    found: dict[int, dict[int, str]] = {}
    for name in sorted(folder.files):
        if fits := OF_A_LAYER.fullmatch(name):
            found.setdefault(int(fits["layer"]), {})[int(fits["rank"])] = name
    ranks = max((max(files) for files in found.values()), default=0) + 1
    for layer, files in found.items():
        if len(files) != ranks:
            raise CheckpointError(
                f"{folder.name} holds {len(files)} of {ranks} files of layer {layer}: fetch the others."
            )
    return {layer: [files[rank] for rank in sorted(files)] for layer, files in sorted(found.items())}


def _read(folder: Folder) -> Contents:
    settings = _settings(folder)
    tensors: dict[str, StoredTensor] = {}
    for layer, files in _layers(folder).items():
        if (told := settings.get(WORLD, len(files))) != len(files):
            raise CheckpointError(f"{folder.name} holds {len(files)} of {told} tensor ranks: fetch the others' files.")
        ranks = [torch_zip_tensors(folder.open(file), file=file) for file in files]
        named = [
            {
                f"sequential.{layer}.{key}": renamed(stored, key=f"sequential.{layer}.{key}")
                for key, stored in rank.items()
            }
            for rank in ranks
        ]
        tensors |= joined_ranks(named, name=folder.name, settings=settings)
    return Contents(tensors, settings, doubt=DOUBT)


def _settings(folder: Folder) -> dict[str, object]:
    """Of the arguments in the states' file, and of the training configuration beside it."""
    found: dict[str, object] = {}
    if CONFIGS in folder.folders:
        below = folder.below(CONFIGS)
        for name in [name for name in sorted(below.files) if name.endswith((".yml", ".yaml"))][:8]:
            found |= text_settings(below.open(name))
    if STATES in folder.files:
        saved = Saved.read(folder.open(STATES), file=STATES)
        found |= saved_settings(saved.field("args"))
        if isinstance(told := saved.field(WORLD), int):
            found[WORLD] = told
    return found


NEOX_LAYERS = Format("GPT-NeoX layer files", lambda folder: any(map(OF_A_LAYER.fullmatch, folder.files)), _read)
