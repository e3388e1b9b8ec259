"""The tour and the glossary name files that exist, and the walk of a record is as the tour says."""

from __future__ import annotations

import re
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from loops import COUNTS, TinyLM, batches, train

import trainhooks as th

ROOT = Path(__file__).parents[2]
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
PAGES = ("CONTRIBUTING.md", "docs/tour.md", "docs/design.md", "docs/glossary.md", "docs/decisions.md")
TOPS = (ROOT, ROOT / "trainhooks", ROOT / "trainhooks" / "checkpoints")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
LEVEL = {wing: -level for level, wings in enumerate(CONTRACTS[0]["layers"]) for wing in re.split(r"[ |]+", wings)}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_/]+/[\w.]+\.(?:py|md))`", text))
    missing = [name for name in named if not any((top / name).exists() for top in TOPS)]
    assert not missing, f"{page} names files that are not there: {missing}"
    links = set(re.findall(r"\]\(([\w./]+?\.md)(?:#[\w-]+)?\)", text))
    lost = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not lost, f"{page} links to {lost}"


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """(file, caller's file) of each call that one `after_update` makes in the training thread."""
    home, found = Path(th.__file__).parent, []

    def inside(frame):
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(home):
                return path.relative_to(home).as_posix()
            frame = frame.f_back
        return None

    def note(frame, event, _):
        if event == "call" and Path(frame.f_code.co_filename).is_relative_to(home):
            found.append((inside(frame), inside(frame.f_back)))

    model, data = TinyLM(), batches(3)
    with th.Recorder(model, store=tmp_path_factory.mktemp("tour") / "run.zarr", counts=COUNTS) as recorder:
        train(model, data[:2], recorder)
        recorder.begin_step(data[2, :, 1:])
        recorder.before_update()
        with torch.no_grad():
            model.lm_head.weight.add_(0.01)
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            recorder.after_update(loss=1.0, learning_rate=0.1)
        finally:
            sys.setprofile(before)
    return found


def wing(path: str) -> str:
    return path.split("/", maxsplit=1)[0]


def test_no_call_of_a_record_goes_up(calls):
    up = {(caller, file) for file, caller in calls if caller and LEVEL[wing(caller)] < LEVEL[wing(file)]}
    assert not up


def test_the_walk_climbs_as_often_as_the_tour_says(calls):
    wings = list(dict.fromkeys(wing(file) for file, _ in calls))
    assert f"first entered: {', '.join(wings)}." in TOUR
    climbs = [(one, other) for one, other in pairwise(wings) if LEVEL[other] > LEVEL[one]]
    assert "Four times the next wing lies\n  higher" in TOUR
    assert len(climbs) == 4
    assert ", ".join(f"{one} to {other}" for one, other in climbs) in TOUR


def test_every_file_of_a_record_is_in_the_tour(calls):
    named = " ".join(re.findall(r"`([\w/]+\.py)`", TOUR))
    missing = [file for file in dict.fromkeys(file for file, _ in calls) if file not in named]
    assert not missing, f"docs/tour.md does not name {missing}, which a record goes through"
