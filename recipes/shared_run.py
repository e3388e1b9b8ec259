"""What the recipes share: text, model, optimizer and settings, so that only the training loops differ."""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Subset

import trainhooks as th
from trainhooks.demo.corpus import load_corpus, windows
from trainhooks.demo.models import PRESETS, build_model


@dataclass(frozen=True)
class Run:
    """One pretraining run: `steps` updates of `accumulate` micro-batches of `batch` windows each.

    `data` holds exactly these windows in the order of training, `recorder` the arguments of `th.Recorder`.
    """

    model: nn.Module
    data: Dataset[Tensor]
    steps: int
    batch: int
    out: Path
    accumulate: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    recorder: Mapping[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        """Where the trajectory goes."""
        return self.out / "run.zarr"

    def loader(self) -> DataLoader[Any]:
        """Micro-batches in the order of training."""
        return DataLoader(self.data, batch_size=self.batch, collate_fn=as_batch)

    def optimizer(self) -> tuple[AdamW, LambdaLR]:
        """AdamW; a warm-up over a tenth of the run, then a cosine down to a tenth of the learning rate."""
        warmup = max(1, self.steps // 10)

        def share_of_peak(step: int) -> float:
            done = (step - warmup) / max(1, self.steps - warmup)
            return (step + 1) / warmup if step < warmup else 0.55 + 0.45 * cos(pi * min(1.0, done))

        optimizer = AdamW(
            self.model.parameters(), lr=self.learning_rate, betas=(0.9, 0.95), weight_decay=self.weight_decay
        )
        return optimizer, LambdaLR(optimizer, share_of_peak)


def as_batch(rows: list[Tensor]) -> dict[str, Tensor]:
    """Windows [batch, context + 1] as causal models of `transformers` take them: they shift the labels themselves."""
    ids = torch.stack(rows)
    return {"input_ids": ids, "labels": ids}


def parse(description: str | None, *, argv: list[str] | None, loop: str, scaling: bool = False) -> Namespace:
    """The settings of a recipe; `description` is its docstring."""
    parser = ArgumentParser(description=description, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="optimizer updates")
    parser.add_argument("--batch", type=int, default=16, help="windows a micro-batch")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches an update")
    parser.add_argument("--context", type=int, default=128, help="labels a window")
    parser.add_argument("--size", choices=list(PRESETS), default="tiny", help="model")
    parser.add_argument("--text", type=Path, nargs="+", help="text files or folders (None: Python's own library)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("store/runs") / loop, help="folder for store and logs")
    if scaling:
        text = "of the loss under accumulation: 1/k as Lightning, by label count as the HF Trainer"
        parser.add_argument("--loss-scaling", choices=("mean", "labels"), default="mean", help=text)
    return parser.parse_args(argv)


def prepare(args: Namespace) -> Run:
    """Read the text, build the model, cut the windows."""
    preset = PRESETS[args.size]
    corpus = load_corpus(args.text, vocab_size=preset.vocab_size)
    length = args.context + 1  # the model's shift leaves `context` labels
    cut = windows(corpus, length, seed=args.seed, minimum=args.batch)
    # one epoch, whatever the text's length: the hosts disagree on what an epoch's end does to an accumulation
    order = [i % len(cut) for i in range(args.steps * args.accumulate * args.batch)]
    vocab_size = corpus.counts.vocab_size
    model = build_model(args.size, vocab_size=vocab_size, seed=args.seed, context=length)
    return Run(
        model=model,
        data=Subset(cut, order),
        steps=args.steps,
        batch=args.batch,
        accumulate=args.accumulate,
        learning_rate=preset.learning_rate,
        weight_decay=preset.weight_decay,
        out=args.out,
        recorder={
            "store": args.out / "run.zarr",
            "counts": corpus.counts,
            "vocab_size": vocab_size,
            "token_texts": corpus.token_texts,
            "provenance": {name: str(value) for name, value in vars(args).items()},
        },
    )


def report(run: Run) -> None:
    """Say where the run is, and what became of it."""
    metrics = th.open_store(run.store).metrics()
    for name in ("loss", "probe.heldout_spearman"):
        values = metrics[name].dropna("step").values
        print(f"{name}: {values[0]:.2f} -> {values[-1]:.2f}")
    print(f"store: {run.store}")
