"""The demo: from text to a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from trainhooks.core.printable import draw, plain_console, sayer, shown
from trainhooks.core.schedule import Every
from trainhooks.demo.checkpoints import CheckpointSuite, clear_models, save_model
from trainhooks.demo.corpus import Corpus, load_corpus, windows
from trainhooks.demo.loops import LOOPS, Training
from trainhooks.demo.models import PRESETS, Preset, build_model
from trainhooks.lead.from_store import analyze_store
from trainhooks.lead.verdict import verdict
from trainhooks.metrics.base import Metric
from trainhooks.metrics.covariate_baseline import CovariateBaseline
from trainhooks.metrics.defaults import default_metrics
from trainhooks.metrics.geometry import HeadGeometry
from trainhooks.metrics.spectrum import Spectrum
from trainhooks.model import find_output_embedding
from trainhooks.recording.recorder import Recorder
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
    preset = PRESETS[size]
    place = _device(device)
    store_path, events = out / "run.zarr", out / "events"
    check_place(store_path, mode="overwrite")
    corpus = load_corpus(corpus_paths, vocab_size=preset.vocab_size, progress=True, max_bytes=max_bytes)
    batch = preset.batch_tokens // preset.context
    data = windows(corpus, preset.context, seed=seed, minimum=batch)
    training = Training(
        steps=steps or preset.steps,
        batch=batch,
        learning_rate=preset.learning_rate,
        warmup=min(preset.warmup, max(1, (steps or preset.steps) // 4)),
        weight_decay=preset.weight_decay,
        device=place,
    )
    model = build_model(size, vocab_size=corpus.counts.vocab_size, seed=seed, context=preset.context)
    tell = sayer(console, soft_wrap=True)
    tell(_describe(model, corpus, training, preset, loop))
    clear_models(out)
    if checkpoints:
        suite = CheckpointSuite(out / "checkpoints", model, corpus.tokenizer, last=training.steps)
        suite(0)
        training = replace(training, after_update=suite)
    for stale in events.glob("events.out.tfevents.*"):  # else TensorBoard draws two runs as one curve
        stale.unlink()
    recorder = LOOPS[loop](
        model,
        data,
        training,
        {
            "store": store_path,
            "counts": corpus.counts,
            "vocab_size": corpus.counts.vocab_size,
            "metrics": _metrics(corpus, rows=len(find_output_embedding(model).weight)),
            "precision": "bfloat16",
            "sinks": [TensorBoardSink(events)],
            "mode": "overwrite",
            "token_texts": corpus.token_texts,
            "provenance": {"size": size, "loop": loop, "seed": seed, "steps": training.steps, "batch": batch},
        },
    )
    save_model(out / "model", model=model, tokenizer=corpus.tokenizer)
    store = open_store(store_path)
    _print_results(store, recorder, console)
    where = map(shown, (store_path, events, events, out / "model"))
    tell(
        "\nstore   {}\nevents  {}    (tensorboard --logdir {})\nmodel   {}".format(*where)
        + (f"\nsuite   {shown(out / 'checkpoints')}" if checkpoints else "")
    )
    return store


def _metrics(corpus: Corpus, *, rows: int) -> list[Metric]:
    """Probe and convergence at every step; spectrum, geometry and covariates, which cost more, at every tenth."""
    counts = corpus.counts.for_rows(rows, vocab_size=corpus.counts.vocab_size)
    texts = corpus.token_texts + [""] * (rows - len(corpus.token_texts))
    metrics = default_metrics(counts, token_texts=texts)
    for metric in metrics:
        if isinstance(metric, (Spectrum, HeadGeometry, CovariateBaseline)):
            metric.schedule = Every(10)
    return metrics


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


def _print_results(store: Store, recorder: Recorder, console: Console) -> None:
    metrics = store.metrics()
    loss = metrics["loss"].values
    tell = sayer(console, soft_wrap=True)
    tell(f"\nloss {loss[np.isfinite(loss)][0]:.2f} -> {loss[-1]:.2f} nats a token")
    table = Table(
        "step",
        "Spearman",
        "R2",
        "row norm alone",
        "permuted null",
        title="frequency probe, held out",
        box=None,
    )
    steps = store.steps
    middle = [int(np.abs(steps - share * steps[-1]).argmin()) for share in (0.03, 0.1, 0.3)]
    for index in dict.fromkeys([0, *middle, len(steps) - 1]):
        row = metrics.isel(step=index)
        figures = (
            float(row[f"probe.{name}"])
            for name in (
                "heldout_spearman",
                "heldout_r2",
                "row_norm_spearman",
                "permuted_heldout_spearman",
            )
        )
        table.add_row(str(steps[index]), *(f"{value:.2f}" for value in figures))
    draw(console, table)
    if len(store.snapshots) >= 3:
        rendered = verdict([analyze_store(store)]).render()
        tell("\n" + rendered.removesuffix("\n"))
    cost = recorder.cost
    tell(
        f"\nrecorder: {cost.milliseconds_per_step:.1f} ms a step, {100 * cost.fraction:.1f} % of the loop; beside it "
        f"{cost.writer_milliseconds_per_step:.1f} ms of CPU a step in the store's threads"
    )
