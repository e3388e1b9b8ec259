"""From stores to every figure: numbers, pictures, captions and CSV files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from trainhooks.core.printable import shown_lines
from trainhooks.plots import Drawing, draw
from trainhooks.run_figures.course import bins_drawing, dynamics_drawing, layers_drawing, spectrum_drawing
from trainhooks.run_figures.interventions import intervention_drawing
from trainhooks.run_figures.lead_figure import lead_drawing
from trainhooks.run_figures.matrices import components_drawing, saliency_drawing, scatter_drawing
from trainhooks.run_figures.overview import overview_drawing
from trainhooks.run_figures.run_numbers import RunNumbers, read_runs
from trainhooks.store import Store

Format = Literal["png", "pdf", "svg"]
PRINT_DPI = 300
OF_ONE_RUN: dict[str, Callable[[RunNumbers], Drawing]] = {
    "overview": overview_drawing,
    "layers": layers_drawing,
    "bins": bins_drawing,
    "scatter": scatter_drawing,
    "saliency": saliency_drawing,
    "spectrum": spectrum_drawing,
    "components": components_drawing,
    "lead": lead_drawing,
}
FIGURES = ("dynamics", "dynamics_linear", *OF_ONE_RUN, "deletion", "steering")
NEEDS = {
    "layers": ("convergence",),
    "bins": ("counts", "snapshots"),
    "scatter": ("counts", "snapshots"),
    "saliency": ("counts", "snapshots"),
    "components": ("counts", "snapshots"),
    "spectrum": ("snapshots",),
    "lead": ("lead",),
}


@dataclass(frozen=True)
class WrittenFigure:
    """A figure in files: the `picture`, its `numbers` (CSV), its `caption`; `path` is None for one that is left out.

    `left_out` says why.
    """

    name: str
    path: Path | None
    numbers: Path | None = None
    caption: Path | None = None
    left_out: str = ""


def drawings(runs: Sequence[RunNumbers], *, interventions: Sequence[str | Path] = ()) -> Iterator[tuple[Drawing, str]]:
    """Every figure's numbers, with the reason where there is nothing to draw ("" otherwise).

    With several runs those of one run come for each, `name` followed by the run's number.
    """
    for scale in ("log", "linear"):
        drawing = dynamics_drawing(runs, scale="log" if scale == "log" else "linear")
        yield drawing, "" if drawing.panels else _reason("dynamics", runs[0])
    for number, run in enumerate(runs, start=1):
        for name, make in OF_ONE_RUN.items():
            drawing = make(run)
            title = drawing.title if len(runs) == 1 else f"{drawing.title}: {run.label}"
            named = Drawing(
                name if len(runs) == 1 else f"{name}_{number}", title, drawing.caption, drawing.panels, drawing.columns
            )
            yield named, "" if drawing.panels else _reason(name, run)
    for number, path in enumerate(interventions, start=1):
        yield intervention_drawing(path, number=number), ""


def _reason(name: str, run: RunNumbers) -> str:
    known = [run.missing[need] for need in NEEDS.get(name, ()) if need in run.missing]
    return "; ".join(known) or "the store does not hold what it is drawn from"


def figures(
    *stores: str | Path | Store,
    out: str | Path,
    format: Format = "png",
    interventions: Sequence[str | Path] = (),
    lead: bool = True,
) -> tuple[WrittenFigure, ...]:
    """Draw every figure of one or several runs into the folder `out`: picture, caption (.txt) and numbers (.csv).

    One column of print, safe for the colour-blind, each with its null or baseline in it. `interventions` are files that
    `trainhooks prune --json` or `steer --json` printed. `lead=False` leaves out the lead, whose draws take seconds.
    What a store does not hold is left out and said so (`left_out`). Snapshots are read once; up to 40 are used.

    Raises ValueError for no store, an unknown format and files of interventions that are none, StoreError where a store
    is none, and ImportError where matplotlib is missing.
    """
    if format not in get_args(Format):
        raise ValueError(f"there is no format {format!r}: take one of {', '.join(get_args(Format))}.")
    planned = [intervention_drawing(path) for path in interventions]  # a mistake is said before work starts
    runs = read_runs(stores, lead=lead)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for drawing, reason in drawings(runs, interventions=interventions):
        written.append(WrittenFigure(drawing.name, None, left_out=reason) if reason else write(drawing, folder, format))
    if not planned:
        reason = "no result of prune or steer was given (interventions=, --interventions)"
        written += [WrittenFigure(name, None, left_out=reason) for name in ("deletion", "steering")]
    return tuple(written)


def write(drawing: Drawing, folder: Path, format: Format) -> WrittenFigure:
    """One figure's three files."""
    from matplotlib import rc_context

    picture, numbers, caption = (folder / f"{drawing.name}.{suffix}" for suffix in (format, "csv", "txt"))
    figure = draw(drawing)
    # text stays text in a PDF and an SVG, so that it can be searched and edited
    with rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}):
        figure.savefig(picture, format=format, dpi=PRINT_DPI)
    with numbers.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(drawing.rows())
    caption.write_text(shown_lines(f"{drawing.title}. {drawing.caption}\n"), encoding="utf-8")
    return WrittenFigure(drawing.name, picture, numbers, caption)
