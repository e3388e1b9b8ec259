"""A text beside the matrices: what every model makes of it, in the same store."""

import shutil

import numpy as np
import pytest
import torch
from analyzed import OFTEN, write_suite
from test_text import CONTEXT, COUNTS, VOCAB, WORDS, neox, save

from trainhooks.analyze import analyze_suite
from trainhooks.analyze.text import TextProbe
from trainhooks.probe import fit_probe, transfer_r2
from trainhooks.store import open_store

STEPS = (2, 3, 4, 6)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    ids = np.random.default_rng(0).choice(len(WORDS), size=400, p=COUNTS / COUNTS.sum())
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(WORDS[i] for i in ids))
    return path


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A walk of models; the tokenizer lies with the last one."""
    folder = tmp_path_factory.mktemp("models")
    model, generator = neox(), torch.Generator().manual_seed(1)
    for step in STEPS:
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        save(model=model, folder=folder / f"step{step}", tokenizer=step == STEPS[-1])
    return folder


@pytest.fixture(scope="module")
def whole(suite, text, tmp_path_factory):
    said = []
    out = tmp_path_factory.mktemp("whole") / "a.zarr"
    run(suite, out, text, tell=said.append)
    assert len(said) == 1
    assert "4 checkpoints to read" in said[0]
    return open_store(out)


def run(suite, out, text, **settings):
    sizes = {"vocab_size": 40, "positions": 320, "context_length": CONTEXT}
    told = {"tell": lambda message: None, "workers": 1, "audit": False}
    return analyze_suite(suite, out=out, text=text, **{"counts": COUNTS, **sizes, **told, **settings})


def test_the_figures_are_those_of_each_model(suite, whole, text):
    probe = TextProbe(text, counts=COUNTS, vocab_size=40, max_positions=320, context_length=CONTEXT)
    probe = probe.prepared(suite / "step6")
    for record, step in enumerate(STEPS):
        found = probe.measure(suite / f"step{step}")
        for name in ("text.loss", "text.log_probability", "probability.heldout_mse", "probability.slope"):
            np.testing.assert_array_equal(whole[name][record], found[name], err_msg=name)
    assert whole["probability.step"].tolist() == list(STEPS)
    assert np.isfinite(whole["geometry.row_norm"]).all()


def test_the_first_record_is_repeated_and_slopes_are_handed_on(suite, whole):
    for name, source in {"untrained_r2": "heldout_r2", "untrained_variance": "variance"}.items():
        assert (whole[f"probability.{name}"] == whole[f"probability.{source}"][0]).all()
    assert (whole["probability.untrained_step"] == STEPS[0]).all()
    transfer = whole["probability.transfer_r2"]
    assert np.isnan(transfer[0])
    heads = [torch.from_numpy(embedding(suite, step)) for step in STEPS]
    # the model's own logits are the probe's here
    targets = [torch.from_numpy(-row).double() for row in whole["text.log_probability"]]
    mask = torch.arange(VOCAB) < 36
    for record in range(1, len(STEPS)):
        before = fit_probe(heads[record - 1], targets[record - 1], mask=mask, folds=5)
        expected = transfer_r2(before, heads[record], targets[record], mask=mask)
        assert transfer[record] == pytest.approx(float(expected), rel=1e-4)


def embedding(suite, step):
    from safetensors.numpy import load_file

    return load_file(suite / f"step{step}" / "model.safetensors")["embed_out.weight"]


def test_resuming_gives_the_same_and_another_text_is_refused(suite, whole, text, tmp_path):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(suite, tmp_path / "a.zarr", text, progress=stop)
    other = tmp_path / "other.txt"
    other.write_text("w1 w2 w3 " * 200)
    with pytest.raises(ValueError, match="text_hash"):
        run(suite, tmp_path / "a.zarr", other, mode="resume")
    report = run(suite, tmp_path / "a.zarr", text, mode="resume")
    assert report.steps == STEPS[2:]
    again = open_store(tmp_path / "a.zarr")
    for name in (n for n in whole.names if n.startswith(("text.", "probability.", "channel."))):
        np.testing.assert_array_equal(again[name], whole[name], err_msg=name)


def test_a_model_that_cannot_be_loaded_is_passed_over(suite, text, tmp_path):
    moved = shutil.copytree(suite, tmp_path / "suite")
    (moved / "step3" / "config.json").unlink()
    report = run(moved, tmp_path / "a.zarr", text)
    assert report.steps == (2, 4, 6)
    assert "a folder without config.json" in report.failed[3]
    transfer = open_store(tmp_path / "a.zarr")["probability.transfer_r2"]
    assert np.isnan(transfer).tolist() == [True, False, False]


def test_suites_without_models_are_refused_before_anything_is_read(whole, text, tmp_path, monkeypatch):
    matrices = write_suite(tmp_path / "suite", [0, 1])
    for step in (0, 1):
        (matrices / f"step{step}" / "config.json").unlink()
        (tmp_path / "lightning").mkdir(exist_ok=True)
        torch.save({"state_dict": {}}, tmp_path / "lightning" / f"step={step}.ckpt")
    monkeypatch.setattr("trainhooks.analyze.run.open_entry", None)
    for suite, told in ((matrices, r"without config\.json"), (tmp_path / "lightning", "is a file; a text needs")):
        with pytest.raises(ValueError, match=told):
            run(suite, tmp_path / "a.zarr", text, counts=OFTEN, audit=True)
    with pytest.raises(ValueError, match="pass counts"):
        run(matrices, tmp_path / "a.zarr", text, counts=None)
    with pytest.raises(FileNotFoundError, match="no file that is here"):
        run(matrices, tmp_path / "a.zarr", tmp_path / "nothing.txt")
    assert not (tmp_path / "a.zarr").exists()
