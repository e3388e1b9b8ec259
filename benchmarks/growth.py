"""How the cost of a record grows: over the vocabulary V, the width d, the parameters, and the steps of a run.

    python benchmarks/growth.py                       # measures, writes docs/figures/growth.csv and growth.png
    python benchmarks/growth.py --panels width steps  # these alone; the others stay as the table has them
    python benchmarks/growth.py --draw                # draws the table that is there
    python benchmarks/growth.py --small --out /tmp/x  # seconds

Milliseconds of processor time on one thread, the least of some calls. What is measured:

- vocabulary, width: the live frequency probe with its folds (of a head that goes to and fro by 1%, as it does from one
  record to the next), all default metrics of the output embedding (spectrum and CKA among them: one record in ten has
  these by default), and one bare product E'E.
- parameters: the sketches and norms of all parameter groups, beside a bare read of the same numbers (their sum).
- steps: what one record costs the thread that writes (16 scalars and a matrix of 64 x 8, journal and folds), opening
  the store, and reading one number of all records from it; all of one run, as it grows.

Each size is in the table as soon as it is measured. Sizes that take more than `--most` bytes of memory, or more
records than `--most-records`, are left out of it and of the figure. A line's label says with which power of the size
it grows over the last four times of it.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from probe import Run, make
from torch import nn

from trainhooks.core.variable import Variable
from trainhooks.metrics.base import State
from trainhooks.metrics.frequency_probe import FrequencyProbe
from trainhooks.model import OutputEmbedding
from trainhooks.numerics.sketch import Sketcher
from trainhooks.store import Layout, StoreWriter, open_store

V, D = 50_304, 768
SIZES: dict[str, tuple[int, ...]] = {
    "vocabulary": (8_192, 16_384, 32_768, 65_536, 131_072, 262_144),
    "width": (256, 512, 1_024, 2_048, 4_096),
    "parameters": (10_000_000, 31_000_000, 160_000_000, 410_000_000, 1_400_000_000),
    "steps": (1_024, 3_200, 10_240, 32_000, 102_400),
}
SMALL: dict[str, tuple[int, ...]] = {
    "vocabulary": (512, 1_024),
    "width": (16, 32),
    "parameters": (1 << 20, 1 << 22),
    "steps": (32, 64),
}
PANELS = {
    "vocabulary": f"rows of the output embedding, V  (d = {D})",
    "width": f"columns of the output embedding, d  (V = {V:,})",
    "parameters": "parameters of the model, P",
    "steps": "records of the run so far, T",
}
SYMBOLS = {"vocabulary": "V", "width": "d", "parameters": "P", "steps": "T"}
PROBE, ALL, PRODUCT = "frequency probe, each record", "all head metrics, each tenth record", "one bare product E'E"
HEADS_HELD = 8  # of one size, while its record is measured
PART = 1 << 22
DOCS = Path(__file__).resolve().parents[1] / "docs" / "figures"


class Point(NamedTuple):
    """One measured time: `ms` of what, at size x of a panel."""

    panel: str
    what: str
    x: int
    ms: float


def least_ms(call: Callable[[], object], *, repeats: int) -> float:
    """The least processor time of some calls, after one that is not counted."""
    took = []
    for _ in range(repeats + 1):
        start = time.process_time()
        call()
        took.append(time.process_time() - start)
    return 1000 * min(took[1:])


def head_times(vocab: int, dim: int, *, repeats: int) -> dict[str, float]:
    """The probe, all head metrics and E'E on one output embedding."""
    counts, embedding = make(vocab, dim)
    run, probe = Run(counts, embedding), FrequencyProbe(counts)
    heads = [OutputEmbedding(head, "lm_head.weight", nn.Linear(1, 1)) for head in run.heads]
    steps = iter(range(repeats + 1))

    def next_probe() -> None:
        step = next(steps)
        probe.compute(State(step, nn.Linear(1, 1), heads[step % 2], {}))

    calls = {PROBE: next_probe, ALL: run.record, PRODUCT: lambda: embedding.T @ embedding}
    return {name: least_ms(call, repeats=repeats) for name, call in calls.items()}


def parameter_times(count: int, *, repeats: int) -> dict[str, float]:
    """Sketches and norms of parameters of 4 million numbers each, in layers of eight, and their sum."""
    named = [
        (f"layers.{i // 8}.{i % 8}", torch.empty(min(PART, count - start)).uniform_())
        for i, start in enumerate(range(0, count, PART))
    ]
    groups = {"whole": named} | {f"layers.{i // 8}": named[i : i + 8] for i in range(0, len(named), 8)}
    sketcher = Sketcher(groups)
    calls = {
        "sketches and norms, each record": lambda: sketcher.sketch_and_norms(groups),
        "bare sum of all": lambda: [part.sum() for _, part in named],
    }
    return {name: least_ms(call, repeats=repeats) for name, call in calls.items()}


def step_times(marks: Sequence[int], *, repeats: int) -> Iterator[tuple[int, dict[str, float]]]:
    """One run, at each of `marks`: writing a record since the mark before, opening the store, a series of it."""
    names = [f"metric.value_{index}" for index in range(16)]
    layout = Layout(vocab=64, dim=8, groups=(), sketch_size=0, snapshots=True, variables=tuple(map(Variable, names)))
    values, head = dict.fromkeys(names, np.float64(1.0)), np.ones((64, 8), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zarr"
        with closing(StoreWriter(path, layout)) as writer:
            for before, mark in pairwise((0, *marks)):
                start = time.process_time()
                for step in range(before, mark):
                    writer.append(step, values, snapshot=head)
                writing = 1000 * (time.process_time() - start) / (mark - before)
                yield (
                    mark,
                    {
                        "writing one record": writing,
                        "opening the store": least_ms(lambda: open_store(path), repeats=repeats),
                        "opening, one number of all records": least_ms(
                            lambda: open_store(path)[names[3]], repeats=repeats
                        ),
                    },
                )


def measured(panels: list[str], sizes: dict[str, tuple[int, ...]], limits: argparse.Namespace) -> Iterator[list[Point]]:
    """The points of each size that is not too large."""
    repeats, most = limits.repeats, limits.most
    takes: dict[str, tuple[Callable[[int], dict[str, float]], Callable[[int], bool]]] = {
        "vocabulary": (lambda v: head_times(v, D, repeats=repeats), lambda v: HEADS_HELD * 4 * v * D <= most),
        "width": (lambda d: head_times(V, d, repeats=repeats), lambda d: HEADS_HELD * 4 * V * d <= most),
        "parameters": (lambda n: parameter_times(n, repeats=repeats), lambda n: 4 * n <= most),
    }
    for panel in panels:
        take, fits = takes.get(panel, (None, lambda n: n <= limits.most_records))
        small = list(filter(fits, sizes[panel]))
        print(f"{panel}: {len(sizes[panel]) - len(small)} sizes left out, which take more than they may", flush=True)
        each = step_times(small, repeats=repeats) if take is None else ((size, take(size)) for size in small)
        for size, found in each:
            print(f"{panel} {size}: {found}", flush=True)
            yield [Point(panel, what, size, ms) for what, ms in found.items()]


def write(points: list[Point], path: Path) -> None:
    """The table, panel by panel."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(Point._fields)
        order = list(PANELS)
        rows.writerows((*point[:3], f"{point.ms:.4g}") for point in sorted(points, key=lambda p: order.index(p.panel)))


def read(path: Path) -> list[Point]:
    """The table again."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Point(row["panel"], row["what"], int(row["x"]), float(row["ms"])) for row in csv.DictReader(file)]


def draw(points: list[Point], path: Path) -> None:
    """Four panels, both axes logarithmic, each line named at its end with the power that it grows by."""
    from matplotlib.figure import Figure

    from trainhooks.plots.colours import PALETTE

    figure = Figure(figsize=(11, 7.4), layout="constrained")
    for axes, (panel, label) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        here = [point for point in points if point.panel == panel]
        for color, what in zip(PALETTE, dict.fromkeys(point.what for point in here), strict=False):
            line = sorted((point.x, point.ms) for point in here if point.what == what)
            name = named(what, line, size=SYMBOLS[panel])
            axes.plot(*zip(*line, strict=True), "o-", color=color, markersize=5, linewidth=1.6, label=name)
        finish(axes, label, sizes=sorted({point.x for point in here}))
    figure.suptitle("What a record costs as things grow: processor time, one thread of a CPU", fontsize=13)
    figure.savefig(path, dpi=110)


def named(what: str, line: list[tuple[int, float]], *, size: str) -> str:
    """The line's name, and how it grows from a quarter of its last size on."""
    near = [(math.log(x), math.log(max(ms, 1e-6))) for x, ms in line if 4.1 * x >= line[-1][0]]
    if len(near) < 2:
        return what
    power = np.polyfit(*zip(*near, strict=True), 1)[0] + 0.0
    return f"{what}:  ~ {size}$^{{{power:.1f}}}$" if abs(power) >= 0.15 else f"{what}:  does not grow with {size}"


def finish(axes, label: str, *, sizes: list[int]) -> None:  # type: ignore[no-untyped-def]
    """Scales, ticks in plain words, room for the legend above the lines."""
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="processor time")
    axes.set_xticks(sizes, [count_in_words(size) for size in sizes], fontsize=9)
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * max(3.0, (high / low) ** 0.4))  # the legend stands above the lines
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=False, loc="upper left")


def count_in_words(size: int) -> str:
    """A size as a tick says it."""
    if size >= 10**9:
        return f"{size / 10**9:g}B"
    return f"{size / 10**6:.0f}M" if size >= 10**6 else f"{size:,}"


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of growth.csv and growth.png")
    parser.add_argument("--panels", nargs="+", choices=PANELS, default=list(PANELS), help="what to measure")
    parser.add_argument("--draw", action="store_true", help="draw the table that is there")
    parser.add_argument("--small", action="store_true", help="two small sizes a panel: for CI")
    parser.add_argument("--most", type=int, default=8 << 30, help="bytes of memory")
    parser.add_argument("--most-records", type=int, default=102_400)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    table = given.out / "growth.csv"
    if not given.draw:
        points = [point for point in read(table) if point.panel not in given.panels] if table.exists() else []
        for found in measured(given.panels, SMALL if given.small else SIZES, given):
            points += found
            write(points, table)
    draw(read(table), given.out / "growth.png")


if __name__ == "__main__":
    main()
