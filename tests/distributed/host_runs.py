"""The same run by other people's trainers on two processes, and by a plain loop on one."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from loops import TinyLM, batches
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler
from transformers import Trainer, TrainingArguments

import trainhooks as th
from trainhooks.integrations import lightning, transformers

STEPS, BATCH = 3, 4
WINDOWS = batches(STEPS).flatten(0, 1)


class Causal(TinyLM):
    """Shifts labels and gives its loss, as causal models of `transformers` do."""

    def forward(self, input_ids, labels):
        logits = super().forward(input_ids)
        return {"loss": nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())}


def as_batch(rows):
    ids = torch.stack(rows)
    return {"input_ids": ids, "labels": ids}


def plain(store: Path, *, batch: int = BATCH) -> None:
    """One process, whole batches of `batch` windows."""
    model = Causal()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with th.Recorder(model, store=store) as recorder:
        for ids in WINDOWS.split(batch):
            recorder.begin_step(ids[:, 1:])
            loss = model(ids, ids)["loss"]
            loss.backward()
            recorder.before_update()
            optimizer.step()
            optimizer.zero_grad()
            recorder.after_update(loss=loss, learning_rate=0.5)


class Module(pl.LightningModule):
    """The model with its optimizer; a strategy that wants to have it sharded gets it so."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Causal()

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            fully_shard(self.model.lm_head, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        return self.model(**batch)["loss"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def by_lightning(rank: int, world: int, store: Path, *, strategy: str | Strategy) -> None:
    """A sampler deals the windows out one by one, Lightning's own would shuffle them."""
    sampler = DistributedSampler(WINDOWS, num_replicas=world, rank=rank, shuffle=False)
    trainer = pl.Trainer(
        accelerator="cpu", strategy=strategy, devices=world, max_steps=STEPS, use_distributed_sampler=False,
        callbacks=[lightning.TrainHooks(store=store)],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(WINDOWS, batch_size=BATCH // world, sampler=sampler, collate_fn=as_batch))


def by_transformers(world: int, store: Path, *, accumulate: int = 1) -> None:
    """The Trainer finds its processes in what torchrun puts into the environment; it deals batches out.

    Where it accumulates it evaluates after each update too, so that both are in one run.
    """
    model = Causal()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    args = TrainingArguments(
        output_dir=str(store.parent), max_steps=STEPS // accumulate, max_grad_norm=0,
        per_device_train_batch_size=BATCH // world,
        train_sampling_strategy="sequential", use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True,
        save_strategy="no", report_to="none", gradient_accumulation_steps=accumulate,
        eval_strategy="steps" if accumulate > 1 else "no", eval_steps=1,
    )  # fmt: skip
    Trainer(
        model=model, args=args, train_dataset=WINDOWS, eval_dataset=WINDOWS[:4], data_collator=as_batch,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        callbacks=[transformers.TrainHooks(store=store)],
    ).train()  # fmt: skip


def both(rank: int, world: int, folder: Path, port: int) -> None:
    """One process of those that torchrun would start."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    by_transformers(world, folder / "transformers.zarr")
    by_transformers(world, folder / "accumulated.zarr", accumulate=STEPS)
    by_lightning(rank, world, folder / "lightning.zarr", strategy="ddp")
    by_lightning(rank, world, folder / "sharded.zarr", strategy=ModelParallelStrategy(world, 1))
    if dist.is_initialized():
        dist.destroy_process_group()
