"""Pretrain a small language model in a plain PyTorch loop, and record its output embedding at every update.

    python recipes/pretrain_plain.py --steps 300 --out store/runs/plain

About three minutes on two CPU cores. Needs `pip install 'trainhooks[all]'`.
"""

from __future__ import annotations

from itertools import islice

import torch
from shared_run import Run, parse, prepare, report
from torch import nn

import trainhooks as th


def train(run: Run, *, loss_scaling: str = "mean") -> None:
    """The loop. `loss_scaling` of accumulated micro-batches: "mean" (1/k each) or "labels" (by label count)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = run.model.to(device).train()
    optimizer, scheduler = run.optimizer()
    batches = iter(run.loader())
    with th.Recorder(model, total_steps=run.steps, **run.recorder) as recorder:
        for _ in range(run.steps):
            micro_batches = [
                {name: ids.to(device) for name, ids in batch.items()} for batch in islice(batches, run.accumulate)
            ]
            labels = sum((batch["labels"][:, 1:] != -100).sum() for batch in micro_batches)
            total = torch.zeros((), device=device)
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


def main(argv: list[str] | None = None) -> None:
    """Run from the command line."""
    args = parse(__doc__, argv=argv, loop="plain", scaling=True)
    run = prepare(args)
    train(run, loss_scaling=args.loss_scaling)
    report(run)


if __name__ == "__main__":
    main()
