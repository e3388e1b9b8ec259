"""Several processes that train one model: which part of it is here, and sums over the ranks.

The only file that calls collectives. Plain tensors are replicated (DDP), `DTensor`s are sharded (FSDP2's
`fully_shard`, tensor parallelism, both together); those of FullyShardedDataParallel, the older way, are gathered for
each record. Every sum adds disjoint parts, so that it is the single process' one to rounding, whatever the world size.
"""

from __future__ import annotations

import hashlib
import sys
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainhooks.model.rank_parts import LocalPart, RowShard, Slices
from trainhooks.model.rendezvous import meet

COME_TOGETHER = "Where ranks come here at very different times, call torch.distributed.barrier() before."


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a `DTensor`, of which a rank holds a part."""
    module = sys.modules.get("torch.distributed.tensor")  # whoever has one has imported it
    return module is not None and isinstance(tensor, module.DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor with all its parts, on every rank that holds one; what is not sharded comes back as it is.

    A gather for a `DTensor`: all ranks of its mesh must call this.
    """
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    full: Tensor = sharded.full_tensor()
    return full


def local_tensor(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, detached; all of it where it is not sharded."""
    held: Any = tensor
    local: Tensor = held.to_local() if is_sharded(tensor) else tensor
    return local.detach()


def local_slice(full: Tensor, *, like: Tensor) -> Tensor:
    """What this rank holds of `full` where that is spread as `like` is."""
    if not is_sharded(like):
        return full
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    spread: Any = like
    shape, offset = compute_local_shape_and_global_offset(spread.shape, spread.device_mesh, spread.placements)
    return full[tuple(slice(first, first + count) for first, count in zip(offset, shape, strict=True))]


def gather_local(held: Tensor, *, like: Tensor) -> Tensor:
    """The whole tensor of which each rank holds a share, spread as `like` is; all ranks of its mesh must call this."""
    if not is_sharded(like):
        return held
    from torch.distributed.tensor import DTensor

    spread: Any = like
    return full_tensor(
        DTensor.from_local(
            held.to(local_tensor(like).device),
            spread.device_mesh,
            spread.placements,
            run_check=False,
            shape=spread.shape,
            stride=spread.stride(),
        )
    )


def reshard(model: nn.Module) -> None:
    """Put FSDP2's parameters back into their sharded form, which a pass without a backward one leaves behind."""
    for module in model.modules():
        again = getattr(module, "reshard", None)
        if callable(again) and _fsdp_mesh(module) is not None:
            again()


def _is_flat(model: nn.Module) -> bool:
    wrappers: list[Any] = [m for m in model.modules() if "FullyShardedDataParallel" in _class_names(m)]
    if not all(wrapper._use_orig_params for wrapper in wrappers):
        raise ValueError(
            "FullyShardedDataParallel without its original parameters: their values cannot be followed. Pass "
            "use_orig_params=True (Lightning does), or shard the model with torch.distributed.fsdp.fully_shard."
        )
    return bool(wrappers)


def _class_names(module: nn.Module) -> list[str]:
    return [base.__name__ for base in type(module).__mro__]


@contextmanager
def summon_full_params(model: nn.Module, *, gradients: bool) -> Iterator[None]:
    """Inside, the parameters that `FullyShardedDataParallel` flattened are whole on every rank, and so are gradients
    if asked for; what is written into them is lost.

    A gather of the whole model: all ranks must enter and leave together, and not during a pass.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(model, writeback=False, with_grads=gradients):
        yield


class Announcement:
    """A number on its way from the device `told` is on."""

    def __init__(self, told: Tensor) -> None:
        self._number = torch.empty((), dtype=told.dtype, pin_memory=told.is_cuda)
        self._number.copy_(told, non_blocking=True)
        self._arrived = torch.cuda.Event() if told.is_cuda else None
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(told.device))

    def read(self) -> int:
        """The number; waits where it has not arrived yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return int(self._number)


class RankGroup:
    """The processes that train `model` together, as one of them sees it; alone where there is one process.

    All ranks must make it, and call what says "collective" in the same order. `is_rank0`: global rank 0, which has
    the sinks. `computes_metrics`: rank 0 alone where every rank has the whole model (DDP), all of them where it is
    sharded, since reading it then takes all. `is_data_rank`: of the ranks that train on the same batches (tensor
    parallelism), the one that counts them.

    `misses_labels`: other ranks train on labels that nobody counts (see `meet`).

    `uses_fsdp1`: `FullyShardedDataParallel` has laid the parameters end to end; they have rows only inside
    `summon_full_params`.

    Raises ValueError for `FullyShardedDataParallel` without its original parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        reshard(model)  # after an evaluation the parameters of a sharded model are no `DTensor`s
        tensors = list(model.parameters())
        self.uses_fsdp1 = _is_flat(model)
        self.sharded = self.uses_fsdp1 or any(is_sharded(tensor) for tensor in tensors)
        ready = dist.is_available() and dist.is_initialized()
        self.is_single = not ready or (dist.get_world_size() == 1 and not self.sharded)
        self.rank = 0 if self.is_single else dist.get_rank()
        self.size = 1 if self.is_single else dist.get_world_size()
        self.is_rank0 = self.rank == 0
        self.computes_metrics = self.is_rank0 or self.sharded
        self.is_data_rank = self.is_single or 0 in self._ranks_with_other_data(model)
        self.misses_labels = False
        self._model = model
        self._made = self.sharded, self.size, self.is_data_rank

    def _ranks_with_other_data(self, model: nn.Module) -> Sequence[int]:
        """The global ranks beside which this one trains on other batches than they do; itself is one of them."""
        if self.uses_fsdp1:
            return list(range(self.size))
        for module in model.modules():
            if isinstance(module, nn.parallel.DistributedDataParallel):
                return list(dist.get_process_group_ranks(module.process_group))
            if (mesh := _fsdp_mesh(module)) is not None:
                return [int(rank) for rank in mesh.mesh.flatten().tolist()]
        return [self.rank] if self.sharded else list(range(self.size))

    def meet(self) -> None:
        """Wait until every rank has made its recorder; where some make none, one rank goes on alone, and says so.

        RuntimeError where the model is sharded: then all ranks are needed to read it.
        """
        alone = None if self.is_single else meet(rank=self.rank, size=self.size)
        if alone is None:
            return
        if self.sharded:
            raise RuntimeError(
                f"not every rank of {self.size} has made a recorder, and the model is sharded: reading it takes all of "
                f"them. Every rank makes the same recorder and calls its moments (rank 0 alone has the sinks). "
                f"{COME_TOGETHER}"
            )
        self._go_on_alone(alone)

    def _go_on_alone(self, chosen: int) -> None:
        me, size = self.rank, self.size
        self.is_single, self.is_rank0, self.computes_metrics, self.size = True, me == chosen, me == chosen, 1
        self.misses_labels = any(isinstance(m, nn.parallel.DistributedDataParallel) for m in self._model.modules())
        what = (
            f"rank {me} records alone: not every rank of {size} has made a recorder. It sees its own model, and the "
            "hidden states and labels of its own batches"
            + ("; label counts are left out." if self.misses_labels else ".")
            if me == chosen
            else f"the recorder of rank {me} does nothing: rank {chosen} records alone, since ranks were missing when "
            f"it was made. {COME_TOGETHER}"
        )
        warnings.warn(f"{what} Every rank should make the same recorder.", RuntimeWarning, stacklevel=5)

    @property
    def _device(self) -> torch.device:
        """Where the model is now: NCCL sums on its own device, gloo on any."""
        return next((tensor.device for tensor in self._model.parameters()), torch.device("cpu"))

    def check_still_so(self) -> None:
        """Raise ValueError where the model has been sharded, or the processes have joined, since this was made."""
        now = RankGroup(self._model)
        if now._made != self._made:
            raise ValueError(
                "the model was sharded, or its processes joined, after the recorder was made. Make the recorder after "
                "init_process_group(), fully_shard() and parallelize_module(), before the first step."
            )

    def check_same(self, said: Mapping[str, object]) -> None:
        """Raise ValueError, on every rank, where one says something else than rank 0 (collective).

        All name the same things, in one order; what is said of them is compared by its `repr`.
        """
        digests = [hashlib.sha256(repr(value).encode()).digest()[:8] for value in said.values()]
        mine = torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])
        told = torch.stack(self.all_gather(mine)).cpu()
        for name, same in zip(said, (told == told[0]).unbind(1), strict=True):
            if not same.all():
                others = ", ".join(str(rank) for rank in (~same).nonzero().flatten().tolist()[:8])
                raise ValueError(
                    f"the recorder of rank {others} has other {name} than rank 0's: make the same recorder and load "
                    f"the same state on every rank. Rank {self.rank} has {repr(said[name])[:200]}."
                )

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, on all of them (collective); the tensor itself where alone."""
        if self.is_single:
            return tensor
        total = tensor.detach().to(self._device, copy=True)
        dist.all_reduce(total)
        return total

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """The largest value on any rank, by element (collective)."""
        if self.is_single:
            return tensor
        most = tensor.detach().to(self._device, copy=True)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return most

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank (collective)."""
        return flag if self.is_single else bool(self.all_reduce_sum(torch.tensor(int(flag))))

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Each rank's tensor, of one shape everywhere, in order of ranks (collective)."""
        if self.is_single:
            return [tensor]
        mine = tensor.detach().to(self._device).contiguous()
        gathered = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(gathered, mine)
        return gathered

    def exclusive_sum(self, count: int) -> int:
        """The sum of the counts of the ranks with data that come before this one (collective)."""
        counts = self.all_gather(torch.tensor(count * self.is_data_rank))
        return int(sum(int(c) for c in counts[: self.rank]))

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value, on every rank (collective); small plain values."""
        if self.is_single:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=self._device)
        return held[0]

    def broadcast_async(self, number: int) -> Announcement:
        """Rank 0's number, to be read on every rank some steps later (collective); nothing waits for the device."""
        told = torch.full((), number, device=torch.device("cpu") if self.is_single else self._device)
        if not self.is_single:
            dist.broadcast(told, src=0)
        return Announcement(told)

    @contextmanager
    def raise_together(self, what: str) -> Iterator[None]:
        """What fails on rank 0 inside fails everywhere (collective): RuntimeError on the others, before they wait."""
        error: BaseException | None = None
        try:
            yield
        except Exception as caught:  # the others must hear of it, whatever it is
            if not self.is_rank0:
                raise
            error = caught
        said = self.broadcast_object(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        if said is not None:
            raise RuntimeError(f"rank 0 could not {what}: {said}")

    def part(self, tensor: Tensor) -> LocalPart | None:
        """What this rank adds of a tensor, so that the ranks' parts make up the whole once; None for nothing.

        Replicas add nothing: of a plain tensor rank 0 has the one that counts, of a sharded one those of its copies
        whose mesh holds rank 0.
        """
        if not is_sharded(tensor):
            return LocalPart(tensor.detach(), (0,) * tensor.ndim, tuple(tensor.shape)) if self.is_rank0 else None
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        sharded: Any = tensor
        mesh, placements = sharded.device_mesh, sharded.placements
        where = mesh.get_coordinate()
        if where is None or 0 not in mesh.mesh.flatten().tolist():
            return None
        if any(placement.is_replicate() and place for placement, place in zip(placements, where, strict=True)):
            return None
        _, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
        return LocalPart(sharded.to_local().detach(), tuple(offset), tuple(tensor.shape))

    def slices(self, groups: Mapping[str, Iterable[tuple[str, Tensor]]]) -> dict[str, Slices]:
        """By parameter name, the runs of elements that this rank adds (`LocalPart.slices`); made when they are read."""
        tensors = {name: tensor for members in groups.values() for name, tensor in members}
        parts = {name: self.part(tensor) for name, tensor in tensors.items()}
        return {name: iter(()) if part is None else part.slices() for name, part in parts.items()}

    def rows(self, weight: Tensor, *, folder: Path) -> RowShard | None:
        """How the ranks write a matrix by rows, each its own, without a gather (collective, once).

        None where one rank must write it all: it is not sharded, not by rows, or the ranks do not see one `folder`.
        """
        if self.is_single or not self.any(is_sharded(weight)):
            return None
        part = self.part(weight)
        mine = (-1, -1)
        if part is not None and len(part.values):
            by_rows = part.values.shape[1:] == part.shape[1:]
            mine = (part.offset[0], part.offset[0] + len(part.values)) if by_rows else (-2, -2)
        ranges = [(int(a), int(b)) for a, b in torch.stack(self.all_gather(torch.tensor(mine))).tolist()]
        writers = [rank for rank, (start, _) in enumerate(ranges) if start >= 0]
        if not self._sees(folder) or not _cover([ranges[rank] for rank in writers], len(weight)) or 0 not in writers:
            return None
        if self.rank not in writers:
            return RowShard(-1, len(writers), (0, 0))
        return RowShard(writers.index(self.rank), len(writers), mine)

    def _sees(self, folder: Path) -> bool:
        """Whether every rank sees what rank 0 writes into the folder."""
        name = self.broadcast_object(f".{uuid.uuid4().hex}.partial")
        with self.raise_together(f"write into {folder}"):
            if self.is_rank0:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
        blind = self.any(not (folder / name).exists())
        if self.is_rank0:
            (folder / name).unlink()
        return not blind


def _fsdp_mesh(module: nn.Module) -> Any:
    """The mesh over which FSDP2 spreads data, None where this module is not wrapped so."""
    if "FSDPModule" not in _class_names(module):
        return None
    wrapped: Any = module
    state = wrapped._get_fsdp_state()
    # a list since torch 2.11, one group or None before
    groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
    return None if groups[0] is None else groups[0].mesh_info.mesh


def _cover(ranges: Sequence[tuple[int, int]], rows: int) -> bool:
    ends = [0]
    for start, stop in sorted(ranges):
        if start != ends[-1]:
            return False
        ends.append(stop)
    return ends[-1] == rows
