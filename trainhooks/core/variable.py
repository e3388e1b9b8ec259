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
    `labels` names the entries along the one dimension of a vector, for loggers: "0", "1" ... where it is empty.
    `whole_run` variables are written once, when the run ends, because they need its last record.

    >>> Variable("head.norm", dims=("token",), dtype="float32", unit="norm").dims
    ('token',)
    """

    name: str
    dims: tuple[str, ...] = ()
    dtype: str = "float64"
    unit: str = "1"
    description: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    whole_run: bool = False

    def __post_init__(self) -> None:
        if not all(part.isidentifier() for part in self.name.split(".")):
            raise ValueError(
                f"variable name {self.name!r} must be words of letters, digits and _ joined by dots, "
                'as in "probe.heldout_spearman".'
            )
        if "step" in self.dims:
            raise ValueError(f"variable {self.name!r}: `step` leads by itself; list only what comes behind it.")
        if self.labels and (len(self.dims) != 1 or self.sizes.get(self.dims[0], len(self.labels)) != len(self.labels)):
            raise ValueError(
                f"variable {self.name!r}: {len(self.labels)} labels for dims {self.dims} of sizes {dict(self.sizes)}; "
                "labels go with one dimension, one for each entry."
            )

    @property
    def tag(self) -> str:
        """The name as loggers write it: family/quantity."""
        return self.name.replace(".", "/")
