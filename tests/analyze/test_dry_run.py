"""What an analysis takes is estimated from listings, and is what it then asks for."""

import json

import pytest
import torch
from analyzed import OFTEN
from hub_client import online
from hub_server import Hub, serving
from safetensors.torch import save

from trainhooks.analyze import analyze_suite
from trainhooks.analyze.dry_run import _width, dry_run
from trainhooks.checkpoints.suite import list_suite
from trainhooks.cli import app

STEPS = range(10, 130, 10)
VOCAB, DIM = 60, 64


def states():
    generator = torch.Generator().manual_seed(0)
    start, drift = torch.randn(2, VOCAB, DIM, generator=generator)
    for number, step in enumerate(STEPS):
        head = start + 0.1 * number * drift + 0.01 * torch.randn(VOCAB, DIM, generator=generator)
        yield step, {"lm_head.weight": head, "body.weight": torch.ones(200, 200)}


def whole(state):
    return {"model.safetensors": save(state)}


def sharded(state):
    names = {"body.weight": "model-00001-of-00002.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors"}
    index = b'{"weight_map": {%s}}' % b", ".join(b'"%s": "%s"' % (k.encode(), f.encode()) for k, f in names.items())
    return {"model.safetensors.index.json": index, **{file: save({key: state[key]}) for key, file in names.items()}}


def asked(hub):
    """What was asked of the repository: the client has requests of its own, once a process."""
    return [path for path, _ in hub.requests if "org/model" in path]


@pytest.mark.parametrize("stored", [whole, sharded])
def test_as_many_requests_as_were_said(tmp_path, stored):
    hub = Hub()
    for step, state in states():
        hub.add("org/model", f"step{step}", {"config.json": b'{"tie_word_embeddings": false}', **stored(state)})
    with serving(hub) as address, online(address, tmp_path / "home"):
        suite = list_suite("org/model")
        estimate = dry_run(suite, vocab_size=VOCAB)
        assert len(asked(hub)) == estimate.asked
        assert hub.fetched == 0
        hub.requests.clear()
        report = analyze_suite("org/model", counts=OFTEN, out=tmp_path / "a.zarr", workers=1, keep_going=True)
        assert len(report.steps) == len(STEPS)
        files = [path for path in asked(hub) if "/resolve/" in path]
        assert len(asked(hub)) - len(files) == estimate.listings
        saved = len(STEPS) if stored is sharded else 0  # a head that is alone in its file comes with the header
        assert len(files) == estimate.files - saved
        assert hub.fetched <= estimate.small_bytes + len(STEPS) * VOCAB * DIM * 4
    assert estimate.checkpoints == len(STEPS)
    assert "12 checkpoints; nothing was read" in estimate.render()


def test_weights_that_lie_there_in_two_formats_count_once(tmp_path):
    hub = Hub()
    (step, state), *_ = states()
    pickled = {f"pytorch_model-{n:05d}-of-00002.bin": bytes(40_000) for n in (1, 2)}
    hub.add("org/model", f"step{step}", sharded(state))
    hub.add("org/both", f"step{step}", {**sharded(state), "pytorch_model.bin.index.json": b"{}", **pickled})
    with serving(hub) as address, online(address, tmp_path / "home"):
        one, both = (dry_run(list_suite(repo), vocab_size=VOCAB) for repo in ("org/model", "org/both"))
    assert (both.dim, both.files, both.head_bytes) == (one.dim, one.files, one.head_bytes)


def test_widths_of_models_that_are_known():
    for parameters, rows, dim in (
        (162e6, 50304, 768),
        (1.41e9, 50304, 2048),
        (7.3e9, 100352, 4096),
        (12e9, 50688, 5120),
    ):
        assert abs(_width(parameters, rows) / dim - 1) < 0.35


def test_what_lies_here_asks_nobody(tmp_path):
    (tmp_path / "step1").mkdir()
    with pytest.raises(ValueError, match="asks nobody"):
        dry_run(list_suite(tmp_path))


def test_a_preset_takes_its_grid_as_the_analysis_does(tmp_path, capsys):
    hub = Hub()
    (_, state), *_ = states()
    for step in (0, 1, 3, 512, 700, 1000):
        hub.add("org/model", f"step{step}", whole(state))
    told = tmp_path / "told.json"
    command = ["analyze", "org/model", "--counts", "none.npz", "--out", str(tmp_path / "a.zarr"), "--preset", "pythia"]
    with serving(hub) as address, online(address, tmp_path / "home"):
        app([*command, "--dry-run", "--json", str(told)], result_action="return_value")
    assert json.loads(told.read_text())["checkpoints"] == 4
    assert "4 checkpoints" in capsys.readouterr().out
