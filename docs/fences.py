"""Examples in docstrings become code blocks of the site: `>>>` and what follows up to an empty line."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"(^[ ]*>>> .*?)(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)


class Fences(Extension):
    """Fences the examples of every docstring."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for each object that is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\1\n```", obj.docstring.value)
