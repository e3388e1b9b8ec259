"""The demo: from text to an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from trainhooks.core.printable import plain_console, sayer
from trainhooks.demo.checkpoints import CheckpointSuite, clear_models, save_model
from trainhooks.demo.corpus import Corpus, load_corpus, windows
from trainhooks.demo.loops import LOOPS, Training
from trainhooks.demo.models import PRESETS, Preset, build_model
from trainhooks.demo.results import print_results
from trainhooks.sinks import TensorBoardSink
from trainhooks.store import Store, check_place, open_store


def run_demo(
    *,
    out: Path,
    steps: int | None = None,
    size: str = "tiny",
    corpus_paths: Sequence[Path] | None = None,
    loop: str = "plain",
    device: str = "auto",
    seed: int = 0,
    max_bytes: int | None = None,
    checkpoints: bool = False,
    console: Console | None = None,
) -> Store:
    """Pretrain, record, and print what happened; returns the store that was made.

    `out` gets the store `run.zarr`, the TensorBoard `events`, the trained `model`, which the store's last step belongs
    to, and with `checkpoints` a suite of whole models at log-spaced steps, `checkpoints/step{N}`.

    Raises ValueError for a corpus that is empty or too small, or a GPU that is not there; OSError for a folder
    that can't be written. All before training starts.
    """
    console = console or plain_console()
    preset, place = PRESETS[size], _device(device)
    check_place(out / "run.zarr", mode="overwrite")
    corpus = load_corpus(corpus_paths, vocab_size=preset.vocab_size, progress=True, max_bytes=max_bytes)
    training = _training(preset, steps=steps, device=place)
    data = windows(corpus, preset.context, seed=seed, minimum=training.batch)
    model = build_model(size, vocab_size=corpus.counts.vocab_size, seed=seed, context=preset.context)
    sayer(console, soft_wrap=True)(_describe(model, corpus, training, preset, loop))
    clear_models(out)
    if checkpoints:
        suite = CheckpointSuite(out / "checkpoints", model, corpus.tokenizer, last=training.steps)
        suite(0)
        training = replace(training, after_update=suite)
    for stale in (out / "events").glob("events.out.tfevents.*"):  # else TensorBoard draws two runs as one curve
        stale.unlink()
    about = {"size": size, "loop": loop, "seed": seed, "steps": training.steps, "batch": training.batch}
    recorder = LOOPS[loop](model, data, training, _hooks(corpus, out=out, about=about))
    save_model(out / "model", model=model, tokenizer=corpus.tokenizer)
    store = open_store(out / "run.zarr")
    print_results(store, cost=recorder.cost, out=out, suite=checkpoints, console=console)
    return store


def _training(preset: Preset, *, steps: int | None, device: str) -> Training:
    steps = steps or preset.steps
    return Training(
        steps=steps,
        batch=preset.batch_tokens // preset.context,
        learning_rate=preset.learning_rate,
        warmup=min(preset.warmup, max(1, steps // 4)),
        weight_decay=preset.weight_decay,
        device=device,
    )


def _hooks(corpus: Corpus, *, out: Path, about: Mapping[str, object]) -> dict[str, Any]:
    """What every loop's recorder is given."""
    return {
        "store": out / "run.zarr",
        "counts": corpus.counts,
        "vocab_size": corpus.counts.vocab_size,
        "precision": "bfloat16",
        "sinks": [TensorBoardSink(out / "events")],
        "mode": "overwrite",
        "token_texts": corpus.token_texts,
        "provenance": about,
    }


def _device(wanted: str) -> str:
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ValueError("--device cuda: torch sees no GPU here. Use --device cpu, or a build of torch with CUDA.")
    return "cuda" if available and wanted != "cpu" else "cpu"


def _describe(model: torch.nn.Module, corpus: Corpus, training: Training, preset: Preset, loop: str) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{preset.name}: {parameters / 1e6:.1f}M parameters, {corpus.counts.n_tokens / 1e6:.1f}M tokens of text, "
        f"vocabulary {corpus.counts.vocab_size}; {training.steps} steps of {preset.batch_tokens} tokens, "
        f"{loop} loop on {training.device}"
    )
