"""A loop with Lightning Fabric, recorded at every update; the recorder's numbers go to Fabric's loggers too.

    python recipes/pretrain_fabric.py --steps 100 --out store/runs/fabric

Some ten seconds of one CPU core. Needs `pip install trainhooks lightning`.
"""

import os
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
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
    fabric = Fabric(devices=1, precision=args.precision, loggers=CSVLogger(args.out, name="numbers"))
    fabric.launch()
    fabric.seed_everything(args.seed, verbose=False)
    ids, texts = read_words(args.vocab)
    starts = torch.randint(len(ids) - args.context, (args.steps * args.accumulate * args.batch, 1))
    data = ids[starts + torch.arange(args.context + 1)]
    model = GPT(args.vocab, context=args.context)
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=2e-3))
    loader = fabric.setup_dataloaders(torch.utils.data.DataLoader(data, batch_size=args.batch))
    counts = th.TokenCounts.count(ids.numpy(), vocab_size=args.vocab)
    settings = {"store": args.out / "run.zarr", "counts": counts, "token_texts": texts, "total_steps": args.steps}
    sinks = [th.LoggerSink(fabric.log_dict)]
    with th.Recorder(model, sinks=sinks, mode="overwrite", **settings) as recorder:  # of what setup() gave back
        total = torch.zeros((), device=fabric.device)
        for number, window in enumerate(loader, start=1):
            is_update = number % args.accumulate == 0
            recorder.begin_step(window[:, 1:])
            with fabric.no_backward_sync(model, enabled=not is_update):
                loss = cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten()) / args.accumulate
                fabric.backward(loss)
            total += loss.detach()
            if is_update:
                fabric.clip_gradients(model, optimizer, max_norm=1.0)
                recorder.before_update()
                optimizer.step()
                optimizer.zero_grad()
                mean = fabric.all_reduce(total)
                recorder.after_update(loss=mean, learning_rate=optimizer.param_groups[0]["lr"])
                fabric.log("loss", mean, step=recorder.step)
                total.zero_()
        fabric.logger.finalize("success")  # what its buffer still holds
        fabric.save(args.out / "checkpoint.ckpt", {"model": model, "optimizer": optimizer, "recorder": recorder})
    return model.module


def main(argv: list[str] | None = None) -> nn.Module:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name, value in {"steps": 100, "batch": 8, "accumulate": 2, "context": 64, "vocab": 2048, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--out", type=Path, default=Path("store/runs/fabric"))
    args = parser.parse_args(argv)
    model = train(args)
    metrics = th.open_store(args.out / "run.zarr").metrics()
    for name in ("loss", "probe.heldout_spearman"):
        values = metrics[name].dropna("step").values
        print(f"{name}: {values[0]:.2f} -> {values[-1]:.2f}")
    return model


if __name__ == "__main__":
    main()
