"""Resuming, failures, and suites that are not as they should be."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from analyzed import DIM, OFTEN, VOCAB, same_numbers, write_checkpoint, write_suite
from safetensors.torch import load_file, save_file

from trainhooks import ProbabilityProbe
from trainhooks.analyze import analyze_suite
from trainhooks.analyze.job import OpenedCheckpoint
from trainhooks.checkpoints.suite import Suite
from trainhooks.cli.analyze import analyze as command
from trainhooks.core.token_counts import TokenCounts
from trainhooks.store import open_store

STEPS = (0, 1, 2, 4, 8, 16)


@pytest.fixture
def suite(tmp_path):
    return write_suite(tmp_path / "suite", STEPS)


def run(suite, out, **settings):
    return analyze_suite(suite, **{"counts": OFTEN, "out": out, "workers": 1, "audit": False, **settings})


def head_of(suite, step):
    return load_file(suite / f"step{step}" / "model.safetensors")["lm_head.weight"].float().numpy()


def cut(suite, step):
    file = suite / f"step{step}" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-200])


def test_resume_reads_only_what_is_left_and_gives_the_same(suite, tmp_path, monkeypatch):
    run(suite, tmp_path / "whole.zarr", params="all")
    with pytest.raises(KeyboardInterrupt):
        run(suite, tmp_path / "a.zarr", params="all", progress=stop_at(3))
    read = []
    opened = Suite.open
    monkeypatch.setattr(Suite, "open", lambda self, entry: read.append(entry.step) or opened(self, entry))
    report = run(suite, tmp_path / "a.zarr", params="all", mode="resume")
    assert report.resumed == STEPS[:3]
    assert report.steps == STEPS[3:]
    assert 1 not in read  # 0 is the initial state, 2 the previous one
    same_numbers(open_store(tmp_path / "whole.zarr"), open_store(tmp_path / "a.zarr"), exact=True)
    again = run(suite, tmp_path / "a.zarr", params="all", mode="resume")
    assert again.steps == ()
    assert again.resumed == STEPS


def stop_at(count):
    def progress(done, total):
        assert total == len(STEPS)
        if done == count:
            raise KeyboardInterrupt

    return progress


def test_resume_refuses_another_final_state(suite, tmp_path):
    run(suite, tmp_path / "a.zarr")
    write_suite(suite, [32])
    with pytest.raises(ValueError, match="final_step: the store has 16, this analysis 32"):
        run(suite, tmp_path / "a.zarr", mode="resume")


def test_a_failed_checkpoint_is_reported_and_passed_over(suite, tmp_path):
    write_suite(tmp_path / "sound", STEPS)
    shutil.rmtree(tmp_path / "sound" / "step4")
    run(tmp_path / "sound", tmp_path / "sound.zarr")
    cut(suite, 4)
    report = run(suite, tmp_path / "a.zarr")
    assert list(report.failed) == [4]
    assert report.steps == (0, 1, 2, 8, 16)
    assert "failed: step 4" in report.render()
    same_numbers(open_store(tmp_path / "sound.zarr"), open_store(tmp_path / "a.zarr"), exact=True)


def test_strict_stops_and_keeps_what_was_done(suite, tmp_path):
    cut(suite, 4)
    with pytest.raises(ValueError, match="step 4"):
        run(suite, tmp_path / "a.zarr", strict=True)
    assert open_store(tmp_path / "a.zarr").steps.tolist() == [0, 1, 2]


def test_strict_stops_at_what_the_audit_cannot_read(suite, tmp_path):
    cut(suite, 4)
    with pytest.raises(ValueError, match="step 4"):
        run(suite, tmp_path / "a.zarr", strict=True, audit=True)
    assert not (tmp_path / "a.zarr").exists()


def test_a_final_state_that_is_not_finite_is_told(suite, tmp_path):
    tensors = load_file(suite / "step16" / "model.safetensors")
    tensors["lm_head.weight"][3] = float("nan")
    write_checkpoint(suite, 16, tensors)
    assert any("every figure that refers to it is NaN" in note for note in run(suite, tmp_path / "a.zarr").notes)


def test_resume_refuses_a_store_of_another_kind(suite, tmp_path):
    """The same steps, but other weights, rows or contents; and a live run's."""
    run(suite, tmp_path / "a.zarr", steps="0,1")
    other = write_suite(tmp_path / "other", [0, 1], seed=1)
    for name, source, settings in (
        ("final_embedding_hash", other, {}),
        ("min_count", suite, {"min_count": 20}),
        ("measured_counts_hash", suite, {"counts": OFTEN + 1}),
        ("params", suite, {"params": "all"}),
        ("matrices", suite, {"snapshots": True}),
    ):
        with pytest.raises(ValueError, match=name):
            run(source, tmp_path / "a.zarr", mode="resume", steps="0,1", **settings)
    assert run(suite, tmp_path / "a.zarr", mode="resume", steps="0,1").steps == ()


def test_the_final_state_is_the_last_that_can_be_read(suite, tmp_path):
    cut(suite, 16)
    report = run(suite, tmp_path / "a.zarr")
    assert report.final_step == 8
    assert list(report.failed) == [16]
    assert open_store(tmp_path / "a.zarr")["convergence.head_distance_to_final"][-1] == 0


def test_the_audit_leaves_broken_steps_out(suite, tmp_path):
    shutil.copy(suite / "step0" / "model.safetensors", suite / "step1" / "model.safetensors")
    report = run(suite, tmp_path / "a.zarr", audit=True)
    assert list(report.left_out) == [1]
    assert report.steps == (0, 2, 4, 8, 16)
    assert json.loads(json.dumps(report.to_dict()))["left_out"]["1"] == report.left_out[1]


def test_one_checkpoint(tmp_path):
    suite = write_suite(tmp_path / "suite", [5])
    run(suite, tmp_path / "a.zarr", params="all", audit=True)
    store = open_store(tmp_path / "a.zarr")
    assert store["convergence.head_distance_to_final"].tolist() == [0]
    assert np.isnan(store["geometry.relative_step"]).all()


def test_none_that_can_be_read(tmp_path):
    suite = write_suite(tmp_path / "suite", [5])
    cut(suite, 5)
    with pytest.raises(ValueError, match="no checkpoint that can be analyzed"):
        run(suite, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


def test_two_vocabularies(suite, tmp_path):
    file = suite / "step2" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = torch.randn(VOCAB + 4, DIM)
    save_file(tensors, file)
    report = run(suite, tmp_path / "a.zarr")
    assert list(report.failed) == [2]
    assert "64 x 8, the suite's final one 60 x 8" in report.failed[2]


def test_nan_is_left_out_by_the_audit_and_recorded_without_it(suite, tmp_path):
    tensors = load_file(suite / "step2" / "model.safetensors")
    tensors["lm_head.weight"][3] = float("nan")
    write_checkpoint(suite, 2, tensors)
    assert list(run(suite, tmp_path / "a.zarr", audit=True).left_out) == [2]
    assert run(suite, tmp_path / "b.zarr").steps == STEPS
    store = open_store(tmp_path / "b.zarr")
    assert store["nonfinite_rows"].tolist() == [0, 0, 1, 0, 0, 0]
    assert np.isnan(store["convergence.head_distance_to_final"]).tolist() == [False, False, True, False, False, False]


def test_keeping_the_matrices_reads_none_of_them_again(suite, tmp_path, monkeypatch):
    read, reads = OpenedCheckpoint.read_head, []
    monkeypatch.setattr(OpenedCheckpoint, "read_head", lambda opened: reads.append(1) or read(opened))
    run(suite, tmp_path / "numbers.zarr")
    numbers = len(reads)
    run(suite, tmp_path / "matrices.zarr", snapshots=True)
    assert len(reads) == 2 * numbers
    for step in STEPS:
        kept = open_store(tmp_path / "matrices.zarr").output_embedding(step)
        assert np.array_equal(kept, head_of(suite, step)), step


def test_padding_is_a_control(suite, tmp_path):
    run(suite, tmp_path / "a.zarr", counts=OFTEN[:50], vocab_size=50)
    assert np.isfinite(open_store(tmp_path / "a.zarr")["probe.never_label_prediction"]).all()


def test_half_precision(suite, tmp_path):
    for step in STEPS:
        tensors = load_file(suite / f"step{step}" / "model.safetensors")
        write_checkpoint(suite, step, {name: tensor.half() for name, tensor in tensors.items()})
    run(suite, tmp_path / "a.zarr", params="all")
    store = open_store(tmp_path / "a.zarr")
    head = load_file(suite / "step16" / "model.safetensors")["lm_head.weight"].double().numpy()
    centred = head - head.mean(axis=0)
    assert store["geometry.row_norm"][-1] == pytest.approx(np.linalg.norm(centred, axis=1).mean(), rel=2e-5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"metrics": [ProbabilityProbe()]}, "needs a model that runs"),
        ({"metrics": [], "workers": 2}, "pass a function"),
        ({"preset": "gpt"}, "not known"),
        ({"mode": "append"}, "not known"),
        ({"params": "*.nothing"}, "no parameter matches"),
        ({"scheduler": "tcp://x", "executor": ThreadPoolExecutor(1)}, "one of them"),
    ],
)
def test_what_makes_no_sense(suite, tmp_path, settings, told):
    with pytest.raises(ValueError, match=told):
        run(suite, tmp_path / "a.zarr", **settings)


def test_the_command(suite, tmp_path, capsys):
    TokenCounts(OFTEN).save(tmp_path / "counts.npz")
    cut(suite, 4)
    arguments = {"counts": tmp_path / "counts.npz", "out": tmp_path / "a.zarr", "workers": 1, "no_audit": True}
    with pytest.raises(SystemExit) as left:
        command(str(suite), **arguments, json=tmp_path / "a.json")
    assert left.value.code == 2
    assert "5 checkpoints measured" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["steps"] == [0, 1, 2, 8, 16]


def test_the_pythia_preset(tmp_path):
    suite = write_suite(tmp_path / "suite", [0, 1, 1000], vocab=50304, dim=2)
    counts = np.arange(50277) + 1
    report = run(suite, tmp_path / "a.zarr", counts=counts, preset="pythia")
    assert any("2049" in note and "padding" in note for note in report.notes)
    assert any("151 steps" in note for note in report.notes)
    assert "probe.never_label_cosine" in open_store(tmp_path / "a.zarr").names
