"""What the demo says at its end follows the numbers: yes, not yet, and when."""

from pathlib import Path

import numpy as np
import pytest

from trainhooks.core.variable import Variable
from trainhooks.demo.results import HELD_OUT, PERMUTED, R2, ROW_NORM, answer, where
from trainhooks.store import Layout, StoreWriter, open_store

DISTANCE = "convergence.distance_to_final"


def store(folder, *, held_out, norm, distance):
    names = (HELD_OUT, PERMUTED, ROW_NORM, R2)
    final = Variable(DISTANCE, ("group",), whole_run=True)
    layout = Layout(4, 2, ("whole",), 0, variables=(*map(Variable, names), final), snapshots=False)
    writer = StoreWriter(folder / "run.zarr", layout)
    for step, (value, other) in enumerate(zip(held_out, norm, strict=True)):
        given = {HELD_OUT: value, PERMUTED: -0.03, ROW_NORM: other, R2: value**2}
        writer.append(10 * step, {name: np.asarray(x) for name, x in given.items()})
    writer.finish({DISTANCE: np.array(distance)[:, None]})
    writer.close()
    return open_store(folder / "run.zarr")


def test_yes_with_its_references_and_when(tmp_path):
    made = store(tmp_path, held_out=[0.0, 0.35, 0.5, 0.8], norm=[0.0, 0.1, 0.3, 0.2], distance=[2.0, 1.5, 1.0, 0.0])
    first, second = answer(made)
    assert "Yes: " in first
    assert "Spearman 0.80; shuffled frequencies give -0.03, the rows' norm alone 0.20" in first
    assert "at step 20 of 30, when the whole model had come 50% of its way" in second


@pytest.mark.parametrize(
    ("held_out", "norm", "word"), [(0.1, 0.0, "Not yet"), (0.7, 0.65, "Not yet"), (np.nan, 0, "Not known")]
)
def test_no_where_it_does_not_stand_out(tmp_path, held_out, norm, word):
    made = store(tmp_path, held_out=[0.0, held_out], norm=[0.0, float(norm)], distance=[1.0, 0.0])
    assert len(answer(made)) == 1
    assert f"embedding? {word}" in answer(made)[0]


def test_it_says_where_things_are_and_what_to_run_next():
    text = "\n".join(where(Path("runs/x\x1b"), suite=True))
    for said in (
        "runs/x\\x1b/checkpoints",
        "tensorboard --logdir runs/x\\x1b",
        "trainhooks verdict runs/x\\x1b/run.zarr",
    ):
        assert said in text
    assert "checkpoints" not in "\n".join(where(Path("runs"), suite=False))


def test_a_shell_that_finds_no_command_is_told_how_to(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("trainhooks.demo.results.ACTIVATE", tmp_path / "activate")
    assert "activate" not in "\n".join(where(Path("runs"), suite=False)), "an environment without that file"
    (tmp_path / "activate").touch()
    assert "activate" in "\n".join(where(Path("runs"), suite=False))
    monkeypatch.setattr("shutil.which", lambda name: "/somewhere")
    assert "activate" not in "\n".join(where(Path("runs"), suite=False))
