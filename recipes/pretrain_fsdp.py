"""Pretrain a small language model on several processes with FSDP2, and record its output embedding at every update.

    torchrun --nproc-per-node 2 recipes/pretrain_fsdp.py --steps 300 --out store/runs/fsdp

About five minutes on two CPU cores. Each rank writes its own rows of the output embedding; nothing is gathered for the
store. `python recipes/pretrain_fsdp.py` runs one process. Needs `pip install 'trainhooks[all]'`.
"""

from __future__ import annotations

import os
from itertools import islice

import torch
import torch.distributed as dist
from shared_run import Run, parse, prepare, report
from torch import nn
from torch.distributed.fsdp import fully_shard

import trainhooks as th


def train(run: Run) -> None:
    """Every rank takes its share of each micro-batch, and calls every moment of the recorder."""
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    model = run.model.to(device).train()
    for block in model.gpt_neox.layers:
        fully_shard(block)
    fully_shard(model)
    optimizer, scheduler = run.optimizer()  # after sharding: its parameters are the shards
    batches = iter(run.loader())
    with th.Recorder(model, total_steps=run.steps, **run.recorder) as recorder:
        for _ in range(run.steps):
            total = torch.zeros((), device=device)
            for batch in islice(batches, run.accumulate):
                ids = batch["input_ids"].chunk(dist.get_world_size())[dist.get_rank()].to(device)
                recorder.begin_step(ids[:, 1:])
                loss = model(input_ids=ids, labels=ids).loss / run.accumulate
                loss.backward()
                total += loss.detach()
            nn.utils.clip_grad_norm_(model.parameters(), run.clip)
            recorder.before_update()
            optimizer.step()
            learning_rate = scheduler.get_last_lr()[0]
            scheduler.step()
            optimizer.zero_grad()
            dist.all_reduce(total)  # the loss over all ranks, for the record
            recorder.after_update(loss=total / dist.get_world_size(), learning_rate=learning_rate)


def main(argv: list[str] | None = None) -> None:
    """Run from the command line, in each process."""
    args = parse(__doc__, argv=argv, loop="fsdp")
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("MASTER_ADDR", "localhost")):
        os.environ.setdefault(name, str(value))  # without torchrun
    os.environ.setdefault("MASTER_PORT", "0")
    dist.init_process_group()
    if args.batch < dist.get_world_size():
        raise SystemExit(f"--batch {args.batch} is shared by {dist.get_world_size()} processes: give at least as many.")
    if dist.get_rank() > 0:
        dist.barrier()  # rank 0 fills the cache of tokenizer and text
    run = prepare(args)
    if dist.get_rank() == 0:
        dist.barrier()
    train(run)
    if dist.get_rank() == 0:
        report(run)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
