"""Megatron-LM's folder of a step: one folder `mp_rank_TT[_PPP]` for each rank of a model that was split."""

from __future__ import annotations

import re
from collections.abc import Mapping

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.formats.format import Contents, Folder, Format
from trainhooks.checkpoints.formats.settings import saved_settings
from trainhooks.checkpoints.formats.single_file import TORCH_SUFFIXES
from trainhooks.checkpoints.formats.stored_tensor import StoredTensor, renamed
from trainhooks.checkpoints.formats.tensor_parallel import joined_ranks
from trainhooks.checkpoints.formats.torch_zip import Saved
from trainhooks.checkpoints.weight_files import may_be_weights

OF_A_RANK = re.compile(r"mp_rank_(?P<tensor>\d{2,4})(?:_(?P<stage>\d{3}))?(?:_(?P<expert>\d{3}))?")
MODEL = re.compile(r"model\d{0,3}")  # model0, model1, ... with virtual stages

Grid = dict[tuple[int, int], str]


def _ranks(folder: Folder) -> Grid:
    """The ranks' folders by pipeline stage and tensor rank; of several ranks of experts the first."""
    found: Grid = {}
    for name in sorted(folder.folders):
        if fits := OF_A_RANK.fullmatch(name):
            found.setdefault((int(fits["stage"] or 0), int(fits["tensor"])), name)
    return found


def _read(folder: Folder) -> Contents:
    ranks = _ranks(folder)
    opened = {place: _saved(folder.below(name), name) for place, name in ranks.items()}
    settings = next((found for saved in opened.values() if (found := _settings(saved))), {})
    stages = sorted({stage for stage, _ in ranks})
    counts = {stage: [tensor for at, tensor in sorted(ranks) if at == stage] for stage in stages}
    _check_grid(folder.name, counts, settings)
    parts = [
        joined_ranks([_model(opened[stage, rank]) for rank in counts[stage]], name=folder.name, settings=settings)
        for stage in stages
    ]
    return Contents(_in_a_row(parts), settings)


def _saved(folder: Folder, rank: str) -> Saved:
    files = [name for name in sorted(folder.files) if name.endswith(TORCH_SUFFIXES) and may_be_weights(name)]
    if len(files) != 1:
        raise CheckpointError(
            f"{folder.name} holds {', '.join(files[:8]) or 'no file'}; one file of weights was wanted."
        )
    return Saved.read(folder.open(files[0]), file=f"{rank}/{files[0]}")


def _settings(saved: Saved) -> dict[str, object]:
    return saved_settings(saved.field("args"))


def _check_grid(name: str, counts: Mapping[int, list[int]], settings: Mapping[str, object]) -> None:
    """That no rank's folder is missing. Raises CheckpointError."""
    stages = settings.get("pipeline_model_parallel_size", len(counts))
    tensor = settings.get("tensor_model_parallel_size", settings.get("model_parallel_size"))
    wanted = tensor if isinstance(tensor, int) else max(len(ranks) for ranks in counts.values())
    if list(counts) != list(range(len(counts))) or len(counts) != stages:
        raise CheckpointError(
            f"{name} holds the pipeline stages {list(counts)[:8]} of {stages}: a rank's folder is missing."
        )
    for ranks in counts.values():
        if ranks != list(range(len(ranks))) or len(ranks) != wanted:
            raise CheckpointError(f"{name} holds the tensor ranks {ranks[:8]} of {wanted}: a rank's folder is missing.")


def _model(saved: Saved) -> dict[str, StoredTensor]:
    content = saved.content if isinstance(saved.content, dict) else {}
    parts = [(name, saved.tensors(part)) for name, part in content.items() if MODEL.fullmatch(str(name))]
    if not any(tensors for _, tensors in parts):
        raise CheckpointError(f"{saved.archive.source.name} holds no tensors under model; it is no rank's file.")
    if len(parts) == 1:
        return parts[0][1]
    return _in_a_row([tensors for _, tensors in parts])


def _in_a_row(parts: list[dict[str, StoredTensor]]) -> dict[str, StoredTensor]:
    """Tensors of one stage after another; layers count anew in each, so a name that was there before is told apart."""
    found: dict[str, StoredTensor] = {}
    for number, tensors in enumerate(parts):
        for key, stored in tensors.items():
            name = f"stage{number}.{key}" if key in found else key
            found[name] = renamed(stored, key=name)
    return found


MEGATRON_LM = Format("Megatron-LM", lambda folder: bool(_ranks(folder)), _read)
