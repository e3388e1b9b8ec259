"""Runs for TensorBoard from their stores, several beside each other: a folder a run, and what is said of it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from trainhooks.core.schedule import Schedule
from trainhooks.sinks import overview
from trainhooks.sinks.event_files import write_about
from trainhooks.sinks.host_tags import PREFIX
from trainhooks.sinks.pictures import WHEN
from trainhooks.sinks.replay import replay, store_layout
from trainhooks.sinks.run_texts import VERDICT, run_texts
from trainhooks.sinks.tensorboard import TensorBoardSink
from trainhooks.store import Store

_GENERIC = frozenset(("run", "store", "runs", "events"))
_SAFE = re.compile(r"[^\w.=+-]+")


@dataclass(frozen=True)
class Said:
    """What is known of a whole run: a text (Markdown) and figures by name, for the tabs Text and HParams."""

    text: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


def write_run(
    store: Store,
    folder: Path,
    *,
    said: Said | None = None,
    pictures: Schedule | None = WHEN,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Write a store's run into `folder` as `TensorBoardSink` writes a live one, what an earlier call left is replaced.

    Beside it, where `said`, the verdict as text, and the run's settings with its figures for the dashboard HParams.
    Returns the names of variables that are too large for histograms.
    """
    left_out = replay(store, TensorBoardSink(folder, pictures=pictures), matrices=pictures, progress=progress)
    layout, said = store_layout(store), said or Said()
    texts = run_texts(layout) | ({VERDICT: said.text} if said.text else {})
    write_about(
        folder,
        layout=overview.layout(layout.groups),
        texts=texts,
        hparams=_settings(store.attributes),
        figures=_figures(store) | {f"verdict/{name}": float(value) for name, value in said.figures.items()},
    )
    return left_out


def run_names(paths: Sequence[str | Path]) -> list[str]:
    """A name for each store that tells it from the others: its own, else with the folders that it lies in, or a number.

    Case does not tell them apart: the names become folders.
    """
    parts = [[_SAFE.sub("_", part) for part in _parts(str(path))] for path in paths]
    depth = 1
    while depth < max(map(len, parts), default=1) and len({_name(one, depth).casefold() for one in parts}) < len(parts):
        depth += 1
    names = [_name(one, depth) for one in parts]
    given = {name.casefold() for name in names}
    return [_numbered(name, names[:i], given) for i, name in enumerate(names)]


def _numbered(name: str, before: Sequence[str], given: set[str]) -> str:
    """The name; where one before is the same, with the first number that nobody has, which `given` then holds."""
    if name.casefold() not in {one.casefold() for one in before}:
        return name
    found = next(one for one in (f"{name}-{number}" for number in count(2)) if one.casefold() not in given)
    given.add(found.casefold())
    return found


def _parts(path: str) -> list[str]:
    place = path.split("://", 1)[-1] if "://" in path else os.path.abspath(path)
    parts = [part.removesuffix(".zarr") or "run" for part in place.strip("/").split("/") if part not in (".", "..")]
    return parts[:-1] if len(parts) > 1 and parts[-1] in _GENERIC else parts


def _name(parts: Sequence[str], depth: int) -> str:
    return "-".join(parts[-depth:])


def _settings(about: Mapping[str, object]) -> dict[str, bool | int | float | str]:
    """Of the provenance, what is one short value."""
    short = {name: value for name, value in about.items() if isinstance(value, (bool, int, float, str))}
    return {name: value for name, value in short.items() if len(str(value)) <= 40 and name != "created"}


def _figures(store: Store) -> dict[str, float]:
    """The last measured value of the overview's scalars, by the tag under which they are drawn."""
    found = {}
    for tag in (overview.HELD_OUT, overview.PERMUTED, overview.ROW_NORM, "loss"):
        name = tag.replace("/", ".")
        if name in store.names and len(seen := store[name][np.isfinite(store[name])]):
            found[PREFIX + tag] = float(seen[-1])
    return found
