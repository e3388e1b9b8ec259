"""A manifest: a table of checkpoints that makes one series of many places. CSV or YAML; one row a checkpoint.

Columns: `place` (a path, a URL, `owner/name@revision`), `step` and/or `tokens`, `stage`, `seed`. Stages go one after
the other in the order in which they first stand there.
"""

from __future__ import annotations

import csv
import importlib
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainhooks.checkpoints.named import CheckpointRef, Named
from trainhooks.checkpoints.names import IN_A_MANIFEST, ParsedName, parse_name
from trainhooks.checkpoints.patterns import number_of
from trainhooks.checkpoints.places import names_in

SUFFIXES = (".csv", ".tsv", ".yaml", ".yml")
COLUMNS = ("place", "step", "tokens", "stage", "seed")
MOST_BYTES = 32 << 20
MOST_YAML = 2 << 20
MOST_ROWS = 200_000
MOST_COLUMNS = 64
_NESTED = re.compile(r"(?:[\[{]\s*){5}|(?:[-?:]\s+){5}")
_COMMENT = re.compile(r"(?m)^[ \t]*#.*$")
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_CALLED = {
    "place": ("place", "location", "path", "url", "checkpoint", "checkpoint directory", "checkpoint path", "directory"),
    "step": ("step", "steps", "training step", "iteration"),
    "tokens": ("tokens", "token", "tokens seen"),
    "stage": ("stage", "phase"),
    "ingredient": ("ingredient",),
    "seed": ("seed", "run"),
}


@dataclass(frozen=True)
class Manifest:
    """A manifest's rows as named places; `stages` in their order, where a column gives them."""

    rows: tuple[Named, ...]
    stages: tuple[str, ...] = ()


def is_manifest(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one by its name."""
    return os.fspath(path).lower().endswith(SUFFIXES)


def read_manifest(path: str | os.PathLike[str], *, placed: Callable[[str], str]) -> Manifest:
    """A manifest; `placed` makes a place out of what a row has. Raises ValueError that names the row that is wrong."""
    file = Path(path)
    if file.stat().st_size > MOST_BYTES:
        raise ValueError(f"{file} has {file.stat().st_size} bytes; a manifest of up to {MOST_BYTES} is read.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text: {error}. A manifest is CSV or YAML in UTF-8.") from error
    return parse_manifest(text, name=str(file), placed=placed)


def parse_manifest(text: str, *, name: str, placed: Callable[[str], str]) -> Manifest:
    """A manifest's text; `name` says by its suffix whether it is YAML."""
    _check_size(text, name)
    rows = _yaml_rows(text, name) if name.lower().endswith((".yaml", ".yml")) else _csv_rows(text, name)
    if not rows:
        raise ValueError(f"{name} has no rows. A manifest has columns {', '.join(COLUMNS)}, one row a checkpoint.")
    if len(rows) > MOST_ROWS:
        raise ValueError(f"{name} has {len(rows)} rows; up to {MOST_ROWS} are read.")
    named = [_row(row, where=f"{name}, row {number}", placed=placed) for number, row in enumerate(rows, start=1)]
    stages = dict.fromkeys(one.parsed.stage for one in named)
    given = any("stage" in row for row in rows)
    return Manifest(tuple(named), tuple(stages) if given and len(stages) > 1 else ())


def _check_size(text: str, name: str) -> None:
    """Raises ValueError for a text that would be taken apart into more than is read; nothing of it is yet."""
    if name.lower().endswith((".yaml", ".yml")):
        if len(text) > MOST_YAML:
            raise ValueError(f"{name} has {len(text)} characters; YAML of up to {MOST_YAML} is read: write it as CSV.")
        if _NESTED.search(_COMMENT.sub("", text)):
            raise ValueError(f"{name} is no YAML that is read: it is nested too deep for a table.")
        return
    lines = sum(text.count(end) for end in _LINE_ENDS)
    if len(text) > MOST_BYTES or lines > 2 * MOST_ROWS:
        raise ValueError(f"{name} has {lines} lines; up to {MOST_ROWS} rows and {MOST_BYTES} characters are read.")
    cells = text.count(",") + text.count("\t")
    if cells > MOST_COLUMNS * (lines + 1):
        raise ValueError(f"{name} has {cells} cells in {lines + 1} lines; a row has up to {MOST_COLUMNS}.")


def manifest_text(entries: Sequence[CheckpointRef], *, name: str) -> str:
    """The manifest of a series, as CSV, or as YAML by the suffix of `name`; read again it gives the same series."""
    rows = [_cells(entry) for entry in entries]
    if name.lower().endswith((".yaml", ".yml")):
        return str(_yaml().safe_dump(rows, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000))
    kept = [column for column in COLUMNS if column in ("place", "step") or any(row.get(column) for row in rows)]
    out = io.StringIO()
    writer = csv.DictWriter(out, kept, lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _cells(entry: CheckpointRef) -> dict[str, Any]:
    location = entry.location
    place = os.path.abspath(location) if os.path.lexists(location) else location
    step = entry.step if entry.own_step is None and entry.tokens is None else entry.own_step
    cells = {"place": place, "step": step, "tokens": entry.tokens, "stage": entry.stage, "seed": entry.seed}
    return {column: value for column, value in cells.items() if value not in (None, "")}


def _csv_rows(text: str, name: str) -> list[dict[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    delimiter = "\t" if name.lower().endswith(".tsv") else ","
    try:
        table = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ValueError(f"{name} is no CSV: {error}.") from error
    if not table:
        return []
    header = [_column(cell) for cell in table[0]]
    if "place" not in header:
        raise ValueError(
            f"{name} has no column `place` ({', '.join(table[0])[:200]}). A manifest has columns {', '.join(COLUMNS)}."
        )
    _no_column_twice(header, name)
    uneven = next((number for number, row in enumerate(table[1:], start=1) if len(row) != len(header)), None)
    if uneven is not None:
        raise ValueError(f"{name}, row {uneven}: {len(table[uneven])} cells under {len(header)} columns.")
    return [dict(zip(header, row, strict=True)) for row in table[1:]]


def _yaml_rows(text: str, name: str) -> list[dict[str, str]]:
    yaml = _yaml()
    try:
        found = yaml.load(text, Loader=_as_written(yaml))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{name} is no YAML that is read: {told[0]}.") from error
    rows = found.get("checkpoints") if isinstance(found, dict) else found
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name} is no list of checkpoints, each with {', '.join(COLUMNS)}.")
    simple = (str, int, float)
    for number, row in enumerate(rows, start=1):
        if not all(isinstance(value, simple) or value is None for value in row.values()):
            raise ValueError(f"{name}, row {number}: every value is a text or a number.")
    for row in rows:
        _no_column_twice([_column(key) for key in row], name)
    return [{_column(key): "" if value is None else str(value) for key, value in row.items()} for row in rows]


def _as_written(yaml: Any) -> Any:
    """The safe loader, but for numbers: to YAML the step 0001000 is octal, 512, and 1:30 is 90."""
    kept = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
    resolvers = {
        first: [(tag, fits) for tag, fits in known if tag in kept]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return type("_AsWritten", (yaml.SafeLoader,), {"yaml_implicit_resolvers": resolvers})


def _no_column_twice(columns: Sequence[str], name: str) -> None:
    """Raises ValueError where two columns mean the same: one of them would be dropped."""
    twice = sorted({column for column in columns if column in _CALLED and columns.count(column) > 1})
    if twice:
        raise ValueError(f"{name} has two columns for {', '.join(twice)} ({', '.join(_CALLED[twice[0]])}): keep one.")


def _yaml() -> Any:
    try:
        return importlib.import_module("yaml")
    except ImportError as error:
        raise ImportError("a manifest in YAML needs pyyaml: pip install pyyaml, or write it as CSV.") from error


def _column(cell: object) -> str:
    text = str(cell).strip().lower().replace("_", " ")
    return next((column for column, names in _CALLED.items() if text in names), text)


def _row(row: Mapping[str, str], *, where: str, placed: Callable[[str], str]) -> Named:
    text = row.get("place", "").strip()
    if not text:
        raise ValueError(f"{where}: it has no place.")
    place = placed(text)
    step, tokens = (_count(row.get(column, ""), where=f"{where}, {column}") for column in ("step", "tokens"))
    if step is None and tokens is None:
        told = next((parsed for part in names_in(place) if (parsed := parse_name(part)) is not None), None)
        if told is None:
            raise ValueError(f"{where}: neither step nor tokens, and the place {text!r} does not tell one.")
        step, tokens = told.step if told.step is not None else told.chunk, told.tokens
    stage = row.get("stage", "").strip()
    ingredient = row.get("ingredient", "").strip()
    stage = "-".join(filter(None, (stage, f"ingredient{ingredient}" if ingredient else "")))
    parsed = ParsedName(IN_A_MANIFEST, step, tokens, stage, row.get("seed", "").strip())
    return Named(text, place, parsed)


def _count(text: str, *, where: str) -> int | None:
    """A number as a row has it: 240000, 240_000, 240k, 15T, 1e9; None where it is left open."""
    text = text.strip().replace("_", "").replace(" ", "")
    if not text:
        return None
    number = number_of(text)
    if number is None:
        try:
            value = float(text) if len(text) < 40 else -1.0
        except ValueError:
            value = -1.0
        number = int(value) if 0 <= value < 2**53 and value.is_integer() else None
    if number is None:
        raise ValueError(f"{where}: {text[:40]!r} is no whole number from 0.")
    return number
