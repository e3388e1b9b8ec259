"""Views that a higher layer gives to a class of a lower one, such as `store.plot`: imported when they are asked for.

The package's face says where each view is (`register`), so that no lower layer knows a higher one.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES: dict[str, tuple[str, str]] = {}


def register(name: str, *, home: str) -> None:
    """Say that view `name` is the class `home` ("module:class"), made of the object that it is asked of."""
    module, _, attribute = home.partition(":")
    _HOMES[name] = module, attribute


def accessor(name: str, of: object) -> Any:
    """View `name` of an object. Raises AttributeError where there is none of that name."""
    if name not in _HOMES:
        raise AttributeError(f"{type(of).__name__} has no view {name!r}.")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)(of)
