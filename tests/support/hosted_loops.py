"""One training run in three loops: plain PyTorch, Lightning, the HF Trainer. Only who turns the crank differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import cos, pi
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments

import trainhooks as th
from trainhooks.integrations import lightning, transformers


@dataclass(frozen=True)
class Run:
    """`steps` updates of `accumulate` micro-batches of `batch` windows each; `data` holds exactly these, in order.

    `recorder` has the arguments of `th.Recorder`.
    """

    model: nn.Module
    data: Dataset[Tensor]
    steps: int
    batch: int
    out: Path
    accumulate: int = 1
    clip: float = 1.0
    recorder: Mapping[str, Any] = field(default_factory=dict)

    def loader(self) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=self.batch, collate_fn=as_batch)

    def optimizer(self) -> tuple[AdamW, LambdaLR]:
        """AdamW with a warm-up, then a cosine down to a tenth of the learning rate."""
        warmup = max(1, self.steps // 10)

        def share_of_peak(step: int) -> float:
            done = (step - warmup) / max(1, self.steps - warmup)
            return (step + 1) / warmup if step < warmup else 0.55 + 0.45 * cos(pi * min(1.0, done))

        optimizer = AdamW(self.model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01)
        return optimizer, LambdaLR(optimizer, share_of_peak)


def as_batch(rows: list[Tensor]) -> dict[str, Tensor]:
    """Windows as causal models of `transformers` take them: they shift the labels themselves."""
    ids = torch.stack(rows)
    return {"input_ids": ids, "labels": ids}


def train_plain(run: Run, *, loss_scaling: str = "mean") -> None:
    """`loss_scaling` of accumulated micro-batches: "mean" (1/k each) or "labels" (by label count)."""
    model = run.model.train()
    optimizer, scheduler = run.optimizer()
    batches = iter(run.loader())
    with th.Recorder(model, total_steps=run.steps, **run.recorder) as recorder:
        for _ in range(run.steps):
            micro_batches = list(islice(batches, run.accumulate))
            labels = sum((batch["labels"][:, 1:] != -100).sum() for batch in micro_batches)
            total = torch.zeros(())
            for batch in micro_batches:
                recorder.begin_step(batch["labels"][:, 1:])
                if loss_scaling == "labels":
                    loss = model(**batch, num_items_in_batch=labels).loss
                else:
                    loss = model(**batch).loss / run.accumulate
                loss.backward()
                total += loss.detach()
            nn.utils.clip_grad_norm_(model.parameters(), run.clip)
            recorder.before_update()
            optimizer.step()
            learning_rate = scheduler.get_last_lr()[0]
            scheduler.step()
            optimizer.zero_grad()
            recorder.after_update(loss=total, learning_rate=learning_rate)


class LanguageModel(pl.LightningModule):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.model = run.model

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, scheduler = self.run.optimizer()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train_lightning(run: Run) -> None:
    run.model.train()  # Lightning keeps the mode that it finds
    trainer = pl.Trainer(
        max_steps=run.steps,
        accumulate_grad_batches=run.accumulate,
        gradient_clip_val=run.clip,
        devices=1,
        callbacks=[lightning.TrainHooks(**run.recorder)],
        logger=TensorBoardLogger(run.out, name="events"),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(LanguageModel(run), run.loader())


def train_transformers(run: Run) -> None:
    args = TrainingArguments(
        output_dir=str(run.out),
        max_steps=run.steps,
        per_device_train_batch_size=run.batch,
        gradient_accumulation_steps=run.accumulate,
        max_grad_norm=run.clip,
        train_sampling_strategy="sequential",
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="tensorboard",
        logging_steps=10,
        save_strategy="no",
    )
    with transformers.TrainHooks(**run.recorder) as hooks:
        Trainer(
            model=run.model,
            args=args,
            train_dataset=run.data,
            data_collator=as_batch,
            optimizers=run.optimizer(),
            callbacks=[hooks],
        ).train()
