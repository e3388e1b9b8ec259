"""The documentation builds as a site, and no link in it leads nowhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_page_is_in_it(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert all((site / page / "index.html").is_file() for page in pages)
    assert (site / "store_format" / "index.html").is_file()


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= listed


def test_the_api_page_has_what_is_public(site):
    import trainhooks as th

    text = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="trainhooks.{name}"' in text for name in th.__all__ if not name.startswith("__"))


def test_no_page_asks_another_host_for_anything(site):
    asked = re.compile(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:)?//', re.I)
    assert not [page.name for page in site.rglob("*.html") if asked.search(page.read_text(encoding="utf-8"))]


def test_the_readme_is_short_enough_to_read():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
