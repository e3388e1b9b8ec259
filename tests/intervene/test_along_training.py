"""Along a suite of whole models, and along a store's output embeddings in one body."""

import math

import pytest
import torch
from synthetic_lm import llama, target, texts

from trainhooks.cli import app
from trainhooks.intervene import along_training as over
from trainhooks.intervene.along_training import (
    HEAD,
    WHOLE,
    StepModels,
    TrainingCurve,
    moments,
    prune_along,
    steer_along,
)
from trainhooks.intervene.deletion.prune import prune
from trainhooks.intervene.steering.edits import steer


@pytest.fixture
def suite(tmp_path):
    """Step 8 is the model, step 0 the same with a tenth of its output embedding."""
    pytest.importorskip("transformers")
    one = target(llama())
    for step, scale in ((0, 0.1), (8, 1.0)):
        one.with_head(one.weight * scale).save(tmp_path / "suite" / f"step{step}")
    (tmp_path / "text.txt").write_text("\n\n".join(texts(20)))
    return tmp_path / "suite", tmp_path / "text.txt"


def test_a_suite_is_walked_from_its_last_step_each_with_its_own_model(suite):
    folder, text = suite
    seen = list(moments(folder, text=[text], context_length=30, max_positions=300))
    assert [moment.step for moment in seen] == [8, 0]
    assert torch.allclose(seen[0].target.weight * 0.1, seen[1].target.weight)
    assert torch.equal(seen[0].test.labels, seen[1].test.labels)
    last = [moment.step for moment in moments(folder, text=[text], over="8", context_length=30)]
    assert last == [8]


def test_figures_by_step_are_those_of_each_step_alone(suite):
    folder, text = suite
    seen = list(moments(folder, text=[text], context_length=30, max_positions=300))
    options = {"variants": ("zero",), "orders": ("ascending",), "random": 3, "fractions": (0.25, 0.5)}
    found = prune_along(StepModels(WHOLE, iter(seen)), **options)
    assert [row["step"] for row in found.rows] == [0, 8]
    alone = prune(seen[0].target.weight, calibration=seen[0].calibration, test=seen[0].test, **options)
    assert found.rows[1]["zero/ascending"] == alone.largest[0].value
    assert found.rows[1]["zero gain"] == alone.gains["zero"].fraction.value
    assert found.note == WHOLE
    series = StepModels(WHOLE, iter(seen))
    steered = steer_along(series, tokens=2, ratios=[2.0], directions=["least_norm", "logit_bias"])
    edits = steer(seen[0].target, seen[0].calibration, seen[0].test, tokens=2, ratios=[2.0], directions=["logit_bias"])
    errors = sorted(abs(math.log(edit.achieved / 2)) for edit in edits.edits)
    assert steered.rows[1]["logit_bias"] == pytest.approx(sum(errors) / 2)
    assert "least_norm.paper" in steered.render()


def test_a_stores_matrices_stand_in_one_body(suite, monkeypatch):
    folder, text = suite
    seen = list(moments(folder, text=[text], context_length=30, max_positions=300))
    one, listed = seen[0].target, over.list_suite
    monkeypatch.setattr(over, "list_suite", lambda source, **options: listed(folder, **options))
    monkeypatch.setattr(over, "store_matrix", lambda store, step: one.weight * (step + 1))
    series = moments(folder / "step8", text=[text], store="run.zarr", context_length=30, max_positions=300)
    assert series.note == HEAD.format(model=folder / "step8")
    found = list(series)
    assert [moment.step for moment in found] == [8, 0]
    assert torch.allclose(found[0].target.weight, found[1].target.weight * 9)
    assert found[0].test is found[1].test
    assert torch.equal(found[0].test.hidden, seen[0].test.hidden)


def test_what_is_not_defined_is_null():
    found = TrainingCurve("note", ("loss",), ({"step": 0.0, "loss": math.nan},))
    assert found.to_dict()["rows"] == [{"step": 0.0, "loss": None}]


@pytest.mark.parametrize("name", ["prune", "steer"])
def test_the_command_lines_series(suite, capsys, name):
    folder, text = suite
    small = ["--context-length", "30", "--positions", "200"]
    less = ["--variant", "zero", "--random", "0"] if name == "prune" else ["--pick", "1", "--direction", "logit_bias"]
    app([name, str(folder), "--text", str(text), "--over", "all", *small, *less], result_action="return_value")
    said = capsys.readouterr().out
    assert said.startswith(WHOLE)
    assert len(said.splitlines()) == 4
    with pytest.raises(SystemExit):
        app([name, str(folder), "--text", str(text), "--over", "0", "--save", "x"], result_action="return_value")
    assert "leave one of them out" in capsys.readouterr().err
