"""A real TensorBoard server in a real browser: the first screen is the overview, with pictures that are drawn."""

import html
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from loops import VOCAB, TinyLM, batches, train
from PIL import Image

import trainhooks as th

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 120.0


@pytest.fixture(scope="module")
def browser():
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser here ({', '.join(BROWSERS)}): TensorBoard's screen is not looked at")
    return found


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a server on the events of a run; it ends with the tests."""
    pytest.importorskip("matplotlib", reason="without matplotlib there are no pictures to look at")
    folder = tmp_path_factory.mktemp("browser")
    model, sink = TinyLM(), th.TensorBoardSink(folder / "logs" / "a run")
    with th.Recorder(model, counts=np.arange(1, VOCAB + 1), store=folder / "run.zarr", sinks=[sink]) as recorder:
        train(model, batches(5), recorder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "tensorboard.main", "--logdir", str(folder / "logs")]
    with (folder / "said").open("w") as said:
        server = subprocess.Popen([*command, "--port", str(port), "--load_fast=false"], stdout=said, stderr=said)
    try:
        wait_for(f"http://127.0.0.1:{port}/data/runs", "a run", server, folder / "said")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def wait_for(url, word, server, said):
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                if word in answer.read().decode():
                    return
        except OSError:
            pass
        time.sleep(0.3)
    pytest.fail(f"TensorBoard does not serve the run: {said.read_text()[-2000:]}")


def look(browser, url, folder, *, sure):
    """The page after its scripts have run, once `sure` of what it shows; a slow machine needs another look."""
    for budget in (15000, 40000, 80000):
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1500,1000"]
        command += [f"--user-data-dir={folder / str(budget)}", f"--virtual-time-budget={budget}", "--dump-dom", url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        page = html.unescape(re.sub(r"<style.*?</style>", "", done.stdout, flags=re.DOTALL))
        if sure(page):
            break
    return page


def test_the_first_screen_is_the_overview(browser, address, tmp_path):
    cards = re.compile(r"overview/[0-9]|overview/probe|trainhooks/\w+")
    page = look(browser, f"{address}/#timeseries", tmp_path, sure=lambda page: "has the rest converged" in page)
    assert "a run" in page
    assert page.index("frequency, beside its null and its baseline") < page.index("has the rest converged")
    assert cards.search(page)[0].startswith("overview/0"), "nothing stands before it"
    curves = {"held out": (0, 114, 178), "whole model": (213, 94, 0)}  # the pictures' own colours
    for budget in (15000, 60000):
        seen = {
            name: pixels(browser, f"{address}/#timeseries", tmp_path, budget, colour=c) for name, c in curves.items()
        }
        if all(seen.values()):
            break
    assert min(seen.values()) > 50, f"pictures are drawn, not only named: {seen}"


def pixels(browser, url, folder, budget, *, colour):
    """How many pixels of a screenshot are nearly of a colour."""
    path = folder / "screen.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1500,1000"]
    command += [f"--user-data-dir={folder / 'screen'}", f"--virtual-time-budget={budget}", f"--screenshot={path}", url]
    subprocess.run(command, capture_output=True, check=False, timeout=300)
    near = np.abs(np.asarray(Image.open(path).convert("RGB"), dtype=int) - colour).sum(axis=2) < 60
    return int(near.sum())


def test_the_server_knows_the_charts(address):
    with urllib.request.urlopen(f"{address}/data/plugin/custom_scalars/layout", timeout=60) as answer:
        said = answer.read().decode()
    assert "Is frequency there yet, and has the rest converged?" in said
    assert "trainhooks/probe/permuted_heldout_spearman" in said


def test_ci_looks_for_a_browser():
    assert "chromium" in (Path(__file__).parents[2] / ".ci" / "run").read_text()
