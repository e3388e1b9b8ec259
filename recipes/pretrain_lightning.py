"""A Lightning Trainer whose callback records every update; the scalars go to the trainer's logger as well.

    python recipes/pretrain_lightning.py --steps 100 --out store/runs/lightning
    tensorboard --logdir store/runs/lightning

Some ten seconds of one CPU core. Needs `pip install 'trainhooks[lightning,tensorboard]'`.
"""

import os
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import trainhooks as th
from trainhooks.integrations.lightning import TrainHooks


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


class LanguageModel(LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.model(batch["input_ids"])[:, :-1]
        return cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def train(args: Namespace) -> nn.Module:
    torch.manual_seed(args.seed)
    ids, texts = read_words(args.vocab)
    starts = torch.randint(len(ids) - args.context, (args.steps * args.accumulate * args.batch, 1))
    data = [{"input_ids": window, "labels": window} for window in ids[starts + torch.arange(args.context)]]
    model = LanguageModel(GPT(args.vocab, context=args.context))
    counts = th.TokenCounts.count(ids.numpy(), vocab_size=args.vocab)
    hooks = TrainHooks(store=args.out / "run.zarr", counts=counts, token_texts=texts, mode="overwrite")
    trainer = Trainer(
        max_steps=args.steps,
        accumulate_grad_batches=args.accumulate,  # a record an update, not a batch
        gradient_clip_val=1.0,
        devices=1,
        callbacks=[hooks],
        logger=TensorBoardLogger(args.out, name="events"),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=args.batch))
    return model.model


def main(argv: list[str] | None = None) -> nn.Module:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name, value in {"steps": 100, "batch": 8, "accumulate": 2, "context": 64, "vocab": 2048, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=Path("store/runs/lightning"))
    args = parser.parse_args(argv)
    model = train(args)
    metrics = th.open_store(args.out / "run.zarr").metrics()
    for name in ("loss", "probe.heldout_spearman"):
        values = metrics[name].dropna("step").values
        print(f"{name}: {values[0]:.2f} -> {values[-1]:.2f}")
    return model


if __name__ == "__main__":
    main()
