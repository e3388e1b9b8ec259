import csv
import io
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from trainhooks.plots import (
    Curve,
    Drawing,
    Panel,
    convergence_panel,
    draw,
    dynamics,
    frequency_panel,
    saliency,
    scatter,
)
from trainhooks.plots.canvas import COLUMN, escaped, log_ticks
from trainhooks.plots.colours import NULL, viridis
from trainhooks.plots.dynamics import walk, walk_away
from trainhooks.plots.legend import entries_of

STEPS = np.array([0, 1, 10, 100])


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_the_dynamics_figure_shows_the_numbers_beside_null_and_baseline():
    rising, falling = np.array([0.0, 0.2, np.nan, 0.9]), np.array([1.0, 0.9, 0.4, 0.0])
    null, norm = np.array([0.0, 0.1, -0.1, 0.0]), np.array([0.1, 0.2, 0.3, 0.4])
    figure = draw(dynamics(STEPS, {"probe": rising}, {"whole": falling}, null=null, baseline=norm))
    above, below = figure.axes
    assert list(lines(above)) == ["probe", "row norm alone", "permuted null"]
    np.testing.assert_array_equal(lines(above)["probe"].get_xdata(), [0, 1, 100])  # NaN is no point
    np.testing.assert_array_equal(lines(above)["probe"].get_ydata(), [0.0, 0.2, 0.9])
    np.testing.assert_array_equal(lines(below)["whole"].get_ydata(), falling)
    assert lines(above)["permuted null"].get_color() == NULL
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
    assert figure.get_figwidth() == COLUMN


def test_a_panel_that_says_nothing_is_not_drawn():
    nothing = np.full(4, np.nan)
    drawing = dynamics(STEPS, {"probe": np.linspace(0, 1, 4)}, {"whole": nothing}, null=nothing)
    assert [panel.title for panel in drawing.panels] == ["frequency"]
    assert list(lines(draw(drawing).axes[0])) == ["probe"]


def test_the_scatter_says_what_the_null_and_the_row_norm_reach():
    true = np.linspace(3, 12, 50)
    figure = draw(scatter(true, true + 1, spearman=0.876, null=-0.021, baseline=0.5, step=7))
    (ax,) = figure.axes
    np.testing.assert_array_equal(lines(ax)["tokens"].get_ydata(), true + 1)
    np.testing.assert_array_equal(lines(ax)["perfect"].get_ydata(), [3, 12])
    assert [text.get_text() for text in ax.texts] == ["step 7\nSpearman 0.88\nrow norm 0.50\npermuted -0.02"]


def test_saliency_falls_beside_its_rotations():
    values, rotated = np.array([0.1, 3.0, 0.5]), np.array([[1.0, 2.0, 0.0], [2.0, 1.0, 1.0]])
    (ax,) = draw(saliency(values, rotated=rotated)).axes
    np.testing.assert_array_equal(lines(ax)["own axes"].get_ydata(), [3.0, 0.5, 0.1])
    np.testing.assert_allclose(lines(ax)["2 random rotations"].get_ydata(), [2.0, 1.0, 0.5])


def test_a_random_walk_has_half_of_its_way_left_at_three_quarters():
    np.testing.assert_allclose(walk(np.array([0, 75, 100]), np.array([0.8, 0.1, 0.0])), [0.8, 0.4, 0.0])
    np.testing.assert_allclose(walk(np.array([50]), np.array([0.8])), [0.8])
    np.testing.assert_allclose(walk_away(np.array([0, 25, 100]), np.array([0.0, 0.1, 0.8])), [0.0, 0.4, 0.8])
    np.testing.assert_allclose(walk_away(np.array([50]), np.array([0.0])), [0.0])


def ordered(*names):
    return [Curve(name, STEPS, np.linspace(1, 0, 4), "ordered") for name in names]


def test_a_legend_leaves_out_members_of_a_sequence_and_no_other():
    curves = ordered("embedding", *(f"layers.{layer}" for layer in range(12)), "final norm", "output embedding")
    named = [curves[place].label for place in entries_of(curves)]
    kept = [f"layers.{layer}" for layer in (0, 3, 6, 8, 11)]
    assert named == ["embedding", *kept, "final norm", "output embedding"]


@pytest.mark.parametrize("scale", ["linear", "log10"])
def test_a_legend_within_a_panel_lies_on_no_line(scale):
    """Of lines that run through every corner too."""
    x = np.arange(101)
    high, low = np.full(101, 0.9), np.linspace(0.9, 0.01, 101)
    falling = [Curve(name, x, y, "ordered") for name, y in (("whole", high), ("output embedding", low))]
    panel = Panel("p", "x", "y", tuple(falling), y_scale=scale, y_range=(0.009, 1.0))
    figure = draw(Drawing("n", "t", "c", (panel, panel, panel), columns=3))
    figure.canvas.draw()
    for ax in figure.axes:
        box = ax.get_legend().get_window_extent()
        for line in ax.get_lines():
            points = ax.transData.transform(line.get_xydata())
            assert not box.count_contains(points), (scale, line.get_label())


def test_titles_and_words_stay_within_the_picture():
    x = np.linspace(-1, 1, 30)
    state = Panel("step 1,000,000\nR² 0.57 (null <0.01)", "PC 1 (37% of variance)", "PC 2 (3% of variance)", ())
    panels = tuple(replace(state, curves=(Curve("tokens", x, x, points=True, shade=x),), step=1) for _ in range(4))
    for drawing in (
        Drawing("components", "t", "c", panels, columns=2),
        dynamics(STEPS, {"probe": STEPS / 100}, {"output embedding": STEPS / 100}, null=STEPS / 1e3),
    ):
        figure = draw(drawing)
        figure.canvas.draw()
        for ax in figure.axes:
            words = [ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
            for box in (word.get_window_extent() for word in words if word.get_text()):
                assert box.x0 >= 0
                assert box.y0 >= 0
                assert box.x1 <= figure.bbox.x1 + 0.5
                assert box.y1 <= figure.bbox.y1 + 0.5


def test_a_line_with_gaps_joins_what_was_measured_and_marks_it():
    y = np.full(101, np.nan)
    y[::10] = np.linspace(0, 1, 11)
    (ax,) = draw(Drawing("n", "t", "c", (Panel("p", "x", "y", (Curve("rank 1", np.arange(101), y),)),))).axes
    (line,) = ax.get_lines()
    assert line.get_xdata().tolist() == list(range(0, 101, 10))
    assert line.get_marker() == "o"


def test_the_csv_gives_every_point_back():
    curve = Curve('a "b", c', np.array([0.0, 1.5]), np.array([np.nan, 0.1]), low=np.zeros(2), names=["x", "y"])
    drawing = Drawing("n", "t", "c", (Panel("p", "x", "y", (curve,), step=3),))
    text = io.StringIO()
    csv.writer(text).writerows(drawing.rows())
    first, second = csv.DictReader(io.StringIO(text.getvalue()))
    assert (first["y"], second["y"], second["x"], second["name"], second["step"]) == ("", "0.1", "1.5", "y", "3")
    assert second["curve"] == 'a "b", c'


def test_a_curve_whose_parts_differ_in_length_is_refused():
    with pytest.raises(ValueError, match="2 x and 3 y"):
        Curve("c", np.zeros(2), np.zeros(3))


def test_text_from_files_is_neither_markup_nor_control():
    assert escaped("$\\frac{$\x1b[2J\na") == "\\$\\frac{\\$\\x1b[2J\na"
    draw(dynamics(STEPS, {"$x_{$ \x07": STEPS / 100}, {"b$": STEPS / 100})).savefig(io.BytesIO())


def test_log_ticks_stay_few():
    assert log_ticks(300) == [0, 1, 10, 100]
    assert len(log_ticks(10**9)) <= 7


def test_a_thread_draws_without_pyplot():
    code = (
        "import sys, numpy as np; from trainhooks.plots import draw, saliency\n"
        "draw(saliency(np.arange(4.0)))._repr_png_(); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    drawn = []
    thread = threading.Thread(target=lambda: drawn.append(draw(saliency(np.arange(4.0)))._repr_png_()))
    thread.start()
    thread.join()
    assert drawn[0].startswith(b"\x89PNG")


def test_a_value_without_bounds_leaves_the_axis_finite():
    x = np.arange(3)
    for make, y in ((convergence_panel, [np.inf, 2.0, 1.0]), (frequency_panel, [-np.inf, -0.5, 1.0])):
        panel = make([Curve("one", x, np.array(y))])
        assert np.isfinite(panel.y_range).all()
        draw(Drawing("one", "t", "c", (panel,)))


@pytest.mark.parametrize("words", ["=1+1", "+1", "-1", "@SUM(A1)", "=a\x1b[2J", "\t=1", "\udcff"])
def test_words_in_a_table_are_neither_formula_nor_control(words):
    one = np.ones(1)
    curve = Curve(words, one, -one, names=[words])
    _, row = Drawing("one", "t", "c", (Panel(words, "x", "y", (curve,)),)).rows()
    assert row[6] == "-1.0"  # numbers stay numbers
    for cell in (row[0], row[2], row[-1]):
        assert cell[0] not in "=+-@\t"
        assert cell.isprintable()
        assert cell.encode("utf-8")


def test_colours_of_a_sequence_are_those_of_matplotlibs_map():
    from matplotlib import colormaps

    for share in np.linspace(0, 1, 23):
        own = [int(viridis(share)[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        np.testing.assert_allclose(own, colormaps["viridis"](share)[:3], atol=0.07)
