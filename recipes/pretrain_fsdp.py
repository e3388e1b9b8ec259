"""FSDP2 on several processes, recorded at every update; each rank writes its own rows of the output embedding.

    torchrun --nproc-per-node 2 recipes/pretrain_fsdp.py --steps 100 --out store/runs/fsdp

Some twenty seconds on two CPU cores; `python recipes/pretrain_fsdp.py` is one process. Needs trainhooks alone.
"""

import os
import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
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
    torch.manual_seed(args.seed)  # the same on every rank: the same model, and the same draw of windows
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    ids, texts = read_words(args.vocab)
    model = GPT(args.vocab, context=args.context).to(device)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)  # after sharding: its parameters are the shards
    counts = th.TokenCounts.count(ids.numpy(), vocab_size=args.vocab)
    settings = {"store": args.out / "run.zarr", "counts": counts, "token_texts": texts, "total_steps": args.steps}
    with th.Recorder(model, mode="overwrite", **settings) as recorder:  # on every rank, after sharding
        for _ in range(args.steps):
            starts = torch.randint(len(ids) - args.context, (args.batch, 1)).tensor_split(dist.get_world_size())
            window = ids[starts[dist.get_rank()] + torch.arange(args.context + 1)].to(device)
            recorder.begin_step(window[:, 1:])  # this rank's labels; the sum over the ranks is recorded
            loss = cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            recorder.before_update()
            optimizer.step()
            optimizer.zero_grad()
            mean = loss.detach() / dist.get_world_size()
            dist.all_reduce(mean)  # what rank 0 says is recorded, so it must know the others' losses
            recorder.after_update(loss=mean, learning_rate=2e-3)
    return model


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    for name, value in {"steps": 100, "batch": 8, "context": 64, "vocab": 2048, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path, default=Path("store/runs/fsdp"))
    args = parser.parse_args(argv)
    for name, one in {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": 0,
    }.items():
        os.environ.setdefault(name, str(one))  # without torchrun
    dist.init_process_group()
    train(args)
    if dist.get_rank() == 0:
        metrics = th.open_store(args.out / "run.zarr").metrics()
        for name in ("loss", "probe.heldout_spearman"):
            values = metrics[name].dropna("step").values
            print(f"{name}: {values[0]:.2f} -> {values[-1]:.2f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
