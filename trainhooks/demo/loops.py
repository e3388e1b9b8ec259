"""The demo's three training loops: the same run in plain PyTorch, Lightning and the HF Trainer."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from trainhooks.recording.recorder import Recorder

Hooks = Mapping[str, Any]


@dataclass(frozen=True)
class Training:
    """How to train: `steps` updates of `batch` windows each, on `device`; `after_update` gets the number of each."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    device: str = "cpu"
    progress: bool = True
    after_update: Callable[[int], None] = lambda step: None

    @property
    def on_gpu(self) -> bool:
        """Whether bfloat16 autocast and the fused optimizer are used."""
        return self.device == "cuda"

    def share_of_peak(self, step: int) -> float:
        """Learning rate over its peak: linear warm-up, then a cosine down to a tenth."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.55 + 0.45 * math.cos(math.pi * min(1.0, done))

    def optimizer(self, model: nn.Module) -> tuple[AdamW, LambdaLR]:
        """AdamW and its learning-rate schedule."""
        optimizer = AdamW(
            model.parameters(),
            lr=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
            fused=self.on_gpu,
        )
        return optimizer, LambdaLR(optimizer, self.share_of_peak)


def train_plain(model: nn.Module, windows: Dataset[Tensor], training: Training, hooks: Hooks) -> Recorder:
    """A loop written out."""
    model.to(training.device)
    optimizer, scheduler = training.optimizer(model)
    batches = _forever(DataLoader(windows, batch_size=training.batch, drop_last=True))
    steps = range(training.steps)
    with Recorder(model, total_steps=training.steps, **hooks) as recorder:
        for step in track(steps, "training") if training.progress else steps:
            ids = next(batches).to(training.device)
            recorder.begin_step(ids[:, 1:])
            with torch.autocast(training.device, torch.bfloat16, enabled=training.on_gpu):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), training.clip)
            learning_rate = float(scheduler.get_last_lr()[0])
            recorder.before_update()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            recorder.after_update(loss=loss.detach(), learning_rate=learning_rate)
            training.after_update(step + 1)
    return recorder


def train_lightning(model: nn.Module, windows: Dataset[Tensor], training: Training, hooks: Hooks) -> Recorder:
    """The same run as a LightningModule."""
    import lightning.pytorch as pl

    from trainhooks.integrations.lightning import TrainHooks

    class LanguageModel(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: dict[str, Tensor]) -> Tensor:
            loss: Tensor = self.model(**batch).loss
            return loss

        def on_train_batch_end(self, *_: Any) -> None:
            training.after_update(self.trainer.global_step)

        def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
            # Lightning's own clipping refuses fused optimizers under mixed precision
            nn.utils.clip_grad_norm_(self.parameters(), training.clip)

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer, scheduler = training.optimizer(self.model)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
            }

    callback = TrainHooks(**hooks)
    trainer = pl.Trainer(
        max_steps=training.steps,
        max_epochs=-1,
        accelerator="gpu" if training.on_gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if training.on_gpu else "32-true",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=training.progress,
    )
    loader = DataLoader(windows, batch_size=training.batch, drop_last=True, collate_fn=as_batch)
    trainer.fit(LanguageModel(), loader)
    return callback.recorder


def train_transformers(model: nn.Module, windows: Dataset[Tensor], training: Training, hooks: Hooks) -> Recorder:
    """The same run with the HF Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from trainhooks.integrations.transformers import TrainHooks

    class AfterUpdate(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            training.after_update(state.global_step)

    callback = TrainHooks(**hooks)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=training.steps,
            per_device_train_batch_size=training.batch,
            dataloader_drop_last=True,
            train_sampling_strategy="sequential",
            max_grad_norm=training.clip,
            bf16=training.on_gpu,
            use_cpu=not training.on_gpu,
            save_strategy="no",
            report_to="none",
            logging_steps=max(1, training.steps // 10),
            disable_tqdm=not training.progress,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=windows,
            data_collator=as_batch,
            optimizers=training.optimizer(model),
            callbacks=[callback, AfterUpdate()],
        )
        trainer.train()
    return callback.recorder


def as_batch(rows: list[Tensor]) -> dict[str, Tensor]:
    """Windows as a causal LM of `transformers` takes them: it shifts the labels itself."""
    ids = torch.stack(rows)
    return {"input_ids": ids, "labels": ids}


def _forever(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from loader


LOOPS: dict[str, Callable[[nn.Module, Dataset[Tensor], Training, Hooks], Recorder]] = {
    "plain": train_plain,
    "lightning": train_lightning,
    "transformers": train_transformers,
}
