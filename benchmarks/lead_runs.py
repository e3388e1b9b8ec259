"""Small real runs on which the test of the lead is calibrated: trained here, every output embedding kept.

    python benchmarks/lead_runs.py --out store/runs/lead --english texts/

Twelve language models of 2,048 tokens x 64 dimensions, 160 updates of 1,024 tokens each: tied and untied, Llama and
GPT-NeoX; AdamW, Lion and Muon; source text and English; real text, the same ids in random order (shuffled), and ids
drawn alike (uniform); three seeds of one model. A store that is there already is kept. Needs
`trainhooks[transformers]`; about ten seconds a run on one core, some 20 MB of disk each.
"""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import trainhooks as th
from trainhooks.demo.corpus import load_corpus, windows

VOCAB, DIM, LAYERS, HEADS, CONTEXT, BATCH, STEPS, WARMUP = 2048, 64, 2, 4, 64, 16, 160, 10
STREAM_SEED = 0


@dataclass(frozen=True)
class Trained:
    """What one run is made of; its name is that of its store."""

    model: str
    tied: bool
    optimizer: str
    text: str
    stream: str = "text"
    seed: int = 0

    @property
    def name(self):
        """Model, head, optimizer, text, stream and seed, joined."""
        tied = "tied" if self.tied else "untied"
        return f"{self.model}-{tied}-{self.optimizer}-{self.text}-{self.stream}-{self.seed}"


RUNS = (
    *(Trained("llama", True, "lion", "source", seed=seed) for seed in range(3)),
    Trained("neox", False, "adamw", "source"),
    Trained("neox", False, "adamw", "english"),
    Trained("neox", False, "muon", "english"),
    Trained("llama", True, "adamw", "english"),
    Trained("llama", True, "muon", "source"),
    Trained("neox", False, "adamw", "source", "shuffled"),
    Trained("llama", True, "lion", "english", "shuffled"),
    Trained("neox", False, "adamw", "source", "uniform"),
    Trained("llama", True, "lion", "source", "uniform"),
)


class Lion(torch.optim.Optimizer):
    """The sign of an interpolated momentum (Chen et al. 2023, arXiv 2302.06675)."""

    def __init__(self, params, lr, betas=(0.9, 0.99), weight_decay=0.1):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter; `closure` is not asked."""
        for group in self.param_groups:
            slow, fast = group["betas"][1], group["betas"][0]
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(torch.sign(mean * fast + p.grad * (1 - fast)), alpha=-group["lr"])
                mean.mul_(slow).add_(p.grad, alpha=1 - slow)


def build(run):
    """The model of a run, its weights from its seed."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    shape = {
        "vocab_size": VOCAB,
        "hidden_size": DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * DIM,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": run.tied,
        "use_cache": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(run.seed)
    return (
        LlamaForCausalLM(LlamaConfig(**shape)) if run.model == "llama" else GPTNeoXForCausalLM(GPTNeoXConfig(**shape))
    )


def optimizers(run, model):
    """The optimizer, or Muon for the blocks' matrices and AdamW for all else."""
    params = [p for p in model.parameters() if p.requires_grad]
    if run.optimizer == "lion":
        return [Lion(params, lr=1e-3)]
    if run.optimizer == "adamw":
        return [torch.optim.AdamW(params, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)]
    inner = {id(p) for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2}
    rest = [p for p in params if id(p) not in inner]
    return [
        torch.optim.Muon([p for p in params if id(p) in inner], lr=0.02),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def share_of_peak(step):
    """Linear warm-up, then a cosine down to a tenth."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.55 + 0.45 * np.cos(np.pi * (step - WARMUP) / (STEPS - WARMUP))


def stream(corpus, name):
    """The corpus with its ids as they are, in random order, or drawn alike; the counts stay those of the text."""
    rng = np.random.default_rng(STREAM_SEED)
    if name == "shuffled":
        return dataclasses.replace(corpus, ids=rng.permutation(corpus.ids))
    if name == "uniform":
        ids = rng.integers(corpus.counts.vocab_size, size=len(corpus.ids), dtype=corpus.ids.dtype)
        return dataclasses.replace(corpus, ids=ids)
    return corpus


def train(run, corpus, path):
    """Train one run and keep every output embedding, with the final loss printed."""
    model = build(run)
    made = optimizers(run, model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, share_of_peak) for one in made]
    data = windows(stream(corpus, run.stream), CONTEXT + 1, seed=run.seed, minimum=BATCH)
    with th.Recorder(
        model, store=path, counts=corpus.counts, vocab_size=corpus.counts.vocab_size, metrics=[], mode="overwrite"
    ) as recorder:
        for step in range(STEPS):
            ids = torch.stack([data[(step * BATCH + i) % len(data)] for i in range(BATCH)])
            recorder.begin_step(ids[:, 1:])
            logits = model(input_ids=ids[:, :-1]).logits
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            recorder.before_update()
            for one, schedule in zip(made, schedules, strict=True):
                one.step()
                schedule.step()
            model.zero_grad()
            recorder.after_update(loss=loss.detach(), learning_rate=schedules[-1].get_last_lr()[0])
    print(f"{run.name}: loss {float(loss.detach()):.2f}", flush=True)


def make_runs(out, english):
    """The stores of all runs, trained where they are not there; without a folder of English, those on source text."""
    corpora = {"source": load_corpus(vocab_size=VOCAB, max_bytes=6_000_000, progress=False)}
    if english is not None:
        corpora["english"] = load_corpus([english], vocab_size=VOCAB, max_bytes=6_000_000, progress=False)
    paths = []
    for run in RUNS:
        if run.text in corpora:
            path = out / f"{run.name}.zarr"
            if not path.exists():
                train(run, corpora[run.text], path)
            paths.append(path)
    return paths


def main():
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("store/runs/lead"))
    parser.add_argument("--english", type=Path, help="a folder of English text (default: source text alone)")
    args = parser.parse_args()
    make_runs(args.out, args.english)


if __name__ == "__main__":
    main()
