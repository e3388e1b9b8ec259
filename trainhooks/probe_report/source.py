"""Where a matrix for a report comes from: a store's snapshot, a model's folder, a `.npy` or a `.safetensors` file."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainhooks.checkpoints.base import Checkpoint, CheckpointError
from trainhooks.checkpoints.head_key import HeadKey, head_key
from trainhooks.checkpoints.opening import open_checkpoint
from trainhooks.core.array_files import read_array
from trainhooks.core.token_counts import TokenCounts
from trainhooks.corpora.tokenizers import read_token_texts
from trainhooks.model.head_names import INPUTS, is_named
from trainhooks.probe import LEAST_ROTATIONS
from trainhooks.probe.row_selection import settings_of_run
from trainhooks.probe_report.figures import Recorded
from trainhooks.probe_report.matrix import report_matrix
from trainhooks.probe_report.report import MatrixReport
from trainhooks.store import Store, is_store, open_store
from trainhooks.store.format.root import SPARE

NORM_NAMES = ("final_layer_norm", "final_layernorm", "ln_f", "model.norm", "transformer.norm_f")
RECORDED = ("channel.", "probability.")
STORE, MODEL = "store", "model"
SEEN_HAS_NO_CEILING: dict[str, Any] = {
    "noise_ceiling": float("nan"),
    "no_ceiling": "these counts are what the model was trained on, their noise included",
}


@dataclass(frozen=True)
class MatrixSource:
    """A matrix [vocab, dim] in float32 (float64 stays) with what its place of origin knows besides.

    `counts` None where the source has none; `counts_are_seen` where they are of labels that the model was trained on.
    `min_count` and `excluded` are those of the run. `norm_scale` is given only for a norm with a bias, a LayerNorm:
    others may add 1 to their weight, which a file does not tell.
    """

    name: str
    embedding: Tensor
    step: int | None = None
    key: str | None = None
    counts: Any = None
    counts_from: str = ""
    token_texts: Sequence[str] | None = None
    min_count: int = 1
    excluded: tuple[int, ...] = ()
    head_bias: Tensor | None = None
    norm_bias: Tensor | None = None
    norm_scale: Tensor | None = None
    store: Store | None = None
    recorded: dict[str, Recorded] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    counts_are_seen: bool = False

    def other_steps(self) -> Iterator[tuple[str, Tensor]]:
        """The snapshot before this one and the last one, read as they are asked for; nothing for a file."""
        if self.store is None or self.step is None:
            return
        steps = self.store.snapshot_steps.tolist()
        here = steps.index(self.step)
        if here > 0:
            yield f"snapshot before, step {steps[here - 1]}", _matrix(self.store, steps[here - 1])
        if here < len(steps) - 1:
            yield f"last snapshot, step {steps[-1]}", _matrix(self.store, steps[-1])


def report_source(
    source: str | Path,
    *,
    step: int | None = None,
    key: str | None = None,
    counts: str | Path | None = None,
    tokenizer: str | Path | None = None,
    vocab_size: int | None = None,
    min_count: int | None = None,
    exclude: Iterable[int] = (),
    draws: int = LEAST_ROTATIONS,
    seen: bool = False,
) -> MatrixReport:
    """`report_matrix` of a store's snapshot, a model or a file, with what it knows: counts, texts, biases, drift.

    `step` (stores; by default the last with a matrix) and `key` (`.safetensors`, models) as `open_matrix`. `counts` is
    a file of token counts, needed where the source has none; `tokenizer` a tokenizer.json. `min_count` is by default
    the run's, else 1; `exclude` adds to the run's excluded ids. With `seen` a store's matrix is held against the labels
    that the model was trained on up to that step, not against the corpus.

    Raises ValueError for a source, step, key, counts or tokenizer that do not fit, ImportError where a tokenizer is
    given and tokenizers is not installed.
    """
    found = open_matrix(source, step=step, key=key)
    if seen:
        if counts is not None:
            raise ValueError("seen=True takes the labels that the store counted: leave counts= (--counts) out.")
        found = _against_seen(found)
    if counts is not None:
        found = replace(found, counts=TokenCounts.load(counts), counts_from=str(counts))
    if found.counts is None:
        raise ValueError(f"{found.name} holds no token counts: pass counts=FILE (--counts FILE), .npz, .npy or .csv.")
    texts = found.token_texts if tokenizer is None else read_token_texts(tokenizer)
    report = report_matrix(
        found.embedding,
        counts=found.counts,
        vocab_size=vocab_size,
        min_count=found.min_count if min_count is None else min_count,
        exclude={*found.excluded, *exclude},
        token_texts=texts,
        head_bias=found.head_bias,
        norm_bias=found.norm_bias,
        norm_scale=found.norm_scale,
        others=found.other_steps(),
        draws=draws,
    )
    return replace(
        report,
        name=found.name,
        step=found.step,
        key=found.key,
        counts_from=found.counts_from,
        recorded=found.recorded,
        notes=found.notes,
        **({} if counts is not None or not found.counts_are_seen else SEEN_HAS_NO_CEILING),
    )


def open_matrix(source: str | Path, *, step: int | None = None, key: str | None = None) -> MatrixSource:
    """The matrix of a store at `step`, of a `.npy` file, or under `key` of a `.safetensors` file or a model's folder.

    A folder is read as a checkpoint of a suite is. Nothing in a file is executed or unpickled. Raises ValueError where
    the source does not hold it, FileNotFoundError where there is nothing.
    """
    path = Path(source)
    kind = _kind(path)
    if kind != STORE and step is not None:
        what = "a model" if kind == MODEL else "a file with one matrix"
        raise ValueError(f"step={step} was asked for, but {path} is {what}: leave step out.")
    if kind not in (".safetensors", MODEL) and key is not None:
        raise ValueError(f"key={key!r} was asked for, but {path} is no .safetensors file and no model: leave key out.")
    if kind == STORE:
        return _from_store(open_store(path), step=step)
    if kind == MODEL:
        return _from_model(path, key=key)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    if kind == ".npy":
        return MatrixSource(name=str(path), embedding=_read_npy(path))
    if kind == ".safetensors":
        return _from_checkpoint(path, key=key)
    raise ValueError(
        f"{path} ends in {kind or 'nothing'}; needed is a store, a model's folder, or a .npy or .safetensors file."
    )


def _kind(path: Path) -> str:
    """`STORE`, `MODEL`, or a file's ending."""
    if path.is_dir() and not is_store(path) and not (path / SPARE).exists():
        return MODEL
    return path.suffix.lower() if path.is_file() or path.suffix.lower() in (".npy", ".safetensors") else STORE


def _from_model(path: Path, *, key: str | None) -> MatrixSource:
    try:
        return _from_checkpoint(path, key=key)
    except CheckpointError as error:
        raise ValueError(f"{path} is no store, and no model whose output embedding can be read: {error}") from error


def _from_store(store: Store, *, step: int | None) -> MatrixSource:
    steps = store.snapshot_steps.tolist()
    if not steps:
        raise ValueError(f"{store.where} holds no matrix at any step: record with a snapshot_schedule.")
    at = steps[-1] if step is None else operator.index(step)
    if at not in steps:
        raise ValueError(f"{store.where} has no matrix at step {at}; steps with one: {_shown_steps(steps)}.")
    counts, counts_from = store.token_counts, "the store's corpus counts"
    if counts is None:
        counts, counts_from = _labels(store, at), _seen(at)
    settings = settings_of_run(store.attributes)
    return MatrixSource(
        name=store.where,
        embedding=_matrix(store, at),
        step=at,
        counts=counts,
        counts_from=counts_from,
        counts_are_seen=store.token_counts is None,
        token_texts=store.token_texts,
        min_count=settings["min_count"],
        excluded=settings["exclude"],
        store=store,
        recorded=_recorded(store, at),
    )


def _against_seen(source: MatrixSource) -> MatrixSource:
    """The same matrix beside the labels that the model had been trained on by then."""
    if source.store is None or source.step is None:
        raise ValueError(f"{source.name} is a file: what a model has seen (--seen) stands only in a recorder's store.")
    counts = _labels(source.store, source.step)
    if counts is None:
        raise ValueError(
            f"{source.name} counted no labels up to step {source.step}: pass a later step (--step), or labels to the "
            "recorder's begin_step() in another run."
        )
    return replace(source, counts=counts, counts_from=_seen(source.step), counts_are_seen=True)


def _seen(step: int) -> str:
    return f"labels trained on up to step {step}"


def _labels(store: Store, step: int) -> np.ndarray | None:
    """Labels seen up to the step; None where they were not counted, or none has been seen."""
    try:
        counts = store.label_counts(step)
    except ValueError:
        return None
    return counts if counts.any() else None


def _matrix(store: Store, step: int) -> Tensor:
    return torch.from_numpy(np.array(store.output_embedding(step)))


def _shown_steps(steps: list[int]) -> str:
    if len(steps) <= 24:
        return ", ".join(map(str, steps))
    return ", ".join(map(str, steps[:12])) + " ... " + ", ".join(map(str, steps[-6:])) + f" ({len(steps)} in all)"


def _recorded(store: Store, step: int) -> dict[str, Recorded]:
    """The run's own scalars of the families that one matrix cannot give."""
    record = int(np.searchsorted(store.steps, step))
    found = {}
    for name, described in store.summary()["variables"].items():
        if name.startswith(RECORDED) and store[name].ndim == 1 and np.isfinite(store[name][record]):
            description = str(described.get("description", ""))
            found[name] = Recorded(float(store[name][record]), str(described["unit"]), description)
    return found


def _read_npy(path: Path) -> Tensor:
    try:
        array = read_array(path)
    except ValueError as error:
        raise ValueError(f"{path} holds no array: {error}") from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(f"{path} holds {array.dtype} {array.shape}; needed is one floating matrix [vocab, dim].")
    kept = array if array.dtype == np.float64 else array.astype(np.float32, copy=False)
    return torch.from_numpy(np.ascontiguousarray(kept.astype(kept.dtype.newbyteorder("="), copy=False)))


def _from_checkpoint(path: Path, *, key: str | None) -> MatrixSource:
    checkpoint = open_checkpoint(path)
    shapes = {name: entry.shape for name, entry in checkpoint.tensors.items()}
    chosen = _choose(checkpoint, shapes, key)
    weight, norm = checkpoint.read(chosen.key), _norm(shapes, dim=shapes[chosen.key][1])
    return MatrixSource(
        name=str(path),
        embedding=weight if weight.dtype == torch.float64 else weight.float(),
        key=chosen.key,
        head_bias=None if chosen.bias_key is None else checkpoint.read(chosen.bias_key).float(),
        norm_bias=None if norm is None else checkpoint.read(f"{norm}.bias").float(),
        norm_scale=None if norm is None else checkpoint.read(f"{norm}.weight").float(),
        notes=(f"{chosen.key} was taken: {chosen.why}",),
    )


def _choose(checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]], key: str | None) -> HeadKey:
    """The output embedding; a file's only matrix where its name says nothing."""
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    try:
        return head_key(checkpoint, key=key)
    except CheckpointError:
        unknown = any(entry.unreadable for entry in checkpoint.tensors.values())
        if key is not None or len(matrices) != 1 or unknown or is_named(matrices[0].removesuffix(".weight"), INPUTS):
            raise
    return replace(head_key(checkpoint, key=matrices[0]), why="the file's only matrix")


def _norm(shapes: dict[str, tuple[int, ...]], *, dim: int) -> str | None:
    """The path of the last norm where it has a weight and a bias of the matrix's width; None where not one is known."""
    fits = [
        name.removesuffix(".bias")
        for name in shapes
        if name.endswith(".bias")
        and any(f".{name}".endswith(f".{norm}.bias") for norm in NORM_NAMES)
        and ".layers." not in name
        and shapes[name] == shapes.get(name.removesuffix("bias") + "weight") == (dim,)
    ]
    return fits[0] if len(fits) == 1 else None
