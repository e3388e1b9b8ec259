"""nanoGPT's kind of loop, recorded at every update: a tied head, gradient accumulation, a schedule by hand, compile.

    python recipes/pretrain_nanogpt.py --steps 100 --out store/runs/nanogpt
    python recipes/pretrain_nanogpt.py --compile

Some ten seconds of one CPU core, longer where it compiles. Needs trainhooks alone.
"""

import math
import os
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from functools import partial
from pathlib import Path

import torch
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
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.lm_head.weight = self.tokens.weight  # tied: what is recorded is both

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=ids.device)
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x, mask, is_causal=True)
        return self.lm_head(self.norm(x))


def train(args: Namespace) -> nn.Module:
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids, texts = read_words(args.vocab)
    model: nn.Module = GPT(args.vocab, context=args.context).to(device)
    if args.compile:  # before the recorder is made, and the recorder before the first pass
        model = torch.compile(model, backend=args.compile)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1)
    counts = th.TokenCounts.count(ids.numpy(), vocab_size=args.vocab)
    settings = {"store": args.out / "run.zarr", "counts": counts, "token_texts": texts, "total_steps": args.steps}
    with th.Recorder(model, mode="overwrite", **settings) as recorder:
        for step in range(args.steps):
            lr = args.lr * min(1, (step + 1) / 10) * (0.55 + 0.45 * math.cos(math.pi * step / args.steps))
            for group in optimizer.param_groups:
                group["lr"] = lr
            total = torch.zeros((), device=device)
            for _ in range(args.accumulate):
                starts = torch.randint(len(ids) - args.context, (args.batch, 1))
                window = ids[starts + torch.arange(args.context + 1)].to(device)
                recorder.begin_step(window[:, 1:])  # before every micro-batch: the labels of all of them count
                loss = cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten()) / args.accumulate
                loss.backward()
                total += loss.detach()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            recorder.before_update()  # once an update: gradients are whole, nothing has moved
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            recorder.after_update(loss=total, learning_rate=lr)
    return model


def main(argv: list[str] | None = None) -> nn.Module:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name, value in {"steps": 100, "batch": 8, "accumulate": 2, "context": 64, "vocab": 2048, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--compile", nargs="?", const="inductor")
    parser.add_argument("--out", type=Path, default=Path("store/runs/nanogpt"))
    args = parser.parse_args(argv)
    model = train(args)
    metrics = th.open_store(args.out / "run.zarr").metrics()
    for name in ("loss", "probe.heldout_spearman"):
        values = metrics[name].dropna("step").values
        print(f"{name}: {values[0]:.2f} -> {values[-1]:.2f}")
    return model


if __name__ == "__main__":
    main()
