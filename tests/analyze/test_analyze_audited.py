"""What an audit finds rides with the analysis: it stops it, is in the store, and in every verdict made of it."""

import numpy as np
import pytest
import torch
from analyzed import OFTEN, write_checkpoint, write_suite
from safetensors.torch import load_file, save_file

from trainhooks.analyze import analyze_suite
from trainhooks.checkpoints.audit.audit import audit_suite
from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.suite import list_suite
from trainhooks.lead.from_store import analyze_store
from trainhooks.lead.verdict import verdict
from trainhooks.store import open_store

STEPS = (0, 1, 2, 4, 8, 16)


def run(folder, tmp_path, **settings):
    out = tmp_path / "out.zarr"
    analyze_suite(folder, counts=OFTEN, out=out, workers=1, tell=lambda message: None, **settings)
    return open_store(out)


def two_runs(folder):
    write_suite(folder, (100, 200, 300))
    other = write_suite(folder / "other", (400, 500, 600), seed=1)
    for place in other.iterdir():
        place.rename(folder / place.name)
    other.rmdir()
    return folder


def test_two_runs_in_one_folder_stop_it(tmp_path):
    folder = two_runs(tmp_path / "suite")
    audit = audit_suite(list_suite(folder))
    assert "two runs" in audit.render()
    assert "Nothing has to be left out" not in audit.render()
    assert "in doubt" in audit.render()
    with pytest.raises(CheckpointError, match=r"may not be one run.*nothing in common.*--keep-going"):
        run(folder, tmp_path)
    assert not (tmp_path / "out.zarr").exists(), "it stops before anything is written"
    store = run(folder, tmp_path, keep_going=True)
    (kept,) = [one for one in store.attributes["audit"] if one["kind"] == "unrelated"]
    assert kept["doubtful"]
    said = verdict([analyze_store(store)])
    assert said.level == "cannot be tested here"
    assert "may not be one run in this order: unrelated" in said.sentence
    assert any(note.startswith("the audit of the checkpoints found: unrelated") for note in said.notes)


def test_a_sound_suite_says_nothing(tmp_path):
    store = run(write_suite(tmp_path / "suite", STEPS), tmp_path)
    assert store.attributes["audit"] == []
    assert "audit" not in verdict([analyze_store(store)]).render()


def copy_of(folder, step, of):
    for name in ("model.safetensors", "config.json"):
        (folder / f"step{step}" / name).write_bytes((folder / f"step{of}" / name).read_bytes())


def test_a_repeated_beginning_is_left_out_and_said(tmp_path):
    """As in Pythia, where step1 is step0: nothing had moved yet."""
    folder = write_suite(tmp_path / "suite", STEPS)
    copy_of(folder, 1, 0)
    store = run(folder, tmp_path)
    assert store.steps.tolist() == [0, 2, 4, 8, 16]
    assert [one["doubtful"] for one in store.attributes["audit"]] == [False]
    notes = verdict([analyze_store(store)]).notes
    assert "the audit of the checkpoints found: identical: steps 0, 1 have the same content." in notes


@pytest.mark.parametrize(("step", "of"), [(8, 4), (16, 2)])
def test_the_same_content_later_on_stops_it(tmp_path, step, of):
    folder = write_suite(tmp_path / "suite", STEPS)
    copy_of(folder, step, of)
    with pytest.raises(CheckpointError, match=r"may not be one run.*the same content"):
        run(folder, tmp_path)


def test_a_jump_stops_it(tmp_path):
    folder = write_suite(tmp_path / "suite", (100, 110, 120, 130, 140, 150))
    jump = 0.8 * torch.randn(60, 8, generator=torch.Generator().manual_seed(9))
    for step in (130, 140, 150):
        held = load_file(folder / f"step{step}" / "model.safetensors")
        write_checkpoint(folder, step, held | {"lm_head.weight": held["lm_head.weight"] + jump})
    with pytest.raises(CheckpointError, match="discontinuity: from step 120 to 130"):
        run(folder, tmp_path)


def test_another_number_of_tensors_is_no_change_of_dtype(tmp_path):
    folder = write_suite(tmp_path / "suite", STEPS)
    held = load_file(folder / "step4" / "model.safetensors")
    save_file({**held, "extra.weight": torch.ones(3, 3)}, folder / "step4" / "model.safetensors")
    kinds = [finding.kind for finding in audit_suite(list_suite(folder), params="*").findings]
    assert "shape" in kinds
    assert "dtype" not in kinds
    save_file({name: tensor.half() for name, tensor in held.items()}, folder / "step4" / "model.safetensors")
    assert [f.kind for f in audit_suite(list_suite(folder), params="*").findings].count("dtype") == 1


def test_what_is_alike_is_said_once(tmp_path):
    folder = tmp_path / "suite"
    for step in range(49):
        (folder / f"step{step}").mkdir(parents=True)
        np.save(folder / f"step{step}" / "x.npy", np.ones(2))
    lines = audit_suite(list_suite(folder)).render().splitlines()
    assert len(lines) <= 5
    assert "(49 of them): " in "\n".join(lines)


def test_the_head_can_be_named(tmp_path):
    folder = write_suite(tmp_path / "suite", STEPS)
    found = audit_suite(list_suite(folder), head="embed.weight")
    assert found.tensors == ("embed.weight",)
    assert "the key that was given" in found.render()
