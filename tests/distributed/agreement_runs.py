"""What ranks do differently by mistake; started with `torch.multiprocessing.spawn`."""

from __future__ import annotations

from pathlib import Path

import rank_runs
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import trainhooks as th
from trainhooks.metrics.group_convergence import GroupConvergence


def two_ranks(rank: int, world: int, folder: Path) -> None:
    """Each mistake notes what every rank is told; then runs that look odd and are none."""
    rank_runs.start(rank, world, folder)
    mistakes = (other_metrics, other_schedules, one_budget, store_of_one, other_precision, sharded_later, loaded_by_one)
    for mistake in (*mistakes, store_is_there):
        path = folder / mistake.__name__
        try:
            mistake(rank, world, path)
        except (RuntimeError, ValueError) as error:
            path.with_name(f"{path.name}-{rank}").write_text(f"{type(error).__name__}: {error}")
    evaluated_before(folder / "evaluated.zarr")
    dist.destroy_process_group()


def sharded(world: int) -> nn.Module:
    return rank_runs.fsdp(rank_runs.build(), world)


def begin(model: nn.Module, store: Path | None = None, **settings: object) -> None:
    """As far as the first step."""
    with th.Recorder(model, store=store, head="lm_head", **{"metrics": [], **settings}) as record:
        record.begin_step()


def other_metrics(rank: int, world: int, path: Path) -> None:
    begin(sharded(world), metrics=[GroupConvergence()] if rank else [])


def other_schedules(rank: int, world: int, path: Path) -> None:
    begin(sharded(world), schedule=th.Every(1 + rank))


def one_budget(rank: int, world: int, path: Path) -> None:
    begin(rank_runs.ddp(rank_runs.build(), world), budget=0.1 if rank else None)


def store_of_one(rank: int, world: int, path: Path) -> None:
    begin(rank_runs.ddp(rank_runs.build(), world), store=None if rank else path, metrics=[GroupConvergence()])


def other_precision(rank: int, world: int, path: Path) -> None:
    begin(sharded(world), store=path, precision="bfloat16" if rank else "float32")


def sharded_later(rank: int, world: int, path: Path) -> None:
    model = rank_runs.build()
    record = th.Recorder(model, head="lm_head", metrics=[])
    rank_runs.fsdp(model, world)
    record.begin_step()


def loaded_by_one(rank: int, world: int, path: Path) -> None:
    model = sharded(world)
    with th.Recorder(model, head="lm_head", metrics=[]) as record:
        record.begin_step(torch.ones(1, 4, dtype=torch.int64))
        record.after_update()
        state = record.state_dict()
    with th.Recorder(model, head="lm_head", metrics=[]) as record:
        if rank == 0:
            record.load_state_dict(state)
        record.begin_step()


def store_is_there(rank: int, world: int, path: Path) -> None:
    if rank == 0:
        path.mkdir()
        (path / "other").touch()
    dist.barrier()
    begin(sharded(world), store=path)


def evaluated_before(store: Path) -> None:
    """A pass without a backward one leaves the parameters of the outermost module whole; then the recorder is made."""
    model = fully_shard(rank_runs.build())
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.int64))
    with rank_runs.recorder(model, store) as record:
        rank_runs.train(model, record, way="fsdp")
