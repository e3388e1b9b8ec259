"""A hub repository through the command line, on a loopback server: matrices by range, models by the client."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from analyzed import same_numbers

from trainhooks.analyze import analyze_suite
from trainhooks.store import open_store

pytest.importorskip("transformers")
pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).parents[2]

from hub_server import Handler, Hub, commit, describe, serving  # noqa: E402
from test_text import CONTEXT, COUNTS, WORDS, neox, save  # noqa: E402

REPO, STEPS = "org/walk", (0, 1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for step in STEPS:
        save(folder / f"step{step}", neox(seed=step))
    (folder / "text.txt").write_text(" ".join(WORDS[i % 36] for i in range(400)))
    np.save(folder / "counts.npy", COUNTS)
    return folder


@pytest.fixture
def address(folder, monkeypatch):
    hub = Hub()
    for step in STEPS:
        files = {path.name: path.read_bytes() for path in (folder / f"step{step}").iterdir()}
        hub.add(REPO, f"step{step}", files)
    answer, resolve = Handler.answer, Handler.resolve

    def resolve_as_the_client_wants(self, repo, revision, name):
        # downloads of whole files, unlike ranges, need to know their commit and their hash
        self.about = {}
        data = (hub.files(repo, revision) or {}).get(name)
        if data is None:
            return answer(self, 404, b"", {"X-Error-Code": "EntryNotFound"})
        names = hub.revisions[repo]
        sha = next(commit(repo, n) for n in names if revision in (n, commit(repo, n)))
        self.about = {"X-Repo-Commit": sha, "ETag": f'"{describe(name, data)["oid"]}"'}
        return resolve(self, repo, revision, name)

    def answer_with(self, status, body, headers=None, **rest):
        return answer(self, status, body, {**(headers or {}), **getattr(self, "about", {})}, **rest)

    monkeypatch.setattr(Handler, "resolve", resolve_as_the_client_wants)
    monkeypatch.setattr(Handler, "answer", answer_with)
    with serving(hub) as address:
        yield address


def test_the_same_as_from_a_folder(folder, address, tmp_path):
    settings = {"vocab_size": 40, "positions": 320, "context_length": CONTEXT, "text": folder / "text.txt"}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    places = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment = {**os.environ, **places, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "trainhooks", "analyze", REPO, "--counts", folder / "counts.npy"]
    done = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "hub.zarr"), "--workers=1", "--keep-going", *arguments],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 checkpoints to fetch" in " ".join(done.stderr.split())
    assert "3 checkpoints measured" in done.stdout
    analyze_suite(
        folder,
        counts=COUNTS,
        out=tmp_path / "local.zarr",
        workers=1,
        tell=lambda message: None,
        keep_going=True,
        **settings,
    )
    same_numbers(open_store(tmp_path / "local.zarr"), open_store(tmp_path / "hub.zarr"), exact=False)
