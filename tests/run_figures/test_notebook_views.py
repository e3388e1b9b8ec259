"""What a notebook shows of a store, a fit, a verdict, an audit and counts; a store as xarray and pandas know data."""

import numpy as np
import pytest
import torch
from loops import COUNTS, VOCAB

import trainhooks as th
from trainhooks.core.accessors import accessor
from trainhooks.core.html import card

HOSTILE = "<script>alert(1)</script>\x1b[2J"


@pytest.fixture(scope="module")
def opened(small_run):
    return th.open_store(small_run.store)


def test_a_figure_of_the_store_shows_its_numbers(opened):
    figure = opened.plot.dynamics(scale="linear")
    (line,) = [line for line in figure.axes[0].get_lines() if line.get_label() == "probe"]
    np.testing.assert_array_equal(line.get_ydata(), opened["probe.heldout_spearman"])
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_matrix_of_one_step_is_drawn(opened):
    figure = opened.plot.scatter(7)
    place = opened.steps.tolist().index(7)
    said = figure.axes[0].texts[0].get_text()
    assert said.startswith(f"step 7\nSpearman {opened['probe.heldout_spearman'][place]:.2f}")
    assert len(opened.plot.components(0, 40).axes) == 3  # two panels and their colours
    assert opened.plot.saliency(40).axes
    assert len(opened.plot().axes) >= 6
    with pytest.raises(ValueError, match=r"no snapshot at step 1000; the nearest"):
        opened.plot.scatter(1000)


def test_what_a_store_does_not_hold_is_said(tmp_path):
    model = torch.nn.Sequential()
    model.add_module("embed", torch.nn.Embedding(20, 4))
    model.add_module("lm_head", torch.nn.Linear(4, 20))
    with th.Recorder(model, store=tmp_path / "run.zarr") as recorder:
        recorder.begin_step()
    with pytest.raises(ValueError, match="no token counts"):
        th.open_store(tmp_path / "run.zarr").plot.scatter()


def test_a_view_that_nobody_gave_is_no_attribute(opened):
    with pytest.raises(AttributeError, match="no view 'sound'"):
        accessor("sound", opened)


def test_a_store_is_short_in_words_and_a_table_in_a_notebook(opened):
    assert repr(opened).endswith(
        f"records 41 to step 40, matrices 41 of {VOCAB} x 8, metrics {len(opened.names)}, complete yes>"
    )
    assert "<th" in opened._repr_html_()


def test_fit_verdict_audit_and_counts_are_short_too(small_run, opened):
    y = torch.from_numpy(-np.log(COUNTS / COUNTS.sum()))
    fit = th.fit_probe(torch.from_numpy(opened.output_embedding(40)), y)
    assert repr(fit).startswith(f"ProbeFit(heldout_spearman={float(fit.heldout_spearman):.4g}, ")
    two = th.fit_probe(torch.from_numpy(opened.output_embedding(40)), torch.stack([y, -y], 1))
    assert "heldout_r2=[" in repr(two)
    verdict = th.verdict([th.analyze_store(opened, draws=19, max_records=8)])
    assert repr(verdict).startswith(f"Verdict({verdict.level!r}, seeds=1, q=0.5, ")
    audit = th.audit_suite(th.list_suite(small_run.checkpoints))
    assert repr(audit) == f"<Audit of {audit.name}: 41 checkpoints, nothing found>" or not audit.clean
    counts = th.TokenCounts(COUNTS, documents=3)
    assert repr(counts) == f"TokenCounts(vocab_size=60, n_tokens={COUNTS.sum():,}, seen=60, documents=3)"
    for shown in (fit, verdict, audit, counts):
        assert len(repr(shown)) < 300
        assert "<b>" in shown._repr_html_()


def test_what_comes_from_a_file_is_text():
    counts = th.TokenCounts(COUNTS, rule=HOSTILE)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J" in counts._repr_html_()
    assert card(HOSTILE, [(HOSTILE, HOSTILE)], lines=[HOSTILE]).count("<script") == 0


def test_a_store_as_xarray_reads_matrices_when_they_are_taken(opened):
    found = opened.to_xarray()
    assert dict(found.sizes) | {"step": 41, "token": 60, "dim": 8, "snapshot_step": 41} == dict(found.sizes)
    matrices = found["output_embedding"]
    np.testing.assert_array_equal(matrices.sel(snapshot_step=7), opened.output_embedding(7))
    np.testing.assert_array_equal(matrices[[40, 0, 40], 5], opened.token_path(5)[[40, 0, 40]])
    whole = np.stack([opened.output_embedding(step) for step in opened.snapshot_steps])
    np.testing.assert_array_equal(matrices[::-20, 3:6, -1], whole[::-20, 3:6, -1])
    assert float(matrices[3, 2, 1]) == opened.output_embedding(3)[2, 1]
    assert found["token_text"].values[5] == "t5"
    np.testing.assert_array_equal(found["token_count"], COUNTS)


def test_a_store_as_a_table(opened):
    table = opened.to_dataframe()
    np.testing.assert_array_equal(table.index, opened.steps)
    np.testing.assert_array_equal(table["probe.heldout_spearman"], opened["probe.heldout_spearman"])
    whole = opened.groups.index("whole")
    np.testing.assert_array_equal(table["convergence.norm/whole"], opened["convergence.norm"][:, whole])
    assert not [name for name in table if name.startswith("probe.slope")]
    some = opened.metrics()[["loss", "convergence.norm"]].to_dataframe()
    assert some.index.names == ["step", "group"]
