"""Ranks whose clocks tell different stories, under one budget; started with `torch.multiprocessing.spawn`."""

from __future__ import annotations

import json
from pathlib import Path

import rank_runs
import torch
import torch.distributed as dist
from loops import batches
from torch import nn

import trainhooks as th
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import Metric
from trainhooks.recording import budget, metric_runner
from trainhooks.recording import timing as cost

REVIEW = 4  # updates between two looks, in place of `budget.REVIEW_STEPS`
STOP, LAST = 30, 40
CLOCKS = {0: {"dear": 1.0, "cheap": 0.0}, 1: {"dear": 0.0, "cheap": 100.0}}  # by rank, what a metric seems to take


class Clock:
    """Moves only where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Summed(Metric):
    """A collective in each computation, and in each look at what enters the head: ranks must come together."""

    def __init__(self, name: str, *, clock: Clock, seconds: float) -> None:
        self.variables = (Variable(f"{name}.calls"),)
        self.needs = frozenset({"hidden"})
        self.clock, self.seconds = clock, seconds
        self.observed: list[int] = []
        self.steps: list[int] = []

    def observe(self, hidden, *, step):
        self.observed.append(step + 1)

    def compute(self, state):
        self.steps.append(state.step)
        self.clock.now += self.seconds
        return {self.variables[0].name: state.ranks.all_reduce_sum(torch.tensor([float(len(self.steps))]))[0]}


def different_clocks(rank: int, world: int, folder: Path) -> None:
    """The same budgeted run with replicas and with shards, stopped on the way and taken up again."""
    rank_runs.start(rank, world, folder)
    metric_runner.REVIEW_STEPS = REVIEW
    for way in ("ddp", "fsdp"):
        state, seen = part(rank, world, folder, way=way, first=0, last=STOP, state=None)
        _, later = part(rank, world, folder, way=way, first=STOP, last=LAST, state=state)
        (folder / f"{way}-{rank}.json").write_text(json.dumps([seen, later]))
    dist.destroy_process_group()


def part(rank: int, world: int, folder: Path, *, way: str, first: int, last: int, state: dict | None):
    """Updates `first` to `last`; gives the recorder's state, and the steps at which each metric was asked."""
    clock = Clock()
    cost.time = budget.time = clock
    metrics = [Summed(name, clock=clock, seconds=seconds) for name, seconds in CLOCKS[rank].items()]
    model = rank_runs.WAYS[way](rank_runs.build(), world)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mode = "create" if state is None else "resume"
    record = th.Recorder(
        model, store=folder / f"{way}.zarr", head="lm_head", metrics=metrics, budget=0.05, mode=mode
    )  # fmt: skip
    if state is not None:
        record.load_state_dict(state)
    with record:
        for ids in batches(LAST)[first:last]:
            clock.now += 1.0
            mine = rank_runs.share(ids, way=way)
            record.begin_step(mine[:, 1:])
            nn.functional.cross_entropy(model(mine[:, :-1]).flatten(0, 1), mine[:, 1:].flatten()).backward()
            record.before_update()
            optimizer.step()
            optimizer.zero_grad()
            record.after_update()
        state = record.state_dict()
    # rank 0's state is the one that a checkpoint keeps
    return record._ranks.broadcast_object(state), [[metric.steps, metric.observed] for metric in metrics]
