"""A run as it is now, by its store: what `trainhooks watch` shows, also of a run that goes on, and in characters."""

import json
import math

import numpy as np
import pytest
from loops import COUNTS, TinyLM, batches, train

import trainhooks as th
from trainhooks.cli import app
from trainhooks.core.character_plots import BLOCKS, plot, spark
from trainhooks.store import open_store
from trainhooks.store.reading.status import status


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        app([str(one) for one in arguments])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    return said.out


def test_a_run_is_watched_while_it_goes_on(tmp_path, capsys):
    model, path = TinyLM(), tmp_path / "run.zarr"
    with th.Recorder(model, store=path, counts=COUNTS) as recorder:
        train(model, batches(3), recorder)
        recorder._sink_group.store.read()
        store = open_store(path, follow=True)
        first = status(store)
        assert (first.step, first.records, first.complete, first.rate) == (3, 4, False, None)
        assert first.holder is not None
        assert "written by" in first.render()
        told = json.loads(call(capsys, "watch", path, "--once", "--json"))
        assert (told["step"], told["waiting"]) == (3, first.waiting)
        train(model, batches(6), recorder, first=3)
        recorder._sink_group.store.read()
        store.refresh()
        second = status(store, before=first, seconds=1.5)
        assert (second.step, second.rate) == (6, 2.0)
        assert "2 updates a second" in second.render()
    for words in (("--once",), ("--every", 0.01), ("--json",)):
        assert "closed" in call(capsys, "watch", path, *words) or words == ("--json",)
    last, kept = json.loads(call(capsys, "watch", path, "--json")), open_store(path)
    assert last["complete"] is True
    assert last["correlations"]["held-out Spearman"] == kept["probe.heldout_spearman"][-1]
    assert last["distance"]["whole"] == kept["convergence.distance_to_initial"][-1][kept.groups.index("whole")]


def test_a_run_without_counts_has_no_correlations(tmp_path, capsys):
    model = TinyLM()
    with th.Recorder(model, store=tmp_path / "run.zarr") as recorder:
        train(model, batches(2), recorder)
    text = call(capsys, "watch", tmp_path / "run.zarr", "--once")
    assert "Spearman" not in text
    assert "output_embedding" in text


def test_sparks_keep_to_their_ends():
    assert spark([0, 0.5, 1]) == BLOCKS[0] + BLOCKS[4] + BLOCKS[7]
    assert spark([0.0, math.nan, 0.0], low=0, high=1) == BLOCKS[0] + " " + BLOCKS[0]
    assert spark([-3.0, 5.0], low=0, high=1) == BLOCKS[0] + BLOCKS[7]
    assert spark([math.nan]) == spark([]) == ""
    assert spark(range(100), width=4) == spark([24, 49, 74, 99])


def test_a_plot_puts_marks_where_the_values_are():
    lines = plot([0, 1, 3], {"held out": [0.0, 0.5, 1.0], "permuted": [0.0, math.nan, 0.0]}, width=11, height=5)
    assert lines[0] == "  1.00 |          h"
    assert lines[2] == "       |     hhhhh"
    assert lines[4] == "  0.00 |hhhhhpppppp"
    assert lines[-1].endswith("h held out, p permuted")
    assert plot([], {"held out": []}) == plot([0], {"held out": [np.nan]}) == []
