"""Meta's `consolidated.NN.pth`: a whole model in one file, or a piece of it a tensor rank."""

from __future__ import annotations

import re

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.formats.format import Contents, Folder, Format
from trainhooks.checkpoints.formats.settings import saved_settings
from trainhooks.checkpoints.formats.stored_tensor import StoredTensor
from trainhooks.checkpoints.formats.tensor_parallel import joined_ranks
from trainhooks.checkpoints.formats.torch_zip import torch_zip_tensors
from trainhooks.checkpoints.sources.byte_source import read_json

OF_A_RANK = re.compile(r"consolidated\.\d{2}\.pth")
PARAMS = "params.json"
EMBEDDING, HEAD = "tok_embeddings.weight", "output.weight"


def _files(folder: Folder) -> list[str]:
    return sorted(name for name in folder.files if OF_A_RANK.fullmatch(name))


def _read(folder: Folder) -> Contents:
    files = _files(folder)
    if files != [f"consolidated.{rank:02d}.pth" for rank in range(len(files))]:
        raise CheckpointError(f"{folder.name} holds {', '.join(files[:8])}: a rank's file is missing.")
    settings = saved_settings(read_json(folder.open(PARAMS))) if PARAMS in folder.files else {}
    ranks = [torch_zip_tensors(folder.open(file), file=file) for file in files]
    columns = [EMBEDDING] if _is_split_by_columns(ranks, name=folder.name) else []
    return Contents(joined_ranks(ranks, name=folder.name, settings=settings, by_columns=columns), settings)


def _is_split_by_columns(ranks: list[dict[str, StoredTensor]], *, name: str) -> bool:
    """Whether each rank's embedding has a row for each id, as in the first two versions: as many as all heads' rows.

    Raises CheckpointError where the heads have fewer.
    """
    first = ranks[0]
    if EMBEDDING not in first or HEAD not in first:
        return False
    own, head = first[EMBEDDING].entry.shape, first[HEAD].entry.shape
    if len(own) == len(head) == 2 and own[0] not in (head[0], head[0] * len(ranks)):
        raise CheckpointError(
            f"{name}: the heads of {len(ranks)} ranks have {head[0] * len(ranks)} rows, the embedding {own[0]}: a "
            "rank's file is missing."
        )
    return len(ranks) > 1 and len(own) == len(head) == 2 and own[0] == head[0] * len(ranks)


META = Format("Meta's consolidated", lambda folder: bool(_files(folder)), _read)
