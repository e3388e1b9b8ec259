"""DeepSpeed's ZeRO 3: every tensor cut into one run of numbers a data rank, in the optimizer's flat float32 groups.

Source: deepspeed/utils/zero_to_fp32.py, stage 3: a tensor's runs are of ceil(numel / ranks) numbers, one after another
in the order of `param_shapes`; the last run of a tensor ends in padding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainhooks.checkpoints.base import CheckpointError, TensorEntry
from trainhooks.checkpoints.formats.deepspeed import with_shared
from trainhooks.checkpoints.formats.dtypes import MOST_TENSORS, is_shape
from trainhooks.checkpoints.formats.format import Contents, Folder, Format
from trainhooks.checkpoints.formats.pickled import Inert, Strided
from trainhooks.checkpoints.formats.settings import saved_settings
from trainhooks.checkpoints.formats.stored_tensor import Part, StoredTensor, reshaped
from trainhooks.checkpoints.formats.torch_zip import Saved

STATES = re.compile(r"zero_pp_rank_(?P<rank>\d{1,5})_mp_rank_(?P<tensor>\d{2,4})_model_states\.pt")
FLAT = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(?P<rank>\d{1,5})_mp_rank_(?P<tensor>\d{2,4})_optim_states\.pt")
NOTE = "ZeRO 3's float32 master weights"
FOUR = 4  # bytes of a float32


Groups = list[tuple[Saved, Strided]]  # of one rank, end to end


@dataclass(frozen=True)
class _Run:
    """A stretch of one rank's numbers that lies in one tensor of its file."""

    saved: Saved
    group: Strided
    begin: int
    stop: int

    def part(self, at: int) -> Part:
        """The stretch as the numbers from `at` on of a flat tensor."""
        count = self.stop - self.begin
        inside = Strided(self.group.storage, self.group.offset + self.begin, (count,), (1,))
        return replace(self.saved.archive.part(inside, itemsize=FOUR), offsets=(at,))


def _read(folder: Folder) -> Contents:
    states = sorted(name for name in folder.files if STATES.fullmatch(name))
    first = Saved.read(folder.open(states[0]), file=states[0])
    shapes = _shapes(first)
    ranks = _ranks(folder)
    tensors = dict(_tensors(shapes, ranks, name=folder.name))
    buffers = {
        key: stored for key, stored in first.tensors(first.field("module")).items() if 0 not in stored.entry.shape
    }
    tensors |= {key: stored for key, stored in buffers.items() if key not in tensors}
    return Contents(with_shared(tensors, first), saved_settings(first.field("args")))


def _shapes(saved: Saved) -> dict[str, tuple[int, ...]]:
    """The parameters' shapes, in the order in which they lie in the groups. Raises CheckpointError."""
    listed = saved.field("param_shapes")
    groups: list[Any] = listed if isinstance(listed, list) else [listed]
    merged: dict[Any, Any] = {}
    for group in groups:
        merged |= group if isinstance(group, dict) else {}
    if not merged or not all(isinstance(key, str) and is_shape(shape) for key, shape in merged.items()):
        raise CheckpointError(f"{saved.archive.source.name} says no shapes of parameters that can be read.")
    return {key: tuple(shape) for key, shape in merged.items()}


def _ranks(folder: Folder) -> list[Groups]:
    """Each data rank's flat groups. Raises CheckpointError where a rank's file is missing or it is not stage 3."""
    named = {int(fits["rank"]): name for name in sorted(folder.files) if (fits := FLAT.fullmatch(name))}
    if any(not name.endswith("_mp_rank_00_optim_states.pt") for name in named.values()):
        raise CheckpointError(
            f"{folder.name}: ZeRO 3 beside tensor parallelism is not read. Convert it with zero_to_fp32.py."
        )
    found: list[Groups] = []
    for rank in sorted(named):
        saved = Saved.read(folder.open(named[rank]), file=named[rank])
        state = saved.field("optimizer_state_dict")
        state = state if isinstance(state, dict) else {}
        count, groups = state.get("partition_count"), state.get("fp32_flat_groups")
        count = count[0] if isinstance(count, list) and count else count
        if _number(state.get("zero_stage")) != 3 or not isinstance(groups, list) or not groups or not _are_flat(groups):
            raise CheckpointError(f"{saved.archive.source.name} holds no flat float32 groups of ZeRO 3.")
        if list(named) != list(range(len(named))) or count != len(named):
            raise CheckpointError(f"{folder.name} holds {len(named)} of {count} data ranks' files: fetch the others.")
        found.append([(saved, group) for group in groups])
    if not found:
        raise CheckpointError(f"{folder.name} holds no *_optim_states.pt: with ZeRO 3 the weights lie in them.")
    return found


def _number(value: Any) -> Any:
    """A number, or the one that an enumeration's member stands for."""
    return value.arguments[0] if isinstance(value, Inert) and len(value.arguments) == 1 else value


def _are_flat(groups: list[Any]) -> bool:
    return all(
        isinstance(group, Strided)
        and group.storage.dtype == "float32"
        and len(group.shape) == 1
        and (group.shape[0] < 2 or group.stride == (1,))
        for group in groups
    )


def _tensors(
    shapes: Mapping[str, tuple[int, ...]], ranks: Sequence[Groups], *, name: str
) -> Iterator[tuple[str, StoredTensor]]:
    if len(shapes) * len(ranks) > MOST_TENSORS:
        raise CheckpointError(f"{name} lists more than {MOST_TENSORS} pieces; they are not read.")
    held = [sum(group.shape[0] for _, group in groups) for groups in ranks]
    begin = 0
    for key, shape in shapes.items():
        numel = math.prod(shape)
        length = -(-numel // len(ranks))
        if begin + length > min(held):
            raise CheckpointError(f"{name}: {key!r} of shape {shape} ends beyond the {min(held)} numbers of a rank.")
        yield key, _tensor(key, shape, ranks, begin=begin, length=length)
        begin += length


def _runs(groups: Groups, begin: int, stop: int) -> Iterator[_Run]:
    """Numbers `begin` to `stop` of a rank's groups, laid end to end."""
    at = 0
    for saved, group in groups:
        size = group.shape[0]
        first, last = max(begin, at), min(stop, at + size)
        if first < last:
            yield _Run(saved, group, first - at, last - at)
        at += size


def _tensor(key: str, shape: tuple[int, ...], ranks: Sequence[Groups], *, begin: int, length: int) -> StoredTensor:
    numel = math.prod(shape)
    files = ",".join(dict.fromkeys(groups[0][0].file for groups in ranks))
    entry = TensorEntry(key, "float32", shape, files, numel * FOUR, note=NOTE)

    def locate() -> tuple[Part, ...]:
        parts = []
        for rank, groups in enumerate(ranks):
            at = rank * length
            for run in _runs(groups, begin, begin + length):
                stop = min(run.stop, run.begin + max(0, numel - at))  # what follows is padding
                if stop > run.begin:
                    parts.append(replace(run, stop=stop).part(at))
                at += run.stop - run.begin
        return tuple(parts)

    return reshaped(StoredTensor(replace(entry, shape=(numel,)), locate), entry)


ZERO_3 = Format("DeepSpeed ZeRO 3", lambda folder: any(map(STATES.fullmatch, folder.files)), _read)
