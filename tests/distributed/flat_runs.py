"""Runs of FullyShardedDataParallel, in a plain loop and under Lightning; started with `torch.multiprocessing.spawn`."""

from __future__ import annotations

import os
from pathlib import Path

import host_runs
import rank_runs
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import trainhooks as th
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import Metric

CPU = torch.device("cpu")  # named, because FullyShardedDataParallel looks for an accelerator otherwise


class GradientNorm(Metric):
    """Of all parameters, when gradients are complete."""

    variables = (Variable("gradient.norm"),)
    moment = "before_update"

    def compute(self, state):
        gradients = [parameter.grad.flatten() for parameter in state.groups["whole"]]
        return {"gradient.norm": torch.cat(gradients).norm()}


def flat(model: nn.Module) -> nn.Module:
    """A block and the head for themselves, and what is left."""
    for name, module in (("0", model.layers), ("lm_head", model)):
        module._modules[name] = FullyShardedDataParallel(module._modules[name], use_orig_params=True, device_id=CPU)
    return FullyShardedDataParallel(model, use_orig_params=True, device_id=CPU)


def recorder(model: nn.Module, store: Path, **settings: object) -> th.Recorder:
    """What `rank_runs` records, and gradients."""
    record = rank_runs.recorder(model, None)
    return th.Recorder(model, store=store, head="lm_head", metrics=[*record._metrics, GradientNorm()], **settings)


class OnCpu(FSDPStrategy):
    """Lightning lets the strategy run on GPUs only; here it wraps for a CPU and is itself otherwise."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(model, device_id=CPU, **self.kwargs)


def two_ranks(rank: int, world: int, folder: Path, port: int) -> None:
    """A recorded loop, the same one bare, one that is refused, and Lightning's."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    rank_runs.start(rank, world, folder)
    in_a_loop(rank, folder)
    refused(rank, folder)
    dist.destroy_process_group()
    host_runs.by_lightning(rank, world, folder / "lightning.zarr", strategy=OnCpu())
    if dist.is_initialized():
        dist.destroy_process_group()


def in_a_loop(rank: int, folder: Path) -> None:
    """Recorded, and with a recorder that sees nothing."""
    model, bare = flat(rank_runs.build()), flat(rank_runs.build())
    with recorder(model, folder / "run.zarr") as record:
        gathered = record.plan().gathered_bytes
        rank_runs.train(model, record, way="fsdp")
    rank_runs.train(bare, Nothing(), way="fsdp")
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), bare.parameters(), strict=True))
    (folder / f"said-{rank}").write_text(f"{gathered} {same}")


class Nothing:
    """Takes a recorder's place."""

    def begin_step(self, labels):
        pass

    def before_update(self):
        pass

    def after_update(self, **said):
        pass


def refused(rank: int, folder: Path) -> None:
    """Without its original parameters."""
    try:
        th.Recorder(FullyShardedDataParallel(rank_runs.build(), device_id=CPU), head="lm_head", metrics=[])
    except ValueError as error:
        (folder / f"error-{rank}").write_text(str(error))
