"""A record on its way in: names, shapes and types are checked here, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trainhooks.core.variable import Variable
from trainhooks.store.format.layout import LABEL_COUNTS, MISSING_COUNT, SKETCH, SNAPSHOT, Layout
from trainhooks.store.format.precision import (
    BFLOAT16_MANTISSA_BITS,
    FLOAT32_MANTISSA_BITS,
    PACKABLE_BITS,
    precision_name,
    round_and_pack,
    round_mantissa,
)


def record_arrays(
    layout: Layout,
    values: Mapping[str, object],
    *,
    sketch: np.ndarray | None,
    snapshot: np.ndarray | None,
    label_counts: np.ndarray | None,
    rows: tuple[int, int] | None = None,
) -> dict[str, np.ndarray]:
    """One record, or a rank's piece of it, as arrays by name: cast, but the matrix neither copied nor rounded yet.

    `snapshot` is float32, or for the precision "bfloat16" uint16, the bits of bfloat16 numbers: so a device can
    round, and half the bytes travel. `rows` (start, stop) are those of the matrix that it holds; None stands for all
    of them. Label counts are left out where there is no snapshot.

    Raises ValueError, with every problem found, where something does not fit the layout.
    """
    problems: list[str] = []
    arrays = _checked_values(layout, values, whole_run=False, leading=(), problems=problems)
    if sketch is not None:
        problems += _sketch_problems(layout, sketch)
    if snapshot is not None:
        problems += _snapshot_problems(layout, snapshot, rows or (0, layout.vocab))
    if label_counts is not None:
        problems += _count_problems(layout, label_counts)
    _raise(problems)
    if sketch is not None:
        arrays[SKETCH] = np.asarray(sketch, dtype=np.float32)
    if snapshot is not None:
        arrays[SNAPSHOT] = snapshot
        if label_counts is not None:
            arrays[LABEL_COUNTS] = np.asarray(label_counts, dtype=np.int64)
    return arrays


def rounded(layout: Layout, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A record's arrays as the journal keeps them: the matrix rounded to the layout's precision, and packed."""
    kept = dict(arrays)
    if SNAPSHOT in kept and kept[SNAPSHOT].dtype != np.uint16 and layout.kept_bits < FLOAT32_MANTISSA_BITS:
        shorten = round_and_pack if layout.kept_bits <= PACKABLE_BITS else round_mantissa
        kept[SNAPSHOT] = shorten(kept[SNAPSHOT], kept_bits=layout.kept_bits)
    return kept


def whole_run_arrays(layout: Layout, values: Mapping[str, object], *, records: int) -> dict[str, np.ndarray]:
    """The whole-run variables [records, ...], checked and cast.

    Raises ValueError, with every problem found, where something does not fit the layout.
    """
    problems: list[str] = []
    arrays = _checked_values(layout, values, whole_run=True, leading=(records,), problems=problems)
    _raise(problems)
    return arrays


def missing_value(dtype: str) -> float | int:
    """What stands for a value that was not measured: NaN, or -1 for whole numbers."""
    return float("nan") if dtype.startswith("float") else MISSING_COUNT


def _raise(problems: list[str]) -> None:
    if problems:
        raise ValueError("the record does not fit the store's layout:\n- " + "\n- ".join(problems))


def _checked_values(
    layout: Layout,
    values: Mapping[str, object],
    *,
    whole_run: bool,
    leading: tuple[int, ...],
    problems: list[str],
) -> dict[str, np.ndarray]:
    variables = {variable.name: variable for variable in layout.variables}
    fitting = {}
    for name, value in values.items():
        variable = variables.get(name)
        if variable is None:
            problems.append(f"variable {name!r} was not declared; declared are {sorted(variables)}")
        elif variable.whole_run != whole_run:
            moment = "finish(), when the run ends" if variable.whole_run else "append(), record by record"
            problems.append(f"variable {name!r} goes to {moment}")
        else:
            array = np.asarray(value)
            shape = leading + layout.row_shapes[name]
            if array.shape != shape:
                problems.append(f"variable {name!r} has shape {array.shape}, needed {shape}")
            elif not _fits(array, variable):
                problems.append(f"variable {name!r} is {array.dtype} and does not fit its dtype {variable.dtype}")
            else:
                fitting[name] = array, variable.dtype
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite there, and the run goes on
        return {name: array.astype(dtype) for name, (array, dtype) in fitting.items()}


def _fits(array: np.ndarray, variable: Variable) -> bool:
    """Whether the values are numbers that the variable's dtype can hold; float64 may round to float32, or overflow."""
    if array.dtype.kind not in "fiub":
        return False
    if variable.dtype.startswith("float"):
        return True
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
    # the largest whole number is no float64, its successor (minus the smallest one) is
    least = int(np.iinfo(variable.dtype).min)
    return bool(np.all((array >= least) & (array < -least) & (np.rint(array) == array)))


def _sketch_problems(layout: Layout, sketch: np.ndarray) -> list[str]:
    shape = (len(layout.groups), layout.sketch_size)
    if not layout.sketch_size:
        return ["a sketch was given, but the layout has sketch_size=0"]
    return [] if sketch.shape == shape else [f"the sketch has shape {sketch.shape}, needed {shape}"]


def _snapshot_problems(layout: Layout, snapshot: np.ndarray, rows: tuple[int, int]) -> list[str]:
    if not layout.snapshots:
        return ["a snapshot was given, but the layout has snapshots=False"]
    if not 0 <= rows[0] <= rows[1] <= layout.vocab:
        return [f"rows {rows[0]}:{rows[1]} of the matrix were given; it has rows 0 to {layout.vocab - 1}"]
    shape = (rows[1] - rows[0], layout.dim)
    problems = [] if snapshot.shape == shape else [f"the snapshot has shape {snapshot.shape}, needed {shape}"]
    if snapshot.dtype == np.uint16 and layout.kept_bits != BFLOAT16_MANTISSA_BITS:
        kept = precision_name(layout.kept_bits)
        problems.append(f"the snapshot is uint16, bits of bfloat16; a store of precision {kept!r} needs float32")
    elif snapshot.dtype not in (np.float32, np.uint16):
        problems.append(f"the snapshot is {snapshot.dtype}, needed float32; pass snapshot.astype(np.float32)")
    return problems


def _count_problems(layout: Layout, counts: np.ndarray) -> list[str]:
    if counts.shape == (layout.vocab,) and counts.dtype.kind in "iu":
        fits = int(counts.min()) >= 0 and int(counts.max()) < 1 << 63
        return [] if fits else [f"label_counts are {counts.min()} to {counts.max()}, needed 0 to 2^63 - 1"]
    return [f"label_counts are {counts.dtype} {counts.shape}, needed whole numbers {(layout.vocab,)}"]
