"""A sink takes what the recorder measured and keeps it somewhere."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from trainhooks.store import Layout
from trainhooks.store.format.precision import unpack

Held = TypeVar("Held")
MODEL_AXES = ("token", "dim", "sketch_bucket")


@dataclass(frozen=True)
class Record:
    """What was measured at one step, on the host. Its arrays are read-only: sinks, store and later records share them.

    `labels` names the entries of those that are vectors and that a logger can draw (see `entry_labels`): they are in
    `scalars`, all other vectors whole in `vectors`.
    `values` holds one array for each variable that was measured, shaped as declared; `sketch` [group, sketch],
    `snapshot` [vocab, dim] and `label_counts` [vocab] are None where the schedule left them out. Where several ranks
    write the store, `snapshot` holds this one's rows alone, `rows` (start, stop); None: all of them. Of a run that is
    stored in bfloat16 precision `snapshot` is uint16, the bits of bfloat16; `matrix` is float32 either way.
    """

    step: int
    values: Mapping[str, np.ndarray]
    groups: tuple[str, ...] = ()
    sketch: np.ndarray | None = None
    snapshot: np.ndarray | None = None
    label_counts: np.ndarray | None = None
    rows: tuple[int, int] | None = None
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def matrix(self) -> np.ndarray | None:
        """`snapshot` as float32, made where it holds bits."""
        if self.snapshot is None or self.snapshot.dtype != np.uint16:
            return self.snapshot
        return unpack(self.snapshot)

    @property
    def scalars(self) -> dict[str, float]:
        """What a logger can draw: tag (family/quantity, or family/quantity/label) -> number. NaN is left out."""
        tags: dict[str, float] = {}
        for name, value in self.values.items():
            if value.ndim == 0:
                tags[_tag(name)] = float(value)
            elif self._is_labelled(name):
                tags |= {f"{_tag(name)}/{label}": float(x) for label, x in zip(self.labels[name], value, strict=True)}
        return {tag: number for tag, number in tags.items() if not np.isnan(number)}

    @property
    def vectors(self) -> dict[str, np.ndarray]:
        """The vectors whose entries have no labels, whole: tag -> array. What is nothing but NaN is left out."""
        whole = {name: value for name, value in self.values.items() if value.ndim == 1 and not self._is_labelled(name)}
        return {_tag(name): value for name, value in whole.items() if not np.isnan(value).all()}

    def _is_labelled(self, name: str) -> bool:
        return name in self.labels and self.values[name].shape == (len(self.labels[name]),)


def _tag(name: str) -> str:
    return name.replace(".", "/")


def entry_labels(layout: Layout) -> dict[str, tuple[str, ...]]:
    """By variable, what its entries are called in a logger: each vector's, by the dimension that it declares.

    Vectors along the model's own axes (`token`, `dim`, `sketch_bucket`: thousands of entries, no curve each) have
    none unless the variable names its entries: they are in `Record.vectors`.
    """
    vectors = [variable for variable in layout.variables if len(variable.dims) == 1]
    labels = {}
    for variable in vectors:
        if variable.dims == ("group",):
            labels[variable.name] = tuple(layout.groups)
        elif variable.labels or variable.dims[0] not in MODEL_AXES:
            (size,) = layout.row_shape(variable)
            labels[variable.name] = variable.labels or tuple(str(entry) for entry in range(size))
    return labels


def read_only(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The same arrays, which nobody can write into from here on."""
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def check_folder(folder: Path) -> None:
    """Raise NotADirectoryError where `folder` cannot be made, since a file stands where one of its folders should."""
    for path in (folder, *folder.parents):
        if path.exists():
            if not path.is_dir():
                raise NotADirectoryError(f"{path} is a file, so {folder} cannot be made. Choose another folder.")
            return


def opened(held: Held | None, name: str) -> Held:
    """What a sink's `open` made. Raises RuntimeError before it, and where `close` has let it go."""
    if held is None:
        raise RuntimeError(
            f"this {name} is not open: call open(layout) before the first record, and write none after close(). "
            "A recorder does both for the sinks it is given."
        )
    return held


class Sink(ABC):  # noqa: B024 - every moment is optional
    """Where records go. Each moment does nothing unless a subclass says otherwise."""

    def check(self) -> None:  # noqa: B027
        """When the recorder is made: raise ValueError or OSError where `open` would; leave nothing behind."""

    def open(self, layout: Layout, *, restart_step: int | None = None) -> None:  # noqa: B027
        """Before the first record. `restart_step`: the run continues after this step; what lies beyond goes.

        None where it begins; -1 where it begins and all that is there shall go (`mode="overwrite"`).
        """

    def write(self, record: Record) -> None:  # noqa: B027
        """One record, in order of steps.

        From a GPU it comes when it has arrived, a few updates later, up to 16 records later where records without a
        matrix travel together: go by `record.step`. A logger that refuses a step behind its own (`wandb.log(step=)`)
        takes it as a value beside the others.
        """

    @property
    def cpu_seconds(self) -> float:
        """CPU time that its own threads have taken so far; 0 for one that has none."""
        return 0.0

    def settle(self, *, seconds: float) -> bool:
        """When a checkpoint is saved: make what was written durable, within so many seconds; whether it is.

        It must not raise: what is wrong is for the next `write` to say.
        """
        return True

    def finish(self, values: Mapping[str, np.ndarray]) -> None:  # noqa: B027
        """When the run ends: the variables that needed its last record, one row a record."""

    def close(self) -> None:  # noqa: B027
        """After everything; may be called twice."""
