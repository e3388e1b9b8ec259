"""The numbers of each record in Weights & Biases, beside the loop's own; offline unless told otherwise.

    python recipes/log_to_wandb.py --steps 100 --out store/runs/wandb

Some ten seconds of one CPU core. Needs `pip install trainhooks wandb`.
"""

import os
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from pathlib import Path

import torch
import wandb
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


def train(args: Namespace) -> nn.Module:
    torch.manual_seed(args.seed)
    ids, texts = read_words(args.vocab)
    model = nn.Sequential()  # each token says the next: small, and it learns what is frequent
    model.add_module("tokens", nn.Embedding(args.vocab, 64))
    model.add_module("lm_head", nn.Linear(64, args.vocab, bias=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    counts = th.TokenCounts.count(ids.numpy(), vocab_size=args.vocab)
    args.out.mkdir(parents=True, exist_ok=True)
    run = wandb.init(project="trainhooks", dir=args.out, mode=args.mode, config={**vars(args), "out": str(args.out)})
    run.define_metric("trainhooks/*", step_metric="trainhooks/step")  # their own axis: records may come late
    with th.Recorder(
        model,
        store=args.out / "run.zarr",
        counts=counts,
        token_texts=texts,
        mode="overwrite",
        sinks=[th.LoggerSink(lambda numbers, step: run.log(numbers))],
    ) as recorder:
        for step in range(1, args.steps + 1):
            starts = torch.randint(len(ids) - args.context, (args.batch, 1))
            window = ids[starts + torch.arange(args.context + 1)]
            recorder.begin_step(window[:, 1:])
            loss = cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
            loss.backward()
            recorder.before_update()
            optimizer.step()
            optimizer.zero_grad()
            recorder.after_update(loss=loss, learning_rate=5e-3)
            run.log({"loss": loss.item(), "step": step})
    run.finish()
    return model


def main(argv: list[str] | None = None) -> nn.Module:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name, value in {"steps": 100, "batch": 8, "context": 64, "vocab": 2048, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--mode", choices=("offline", "online", "disabled"), default="offline")
    parser.add_argument("--out", type=Path, default=Path("store/runs/wandb"))
    args = parser.parse_args(argv)
    model = train(args)
    metrics = th.open_store(args.out / "run.zarr").metrics()
    for name in ("loss", "probe.heldout_spearman"):
        values = metrics[name].dropna("step").values
        print(f"{name}: {values[0]:.2f} -> {values[-1]:.2f}")
    return model


if __name__ == "__main__":
    main()
