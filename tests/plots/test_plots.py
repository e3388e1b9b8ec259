import csv
import io
import subprocess
import sys
import threading

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
from trainhooks.plots.canvas import COLUMN, NULL, escaped, log_ticks
from trainhooks.plots.dynamics import walk

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
    assert [text.get_text() for text in ax.texts] == ["Spearman 0.88\nrow norm 0.50\npermuted -0.02"]


def test_saliency_falls_beside_its_rotations():
    values, rotated = np.array([0.1, 3.0, 0.5]), np.array([[1.0, 2.0, 0.0], [2.0, 1.0, 1.0]])
    (ax,) = draw(saliency(values, rotated=rotated)).axes
    np.testing.assert_array_equal(lines(ax)["own axes"].get_ydata(), [3.0, 0.5, 0.1])
    np.testing.assert_allclose(lines(ax)["2 random rotations"].get_ydata(), [2.0, 1.0, 0.5])


def test_a_random_walk_has_half_of_its_way_left_at_three_quarters():
    np.testing.assert_allclose(walk(np.array([0, 75, 100]), np.array([0.8, 0.1, 0.0])), [0.8, 0.4, 0.0])
    np.testing.assert_allclose(walk(np.array([50]), np.array([0.8])), [0.8])


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
