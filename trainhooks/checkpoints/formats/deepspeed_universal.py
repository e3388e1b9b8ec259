"""DeepSpeed's universal checkpoints: a folder `zero/` with a folder for each parameter, its numbers in `fp32.pt`."""

from __future__ import annotations

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.formats.format import Contents, Folder, Format
from trainhooks.checkpoints.formats.pickled import Foreign, Strided
from trainhooks.checkpoints.formats.settings import saved_settings
from trainhooks.checkpoints.formats.stored_tensor import StoredTensor
from trainhooks.checkpoints.formats.torch_zip import Saved

PARAMETERS, WEIGHT, STATES = "zero", "fp32.pt", "mp_rank_00_model_states.pt"
MOST_PARAMETERS = 20_000
NOTE = "the universal checkpoint's float32 master weights"


def _read(folder: Folder) -> Contents:
    below = folder.below(PARAMETERS)
    if len(below.folders) > MOST_PARAMETERS:
        raise CheckpointError(f"{below.name} lists {len(below.folders)} parameters; {MOST_PARAMETERS} are allowed.")
    tensors = {}
    for key in below.folders:
        inside = below.below(key)
        if WEIGHT in inside.files:
            tensors[key] = _parameter(inside, key)
    if not tensors:
        raise CheckpointError(f"{below.name} holds no parameter's {WEIGHT}.")
    saved = Saved.read(folder.open(STATES), file=STATES) if STATES in folder.files else None
    return Contents(tensors, saved_settings(saved.field("args")) if saved else {})


def _parameter(folder: Folder, key: str) -> StoredTensor:
    saved = Saved.read(folder.open(WEIGHT), file=f"{PARAMETERS}/{key}/{WEIGHT}")
    content = saved.field("param") if isinstance(saved.content, dict) else saved.content
    if not isinstance(content, (Strided, Foreign)):
        raise CheckpointError(f"{folder.name}/{WEIGHT} holds no tensor under param.")
    return saved.archive.stored(key, content, file=saved.file, note=NOTE)


def _fits(folder: Folder) -> bool:
    if PARAMETERS not in folder.folders:
        return False
    below = folder.below(PARAMETERS)
    return "optimizer_state.pt" in below.files or any(WEIGHT in below.below(key).files for key in below.folders[:1])


UNIVERSAL = Format("DeepSpeed universal", _fits, _read)
