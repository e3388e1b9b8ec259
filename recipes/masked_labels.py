"""`labels=` and `token_texts=`: a loss that masks most of its batch, and a run whose tokens can be read.

    python recipes/masked_labels.py --steps 200 --out store/runs/masked

Each line of Python's own library is a row, padded, and its comments alone are learned. Some ten seconds of one CPU
core. Needs `pip install 'trainhooks[lightning]'`.
"""

import os
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

import trainhooks as th
from trainhooks.integrations.lightning import TrainHooks

Batch = tuple[Tensor, Tensor]


def read_lines(vocab_size: int) -> tuple[list[list[int]], list[list[bool]], list[str]]:
    """Lines with a comment as ids of words, which of their words belong to it, and the text of each id; 1 is rare."""
    files = sorted(Path(os.__file__).parent.glob("[a-c]*.py"))
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    lines = [re.findall(r"\w+|\s+|[^\w\s]", line) for line in text.splitlines() if "#" in line[1:]]
    common = Counter(word for line in lines for word in line).most_common(vocab_size - 2)
    texts = ["<pad>", "<rare>", *sorted(word for word, _ in common)]
    ids = {word: number for number, word in enumerate(texts)}
    commented = [[number > line.index("#") for number in range(len(line))] for line in lines]
    return [[ids.get(word, 1) for word in line] for line in lines], commented, texts


def trained_on(batch: Batch) -> Tensor:
    """The ids that the loss sees, after the shift; negative ones are no labels."""
    ids, is_comment = batch
    return ids[:, 1:].masked_fill(~is_comment[:, 1:], -100)


class LanguageModel(LightningModule):
    def __init__(self, vocab_size: int, dim: int = 64) -> None:
        super().__init__()
        self.tokens, self.mix = nn.Embedding(vocab_size, dim), nn.GRU(dim, dim, batch_first=True)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)

    def training_step(self, batch: Batch) -> Tensor:
        logits = self.lm_head(self.mix(self.tokens(batch[0][:, :-1]))[0])
        return cross_entropy(logits.flatten(0, 1), trained_on(batch).flatten(), ignore_index=-100)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def collate(rows: list[Batch]) -> Batch:
    ids, is_comment = zip(*rows, strict=True)
    return pad_sequence(list(ids), batch_first=True), pad_sequence(list(is_comment), batch_first=True)


def train(args: Namespace) -> nn.Module:
    torch.manual_seed(args.seed)
    lines, commented, texts = read_lines(args.vocab)
    rows = [(torch.tensor(line), torch.tensor(is_comment)) for line, is_comment in zip(lines, commented, strict=True)]
    labels = [trained_on(collate([row]))[0] for row in rows]
    counts = th.TokenCounts.count([row[row >= 0].tolist() for row in labels], vocab_size=len(texts))
    hooks = TrainHooks(
        store=args.out / "run.zarr",
        counts=counts,  # of what is learned, not of what is read
        labels=trained_on,  # a batch of this shape is known to nobody else
        token_texts=texts,
        mode="overwrite",
    )
    loader = torch.utils.data.DataLoader(rows, batch_size=args.batch, collate_fn=collate, shuffle=True, drop_last=True)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_steps=args.steps, max_epochs=-1, callbacks=[hooks], **quiet)
    trainer.fit(model := LanguageModel(len(texts)), loader)
    return model


def main(argv: list[str] | None = None) -> nn.Module:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name, value in {"steps": 200, "batch": 16, "vocab": 1024, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=Path("store/runs/masked"))
    args = parser.parse_args(argv)
    model = train(args)
    store = th.open_store(args.out / "run.zarr")
    seen = store.label_counts(int(store.steps[-1]))
    print("most learned:", " ".join(repr(store.token_texts[number]) for number in (-seen).argsort()[:8]))
    return model


if __name__ == "__main__":
    main()
