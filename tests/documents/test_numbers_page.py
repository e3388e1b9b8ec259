"""docs/numbers.md has an entry for every array of a store, and no entry for an array that does not exist."""

import importlib
import inspect
import pkgutil
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import trainhooks.metrics
from trainhooks.analyze.distance_to_final import GROUP_VARIABLES, FinalRows
from trainhooks.analyze.lead_sums import lead_variables
from trainhooks.analyze.positions import POSITION_VARIABLES
from trainhooks.analyze.text import TextProbe
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import Metric
from trainhooks.metrics.defaults import default_metrics
from trainhooks.metrics.group_convergence import FINAL_VARIABLES
from trainhooks.recording.recorder import RECORD_VARIABLES
from trainhooks.store.format.layout import Layout
from trainhooks.store.format.schema import array_specs

NUMBERS = Path(__file__).parents[2] / "docs" / "numbers.md"
COUNTS = np.array([0, 3, 0, 20, 1, 400, 7, 2], dtype=np.int64)
# what a metric's constructor may ask for: with all of it given, it declares all it can
GIVEN = {
    "counts": COUNTS,
    "patterns": ("*",),
    "vocab_size": len(COUNTS),
    "token_texts": [str(token) for token in range(len(COUNTS))],
}
ENTRY = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)


def entries() -> list[str]:
    return ENTRY.findall(NUMBERS.read_text(encoding="utf-8"))


def metric_classes() -> list[type[Metric]]:
    """Every concrete metric that a module of trainhooks.metrics defines."""
    found = {}
    for module in pkgutil.iter_modules(trainhooks.metrics.__path__, "trainhooks.metrics."):
        for _, member in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(member, Metric) and not inspect.isabstract(member):
                found[member.__qualname__] = member
    return [found[name] for name in sorted(found)]


def build(metric: type[Metric]) -> Metric:
    accepted = inspect.signature(metric.__init__).parameters
    given = {name: value for name, value in GIVEN.items() if name in accepted}
    if "counts" in given and "Tensor" in str(accepted["counts"].annotation):
        given["counts"] = torch.from_numpy(COUNTS)
    try:
        return metric(**given)
    except TypeError as error:
        pytest.fail(f"{metric.__name__} takes what this test does not know ({error}): add it to GIVEN.")


def offline_variables() -> list[Variable]:
    """What an analysis of checkpoints with a text adds."""
    rows, text = FinalRows.of(torch.from_numpy(COUNTS)), TextProbe("text.txt", counts=COUNTS)
    own = [*rows.variables, *GROUP_VARIABLES, *text.series_variables, *lead_variables(len(COUNTS))]
    return [*own, *POSITION_VARIABLES]


def stored_names() -> list[str]:
    """Every array that a recorder with every metric, or an analysis with a text, would lay out."""
    metrics = [*default_metrics(COUNTS), *(build(metric) for metric in metric_classes())]
    live = [*RECORD_VARIABLES, *FINAL_VARIABLES, *(v for metric in metrics for v in metric.variables)]
    declared = [*live, *offline_variables()]
    layout = Layout(
        vocab=len(COUNTS),
        dim=2,
        groups=("whole",),
        sketch_size=3,
        variables=tuple({variable.name: variable for variable in declared}.values()),
        token_count=COUNTS,
        token_text=[str(token) for token in range(len(COUNTS))],
    )
    return [spec.name for spec in array_specs(layout)]


def test_the_metrics_are_found():
    names = {metric.__name__ for metric in metric_classes()}
    assert {"FrequencyProbe", "Spectrum", "HeadGeometry", "GroupConvergence", "ExactConvergence"} <= names
    assert "geometry.row_norm_by_count" in stored_names()  # what is declared only when counts are given
    assert "probe.never_label_cosine" in stored_names()
    assert {"convergence.head_cosine_to_final_by_bin", "text.log_probability"} <= set(stored_names())


def test_every_stored_array_has_an_entry():
    missing = sorted(set(stored_names()) - set(entries()))
    assert not missing, f"docs/numbers.md has no entry (a table row that begins with the name) for {missing}"


def test_every_entry_is_stored():
    unknown = sorted(set(entries()) - set(stored_names()))
    assert not unknown, f"docs/numbers.md describes arrays that no store has: {unknown}"


def test_no_entry_is_given_twice():
    twice = [name for name, times in Counter(entries()).items() if times > 1]
    assert not twice, f"docs/numbers.md describes {twice} more than once"


def test_every_entry_says_what_it_is():
    for row in NUMBERS.read_text(encoding="utf-8").splitlines():
        if ENTRY.match(row):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
            assert len(cells[1]) > 0, row


def test_a_missing_entry_is_noticed(monkeypatch, tmp_path):
    shorter = tmp_path / "numbers.md"
    text = NUMBERS.read_text(encoding="utf-8")
    shorter.write_text(text.replace("| `probe.slope` |", "| `probe.slopes` |"), encoding="utf-8")
    monkeypatch.setattr(f"{__name__}.NUMBERS", shorter)
    with pytest.raises(AssertionError, match=r"no entry .*probe\.slope"):
        test_every_stored_array_has_an_entry()
    with pytest.raises(AssertionError, match=r"no store has: \['probe\.slopes'\]"):
        test_every_entry_is_stored()
