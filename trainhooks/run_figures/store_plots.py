"""`store.plot`: a store's figures, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainhooks.plots import Drawing, draw
from trainhooks.plots.series import Scale
from trainhooks.run_figures.course import bins_drawing, dynamics_drawing, layers_drawing, spectrum_drawing
from trainhooks.run_figures.lead_figure import lead_drawing
from trainhooks.run_figures.matrices import components_drawing, saliency_drawing, scatter_drawing
from trainhooks.run_figures.overview import overview_drawing
from trainhooks.run_figures.run_numbers import RunNumbers, read_run

if TYPE_CHECKING:
    from trainhooks.plots.canvas import Plot
    from trainhooks.store import Store


class StorePlots:
    """Figures of a store; each call reads what it needs and returns a matplotlib figure.

    `store.plot()` is the run at a glance. Raises ValueError, with the reason, where the store does not hold what a
    figure is drawn from, or has no matrix at a step asked for; ImportError where matplotlib is missing.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __call__(self) -> Plot:
        """The run at a glance: probe, convergence, spectrum, scatter, rows in two dimensions, loss."""
        return self._draw(overview_drawing, steps=None)

    def dynamics(self, *, scale: Scale = "log") -> Plot:
        """Held-out frequency correlation and convergence against the step ("log" or "linear")."""
        steps: Sequence[int] | None = () if "probe.heldout_spearman" in self._store.names else None
        return self._draw(lambda run: dynamics_drawing([run], scale=scale), steps=steps)

    def layers(self) -> Plot:
        """Distance to the final state by layer."""
        return self._draw(layers_drawing, steps=())

    def bins(self) -> Plot:
        """Probe error and distance to the final rows by token frequency."""
        return self._draw(bins_drawing, steps=None)

    def spectrum(self) -> Plot:
        """Singular values and effective ranks over time."""
        return self._draw(spectrum_drawing, steps=() if "spectrum.singular_values" in self._store.names else None)

    def scatter(self, step: int | None = None) -> Plot:
        """The probe's held-out predictions against the truth at a step, the last one by default."""
        return self._draw(scatter_drawing, steps=self._at(step))

    def saliency(self, step: int | None = None) -> Plot:
        """Which dimensions the probe's slope uses at a step, beside rotations; without one also their course."""
        return self._draw(saliency_drawing, steps=None if step is None else [step])

    def components(self, *steps: int) -> Plot:
        """Rows in two dimensions, coloured by frequency, at these steps; without any at four that are chosen."""
        most = max(len(steps), 4)
        return self._draw(lambda run: components_drawing(run, most=most), steps=list(steps) or None)

    def lead(self) -> Plot:
        """The lead beside its matched labellings; takes some seconds."""
        return self._draw(lead_drawing, steps=None, lead=True)

    def _at(self, step: int | None) -> list[int]:
        known = self._store.snapshot_steps
        return [int(known[-1])] if step is None and len(known) else [] if step is None else [step]

    def _draw(self, make: Any, *, steps: Sequence[int] | None, lead: bool = False) -> Plot:
        run: RunNumbers = read_run(self._store, lead=lead, steps=steps)
        drawing: Drawing = make(run)
        if not drawing.panels:
            why = "; ".join(run.missing.values()) or "it does not hold what this is drawn from"
            raise ValueError(f"{self._store.where} has no such figure: {why}.")
        return draw(drawing)
