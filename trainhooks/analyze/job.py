"""What every worker is told: the suite, which tensors, which metrics; and what it gives back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from trainhooks.analyze.distance_to_final import GROUP_VARIABLES, FinalRows
from trainhooks.analyze.positions import position_variables
from trainhooks.analyze.skeleton import ModelSkeleton, build_skeleton
from trainhooks.analyze.text import TextProbe
from trainhooks.checkpoints.base import Checkpoint, CheckpointError, TensorEntry
from trainhooks.checkpoints.fetch_ahead import fetch_head
from trainhooks.checkpoints.head_key import HeadKey, head_key
from trainhooks.checkpoints.opening import FileCheckpoint
from trainhooks.checkpoints.suite import CheckpointRef, Suite
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import Metric
from trainhooks.metrics.defaults import default_metrics
from trainhooks.model import NamedTensors
from trainhooks.probe.row_selection import RowSelection
from trainhooks.store import SNAPSHOT

HEAD, ALL = "head", "all"
FAILURES = (ValueError, OSError, RuntimeError, MemoryError)
HALF = (torch.float16, torch.bfloat16)
StandIns = dict[tuple[object, ...], ModelSkeleton]
MakeMetrics = Callable[[], Sequence[Metric]]


@dataclass(frozen=True)
class Job:
    """One analysis, as plain data that travels to workers.

    `entries` are the checkpoints in order of steps, `final` the last that can be read; `shape` [vocab, dim] is that of
    its output embedding, `groups` its parameter groups by the names of their members. `params` is "head", "all" or a
    glob on parameter names. `rows` are those of the probe, a count for each row of the output embedding, None without
    counts; `row_settings` what the store says of them. `make_metrics` is None for the default ones. `threads` are
    torch's, in each worker. `fingerprint` is the identity of the final output embedding, `taken` says which tensor that
    is and why; `text`, prepared, is read by every model, None for no text. `keeps_lead` False leaves out what a verdict
    needs, for a store that was begun without it.
    """

    suite: Suite
    entries: tuple[CheckpointRef, ...]
    final: CheckpointRef
    shape: tuple[int, int]
    groups: dict[str, tuple[str, ...]]
    params: str = HEAD
    head: str | None = None
    rows: RowSelection | None = None
    row_settings: Mapping[str, object] = field(default_factory=lambda: {"min_count": 1, "excluded_tokens": []})
    token_texts: tuple[str, ...] | None = None
    make_metrics: MakeMetrics | None = None
    sketch_size: int = 1021
    threads: int = 1
    fingerprint: str = ""
    taken: str = ""
    text: TextProbe | None = None
    keeps_lead: bool = True

    def metrics(self) -> list[Metric]:
        """New instances of all metrics."""
        if self.make_metrics is not None:
            return list(self.make_metrics())
        return default_metrics(self.rows, token_texts=self.token_texts)

    @property
    def counts(self) -> np.ndarray | None:
        """A count for each row of the output embedding."""
        return None if self.rows is None or self.rows.counts is None else self.rows.counts.numpy()

    @property
    def final_rows(self) -> FinalRows:
        """The rows whose way to the final state is followed."""
        return FinalRows.of(self.rows)

    @property
    def own_variables(self) -> tuple[Variable, ...]:
        """What is measured of the way to the final state, and on a text, and where a checkpoint stands."""
        of_text = () if self.text is None else self.text.series_variables
        return (*self.final_rows.variables, *GROUP_VARIABLES, *of_text, *position_variables(self.suite))

    @property
    def settings(self) -> dict[str, object]:
        """What two analyses share that can go on with each other's store, as JSON."""
        counts = None if self.counts is None else sha256(np.ascontiguousarray(self.counts).tobytes()).hexdigest()
        return {
            "initial_step": self.entries[0].step,
            "final_step": self.final.step,
            "final_embedding_hash": self.fingerprint,
            "params": self.params,
            "measured_counts_hash": counts,
            **self.row_settings,
            "text_hash": None if self.text is None else self.text.fingerprint,
        }


@dataclass(frozen=True)
class Measurement:
    """One checkpoint's numbers, on the host: `values` by variable, group norms [group] and `sketch` [group, sketch].

    `head` is the output embedding that was measured, float32, None where it has come from another process: numbers
    travel, matrices are read again.
    """

    step: int
    values: dict[str, np.ndarray]
    norms: np.ndarray
    sketch: np.ndarray
    head: Tensor | None = None


@dataclass(frozen=True)
class Failed:
    """A checkpoint that could not be read or measured, and why."""

    step: int
    reason: str


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint with headers read: its skeleton, and where the output embedding lies."""

    checkpoint: Checkpoint
    standin: ModelSkeleton
    head: HeadKey
    norm_and_bias: dict[str, str] = field(default_factory=dict)
    _held: dict[str, Tensor] = field(default_factory=dict)

    def stored_head(self) -> Tensor:
        """The output embedding [vocab, dim] as stored, read once: no two maps of one file."""
        if self.head.key not in self._held:
            self._held[self.head.key] = self.checkpoint.read(self.head.key)
        return self._held[self.head.key]

    def read_head(self) -> Tensor:
        """The output embedding as float32 [vocab, dim], contiguous; a map of the file where it can be."""
        return self.stored_head().to(torch.float32).contiguous()

    def reference_head(self) -> Tensor:
        """What others are compared with: half precision as it is stored, since a copy in float32 would be one more."""
        return self.stored_head() if self.stored_head().dtype in HALF else self.read_head()

    def read_around(self) -> dict[str, Tensor]:
        """The head's bias and the last norm, by parameter name, as stored."""
        return {name: self.checkpoint.read(key) for name, key in self.norm_and_bias.items()}

    def expect(self, name: str) -> int:
        """Have a parameter read ahead, where the checkpoint can; its bytes."""
        if name not in self.standin.keys:
            return 0
        key = self.standin.keys[name]
        if isinstance(self.checkpoint, FileCheckpoint):
            self.checkpoint.expect(key)
        return self.checkpoint.tensors[key].nbytes

    def parameter(self, name: str) -> Tensor:
        """A parameter by its name. Raises CheckpointError where the checkpoint has none under a key that fits."""
        if name not in self.standin.keys:
            raise CheckpointError(f"{self.checkpoint.name} has no tensor for the parameter {name!r} of the suite.")
        key = self.standin.keys[name]
        return self.stored_head() if key == self.head.key else self.checkpoint.read(key)


def open_entry(
    suite: Suite,
    entry: CheckpointRef,
    *,
    head: str | None,
    shape: tuple[int, int] | None = None,
    known: StandIns | None = None,
    whole: bool = False,
) -> OpenedCheckpoint:
    """Open a checkpoint, headers only. `known` are stand-ins made before, which are taken where they fit. `whole` reads
    every shard's header, where the parameters beside the head and its norm are wanted.

    Raises CheckpointError where it cannot be read, or where its output embedding has another shape than `shape`.
    """
    checkpoint = suite.open(entry)
    fetch_head(checkpoint, key=head)
    key = head_key(checkpoint, key=SNAPSHOT if head is None and SNAPSHOT in checkpoint.tensors else head)
    found = tuple(checkpoint.tensors[key.key].shape)
    if shape is not None and found != shape:
        raise CheckpointError(
            f"{checkpoint.name}: the output embedding is {found[0]} x {found[1]}, the suite's final one "
            f"{shape[0]} x {shape[1]}: another model, or another vocabulary. Analyze it apart."
        )
    known = {} if known is None else known
    sign = (
        whole,
        json.dumps(dict(checkpoint.config), sort_keys=True, default=str),
        tuple(map(_sign, checkpoint.tensors.values())),
    )
    standin = known[sign] if sign in known else known.setdefault(sign, build_skeleton(checkpoint, key, whole=whole))
    return OpenedCheckpoint(checkpoint, standin, key, standin.around)


def _sign(entry: TensorEntry) -> tuple[object, ...]:
    return (entry.key, entry.dtype, entry.shape) if entry.announced else (entry.key,)


def wanted_groups(opened: OpenedCheckpoint, *, params: str) -> dict[str, tuple[str, ...]]:
    """The parameter groups that are followed, each by its members' names: those that are read whole.

    With "head" these are the output embedding and the last norm; a glob adds a group of its own name. Raises ValueError
    where a glob fits no parameter.
    """
    standin = opened.standin
    patterns = () if params in (HEAD, ALL) else (params,)
    groups = {group: _names(members) for group, members in standin.groups(patterns).items()}
    named = {name for names in groups.values() for name in names}
    if params != ALL:
        around = {standin.head.name, *opened.norm_and_bias}
        named = {name for name in named if name in around or (patterns and fnmatchcase(name, params))}
    held = {name for name in named if name in standin.keys}
    return {group: names for group, names in groups.items() if held.issuperset(names)}


def _names(members: NamedTensors) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name, _ in members))
