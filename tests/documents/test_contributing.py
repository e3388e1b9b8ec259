"""The worked examples of docs/contributing run as printed: written into a copy of the package, with their tests.

A block whose first line is a comment with a path is that file. A block whose first line is a bare path changes that
file: lines that begin with a blank or `-` stand there now, lines that begin with a blank or `+` afterwards. The last
one may be the beginning of a line.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import printed
import pytest

PAGES = sorted((printed.ROOT / "docs" / "contributing").glob("*.md"))
NEW = re.compile(r"# ((?:trainhooks|tests)/[\w/]+\.py)\n")
CHANGED = re.compile(r"((?:trainhooks|docs|tests)/[\w/]+\.(?:py|md))\n(?=[ +-])")


def blocks():
    here = {str(page.relative_to(printed.ROOT)) for page in PAGES}
    return [block.text for block in printed.blocks() if block.page in here]


def changed(text: str, change: str) -> str:
    lines = change.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    if not lines[-1].startswith(" ") and text.count(old) != 1:  # the last line may go on
        old, new = old.removesuffix("\n"), new.removesuffix("\n")
    assert text.count(old) == 1, f"stands {text.count(old)} times, not once:\n{old}"
    return text.replace(old, new)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what the examples touch, with all of them in it."""
    top = tmp_path_factory.mktemp("tree")
    for name in ("trainhooks", "docs", "tests/support"):
        shutil.copytree(printed.ROOT / name, top / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests/conftest.py", "tests/documents/test_numbers_page.py", "pyproject.toml"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(printed.ROOT / name, top / name)
    for block in blocks():
        if match := NEW.match(block):
            (top / match[1]).parent.mkdir(parents=True, exist_ok=True)
            (top / match[1]).write_text(block, encoding="utf-8")
        elif match := CHANGED.match(block):
            path = top / match[1]
            path.write_text(changed(path.read_text(encoding="utf-8"), block[match.end() :]), encoding="utf-8")
    return top


def test_each_page_has_a_file_and_its_test():
    assert len(PAGES) == 5
    files = [match[1] for block in blocks() if (match := NEW.match(block))]
    assert sum(name.startswith("tests/") for name in files) == len(PAGES)
    assert len(files) == 2 * len(PAGES)


def test_the_examples_pass_their_tests(tree):
    environment = {**os.environ, "PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": ""}
    own = [match[1] for block in blocks() if (match := NEW.match(block)) and match[1].startswith("tests/")]
    where = "import trainhooks, pathlib; print(pathlib.Path(trainhooks.__file__).parents[1])"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=tree, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).samefile(tree), "the copy is what is tested"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *own]
    command.append("tests/documents/test_numbers_page.py")
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:]


def test_the_examples_are_styled_as_the_package_is(tree):
    pytest.importorskip("ruff")
    own = [match[1] for block in blocks() if (match := NEW.match(block))]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *own], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
