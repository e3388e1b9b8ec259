"""Import paths of before: each still works, says where the thing is now, and goes with the next release."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Former:
    """Where a module's contents are now: the `homes`, searched in order, and the names that changed (`now`)."""

    homes: tuple[str, ...]
    now: Mapping[str, str] = field(default_factory=dict)


def read_table(text: str, *, package: str) -> dict[str, Former]:
    """Lines `old: home home | name=new name=new`, modules without the package's name, as a table of whole names."""
    table = {}
    for line in text.split("\n"):
        if not line:
            continue
        old, _, rest = line.partition(": ")
        homes, _, names = rest.partition(" | ")
        now = dict(name.split("=", 1) for name in names.split())
        table[f"{package}.{old}"] = Former(tuple(f"{package}.{home}" for home in homes.split()), now)
    return table


class FormerModule(ModuleType):
    """Stands under a former name; its attributes are looked up where they are now. Called, it is the function it hides.

    `import trainhooks.verdict` binds this module in place of the function `trainhooks.verdict`, so it must be callable.
    """

    def __init__(self, name: str, former: Former) -> None:
        super().__init__(name, f"Now {former.homes[0]}.")
        self.__dict__["_former"] = former
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        home, now = self._where(name)
        return getattr(home, now)

    def __setattr__(self, name: str, value: Any) -> None:
        # importing a former module binds it to its former package, which stands for one of today
        if name.startswith("__") or "_former" not in self.__dict__ or isinstance(value, FormerModule):
            super().__setattr__(name, value)
        else:
            home, now = self._where(name)
            setattr(home, now, value)

    def _where(self, name: str) -> tuple[ModuleType, str]:
        """The module that has what was called `name` here, and its name there."""
        former: Former = self.__dict__["_former"]
        now = former.now.get(name, name)
        for home in map(import_module, former.homes):
            if hasattr(home, now):
                return home, now
        raise AttributeError(f"module {self.__name__!r} is now {former.homes[0]!r}, which has no {name!r}")

    def __call__(self, *given: Any, **named: Any) -> Any:
        """The function of this module's own name."""
        return getattr(self, self.__name__.rpartition(".")[2])(*given, **named)


class _FormerLoader(Loader):
    def __init__(self, former: Former) -> None:
        self._former = former

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module that looks its attributes up."""
        return FormerModule(spec.name, self._former)

    def exec_module(self, module: ModuleType) -> None:
        """Says where the module is now; there is nothing to run."""
        now = self._former.homes[0]
        warnings.warn(
            f"{module.__name__} is {now} now; the old path works until the next release.",
            DeprecationWarning,
            stacklevel=2,  # importlib's own frames do not count
        )


class FormerFinder(MetaPathFinder):
    """Finds modules under their former names; before others do, for an emptied folder passes for a package."""

    def __init__(self, table: Mapping[str, Former]) -> None:
        self._table = table

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module that has moved; None for every other name."""
        former = self._table.get(fullname)
        return None if former is None else ModuleSpec(fullname, _FormerLoader(former), is_package=True)


def install(table: Mapping[str, Former]) -> None:
    """Let the former names of a table be imported; once, however often it is called."""
    if not any(isinstance(finder, FormerFinder) and finder._table == table for finder in sys.meta_path):
        sys.meta_path.insert(0, FormerFinder(table))
