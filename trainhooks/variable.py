"""A variable's declaration: what a metric promises before the run, and what the store lays out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Variable:
    """One array that grows by a row a record.

    `dims` are the dimensions behind the leading `step`; their sizes come from the run (`token`, `dim`, `group`,
    `sketch_bucket`) or from `sizes`. `unit` is "1" for a pure number. `description` goes into the store's
    attributes: say the convention there. Names carry a family and a quantity, joined by a dot:
    "probe.heldout_spearman".
    `whole_run` variables are written once, when the run ends, because they need its last record.
    """

    name: str
    dims: tuple[str, ...] = ()
    dtype: str = "float64"
    unit: str = "1"
    description: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    whole_run: bool = False

    def __post_init__(self) -> None:
        if not all(part.isidentifier() for part in self.name.split(".")):
            raise ValueError(
                f"variable name {self.name!r} must be words of letters, digits and _ joined by dots, "
                'as in "probe.heldout_spearman".'
            )
        if "step" in self.dims:
            raise ValueError(f"variable {self.name!r}: `step` leads by itself; list only what comes behind it.")

    @property
    def tag(self) -> str:
        """The name as loggers write it: family/quantity."""
        return self.name.replace(".", "/")
