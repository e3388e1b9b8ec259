"""What one rank of a test's run does; started with `torch.multiprocessing.spawn`."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # with what wraps a model: imported once here, not by every rank
import torch.distributed as dist
from loops import DIM, VOCAB, TinyLM, batches
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import trainhooks as th
from trainhooks.store import PieceWriter

ROWS = VOCAB + 1  # no multiple of the ranks
STEPS = 3


def build() -> nn.Module:
    """A model whose head does not divide evenly."""
    model = TinyLM()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model.lm_head = nn.Linear(DIM, ROWS)
    return model


def ddp(model: nn.Module, world: int) -> nn.Module:
    """Replicas."""
    return nn.parallel.DistributedDataParallel(model)


def fsdp(model: nn.Module, world: int) -> nn.Module:
    """Blocks, head and the rest, sharded by rows."""
    for layer in [*model.layers, model.lm_head]:
        fully_shard(layer)
    return fully_shard(model)


def columns(model: nn.Module, world: int) -> nn.Module:
    """Matrices sharded by columns, the head among them: rank 0 writes it."""
    return fully_shard(model, shard_placement_fn=lambda parameter: Shard(parameter.ndim - 1))


def hybrid(model: nn.Module, world: int) -> nn.Module:
    """Sharded within pairs, replicated across them."""
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("replicate", "shard"))
    fully_shard(model, mesh=mesh)
    return model


PLAN = {
    "layers.0": ColwiseParallel(output_layouts=Replicate()),
    "layers.1": RowwiseParallel(input_layouts=Replicate()),
    "lm_head": ColwiseParallel(output_layouts=Replicate()),
}


def tensor_parallel(model: nn.Module, world: int) -> nn.Module:
    """Columns of one block, rows of another and of the head; all ranks see the same batch."""
    return parallelize_module(model, init_device_mesh("cpu", (world,)), PLAN)


def both(model: nn.Module, world: int) -> nn.Module:
    """Tensor parallelism in pairs, FSDP2 across them."""
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], PLAN)
    return fully_shard(model, mesh=mesh["data"])


WAYS = {way.__name__: way for way in (ddp, fsdp, columns, hybrid, tensor_parallel, both)}


def recorder(model: nn.Module, store: Path | None, **settings: object) -> th.Recorder:
    """Every default metric, the probability probe and exact references."""
    counts = np.bincount(batches(STEPS)[:, :, 1:].flatten().numpy(), minlength=ROWS)
    mask = torch.from_numpy(counts > 0)
    exact = th.ExactConvergence(["whole", "output_embedding"], patterns=["layers.*.weight", "norm.*"])
    metrics = [*th.default_metrics(counts), th.ProbabilityProbe(mask=mask), exact]
    return th.Recorder(model, store=store, head="lm_head", metrics=metrics, **settings)


def share(ids: torch.Tensor, *, way: str) -> torch.Tensor:
    """The sequences of a batch that this rank trains on."""
    if way in ("alone", "tensor_parallel"):
        return ids
    if way == "both":
        return ids.chunk(dist.get_world_size() // 2)[dist.get_rank() // 2]
    return ids.chunk(dist.get_world_size())[dist.get_rank()]


def train(model: nn.Module, record: th.Recorder, *, way: str, first: int = 0, last: int = STEPS, optimizer=None):
    """Plain gradient descent, so that rounding stays rounding."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.5)
    for ids in batches(STEPS)[first:last]:
        mine = share(ids, way=way)
        record.begin_step(mine[:, 1:])
        loss = nn.functional.cross_entropy(model(mine[:, :-1]).flatten(0, 1), mine[:, 1:].flatten())
        loss.backward()
        record.before_update()
        optimizer.step()
        optimizer.zero_grad()
        record.after_update(loss=loss, learning_rate=0.5)


def start(rank: int, world: int, folder: Path) -> None:
    """Join the group."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),  # ranks that miss each other fail, they do not hang
    )


def two_ranks(rank: int, world: int, folder: Path) -> None:
    """Every way that two ranks can take, a sink that is refused, and the first half of a run that goes on."""
    start(rank, world, folder)
    refused(rank, world, folder)
    record_ways(world, folder, "ddp", "fsdp", "columns", "tensor_parallel")
    stop_halfway(rank, world, folder)
    dist.destroy_process_group()


def four_ranks(rank: int, world: int, folder: Path, half: Path) -> None:
    """Every way that takes four, and the second half of the run that two ranks began in `half`."""
    start(rank, world, folder)
    record_ways(world, folder, "fsdp", "hybrid", "both")
    go_on(world, half)
    dist.destroy_process_group()


def record_ways(world: int, folder: Path, *ways: str) -> None:
    """One store for each way of spreading the same run."""
    for way in ways:
        model = WAYS[way](build(), world)
        with recorder(model, folder / f"{way}.zarr") as record:
            plan = record.plan()
            train(model, record, way=way)
        (folder / f"{way}.gathered").write_text(str(plan.gathered_bytes))


def stop_halfway(rank: int, world: int, folder: Path) -> None:
    """Two updates, then everything that a checkpoint holds."""
    model = fsdp(build(), world)
    with recorder(model, folder / "half.zarr") as record:
        train(model, record, way="fsdp", last=2)
        state = record.state_dict()
        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        # what lies behind the checkpoint is cut when the run goes on
        train(model, record, way="fsdp", first=2, last=3)
    if rank == 0:
        torch.save({"record": state, "model": weights}, folder / "checkpoint.pt")


def go_on(world: int, folder: Path) -> None:
    """The rest of the run, on another number of ranks."""
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    model = build()
    model.load_state_dict(saved["model"])
    model = fsdp(model, world)
    with recorder(model, folder / "half.zarr", mode="resume") as record:
        record.load_state_dict(saved["record"])
        train(model, record, way="fsdp", first=2)


def die(rank: int, world: int, folder: Path) -> None:
    """Rank 1 is killed after two updates, while its rows of record 2 are not on disk; rank 0 notes what it hears."""
    start(rank, world, folder)
    waits = threading.Event()
    if rank == 1:
        hold_back(2, waits=waits)
    model = fsdp(build(), world)
    try:
        with recorder(model, folder / "run.zarr") as record:
            train(model, record, way="fsdp", last=2)
            if rank == 1:
                assert waits.wait(30)
                os.kill(os.getpid(), signal.SIGKILL)
            train(model, record, way="fsdp", first=2)
    except RuntimeError as error:
        (folder / f"error-{rank}").write_text(str(error))
    os._exit(0)  # the group cannot be taken down in order any more


def hold_back(step: int, *, waits: threading.Event) -> None:
    """A disk that never takes this rank's rows of `step`, and says so when it is asked to."""
    write = PieceWriter.append_piece

    def append_piece(self: PieceWriter, at: int, **parts: object) -> None:
        if at == step:
            waits.set()
            threading.Event().wait()
        write(self, at, **parts)

    PieceWriter.append_piece = append_piece


def refused(rank: int, world: int, folder: Path) -> None:
    """A sink that rank 0 cannot open stops every rank, before a step."""
    model = ddp(build(), world)
    record = th.Recorder(model, head="lm_head", metrics=[], sinks=[Refuses()])
    try:
        record.begin_step(torch.zeros(1, 2, dtype=torch.int64))
    except (RuntimeError, ValueError) as error:
        (folder / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")


class Refuses(th.Sink):
    """A sink that cannot be opened."""

    def open(self, layout, *, restart_step=None):
        raise ValueError("no room")
