"""A metric of your own, recorded beside the default ones: do the rows of common tokens move first?

    python recipes/custom_metric.py --steps 200 --out store/runs/custom_metric

Some ten seconds of one CPU core. Needs trainhooks alone.
"""

import os
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import trainhooks as th


class RowsMoved(th.Metric):
    """How far the output embedding's rows are from where they began: the `common` most frequent, and the others.

    Both are means of |E_w(t) - E_w(0)| over rows; tokens that never occur are left out.
    """

    variables = (
        th.Variable("rows_moved.common", description="mean distance to record 0, the commonest tokens' rows"),
        th.Variable("rows_moved.others", description="the same for the other tokens that occur"),
    )
    needs = frozenset({"initial_head"})  # the recorder keeps a copy of the first record's matrix for this metric

    def __init__(self, counts: th.TokenCounts, *, common: int = 100) -> None:
        order = torch.from_numpy(counts.counts.copy()).argsort(descending=True, stable=True)
        self._common = order[:common]
        self._others = order[common : int((counts.counts > 0).sum())]

    def compute(self, state: th.State) -> Mapping[str, Tensor | float]:
        """Tensors on the model's device, in float32 or better; the recorder moves them to the host, later."""
        if state.initial_head is None:  # the first record
            return {"rows_moved.common": 0.0, "rows_moved.others": 0.0}
        moved = (state.output_embedding.float() - state.initial_head).norm(dim=1)
        device = moved.device
        return {
            "rows_moved.common": moved[self._common.to(device)].mean(),
            "rows_moved.others": moved[self._others.to(device)].mean(),
        }


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
    settings = {"store": args.out / "run.zarr", "counts": counts, "token_texts": texts, "mode": "overwrite"}
    with th.Recorder(model, extra_metrics=[RowsMoved(counts)], **settings) as recorder:
        for _ in range(args.steps):
            starts = torch.randint(len(ids) - args.context, (args.batch, 1))
            window = ids[starts + torch.arange(args.context + 1)]
            recorder.begin_step(window[:, 1:])
            loss = cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
            loss.backward()
            recorder.before_update()
            optimizer.step()
            optimizer.zero_grad()
            recorder.after_update(loss=loss, learning_rate=5e-3)
    return model


def main(argv: list[str] | None = None) -> nn.Module:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name, value in {"steps": 200, "batch": 8, "context": 64, "vocab": 2048, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=Path("store/runs/custom_metric"))
    args = parser.parse_args(argv)
    model = train(args)
    moved = th.open_store(args.out / "run.zarr").metrics()
    common, others = (moved[f"rows_moved.{rows}"].values for rows in ("common", "others"))
    for step in (args.steps // 10, args.steps // 2, args.steps):
        print(f"step {step}: common rows have moved {common[step]:.2f}, the others {others[step]:.2f}")
    return model


if __name__ == "__main__":
    main()
