"""Where a model that a text is read by lies."""

import pytest

from trainhooks.analyze.model_loading import model_source
from trainhooks.checkpoints.base import CheckpointError


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("org/name", ("org/name", None, "")),
        ("org/name@step1", ("org/name", "step1", "")),
        ("org/name@main:checkpoints/step_10", ("org/name", "main", "checkpoints/step_10")),
        ("hf://org/name@step1/hf", ("org/name", "step1", "hf")),
    ],
)
def test_a_folder_of_a_revision_is_told_apart_from_it(place, source):
    assert model_source(place) == source


def test_what_is_no_model_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"a folder without config\.json; a text needs a whole model"):
        model_source(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert model_source(tmp_path) == (str(tmp_path), None, "")
