"""From stores to the page."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from trainhooks.core.html import text
from trainhooks.html_report import sections
from trainhooks.html_report.escape import script_json
from trainhooks.html_report.methods import methods
from trainhooks.html_report.payload import Payload
from trainhooks.plots import Drawing
from trainhooks.run_figures import RunNumbers, read_runs
from trainhooks.run_figures.course import bins_drawing, dynamics_drawing, layers_drawing, spectrum_drawing
from trainhooks.run_figures.interventions import intervention_drawing
from trainhooks.run_figures.lead_figure import lead_drawing
from trainhooks.run_figures.matrices import components_drawing, saliency_drawing, scatter_drawing
from trainhooks.run_figures.overview import loss_drawing
from trainhooks.store import Store

MOST_FRAMES = 36
"""Steps that all sliders together have: a frame is 20 kB."""
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_report(
    *stores: str | Path | Store,
    out: str | Path,
    interventions: Sequence[str | Path] = (),
    lead: bool = True,
    title: str = "",
) -> Path:
    """Write one HTML page on one or several runs to `out`: verdict, plots, tables, methods. It asks no network.

    The verdict is of up to 40 log-spaced records, which it says (`trainhooks verdict` takes all), and on several runs
    together where their provenance says that they are seeds of one model; `lead=False` leaves it out.
    `interventions` are files that `trainhooks prune --json` or `steer --json` printed. Everything from files is
    escaped.

    Raises as `trainhooks.run_figures.figures`, and ImportError where plotly is missing.
    """
    plotly = _plotly()
    extra = [intervention_drawing(path, number=number) for number, path in enumerate(interventions, start=1)]
    runs = read_runs(stores, lead=lead)
    page = build_page(runs, extra=extra, plotly=plotly, title=title)
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target


def build_page(runs: Sequence[RunNumbers], *, extra: Sequence[Drawing], plotly: str, title: str = "") -> str:
    """The page's HTML; `plotly` is the library's source."""
    from trainhooks import __version__

    payload = Payload()
    title = title or ", ".join(run.label for run in runs)
    found = sections.verdicts(runs)
    first = sections.answer(runs[0]) if len(runs) == 1 else sections.comparison(runs)
    body = [_section("Is frequency there yet, and has the rest converged?", first, name="answer")] if first else []
    body.append(_section("Verdict", sections.verdict_section(runs, found), name="verdict"))
    body.append(_section("Dynamics", _figure(payload, dynamics_drawing(runs)), name="dynamics"))
    for number, run in enumerate(runs):
        tiles = sections.answer(run) if len(runs) > 1 else ""
        inner = tiles + _run_figures(payload, run, frames=max(2, min(12, MOST_FRAMES // len(runs))))
        body.append(_section(run.label, inner, name=f"run-{number}", closed=number > 0))
    if extra:
        body.append(_section("Interventions", "".join(_figure(payload, one) for one in extra), name="interventions"))
    body.append(_section("Findings", _each(runs, sections.findings), name="findings"))
    body.append(_section("Run and provenance", _each(runs, sections.provenance), name="provenance"))
    body.append(_section("What it cost", _each(runs, sections.cost), name="cost"))
    body.append(_section("Methods", methods(runs, version=__version__), name="methods"))
    assets = resources.files("trainhooks.html_report") / "assets"
    style, script = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    packed = base64.b64encode(gzip.compress(plotly.encode(), 9, mtime=0)).decode()
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#verdict">Skip to the verdict</a>\n'
        f'<header><h1>{text(title)}</h1><button id="theme" type="button">Dark or light</button></header>\n'
        f"<main>\n{''.join(body)}</main>\n"
        f'<footer class="soft"><p>trainhooks {text(__version__)}. This page holds all that it shows. '
        "Plots by plotly.js (MIT licence, Plotly, Inc.).</p></footer>\n"
        f'<script type="application/json" id="numbers">{script_json(payload.json)}</script>\n'
        f'<script type="text/plain" id="plotly">{packed}</script>\n<script>\n{script}</script>\n</body>\n</html>\n'
    )


def _run_figures(payload: Payload, run: RunNumbers, *, frames: int) -> str:
    """A run's own plots; matrices at several steps share one with a slider."""
    single = (layers_drawing, loss_drawing, lead_drawing, bins_drawing, spectrum_drawing, saliency_drawing)
    drawn = [_figure(payload, make(run)) for make in single]
    for make in (components_drawing, scatter_drawing):
        drawn.append(_figure(payload, make(run, most=frames), slider=True))
    return "".join(drawn)


def _figure(payload: Payload, drawing: Drawing, *, slider: bool = False) -> str:
    panels = [panel for panel in drawing.panels if panel.drawn]
    if not panels:
        return ""
    slider = slider and len(panels) > 1
    number = payload.add(drawing, slider=slider)
    controls = ""
    if slider:
        last = len(panels) - 1
        controls += (
            f'<label>step <input type="range" min="0" max="{last}" value="{last}" step="1">'
            f"<output>step {panels[-1].step}</output></label>"
        )
    if any(panel.x_scale == "log" for panel in panels):
        controls += '<button type="button" data-does="scale" aria-pressed="false">Linear steps</button>'
    controls += '<button type="button" data-does="save">Save numbers (CSV)</button>'
    told = [f"{drawing.title}: {panel.y_label} over {panel.x_label}" for panel in (panels[:1] if slider else panels)]
    plots = "".join(f'<div class="plot" role="img" aria-label="{text(one)}"></div>' for one in told)
    return (
        f'<figure data-drawing="{number}"><h3>{text(drawing.title)}</h3><div class="controls">{controls}</div>{plots}'
        f"<figcaption>{text(drawing.caption)}</figcaption></figure>"
    )


def _section(heading: str, inner: str, *, name: str, closed: bool = False) -> str:
    if closed:
        return f'<section id="{name}"><details><summary>{text(heading)}</summary>{inner}</details></section>\n'
    return f'<section id="{name}"><h2>{text(heading)}</h2>{inner}</section>\n'


def _each(runs: Sequence[RunNumbers], make: Callable[[RunNumbers], str]) -> str:
    if len(runs) == 1:
        return make(runs[0])
    return "".join(f"<h3>{text(run.label)}</h3>{make(run)}" for run in runs)


def _plotly() -> str:
    try:
        return (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    except (ImportError, OSError) as error:
        raise ImportError("the report needs plotly: pip install 'trainhooks[figures]'") from error
