"""What every sink promises, as checks of any of them: tests/sinks/test_sink_conformance.py runs them over all."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import trainhooks
from trainhooks.core.variable import Variable
from trainhooks.sinks import Record, Sink
from trainhooks.sinks.base import entry_labels, read_only
from trainhooks.store import Layout

VOCAB, DIM, GROUPS, SKETCH = 6, 2, ("whole", "embedding"), 5
FINAL = "convergence.cosine_to_final"
LAYOUT = Layout(
    VOCAB,
    DIM,
    GROUPS,
    SKETCH,
    variables=(
        Variable("loss", description="a number"),
        Variable("probe.heldout_r2", description="a number that is not always there"),
        Variable("convergence.norm", dims=("group",), description="a number a group"),
        Variable("probe.slope", dims=("dim",), description="a vector without labels"),
        Variable(FINAL, dims=("group",), description="known at the end", whole_run=True),
    ),
    block=2,
)
STEPS = (0, 1, 2, 3, 7)
"""Of these 1 has numbers alone, 2 a matrix without label counts, 3 neither probe nor sketch; 4 to 6 have no record."""
SECONDS = 30.0


def record(step: int) -> Record:
    """The record of a step: each can be told from every other one, in all its parts."""
    values = {"loss": np.array(step + 0.5), "convergence.norm": np.array([step + 0.25, np.nan])}
    if step != 3:
        values |= {"probe.heldout_r2": np.array(step / 8), "probe.slope": np.array([step, -step], dtype=np.float64)}
    matrix = np.arange(VOCAB * DIM, dtype=np.float32).reshape(VOCAB, DIM) + step
    arrays = {"sketch": np.full((len(GROUPS), SKETCH), step, np.float32), "matrix": matrix}
    arrays["counts"] = np.arange(VOCAB, dtype=np.int64) + step
    read_only(values)
    read_only(arrays)
    return Record(
        step,
        values,
        groups=GROUPS,
        sketch=None if step in (1, 3) else arrays["sketch"],
        snapshot=None if step == 1 else arrays["matrix"],
        label_counts=None if step in (1, 2) else arrays["counts"],
        labels=entry_labels(LAYOUT),
    )


@dataclass(frozen=True)
class Kept:
    """What is found of a run: numbers by step and tag, in the order found; matrices and label counts by step."""

    numbers: dict[int, dict[str, float]]
    matrices: dict[int, np.ndarray] = field(default_factory=dict)
    counts: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A sink on an empty folder. `make(folder, mode)` is what a new process does with mode create, resume or overwrite;

    `read(folder, sink)` is what another process finds there (None: nothing), `sink` for those that keep their records
    in memory. `lasts`: it keeps them on disk. `takes`: tags that it draws. `matrices`: it keeps those too. `beside`:
    what is found of an earlier run where a new one began in its place; None where a new one is refused.
    """

    kind: type[Sink]
    make: Callable[[Path, str], Sink]
    read: Callable[[Path, Sink], Kept | None]
    lasts: bool = True
    matrices: bool = False
    takes: Callable[[str], bool] = lambda tag: True
    beside: Callable[[Path], Kept | None] | None = None
    exact: bool = True


def sink_names() -> set[str]:
    """Every class of the package that is a sink: found in its source, so that optional packages are not needed."""
    bases: dict[str, set[str]] = {}
    for path in Path(trainhooks.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    found = {"Sink"}
    while more := {name for name, parents in bases.items() if parents & found} - found:
        found |= more
    return found - {"Sink"}


def begun(case: Case, folder: Path, *, mode: str = "create", after: int | None = None) -> Sink:
    """A sink that was checked and opened, as a recorder does."""
    sink = case.make(folder, mode)
    sink.check()
    sink.open(LAYOUT, restart_step=-1 if mode == "overwrite" else after)
    return sink


def written(case: Case, folder: Path, steps: Iterable[int] = STEPS, **how: object) -> Sink:
    """The same, with records, and closed."""
    sink = begun(case, folder, **how)  # type: ignore[arg-type]
    for step in steps:
        sink.write(record(step))
    sink.close()
    return sink


def check_kept(case: Case, found: Kept | None, steps: Iterable[int], *, why: str) -> None:
    """These records are found, in order, each as it was given; and no other."""
    expected = [record(step) for step in steps]
    numbers = {one.step: {tag: x for tag, x in one.scalars.items() if case.takes(tag)} for one in expected}
    if found is None:
        assert not numbers, f"{why}: nothing is found"
        return
    assert list(found.numbers) == list(numbers), f"{why}: records {list(found.numbers)} for {list(numbers)}"
    for step, tags in numbers.items():
        there = found.numbers[step]
        assert set(there) == set(tags), f"{why}: step {step} has {sorted(there)}, given {sorted(tags)}"
        tolerance = 0.0 if case.exact else 1e-6
        for tag, number in tags.items():
            assert abs(there[tag] - number) <= tolerance * abs(number), f"{why}: {tag} at {step}"
    if case.matrices:
        _check_arrays(found.matrices, {one.step: one.matrix for one in expected}, why=f"{why}: matrix")
        _check_arrays(found.counts, {one.step: one.label_counts for one in expected}, why=f"{why}: label counts")


def _check_arrays(found: Mapping[int, np.ndarray], given: Mapping[int, np.ndarray | None], *, why: str) -> None:
    expected = {step: array for step, array in given.items() if array is not None}
    assert list(found) == list(expected), f"{why} at {list(found)}, given at {list(expected)}"
    for step, array in expected.items():
        assert found[step].tobytes() == array.tobytes(), f"{why} at {step}"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def parts_of(one: Record) -> dict[str, bytes]:
    """A record's bits."""
    arrays = {**one.values, "sketch": one.sketch, "snapshot": one.snapshot, "label_counts": one.label_counts}
    return {name: array.tobytes() for name, array in arrays.items() if array is not None}


# -- the checks ------------------------------------------------------------------------------------------------


def check_leaves_nothing(case: Case, folder: Path) -> None:
    """`check` on an empty place writes nothing, and may be asked again."""
    sink = case.make(folder, "create")
    assert isinstance(sink, case.kind)
    sink.check()
    sink.check()
    assert not list(folder.iterdir()), "check() left something behind"
    sink.close()
    assert not list(folder.iterdir()), "close() of what was never opened left something behind"


def check_records(case: Case, folder: Path) -> None:
    """Records come back in order and whole, and none is written into."""
    sink, given = begun(case, folder), [record(step) for step in STEPS]
    before = [parts_of(one) for one in given]
    for one in given:
        sink.write(one)
        assert sink.cpu_seconds >= 0
    sink.close()
    assert [parts_of(one) for one in given] == before, "a record was written into"
    check_kept(case, case.read(folder, sink), STEPS, why="closed")


def check_settles(case: Case, folder: Path) -> None:
    """What `settle` says is durable another reader finds, with nothing closed; it never raises."""
    sink = case.make(folder, "create")
    assert sink.settle(seconds=0.0) is True, "nothing is waiting before open()"
    sink.open(LAYOUT, restart_step=None)
    assert sink.settle(seconds=SECONDS) is True, "nothing is waiting before the first record"
    for number, step in enumerate(STEPS, start=1):
        sink.write(record(step))
        assert isinstance(sink.settle(seconds=0.0), bool)
        assert sink.settle(seconds=SECONDS) is True
        if case.lasts:
            check_kept(case, case.read(folder, sink), STEPS[:number], why=f"settled after {step}, not closed")
    sink.close()
    assert isinstance(sink.settle(seconds=0.0), bool), "settle() after close()"


def check_closes(case: Case, folder: Path) -> None:
    """`close` twice, with and without records and before `open`; the second changes nothing."""
    never = case.make(folder / "never", "create")
    never.close()
    never.close()
    empty = begun(case, folder / "empty")
    empty.close()
    empty.close()
    check_kept(case, case.read(folder / "empty", empty), (), why="a run without a record")
    sink = written(case, folder / "run")
    before = contents(folder / "run")
    sink.close()
    assert contents(folder / "run") == before, "the second close() changed something"
    check_kept(case, case.read(folder / "run", sink), STEPS, why="closed twice")


def check_late_writes(case: Case, folder: Path) -> None:
    """A record before `open` or after `close` is refused or ignored: what is there stays as it is."""
    early = case.make(folder / "early", "create")
    with suppress(Exception):
        early.write(record(0))
    with suppress(Exception):
        early.close()
    assert not (folder / "early").exists() or not contents(folder / "early"), "a record before open() is kept"
    sink = written(case, folder / "run")
    before = contents(folder / "run")
    with suppress(Exception):
        sink.write(record(9))
    sink.settle(seconds=0.5)
    with suppress(Exception):
        sink.close()
    assert contents(folder / "run") == before, "a record after close() changed something"
    check_kept(case, case.read(folder / "run", sink), STEPS, why="after a record that came too late")


def check_goes_on(case: Case, folder: Path, *, after: int) -> None:
    """A run that goes on keeps its records up to there, and has none of its former end."""
    written(case, folder)
    sink = begun(case, folder, mode="resume", after=after)
    kept = [step for step in STEPS if step <= after]
    sink.settle(seconds=SECONDS)
    for step in (after + 1, after + 5):
        sink.write(record(step))
    sink.close()
    check_kept(case, case.read(folder, sink), [*kept, after + 1, after + 5], why=f"gone on after {after}")
    sink = written(case, folder, [after + 2], mode="resume", after=after + 1)
    check_kept(case, case.read(folder, sink), [*kept, after + 1, after + 2], why="gone on once more")


def check_begins_anew(case: Case, folder: Path) -> None:
    """mode="overwrite" lets all go that was there; a new run without a word loses nothing of another's."""
    written(case, folder / "over")
    sink = written(case, folder / "over", (0, 4), mode="overwrite")
    check_kept(case, case.read(folder / "over", sink), (0, 4), why="written over")
    first = written(case, folder / "new")
    before = contents(folder / "new")
    if case.beside is None:
        with pytest.raises((ValueError, OSError), match=r"exists|already"):
            written(case, folder / "new", (0, 4))
        assert contents(folder / "new") == before, "a run that was refused changed another's files"
        check_kept(case, case.read(folder / "new", first), STEPS, why="another run was refused")
    else:
        sink = written(case, folder / "new", (0, 4))
        check_kept(case, case.read(folder / "new", sink), (0, 4), why="a new run")
        check_kept(case, case.beside(folder / "new"), STEPS, why="the run before it")


def check_finishes(case: Case, folder: Path, *, final: Callable[[Path, Sink], np.ndarray | None]) -> None:
    """The whole-run values come after the last record; records are as they were, and so are the values."""
    sink = begun(case, folder)
    for step in STEPS:
        sink.write(record(step))
    values = {FINAL: np.array([[step / 8, 1.0] for step in STEPS])}
    read_only(values)
    before = values[FINAL].tobytes()
    assert sink.settle(seconds=SECONDS)  # a recorder has read what is there before it knows the values
    sink.finish(values)
    sink.close()
    sink.close()
    assert values[FINAL].tobytes() == before
    check_kept(case, case.read(folder, sink), STEPS, why="finished")
    if (found := final(folder, sink)) is not None:
        np.testing.assert_allclose(found, values[FINAL], rtol=0 if case.exact else 1e-6)


def check_says_early(case: Case, folder: Path) -> None:
    """Where `open` raises for the place alone, `check` has raised the same before training, and left nothing."""
    (folder / "file").write_text("no folder")
    before = contents(folder)
    sink = case.make(folder / "file" / "below", "create")
    try:
        sink.check()
    except (ValueError, OSError):
        assert contents(folder) == before
        return
    sink.open(LAYOUT, restart_step=None)  # raises what check() has not said
    sink.close()


def in_order(pairs: Iterable[tuple[int, str, float]]) -> Iterator[tuple[int, dict[str, float]]]:
    """Numbers by step, of those that stand in a file in the order of steps."""
    found: dict[int, dict[str, float]] = {}
    for step, tag, number in pairs:
        found.setdefault(step, {})[tag] = number
    return iter(found.items())
