"""What the site takes from outside docs/: pages at the top of the repository, and the API page from `th.__all__`."""

from __future__ import annotations

import ast
import re
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {  # where a page of the repository stands in the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "store/SPEC.md": "store_format.md",
}
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the pages."""
    for source, place in PAGES.items():
        text = LINK.sub(partial(moved, source=source), (ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, place, content=text))
    files.append(File.generated(config, "api.md", content=api()))
    return files


def moved(link: re.Match[str], *, source: str) -> str:
    """A link of a page of the repository, as it stands in the site; to what the site does not hold, its words alone."""
    target = (ROOT / source).parent.joinpath(link[1]).resolve().relative_to(ROOT).as_posix()
    if target in PAGES:
        return f"]({PAGES[target]}{link[2] or ''})"
    if target.startswith("docs/"):
        return f"]({target.removeprefix('docs/')}{link[2] or ''})"
    return "](index.md)"


def api() -> str:
    """Every public name, from the package's own list."""
    tree = ast.parse((ROOT / "trainhooks" / "__init__.py").read_text(encoding="utf-8"))
    (listed,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and any(getattr(name, "id", "") == "__all__" for name in node.targets)
    )
    names = sorted(name for name in ast.literal_eval(listed) if not name.startswith("__"))
    return "# API\n\n" + "\n".join(f"::: trainhooks.{name}\n" for name in names)
