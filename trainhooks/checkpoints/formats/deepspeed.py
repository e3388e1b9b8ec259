"""DeepSpeed without ZeRO 3: `mp_rank_NN_model_states.pt`, one whole model or one piece of it a tensor rank."""

from __future__ import annotations

import re

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.formats.format import Contents, Folder, Format
from trainhooks.checkpoints.formats.settings import saved_settings
from trainhooks.checkpoints.formats.stored_tensor import StoredTensor, renamed
from trainhooks.checkpoints.formats.tensor_parallel import joined_ranks
from trainhooks.checkpoints.formats.torch_zip import Saved

WORLD = "mp_world_size"
OF_A_RANK = re.compile(r"mp_rank_(?P<rank>\d{2,4})_model_states\.pt")


def _files(folder: Folder) -> list[str]:
    return sorted(name for name in folder.files if OF_A_RANK.fullmatch(name))


def _read(folder: Folder) -> Contents:
    files = _files(folder)
    opened = [Saved.read(folder.open(file), file=file) for file in files]
    told = opened[0].field(WORLD)
    if files != [f"mp_rank_{rank:02d}_model_states.pt" for rank in range(len(files))] or told not in (None, len(files)):
        raise CheckpointError(
            f"{folder.name} holds {', '.join(files[:8])} of {told or 'more'} tensor ranks: a rank's file is missing."
        )
    settings = saved_settings(opened[0].field("args")) | ({WORLD: told} if isinstance(told, int) else {})
    ranks = [saved.tensors(saved.field("module")) for saved in opened]
    if not any(ranks):
        raise CheckpointError(f"{folder.name}/{files[0]} holds no tensors under module; its weights lie elsewhere.")
    tensors = joined_ranks(ranks, name=folder.name, settings=settings)
    return Contents(with_shared(tensors, opened[0]), settings)


def with_shared(tensors: dict[str, StoredTensor], saved: Saved) -> dict[str, StoredTensor]:
    """The tensors with the further names that DeepSpeed lists for one (`shared_params`) marked as such."""
    shared = saved.field("shared_params")
    pairs = shared.items() if isinstance(shared, dict) else shared if isinstance(shared, list) else ()
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(name, str) for name in pair):
            continue
        name, own = pair
        if own in tensors and name != own:
            tensors[name] = renamed(tensors[own], key=name, alias_of=own)
    return tensors


DEEPSPEED = Format("DeepSpeed", lambda folder: bool(_files(folder)), _read)
