"""How the cost of a record grows: over the vocabulary V, the width d, the parameters, and the steps of a run.

    python benchmarks/growth.py                       # measures, writes docs/figures/growth.csv and growth.png
    python benchmarks/growth.py --draw                # draws the CSV that is there
    python benchmarks/growth.py --small --out /tmp/x  # seconds

Milliseconds of processor time on one thread, the least of some calls. What is measured:

- vocabulary, width: the live frequency probe with its folds, all default metrics of the output embedding (spectrum and
  CKA among them: one record in ten has these by default), and one bare product E'E.
- parameters: the sketches and norms of all parameter groups, beside a bare read of the same numbers (their sum).
- steps: what one record costs the thread that writes (16 scalars, journal and folds), and opening the finished store.

Sizes that take more than `--most` bytes of memory, or more records than `--most-records`, are not measured but
modelled, and drawn as open circles: by the line through the two largest sizes that were measured where the work is
passes over memory or records (vocabulary, parameters, steps), and as d^2 from the largest one where it is products
(width).
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable, Iterator
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
from trainhooks.numerics.norms import squared_norms
from trainhooks.numerics.sketch import sketch_parameter
from trainhooks.store import Layout, StoreWriter, open_store

VOCABULARIES = (8_192, 16_384, 32_768, 65_536, 131_072, 262_144)
WIDTHS = (256, 512, 1_024, 2_048, 4_096)
PARAMETERS = (10_000_000, 31_000_000, 160_000_000, 410_000_000, 1_400_000_000)
STEPS = (1_000, 3_000, 10_000, 30_000, 100_000)
PANELS = {
    "vocabulary": "vocabulary V (d = 256)",
    "width": "width d (V = 8,192)",
    "parameters": "parameters",
    "steps": "records of the run",
}
Sizes = dict[str, tuple[int, ...]]
DOCS = Path(__file__).resolve().parents[1] / "docs" / "figures"


class Point(NamedTuple):
    """One measured or modelled time: `ms` of what, at size x of a panel."""

    panel: str
    what: str
    x: int
    ms: float
    modelled: bool


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
    state = State(0, nn.Linear(1, 1), OutputEmbedding(embedding, "lm_head.weight", nn.Linear(1, 1)), {})
    calls = {
        "frequency probe": lambda: probe.compute(state),
        "all head metrics": run.record,
        "E'E": lambda: embedding.T @ embedding,
    }
    return {name: least_ms(call, repeats=repeats) for name, call in calls.items()}


def parameter_times(count: int, *, repeats: int) -> dict[str, float]:
    """Sketches and norms of parameters of 4 million numbers each, and their sum."""
    parts = [torch.randn(4_194_304) for _ in range(max(1, count // 4_194_304))]

    def sketches() -> None:
        for number, part in enumerate(parts):
            sketch_parameter(part, name=f"layers.{number}.weight")
        squared_norms(parts)

    scale = count / (len(parts) * 4_194_304)
    calls = {"sketches and norms": sketches, "sum": lambda: [part.sum() for part in parts]}
    return {name: scale * least_ms(call, repeats=repeats) for name, call in calls.items()}


def step_times(records: int, *, repeats: int) -> dict[str, float]:
    """Writing a record of 16 scalars, folds included, and opening the store."""
    names = [f"metric.value_{index}" for index in range(16)]
    layout = Layout(vocab=8, dim=2, groups=(), sketch_size=0, snapshots=False, variables=tuple(map(Variable, names)))
    values = dict.fromkeys(names, np.float64(1.0))
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        writer = StoreWriter(Path(folder) / "run.zarr", layout)
        for step in range(records):
            writer.append(step, values)
        writer.close()
        writing = 1000 * (time.process_time() - start) / records
        opening = least_ms(lambda: open_store(Path(folder) / "run.zarr"), repeats=repeats)
    return {"writing one record": writing, "opening the store": opening}


def measured(sizes: Sizes, *, most: int, most_records: int, repeats: int) -> Iterator[Point]:
    """All sizes that are not too large."""
    takes: dict[str, tuple[Callable[[int], dict[str, float]], Callable[[int], bool]]] = {
        "vocabulary": (lambda v: head_times(v, 256, repeats=repeats), lambda v: 5 * 4 * v * 256 <= most),
        "width": (lambda d: head_times(8_192, d, repeats=repeats), lambda d: 5 * 4 * 8_192 * d <= most),
        "parameters": (lambda n: parameter_times(n, repeats=repeats), lambda n: 4 * n <= most),
        "steps": (lambda n: step_times(n, repeats=repeats), lambda n: n <= most_records),
    }
    for panel, (take, fits) in takes.items():
        for size in filter(fits, sizes[panel]):
            found = take(size)
            print(f"{panel} {size}: {found}", flush=True)
            yield from (Point(panel, what, size, ms, False) for what, ms in found.items())


def modelled(points: list[Point], sizes: Sizes) -> Iterator[Point]:
    """The sizes that were not measured, from the largest that were."""
    for panel, what in dict.fromkeys((point.panel, point.what) for point in points):
        known = sorted(point for point in points if (point.panel, point.what) == (panel, what))
        (x0, y0), (x1, y1) = ((point.x, point.ms) for point in (known[max(len(known) - 2, 0)], known[-1]))
        slope = max(y1 - y0, 0.0) / (x1 - x0) if x1 > x0 else y1 / x1
        for x in sizes[panel]:
            if x > x1:
                yield Point(panel, what, x, y1 * (x / x1) ** 2 if panel == "width" else y1 + slope * (x - x1), True)


def write(points: list[Point], path: Path) -> None:
    """The table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(Point._fields)
        rows.writerows((p.panel, p.what, p.x, f"{p.ms:.4g}", int(p.modelled)) for p in points)


def read(path: Path) -> list[Point]:
    """The table again."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [Point(r["panel"], r["what"], int(r["x"]), float(r["ms"]), r["modelled"] == "1") for r in rows]


def draw(points: list[Point], path: Path) -> None:
    """Four panels, both axes logarithmic; open circles are modelled."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    for axes, (panel, label) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        here = [point for point in points if point.panel == panel]
        for color, what in enumerate(dict.fromkeys(point.what for point in here)):
            line = sorted((point.x, point.ms, point.modelled) for point in here if point.what == what)
            x, ms = [one[0] for one in line], [one[1] for one in line]
            axes.plot(x, ms, color=f"C{color}", linewidth=1.2, label=what)
            for kind, face in ((False, f"C{color}"), (True, "white")):
                chosen = [one[:2] for one in line if one[2] is kind]
                axes.plot(*zip(*chosen, strict=True), "o", color=f"C{color}", mfc=face) if chosen else None
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="CPU ms, one thread")
        ticks = sorted({point.x for point in here})
        axes.set_xticks(ticks, [f"{tick:,}" if tick < 10**6 else f"{tick / 10**6:,.0f}M" for tick in ticks], fontsize=8)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    figure.suptitle("What a record costs as things grow; open circles are modelled, not measured", fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of growth.csv and growth.png")
    parser.add_argument("--draw", action="store_true", help="model and draw from what the table there has measured")
    parser.add_argument("--small", action="store_true", help="two small sizes a panel: for CI")
    parser.add_argument("--most", type=int, default=2 << 30, help="bytes of memory")
    parser.add_argument("--most-records", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    table = given.out / "growth.csv"
    sizes = {"vocabulary": VOCABULARIES, "width": WIDTHS, "parameters": PARAMETERS, "steps": STEPS}
    if given.small:
        sizes = {"vocabulary": (512, 1_024), "width": (16, 32), "parameters": (1 << 22, 1 << 23), "steps": (32, 64)}
    limits = {"most": given.most, "most_records": given.most_records, "repeats": given.repeats}
    points = [point for point in read(table) if not point.modelled] if given.draw else list(measured(sizes, **limits))
    write(points + list(modelled(points, sizes)), table)
    draw(read(table), given.out / "growth.png")


if __name__ == "__main__":
    main()
