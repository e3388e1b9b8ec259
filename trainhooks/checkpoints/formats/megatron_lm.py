"""Megatron-LM's folder of a step: one folder `mp_rank_NN` for each rank of a model that was split."""

from __future__ import annotations

import re

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.formats.format import Contents, Folder, Format
from trainhooks.checkpoints.formats.single_file import SINGLE_FILE

OF_A_RANK = re.compile(r"mp_rank_\d{2,}(?:_\d{3,})?(?:_\d{3,})?")


def _ranks(folder: Folder) -> list[str]:
    return sorted(name for name in folder.folders if OF_A_RANK.fullmatch(name))


def _read(folder: Folder) -> Contents:
    ranks = _ranks(folder)
    if len(ranks) > 1:
        raise CheckpointError(
            f"{folder.name} holds no weights itself; {', '.join(ranks[:8])} below it do. Give the path of one that "
            "holds the whole model; parts of tensors must be merged first."
        )
    return SINGLE_FILE.read(folder.below(ranks[0]))


MEGATRON_LM = Format("Megatron-LM", lambda folder: bool(_ranks(folder)), _read)
