"""What a store will hold, declared before its first record."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from trainhooks.core.variable import Variable
from trainhooks.store.format.precision import kept_mantissa_bits, precision_name

STEP = "step"
SNAPSHOT_STEP = "snapshot_step"
SNAPSHOT = "output_embedding"
LABEL_COUNTS = "label_counts"
SKETCH = "sketch"
SKETCH_BUCKET = "sketch_bucket"
GROUP = "group"
TOKEN_COUNT = "token_count"
TOKEN_TEXT = "token_text"
INNER_ROWS = 64
MAX_CHUNK_BYTES = 2**31 - 17  # raw; blosc takes no more
RESERVED = frozenset(
    {
        STEP,
        SNAPSHOT_STEP,
        SNAPSHOT,
        LABEL_COUNTS,
        SKETCH,
        SKETCH_BUCKET,
        GROUP,
        TOKEN_COUNT,
        TOKEN_TEXT,
        "token",
        "dim",
        "zarr.json",
    }
)
DTYPES = ("float64", "float32", "int64", "int32", "int16", "int8")
MISSING_COUNT = -1


@dataclass(frozen=True, eq=False)
class Layout:
    """The shape of a store: everything that is fixed before the run.

    `vocab` and `dim` are the output embedding's rows and columns, `groups` the parameter groups' names,
    `sketch_size` the numbers a sketch keeps a group (0: no sketch). `variables` are the metrics. `precision` is
    "float32", "bfloat16" or the mantissa bits to keep, 1 to 23. `attributes` is provenance, plain JSON.
    `token_count` [vocab] are corpus counts, `token_text` [vocab] the tokens' text; each may be None (not known).
    `block` is the number of snapshots in one block; `snapshots=False` keeps numbers only.

    Raises ValueError, with every problem found, where the parts do not fit together.
    """

    vocab: int
    dim: int
    groups: tuple[str, ...]
    sketch_size: int
    variables: tuple[Variable, ...] = ()
    precision: str | int = "float32"
    attributes: Mapping[str, object] = field(default_factory=dict)
    token_count: np.ndarray | None = field(default=None, repr=False)
    token_text: Sequence[str] | None = field(default=None, repr=False)
    block: int = 32
    snapshots: bool = True

    def __post_init__(self) -> None:
        problems = [*_size_problems(self), *_variable_problems(self), *_content_problems(self)]
        if not problems:
            problems += _chunk_problems(self)
        if problems:
            raise ValueError("the store's layout does not fit together:\n- " + "\n- ".join(problems))

    @property
    def kept_bits(self) -> int:
        """Explicit mantissa bits that matrices keep, 1 to 23."""
        return kept_mantissa_bits(self.precision)

    @cached_property
    def dim_sizes(self) -> dict[str, int]:
        """The size of every dimension that a variable may have behind `step`."""
        sizes = {"token": self.vocab, "dim": self.dim, GROUP: len(self.groups), SKETCH_BUCKET: self.sketch_size}
        for variable in self.variables:
            sizes.update(variable.sizes)
        return sizes

    @property
    def provenance(self) -> dict[str, Any]:
        """The attributes as they read back from JSON."""
        document: dict[str, Any] = json.loads(json.dumps(dict(self.attributes)))
        return document

    @cached_property
    def row_shapes(self) -> dict[str, tuple[int, ...]]:
        """By name, the shape of one record of each variable."""
        return {variable.name: self.row_shape(variable) for variable in self.variables}

    def row_shape(self, variable: Variable) -> tuple[int, ...]:
        """The shape of one record of `variable`."""
        sizes = self.dim_sizes
        return tuple(sizes[dim] for dim in variable.dims)

    def to_json(self) -> dict[str, Any]:
        """What must stay the same when a run goes on, as it stands in the store's attributes."""
        return {
            "vocab": self.vocab,
            "dim": self.dim,
            "groups": list(self.groups),
            "sketch_size": self.sketch_size,
            "precision": precision_name(self.kept_bits),
            "block": self.block,
            "snapshots": self.snapshots,
            "variables": [_variable_to_json(variable) for variable in self.variables],
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Layout:
        """The layout that `to_json` wrote. Raises KeyError, TypeError or ValueError where it is damaged."""
        variables = tuple(Variable(**{**about, "dims": tuple(about["dims"])}) for about in document["variables"])
        rest = {key: value for key, value in document.items() if key not in {"variables", "groups"}}
        return Layout(groups=tuple(document["groups"]), variables=variables, **rest)


def differences(kept: Layout, wanted: Layout) -> list[str]:
    """Every way in which `wanted` differs from the layout `kept` in a store; wording and order do not count."""
    old, new = kept.to_json(), wanted.to_json()
    found = [
        f"{key}: the store has {old[key]!r}, the run {new[key]!r}"
        for key in old
        if key != "variables" and old[key] != new[key]
    ]
    before, after = ({about["name"]: about for about in document["variables"]} for document in (old, new))
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in after:
            found.append(f"variable {name}: in the store, not in the run")
        elif name not in before:
            found.append(f"variable {name}: in the run, not in the store")
        else:
            found += [
                f"variable {name}, {key}: the store has {before[name][key]!r}, the run {after[name][key]!r}"
                for key in before[name]
                if key != "description" and before[name][key] != after[name][key]
            ]
    return found


def _variable_to_json(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "dims": list(variable.dims),
        "dtype": variable.dtype,
        "unit": variable.unit,
        "description": variable.description,
        "sizes": dict(variable.sizes),
        "whole_run": variable.whole_run,
    }


def _size_problems(layout: Layout) -> Iterator[str]:
    for name, least in (("vocab", 1), ("dim", 1), ("sketch_size", 0), ("block", 1)):
        size = getattr(layout, name)
        if isinstance(size, bool) or not isinstance(size, int) or size < least:
            yield f"{name} is {size!r}; it must be a whole number of {least} or more"
    twice = sorted(group for group, times in Counter(layout.groups).items() if times > 1)
    if twice:
        yield f"groups named more than once: {', '.join(twice)}"
    if not layout.groups and layout.sketch_size:
        yield f"sketch_size is {layout.sketch_size}, but there are no groups to sketch"
    try:
        kept_mantissa_bits(layout.precision)
    except ValueError as error:
        yield str(error)


def _chunk_problems(layout: Layout) -> Iterator[str]:
    """Arrays of which one chunk, a block of steps, would be larger than the compressor takes."""
    sizes = {variable.name: layout.row_shape(variable) for variable in layout.variables}
    items = {variable.name: np.dtype(variable.dtype).itemsize for variable in layout.variables}
    sizes[SKETCH], items[SKETCH] = (len(layout.groups), layout.sketch_size), 4
    if layout.snapshots:
        sizes[SNAPSHOT], items[SNAPSHOT] = (min(INNER_ROWS, layout.vocab), layout.dim), 4
        sizes[LABEL_COUNTS], items[LABEL_COUNTS] = (layout.vocab,), 8
    for name, size in sizes.items():
        row = math.prod(size) * items[name]
        if layout.block * row > MAX_CHUNK_BYTES:
            most = MAX_CHUNK_BYTES // row
            remedy = f"pass block={most} or less" if most else "no block is small enough; record something smaller"
            yield f"{name}: a chunk of {layout.block} steps has {layout.block * row} bytes, at most 2 GiB fit; {remedy}"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _variable_problems(layout: Layout) -> Iterator[str]:
    sizes = {"token": layout.vocab, "dim": layout.dim, GROUP: len(layout.groups), SKETCH_BUCKET: layout.sketch_size}
    own = set(sizes) | RESERVED
    names = Counter(variable.name for variable in layout.variables)
    yield from (f"variable {name} is declared {times} times" for name, times in names.items() if times > 1)
    for variable in layout.variables:
        where = f"variable {variable.name}"
        if variable.name in RESERVED:
            yield f"{where}: the name is the store's own; rename it"
        if variable.dtype not in DTYPES:
            yield f"{where}: dtype {variable.dtype!r} cannot mark what is missing; use one of {', '.join(DTYPES)}"
        for dim, size in variable.sizes.items():
            if dim in own or dim in names:
                yield f"{where}: the size of {dim!r} is not its to give, another array or dimension has that name"
            elif isinstance(size, bool) or not isinstance(size, int) or size < 1:
                yield f"{where}: dimension {dim!r} has size {size!r}; it must be a whole number of 1 or more"
            elif sizes.setdefault(dim, size) != size:
                yield f"{where}: dimension {dim!r} has size {size}, and {sizes[dim]} in another variable"
        for dim in variable.dims:
            if not variable.sizes.get(dim, sizes.get(dim, 0)):
                yield f"{where}: dimension {dim!r} has no size; pass sizes={{{dim!r}: ...}}"
        if len(set(variable.dims)) < len(variable.dims):
            yield f"{where}: a dimension appears twice in {variable.dims}"


def _content_problems(layout: Layout) -> Iterator[str]:
    for name, padding in ((TOKEN_COUNT, "0"), (TOKEN_TEXT, "''")):
        content = getattr(layout, name)
        if content is not None and len(content) != layout.vocab:
            yield (
                f"{name} has {len(content)} entries; the output embedding has {layout.vocab} rows. "
                f"Give one entry a row; padding rows have {padding}"
            )
    counts = layout.token_count
    if counts is not None and not np.issubdtype(counts.dtype, np.integer):
        yield f"token_count is {counts.dtype}; counts are whole numbers, pass an integer array"
    elif counts is not None and len(counts) and not 0 <= int(counts.min()) <= int(counts.max()) < 1 << 63:
        yield f"token_count is {counts.min()} to {counts.max()}; needed 0 to 2^63 - 1"
    for name, texts in (("groups", layout.groups), (TOKEN_TEXT, layout.token_text or ())):
        broken = next((i for i, text in enumerate(texts) if not _is_unicode(text)), None)
        if broken is not None:
            yield (
                f"{name}[{broken}] is {texts[broken]!r}, which is not valid Unicode; decode bytes with errors='replace'"
            )
    for key, value in layout.attributes.items():
        try:
            json.dumps({key: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            yield f"attributes[{key!r}] cannot be written as JSON ({error}); pass text, numbers, lists or dicts"
