"""Ranks that make no recorder, or make it late; started with `torch.multiprocessing.spawn`."""

from __future__ import annotations

import warnings
from pathlib import Path

import rank_runs
import torch
import torch.distributed as dist
from loops import DIM, VOCAB, batches
from torch import nn

import trainhooks as th
from trainhooks.model import rendezvous as meeting


def two_ranks(rank: int, world: int, folder: Path) -> None:
    """Each run notes what this rank is told; nobody is waited for long, as the absent never come."""
    rank_runs.start(rank, world, folder)
    meeting.LONGEST_SECONDS, meeting.WORD_SECONDS, meeting.LOOK_SECONDS = 0.6, 0.2, 0.2
    for run in (first_alone, last_stage_alone, sharded_alone, late):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                run(rank, world, folder / f"{run.__name__}.zarr")
            except RuntimeError as error:
                warnings.warn(f"raised: {error}", RuntimeWarning, stacklevel=1)
        said = [str(warning.message) for warning in told if warning.category is RuntimeWarning]
        (folder / f"{run.__name__}-{rank}").write_text("\n".join(said))
        dist.barrier()
    dist.destroy_process_group()


class Nothing:
    """Where a rank has no recorder."""

    def __getattr__(self, name: str):
        return lambda *arguments, **settings: None


def first_alone(rank: int, world: int, path: Path) -> None:
    """Replicas, of which rank 0 alone has a recorder."""
    model = rank_runs.ddp(rank_runs.build(), world)
    record = Nothing() if rank else rank_runs.recorder(model, path)
    meeting._MEETINGS.__next__() if rank else None
    rank_runs.train(model, record, way="ddp")
    record.close()


def last_stage_alone(rank: int, world: int, path: Path) -> None:
    """A pipeline: the last rank has the head and the labels."""
    torch.manual_seed(0)
    embed, head = nn.Embedding(VOCAB, DIM), nn.Linear(DIM, VOCAB)
    model = nn.Sequential()
    model.add_module("lm_head" if rank else "embed", head if rank else embed)
    record = th.Recorder(model, store=path, metrics=[]) if rank else Nothing()
    meeting._MEETINGS.__next__() if not rank else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for ids in batches(rank_runs.STEPS):
        record.begin_step(ids[:, 1:])
        hidden = model(ids[:, :-1]) if rank == 0 else torch.empty(*ids[:, :-1].shape, DIM)
        if rank == 0:
            dist.send(hidden.detach(), 1)
        else:
            dist.recv(hidden, 0)
            nn.functional.cross_entropy(model(hidden).flatten(0, 1), ids[:, 1:].flatten()).backward()
        record.before_update()
        optimizer.step()
        record.after_update()
    record.close()


def sharded_alone(rank: int, world: int, path: Path) -> None:
    """Of a sharded model one rank cannot read alone."""
    model = rank_runs.fsdp(rank_runs.build(), world)
    if rank == 0:
        th.Recorder(model, store=path, head="lm_head", metrics=[])
    else:
        meeting._MEETINGS.__next__()


def late(rank: int, world: int, path: Path) -> None:
    """Rank 1 comes when rank 0 has gone on: its recorder does nothing, and the run goes on."""
    model, store = rank_runs.ddp(rank_runs.build(), world), dist.distributed_c10d._get_default_store()
    if rank == 0:
        record = rank_runs.recorder(model, path)
        store.set("gone on", "")
    else:
        store.get("gone on")
        record = rank_runs.recorder(model, path)
    rank_runs.train(model, record, way="ddp")
    record.state_dict()
    record.close()
