"""A loop with Accelerate, recorded at every update, with its gradient accumulation, scheduler and checkpoints.

    python recipes/pretrain_accelerate.py --steps 100 --out store/runs/accelerate
    accelerate launch recipes/pretrain_accelerate.py

Some ten seconds of one CPU core. Needs `pip install trainhooks accelerate`.
"""

import os
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import trainhooks as th


def read_words(vocab_size: int) -> tuple[Tensor, list[str]]:
    """Source text of Python's own library as ids of words, and the text of each id; 0 stands for rare words."""
    files = sorted(Path(os.__file__).parent.glob("[a-c]*.py"))
    words = re.findall(r"\w+|\s+|[^\w\s]", "".join(file.read_text(encoding="utf-8") for file in files))
    texts = ["<rare>", *sorted(word for word, _ in Counter(words).most_common(vocab_size - 1))]
    ids = {word: number for number, word in enumerate(texts)}
    return torch.tensor([ids.get(word, 0) for word in words]), texts


class GPT(nn.Module):
    def __init__(self, vocab_size: int, *, context: int, dim: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, dim), nn.Embedding(context, dim)
        block = partial(nn.TransformerEncoderLayer, dim, heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.ModuleList(block() for _ in range(layers))
        self.norm, self.lm_head = nn.LayerNorm(dim), nn.Linear(dim, vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=ids.device)
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x, mask, is_causal=True)
        return self.lm_head(self.norm(x))


def train(args: Namespace) -> nn.Module:
    accelerator = Accelerator(gradient_accumulation_steps=args.accumulate, mixed_precision=args.precision)
    torch.manual_seed(args.seed)
    ids, texts = read_words(args.vocab)
    starts = torch.randint(len(ids) - args.context, (args.steps * args.accumulate * args.batch, 1))
    data = ids[starts + torch.arange(args.context + 1)]
    model = GPT(args.vocab, context=args.context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    loader = torch.utils.data.DataLoader(data, batch_size=args.batch)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    counts = th.TokenCounts.count(ids.numpy(), vocab_size=args.vocab)
    settings = {"store": args.out / "run.zarr", "counts": counts, "token_texts": texts, "mode": "overwrite"}
    with th.Recorder(model, **settings) as recorder:  # every process, of what prepare() gave back
        accelerator.register_for_checkpointing(recorder)  # save_state() and load_state() take it along
        total = torch.zeros((), device=accelerator.device)
        for window in loader:
            recorder.begin_step(window[:, 1:])
            with accelerator.accumulate(model):
                loss = cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
                accelerator.backward(loss)
                total += loss.detach() / args.accumulate
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    recorder.before_update()
                lr = optimizer.param_groups[0]["lr"]
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:  # an update; between them these three did nothing
                mean = accelerator.reduce(total, "mean")
                recorder.after_update(loss=mean, learning_rate=lr, skipped=optimizer.step_was_skipped)
                total.zero_()
        accelerator.save_state(args.out / "checkpoint")
    return accelerator.unwrap_model(model)


def main(argv: list[str] | None = None) -> nn.Module:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name, value in {"steps": 100, "batch": 8, "accumulate": 2, "context": 64, "vocab": 2048, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--out", type=Path, default=Path("store/runs/accelerate"))
    args = parser.parse_args(argv)
    model = train(args)
    metrics = th.open_store(args.out / "run.zarr").metrics()
    for name in ("loss", "probe.heldout_spearman"):
        values = metrics[name].dropna("step").values
        print(f"{name}: {values[0]:.2f} -> {values[-1]:.2f}")
    return model


if __name__ == "__main__":
    main()
