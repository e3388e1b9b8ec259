"""A package's public names, each imported when it is first asked for (PEP 562): commands and workers start fast."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str], *, renamed: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of `package`; `homes` maps modules to the names taken from them, spaces between.

    Type checkers do not see such names: import them under `TYPE_CHECKING` too. A name is looked up once, then it is
    an attribute like others. `renamed` maps old names to those of today: they work, each time with a
    DeprecationWarning. Asking for any other name raises AttributeError.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def __getattr__(name: str) -> Any:
        if now := (renamed or {}).get(name):
            warnings.warn(f"{package}.{name} is called {now} now.", DeprecationWarning, stacklevel=2)
            return getattr(sys.modules[package], now)
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(home_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted(home_of)

    return __getattr__, __dir__
