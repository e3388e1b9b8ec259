"""Every command and block that README and docs print runs as it is printed, to its last line.

The commands run one after the other in one folder that holds what they name (`world.py`); a hub on loopback stands for
the real one. What is too long for a test gets the sizes of `SMALLER`, and nothing else is changed.
"""

import os
import re
import subprocess
import sys
import types

import pytest

pytest.importorskip("transformers")
pytest.importorskip("huggingface_hub")

import printed
import world
from hub_server import serving

from trainhooks.cli import app

LANGUAGES = {"bash", "python", "text"}
SMALLER = {
    "trainhooks demo": {"--corpus": "texts", "--steps": "64"},
    "trainhooks steer": {"--positions": "512", "--pick": "4"},
    "trainhooks prune": {"--positions": "256", "--random": "2"},
}
ELSEWHERE = {
    "make demo": "the demo has tests of its own (tests/demo)",
    "make test": "runs this test",
    "make docs": "tests/documents/test_site.py builds it",
    "pip install": "the installed package is what runs here; tests/test_package.py builds and installs it",
    "python recipes/reproduce": "tests/scenarios/test_reproduce.py runs it, tests/documents/test_evidence.py its page",
    "python recipes/": "tests/scenarios/test_recipes.py runs every recipe",
    "torchrun": "tests/scenarios/test_recipes.py runs the recipe",
}
ELSEWHERE_BLOCKS = {"store/runs/first.zarr": "tests/documents/test_readme.py runs it, in a process of its own"}
ELSEWHERE_PAGES = {"docs/loops.md": "tests/documents/test_loops_page.py runs it with a model and a loader of its own"}
FAULTY = (
    2  # the exit code of an audit that found something: pythia's step1 repeats step0, and most steps are not served
)


def commands():
    return [(block, line) for block in printed.blocks("bash") for line in block.commands()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    world.build(folder)
    return folder


@pytest.fixture(scope="module")
def hub():
    with serving(world.pythia_hub()) as address:
        yield address


def test_pages_are_found():
    names = {block.page for block in printed.blocks()}
    assert {"README.md", "docs/interventions.md"} <= names
    assert len(commands()) >= 20


@pytest.mark.parametrize("block", printed.blocks(), ids=lambda block: block.name)
def test_a_block_says_what_it_is(block):
    assert block.language in LANGUAGES, f"{block.name}: mark the fence as one of {sorted(LANGUAGES)}"


@pytest.mark.parametrize("block", printed.blocks("python"), ids=lambda block: block.name)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_python_block_runs(block, folder, monkeypatch):
    if block.page in ELSEWHERE_PAGES:
        pytest.skip(ELSEWHERE_PAGES[block.page])
    for text, why in ELSEWHERE_BLOCKS.items():
        if text in block.text:
            pytest.skip(why)
    script = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", script)
    monkeypatch.chdir(folder)
    names = set(app)
    try:
        exec(compile(block.text, block.name, "exec", dont_inherit=True), script.__dict__)
    finally:
        for added in set(app) - names:  # a page shows how a command is added, and this process has other tests
            del app[added]


@pytest.fixture(scope="module")
def after(folder, hub):
    """Runs every command up to the one asked for, once each, in the order of the pages."""
    results = {}

    def run_until(index):
        for number, (_, line) in enumerate(commands()[: index + 1]):
            if number not in results:
                results[number] = run(line, folder=folder, hub=hub)
        return results[index]

    return run_until


def run(line, *, folder, hub):
    """Exit code and what was printed on standard error; None for what runs elsewhere."""
    if any(line.startswith(other) for other in ELSEWHERE):
        return None
    command = smaller(printed.words(line))
    if "EleutherAI/" in line:  # the client reads its endpoint when it is imported
        return in_a_process(command, folder=folder, hub=hub)
    before = os.getcwd()
    os.chdir(folder)
    try:
        app(command[1:], exit_on_error=False)
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        os.chdir(before)
    return 0


def smaller(words):
    """A command with the sizes of SMALLER in place of its own."""
    for option, value in SMALLER.get(" ".join(words[:2]), {}).items():
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    return words


def in_a_process(command, *, folder, hub):
    places = {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "cache")}
    environment = {**os.environ, **places, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(printed.ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    print(done.stdout, done.stderr, file=sys.stderr)
    return done.returncode


@pytest.mark.parametrize("index", range(len(commands())), ids=lambda index: commands()[index][1][:60])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_command_runs(index, after, capsys):
    _, line = commands()[index]
    code = after(index)
    said = capsys.readouterr()
    if code is None:
        pytest.skip(next(why for start, why in ELSEWHERE.items() if line.startswith(start)))
    assert code == (FAULTY if line.startswith("trainhooks audit") else 0), said.out + said.err


def test_what_holds_a_line_of_the_compatibility_page_exists():
    text = (printed.ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    for path in set(re.findall(r"`(tests/[\w/.]+)`", text)):
        assert (printed.ROOT / path).exists(), path
    named = {
        name for cell in re.findall(r"findings? ((?:`\w+`(?:, )?)+)", text) for name in re.findall(r"`(\w+)`", cell)
    }
    kept = {path.stem for path in (printed.ROOT / "findings").glob("*.sh")}
    assert named <= kept, named - kept
    assert kept - named == set(), "each finding says what this package makes of it"
