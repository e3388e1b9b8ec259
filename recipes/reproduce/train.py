"""Train one cell with a recorder attached: its store, and the whole model at log-spaced steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from grid import PYTHIA, SIZES, Cell, Size
from torch import Tensor, nn
from torch.utils.data import DataLoader

import trainhooks as th
from trainhooks.demo.checkpoints import CheckpointSuite
from trainhooks.demo.corpus import Corpus, load_corpus, windows
from trainhooks.metrics.covariate_baseline import CovariateBaseline
from trainhooks.metrics.defaults import default_metrics
from trainhooks.metrics.geometry import HeadGeometry
from trainhooks.metrics.spectrum import Spectrum

STREAM_SEED = 0  # of the order in which a shuffled corpus' ids stand
PEAK, MUON_PEAK, WARMUP = 2e-3, 2e-2, 20


def corpus_of(cell: Cell, *, english: Sequence[Path] | None, tokenizer: Path | None = None) -> Corpus:
    """The cell's text, tokenized; `shuffled` is the text's own ids in random order, so its counts are the same.

    A cell of Pythia's shape takes `tokenizer`, the others one of the cell's size that is trained on the text.
    """
    wanted = None if cell.text == "code" or english is None else list(english)
    given = tokenizer if cell.size in PYTHIA else None
    corpus = load_corpus(wanted, vocab_size=cell.vocab, tokenizer=given, progress=False)
    if cell.text == "shuffled":
        ids = np.random.default_rng(STREAM_SEED).permutation(np.asarray(corpus.ids))
        corpus = dataclasses.replace(corpus, ids=ids)
    return corpus


def build(cell: Cell, *, rows: int) -> nn.Module:
    """The model before training; its weights follow from the seed."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    size = SIZES[cell.size]
    config = GPTNeoXConfig(
        vocab_size=-(-rows // 128) * 128,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.hidden,
        max_position_embeddings=max(128, size.context + 1),
        rotary_pct=0.25,
        tie_word_embeddings=cell.tied,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(cell.seed)
    return GPTNeoXForCausalLM(config)


def optimizers(model: nn.Module, name: str) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon (Jordan et al. 2024) for the layers' matrices and AdamW for the rest."""
    settings = {"lr": PEAK, "betas": (0.9, 0.95), "weight_decay": 0.01}
    if name == "adamw":
        return [torch.optim.AdamW(model.parameters(), **settings)]
    inside = {parameter: None for parameter in model.gpt_neox.layers.parameters() if parameter.ndim == 2}
    rest = [parameter for parameter in model.parameters() if parameter not in inside]
    return [torch.optim.Muon(list(inside), lr=MUON_PEAK, weight_decay=0.01), torch.optim.AdamW(rest, **settings)]


def train(cell: Cell, out: Path, *, english: Sequence[Path] | None, tokenizer: Path | None = None) -> None:
    """Train the cell into `out`: `run.zarr`, every record with its matrix, and `checkpoints/step{N}`.

    On the first GPU where there is one.
    """
    size, device = SIZES[cell.size], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus = corpus_of(cell, english=english, tokenizer=tokenizer)
    rows = corpus.counts.vocab_size
    data = windows(corpus, size.context + 1, seed=cell.seed, minimum=size.batch)
    model = build(cell, rows=rows).to(device)
    out.mkdir(parents=True, exist_ok=True)
    corpus.counts.save(out / "counts.npz")
    suite = CheckpointSuite(out / "checkpoints", model, corpus.tokenizer, last=size.steps)
    suite(0)
    kept = optimizers(model, cell.optimizer)
    recorder = th.Recorder(
        model,
        store=out / "run.zarr",
        counts=corpus.counts,
        vocab_size=rows,
        metrics=metrics_of(corpus, rows=-(-rows // 128) * 128),
        token_texts=corpus.token_texts,
        total_steps=size.steps,
        precision="bfloat16",
        mode="overwrite",
        provenance={"cell": cell.name, **dataclasses.asdict(cell), "corpus": corpus.corpus_hash},
    )
    peaks = [group["lr"] for optimizer in kept for group in optimizer.param_groups]
    batches = _forever(DataLoader(data, batch_size=size.batch, drop_last=True))
    with recorder:
        for step in range(size.steps):
            ids = next(batches).to(device)
            recorder.begin_step(ids[:, 1:])
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            share = _share_of_peak(step, size)
            for peak, group in zip(peaks, (g for o in kept for g in o.param_groups), strict=True):
                group["lr"] = peak * share
            recorder.before_update()
            for optimizer in kept:
                optimizer.step()
                optimizer.zero_grad()
            recorder.after_update(loss=loss.detach(), learning_rate=PEAK * share)
            suite(step + 1)


def metrics_of(corpus: Corpus, *, rows: int) -> list[th.Metric]:
    """All default metrics; those that cost most at each tenth step."""
    counts = corpus.counts.for_rows(rows, vocab_size=corpus.counts.vocab_size)
    metrics = default_metrics(counts, token_texts=corpus.token_texts + [""] * (rows - len(corpus.token_texts)))
    for metric in metrics:
        if isinstance(metric, (Spectrum, HeadGeometry, CovariateBaseline)):
            metric.schedule = th.Every(10)
    return metrics


def _forever(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from loader


def _share_of_peak(step: int, size: Size) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    warmup = min(WARMUP, max(1, size.steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, size.steps - warmup)
    return 0.55 + 0.45 * math.cos(math.pi * min(1.0, done))
