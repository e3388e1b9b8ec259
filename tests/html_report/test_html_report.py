import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from figure_runs import record
from loops import VOCAB

import trainhooks as th
from trainhooks.cli import app
from trainhooks.core.html import text
from trainhooks.html_report.escape import script_json
from trainhooks.html_report.methods import methods
from trainhooks.html_report.payload import MOST_POINTS, Payload, rounded, spread
from trainhooks.html_report.sections import _seeds_of_one_model, verdicts
from trainhooks.html_report.write import build_page
from trainhooks.plots import Curve, Drawing, Panel
from trainhooks.run_figures import read_run

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=document.title="owned">"\'`\u2028\x1b[2J'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: the page was not opened in a browser")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A run whose every text is hostile."""
    folder = tmp_path_factory.mktemp("report") / "<b>run & co"
    folder.mkdir()
    texts = [f"{HOSTILE}{token}" for token in range(VOCAB)]
    given = {"note": HOSTILE, HOSTILE: {"x": HOSTILE}, "seed": 0}
    return record(folder, steps=20, token_texts=texts, provenance=given).store


@pytest.fixture(scope="module")
def page(store, tmp_path_factory):
    return th.write_report(store, out=tmp_path_factory.mktemp("page") / "a" / "report.html")


class Elements(HTMLParser):
    """Every element with its attributes, and the text by element."""

    def __init__(self, page):
        super().__init__()
        self.found, self.texts, self._open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))


def test_nothing_from_a_file_is_markup(page):
    elements = Elements(page.read_text(encoding="utf-8"))
    tags = [tag for tag, _ in elements.found]
    assert tags.count("script") == 3
    assert not {"img", "iframe", "object", "embed", "base"} & set(tags)
    for tag, attributes in elements.found:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "action"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:")), (tag, value)
    assert any("owned" in data for _, data in elements.texts)  # it is there, as text
    assert "\x1b" not in page.read_text(encoding="utf-8")


def test_the_numbers_in_the_page_are_the_stores(page, store):
    source = page.read_text(encoding="utf-8")
    numbers = json.loads(re.search(r'id="numbers">(.*?)</script>', source, flags=re.S).group(1))
    panel = numbers["drawings"][0]["panels"][0]
    curve = next(one for one in panel["curves"] if one["label"] == "probe")
    stored = th.open_store(store)["probe.heldout_spearman"]
    np.testing.assert_allclose(numbers["arrays"][curve["y"]], stored, rtol=1e-4)
    assert any("owned" in name for names in numbers["names"] for name in names)


def test_the_page_has_what_a_reader_looks_for(page):
    words = " ".join(data for tag, data in Elements(page.read_text(encoding="utf-8")).texts if tag != "script")
    for part in (
        "95% interval",
        "What limits this",
        "Spearman",
        "arXiv 2406.01468",
        "store on disk",
        "random rotations",
    ):
        assert part in words or part in page.read_text(encoding="utf-8"), part
    assert page.stat().st_size < 6e6


def test_the_command_names_the_page_and_several_runs_are_compared(store, tmp_path, capsys):
    other = record(tmp_path, seed=1, steps=12, provenance={"seed": 1}).store
    out = tmp_path / "two.html"
    with pytest.raises(SystemExit) as ended:
        app(["report", str(store), str(other), "--out", str(out), "--no-lead", "--json", "--title", "Two <runs>"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(out), "bytes": out.stat().st_size}
    source = out.read_text(encoding="utf-8")
    assert "<title>Two &lt;runs&gt;</title>" in source
    assert "The runs beside each other" in source
    assert "the lead was not asked for" in source


def test_methods_say_how_large_this_runs_sketches_are(store):
    run = read_run(store, lead=False, steps=())
    assert "of 1,021 numbers a group (relative standard error 2.2%)" in methods([run], version="1")
    short = replace(run, facts={**run.facts, "sketch_size": 101})
    assert "of 101 numbers a group (relative standard error 7.0%)" in methods([short], version="1")
    assert "numbers a group" not in methods([replace(run, facts={**run.facts, "sketch_size": 0})], version="1")


def test_runs_are_judged_together_only_as_seeds_of_one_model(store):
    run = read_run(store)
    other = read_run(store)
    assert [names for names, _ in verdicts([run])] == [run.label]
    assert len(verdicts([run, other])) == 2  # one seed, twice
    assert _seeds_of_one_model([run, replace(run, attributes={**run.attributes, "seed": 1})])
    for name in ("counts_hash", "model_class"):
        assert not _seeds_of_one_model([run, replace(run, attributes={**run.attributes, "seed": 1, name: "another"})])


def test_a_store_that_holds_little_has_a_page_too(tmp_path):
    import torch

    model = torch.nn.Sequential()
    model.add_module("embed", torch.nn.Embedding(20, 4))
    model.add_module("lm_head", torch.nn.Linear(4, 20))
    with th.Recorder(model, store=tmp_path / "run.zarr") as recorder:
        recorder.begin_step()
    run = read_run(tmp_path / "run.zarr")
    source = build_page([run], extra=[], plotly="")
    assert "No verdict on" in source
    assert "no token counts" in source


def test_json_in_a_script_ends_neither_script_nor_line():
    told = script_json({"a": HOSTILE, "b": None})
    assert json.loads(told) == {"a": HOSTILE, "b": None}
    assert not set("<>&\u2028\x1b") & set(told)
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))
    assert text("<a \x07'\">") == "&lt;a \\x07&#x27;&quot;&gt;"


def test_long_lines_keep_their_ends_and_equal_arrays_are_held_once():
    x = np.arange(5001)
    kept = spread(x)
    assert len(kept) <= MOST_POINTS
    assert {0, 1, 2, 5000} <= set(kept.tolist())
    assert len(spread(x[::-1])) == 5001  # no line over steps
    payload = Payload()
    curve = Curve("a", x, x * 0.5)
    payload.add(Drawing("n", "t", "c", (Panel("p", "x", "y", (curve, curve)),)))
    assert len(payload.json["arrays"]) == 2
    assert [rounded(value) for value in (1.0, 0.123456789, float("nan"), float("inf"))] == [1, 0.12346, None, None]


PROBES = """
<script>addEventListener("load", async () => {
  const tell = (what) => { document.documentElement.dataset.seen = JSON.stringify(what); };
  const errors = [];
  addEventListener("error", (event) => errors.push(String(event.message)));
  addEventListener("securitypolicyviolation", (event) => errors.push(event.blockedURI + " " + event.violatedDirective));
  for (let tries = 0; tries < 200 && document.documentElement.dataset.ready !== "yes"; tries += 1)
    await new Promise((go) => setTimeout(go, 50));
  dispatchEvent(new Event("beforeprint"));
  const range = document.querySelector("input[type=range]");
  range.focus(); range.value = 0; range.dispatchEvent(new Event("input"));
  document.querySelector("button[data-does=scale]").click();
  document.getElementById("theme").click();
  await new Promise((go) => setTimeout(go, 500));
  tell({ errors, title: document.title, plots: document.querySelectorAll(".plot").length,
    drawn: document.querySelectorAll(".plot .main-svg").length, step: document.querySelector("output").textContent,
    width: document.documentElement.scrollWidth, inner: innerWidth,
    requests: performance.getEntriesByType("resource").map((one) => one.name).filter((name) => !/^data:/.test(name)) });
});</script>
"""


def opened(page, folder, *, width):
    """What a headless Chromium sees of the page after slider, scale and theme were used, and its console's errors."""
    probed = folder / f"probed{width}.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</head>", PROBES + "</head>"), encoding="utf-8")
    framed = folder / f"framed{width}.html"  # a window is never narrower than 500
    framed.write_text(
        f'<!doctype html><iframe id="in" src="{probed.name}" style="width:{width}px;height:900px;border:0"></iframe>'
        "<script>setInterval(() => { document.body.dataset.seen = document.getElementById('in').contentDocument"
        ".documentElement.dataset.seen || ''; }, 100)</script>",
        encoding="utf-8",
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--enable-logging=stderr"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=60000", "--window-size=1200,900"]
    command = [CHROMIUM, *flags, "--dump-dom", framed.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    seen = json.loads(unescape(re.search(r'data-seen="([^"]*)"', done.stdout).group(1)))
    return seen, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@needs_chromium
@pytest.mark.parametrize("width", [1100, 390])
def test_a_browser_draws_it_without_an_error_or_a_request(page, tmp_path, width):
    seen, console = opened(page, tmp_path, width=width)
    assert console == []
    assert seen["errors"] == []
    assert seen["requests"] == []
    assert seen["title"] != "owned"
    assert seen["drawn"] >= seen["plots"] > 8
    assert seen["step"] == "step 0"
    assert seen["inner"] == width
    assert seen["width"] <= width  # nothing sticks out to the side


@needs_chromium
def test_the_browser_was_looking(page, tmp_path):
    """The test above can fail: a page that asks the network and throws is caught."""
    broken = Path(tmp_path / "broken.html")
    source = page.read_text(encoding="utf-8")
    broken.write_text(
        source.replace("</main>", '<img src="http://127.0.0.1:9/x.png"><script>nothing()</script></main>')
    )
    _, console = opened(broken, tmp_path, width=1100)
    assert any("nothing is not defined" in line for line in console)
    assert any("127.0.0.1:9" in line for line in console)
