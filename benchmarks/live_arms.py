"""The loop of `live_overhead.py`, bare and with what follows it: one class an arm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import trainhooks as th
from trainhooks.demo.models import build_model
from trainhooks.metrics.geometry import HeadGeometry

SEED = 0


class Arm:
    """One way to run the loop: what it does around a step, and what was measured of it."""

    def __init__(self, name: str, *, folder: Path, setting: Setting) -> None:
        self.name, self.folder, self.setting = name, folder / name, setting
        self.folder.mkdir()
        self.model = setting.model()
        self.head = self.model.get_output_embeddings().weight
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=setting.on_gpu)
        self.losses: list[Tensor] = []
        generator = torch.Generator(setting.device).manual_seed(SEED)
        self.changes = [1e-4 * torch.randn(p.shape, generator=generator, device=p.device) for p in self.given]

    @property
    def given(self) -> list[Tensor]:
        """The parameters that a step of the recorder alone changes."""
        return list(self.model.parameters()) if self.setting.alone else []

    def step(self, ids: Tensor) -> None:
        """One update on [window, context + 1] ids."""
        self.before(ids[:, 1:])
        if self.setting.alone:
            self.ready()
            with torch.no_grad():
                torch._foreach_add_(self.given, self.changes)
            self.losses.append(torch.ones((), device=self.setting.device))
            self.after(self.losses[-1])
            return
        with torch.autocast("cuda", torch.bfloat16) if self.setting.on_gpu else nullcontext():
            logits = self.model(ids[:, :-1]).logits
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        self.ready()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.after(loss.detach())
        self.losses.append(loss.detach())

    def block(self, batches: Tensor, clock: Clock) -> None:
        """Some steps, each timed."""
        for ids in batches:
            clock.tick()
            self.step(ids)
        self.settle()
        clock.tick()

    def settle(self) -> None:
        """After a block: what was begun in the background counts, where that can be said."""

    def before(self, labels: Tensor) -> None:
        """Before the forward pass."""

    def ready(self) -> None:
        """Gradients are complete."""

    def after(self, loss: Tensor) -> None:
        """Parameters have moved."""

    def bytes(self) -> int:
        """What lies on disk."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def close(self) -> None:
        """End the run."""


class Recorded(Arm):
    """With a recorder."""

    def __init__(self, name: str, *, settings: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.guarded = False
        self.recorder = th.Recorder(self.model, store=self.folder / "run.zarr", precision="bfloat16", **settings)

    def before(self, labels: Tensor) -> None:
        """Labels, and record 0."""
        with self.guard():
            self.recorder.begin_step(labels)

    def ready(self) -> None:
        """What needs gradients."""
        with self.guard():
            self.recorder.before_update()

    def after(self, loss: Tensor) -> None:
        """The record."""
        with self.guard():
            self.recorder.after_update(loss=loss, learning_rate=1e-3)

    def settle(self) -> None:
        """Until all records are durable, as before a checkpoint."""
        if self.setting.alone:
            self.recorder.state_dict()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Inside, a wait for the device is an error, where that is asked for."""
        if self.guarded:
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            if self.guarded:
                torch.cuda.set_sync_debug_mode("default")

    def close(self) -> None:
        """Fold the store."""
        self.recorder.close()


class TorchSave(Arm):
    """`torch.save` of the output embedding at each step."""

    def after(self, loss: Tensor) -> None:
        """One file."""
        torch.save(self.head.detach(), self.folder / f"{len(self.losses):06d}.pt")


class Histogram(Arm):
    """A TensorBoard histogram of the output embedding at each step."""

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder))

    def after(self, loss: Tensor) -> None:
        """One histogram."""
        self.writer.add_histogram("output_embedding", self.head.detach(), len(self.losses))

    def close(self) -> None:
        """Flush."""
        self.writer.close()


class Lightning(Arm):
    """The same steps in Lightning's Trainer, `saving` with a ModelCheckpoint at each; one fit a block."""

    def __init__(self, name: str, *, saving: bool, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.saving = saving

    def block(self, batches: Tensor, clock: Clock) -> None:
        """One fit."""
        import lightning.pytorch as lightning
        from lightning.pytorch.callbacks import Callback, ModelCheckpoint

        arm = self

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = arm.model

            def training_step(self, ids: Tensor) -> Tensor:
                logits = self.model(ids[:, :-1]).logits
                return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return arm.optimizer

        class Ticks(Callback):
            def on_train_batch_start(self, *_: Any) -> None:
                clock.tick()

        callbacks: list[Callback] = [Ticks()]
        if self.saving:
            callbacks.append(ModelCheckpoint(self.folder, every_n_train_steps=1, save_top_k=-1))
        trainer = lightning.Trainer(
            max_steps=len(batches),
            accelerator="gpu" if self.setting.on_gpu else "cpu",
            devices=1,
            precision="bf16-mixed" if self.setting.on_gpu else "32-true",
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=self.saving,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), torch.utils.data.DataLoader(batches.cpu(), batch_size=None))


@dataclass(frozen=True)
class Setting:
    """Size and length of a comparison; `alone`: nothing is trained, each step changes all parameters by the same."""

    size: str
    vocab: int
    context: int
    windows: int
    block: int
    rounds: int
    device: str
    alone: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether the loop runs on a GPU."""
        return self.device == "cuda"

    def model(self) -> nn.Module:
        """The model as it starts, the same for each arm."""
        return build_model(self.size, vocab_size=self.vocab, seed=SEED, context=self.context).to(self.device)

    def ids(self) -> Tensor:
        """Batches [round, step, window, context + 1] of ids with Zipf's frequencies."""
        generator = torch.Generator().manual_seed(SEED)
        weights = 1.0 / torch.arange(1, self.vocab + 1)
        shape = (self.rounds, self.block, self.windows, self.context + 1)
        drawn = torch.multinomial(weights, int(np.prod(shape)), replacement=True, generator=generator)
        return drawn.view(shape).to(self.device)


class Clock:
    """Moments of one block, on the device's own clock where it has one."""

    def __init__(self, *, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.moments: list[Any] = []

    def tick(self) -> None:
        """A step ends here and the next begins."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.moments.append(event)
        else:
            self.moments.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Each step's, after a wait for the device."""
        pairs = zip(self.moments, self.moments[1:], strict=False)
        if self.on_gpu:
            torch.cuda.synchronize()
            return [before.elapsed_time(after) for before, after in pairs]
        return [1000 * (after - before) for before, after in pairs]


def as_in_the_demo(counts: np.ndarray, texts: list[str]) -> list[Any]:
    """The demo's metrics, what costs most at every tenth step, which builds of before know too."""
    metrics = th.default_metrics(counts, token_texts=texts)
    for metric in metrics:
        if type(metric).__name__ in ("Spectrum", "HeadGeometry", "CovariateBaseline"):
            metric.schedule = th.Every(10)
    return metrics


def make_arms(setting: Setting, folder: Path, *, only: list[str] | None) -> list[Arm]:
    """The arms asked for; what needs a package that is missing is left out with a line."""
    ids = setting.ids()
    counts = np.bincount(ids.cpu().numpy().ravel(), minlength=setting.vocab)
    texts = [f" t{index}" for index in range(setting.vocab)]
    every = {"counts": counts, "vocab_size": setting.vocab, "token_texts": texts}
    chosen = [m for m in th.default_metrics(counts) if not isinstance(m, HeadGeometry)]
    groups = [m for m in th.default_metrics(None) if type(m).__name__ == "GroupConvergence"]
    common: dict[str, Any] = {"folder": folder, "setting": setting}
    tenth = {"schedule": th.Every(10), "snapshot_schedule": th.Steps([0])}
    makers: dict[str, Any] = {
        "bare": lambda: Arm("bare", **common),
        "scalars": lambda: Recorded("scalars", settings={**every, **tenth}, **common),
        "snapshot": lambda: Recorded("snapshot", settings={"metrics": []}, **common),
        "groups": lambda: Recorded("groups", settings={"metrics": groups}, **common),
        "everything": lambda: Recorded("everything", settings={"counts": counts, "metrics": chosen}, **common),
        "defaults": lambda: Recorded("defaults", settings=every, **common),
        "demo": lambda: Recorded("demo", settings={**every, "metrics": as_in_the_demo(counts, texts)}, **common),
        "torch.save": lambda: TorchSave("torch.save", **common),
        "tensorboard": lambda: Histogram("tensorboard", **common),
        "lightning": lambda: Lightning("lightning", saving=False, **common),
        "checkpoint": lambda: Lightning("checkpoint", saving=True, **common),
    }
    return [make() for name, make in makers.items() if only is None or name in (*only, "bare")]
