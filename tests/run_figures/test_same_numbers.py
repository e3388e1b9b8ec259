"""One figure, of a live run's events, of its store and of an analysis of its checkpoints: the same numbers."""

import numpy as np
import pytest
from loops import COUNTS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import trainhooks as th
from trainhooks.run_figures import read_run
from trainhooks.run_figures.course import dynamics_drawing


def shown(store):
    """The dynamics figure's curves: label -> (steps, values)."""
    drawing = dynamics_drawing([read_run(store, lead=False, steps=())])
    return {curve.label: (curve.x, curve.y) for panel in drawing.panels for curve in panel.curves}


@pytest.fixture(scope="module")
def live(small_run):
    return shown(small_run.store)


def test_events_hold_what_the_figure_of_the_store_shows(small_run, live):
    events = EventAccumulator(str(small_run.events), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    for label, ending in (
        ("probe", "probe/heldout_spearman"),
        ("row norm alone", "probe/row_norm_spearman"),
        ("permuted null", "probe/permuted_heldout_spearman"),
        ("whole model", "convergence/distance_to_final/whole"),
        ("output embedding", "convergence/distance_to_final/output_embedding"),
    ):
        (tag,) = [tag for tag in tags if tag.endswith("/" + ending)]
        written = events.Scalars(tag)
        steps, values = live[label]
        assert [one.step for one in written] == steps[np.isfinite(values)].tolist(), tag
        np.testing.assert_allclose([one.value for one in written], values[np.isfinite(values)], rtol=1e-6, err_msg=tag)


def test_an_analysis_of_the_checkpoints_shows_the_same(small_run, live, tmp_path):
    th.analyze_suite(small_run.checkpoints, counts=COUNTS, out=tmp_path / "suite.zarr", params="all", workers=1)
    offline = shown(tmp_path / "suite.zarr")
    for label in ("probe", "row norm alone", "permuted null", "whole model", "output embedding"):
        (steps, values), (other, again) = live[label], offline[label]
        np.testing.assert_array_equal(steps, other)
        # distances: sketches in a live run (2.2% each), exact from checkpoints
        tolerance = {"atol": 1e-5} if label not in ("whole model", "output embedding") else {"rtol": 0.1, "atol": 1e-3}
        np.testing.assert_allclose(again, values, **{"rtol": 0, **tolerance}, err_msg=label)
