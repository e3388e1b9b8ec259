"""Tables as pieces: Parquet and Arrow files, folders that `datasets` saved, and data sets that it streams.

Each row is a document. The column named `text_field` is tokenized where it holds text, and counted as ids where it
holds lists of integers; without a column "text", "input_ids" is taken. Rows are read in small batches. With windows
each file is one piece, since they run through it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainhooks.corpora.base import CorpusChunk, Settings, Tally
from trainhooks.corpora.documents import DocumentCounter
from trainhooks.corpora.fingerprints import checksum, place
from trainhooks.corpora.splitting import BadDocument
from trainhooks.corpora.table_sizes import MOST_VALUES, Broken, check_text, row_lengths, rows_at_once, runs

PREFIX = "dataset:"
SUFFIXES = frozenset((".parquet", ".arrow"))
_TEXT_ROWS, _ID_ROWS = 64, 1024  # read at once: texts may be long, and ids are counted by the batch
_SPAN = 64 << 20  # bytes of row groups a piece, compressed


class _NoColumn(ValueError):
    """A table holds no column that can be counted."""


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether `table_pieces` reads this: a name of a table, a saved data set's folder, or "dataset:..."."""
    folder = Path(path)
    saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    # a folder named x.parquet holds parts: it is a folder like others
    named = folder.suffix.lower() in SUFFIXES and not folder.is_dir()
    return str(path).startswith(PREFIX) or named or saved


def table_pieces(path: str | os.PathLike[str], settings: Settings) -> list[CorpusChunk]:
    """A table, a folder of `save_to_disk` or "dataset:NAME[:CONFIG]:SPLIT" as pieces, in order.

    Parquet is cut at row groups, a streamed data set at its shards; an Arrow file is one piece. A data set's own
    code is never run. Raises ValueError for what is none of these, and for a damaged Parquet footer (where bad
    documents are skipped, the piece reports it instead).
    """
    if str(path).startswith(PREFIX):
        return _streamed(str(path), settings)
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        return _parquet(path, settings)
    if path.suffix.lower() == ".arrow":
        return [_whole(path)]
    if path.is_dir() and is_table(path):
        return [_whole(file) for file in _saved(path)]
    raise ValueError(f"{path} is no table: needed .parquet, .arrow, a folder of save_to_disk, or {PREFIX}NAME:SPLIT.")


@dataclass
class TablePiece:
    """Row groups `start` to `end` of a Parquet file, or an Arrow file whole (`end` is None)."""

    path: str
    start: int
    end: int | None
    size: int
    fingerprint: str
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = place(self.path) + ("" if self.end is None else f":groups {self.start}-{self.end}")

    def tally(self, settings: Settings) -> Tally:
        """Counts the rows. Raises ValueError naming file and row for what cannot be counted."""
        before = 0
        counter = DocumentCounter(settings, lambda row: f"{self.path}, row {before + row}")
        row = 0
        try:
            with _readable(self.path):
                before, batches = self._open(settings.text_field)
                texts = _Texts(Path(self.path).name, os.path.getsize(self.path))
                for column in batches:
                    _count_column(counter, column, row, texts)
                    row += len(column)
        except _NoColumn as error:
            if not settings.skip_bad:
                raise
            counter.bad(row, error)
        except Broken as error:
            counter.bad(row, error)
        return counter.finish()

    def _open(self, name: str) -> tuple[int, Iterator[Any]]:
        """The number of the first row, and the column in batches."""
        if self.path.lower().endswith(".parquet"):
            file = _parquet_file(self.path)
            before = sum(file.metadata.row_group(group).num_rows for group in range(self.start))
            groups = range(self.start, file.num_row_groups if self.end is None else self.end)
            return before, _parquet_column(file, groups, name, self.path)
        schema, rows = _arrow_batches(self.path)
        column = _column(schema, name, self.path)
        size = _batch_rows(schema, column)
        return 0, (
            batch.column(column).slice(start, size) for batch in rows for start in range(0, batch.num_rows, size)
        )


@dataclass
class StreamPiece:
    """Shard `index` of `shards` of a data set that `datasets` streams; its weight in bytes is not known."""

    source: str
    index: int
    shards: int
    fingerprint: str
    size: int = 0
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = f"{self.source}[{self.index}/{self.shards}]"

    def tally(self, settings: Settings) -> Tally:
        """Counts the shard's rows. Raises ValueError naming data set, shard and row for what cannot be counted."""
        counter = DocumentCounter(settings, lambda row: f"{self.key}, row {row}")
        number = 0
        try:
            for column, texts in self._columns(settings.text_field):
                _count_column(counter, column, number, texts)
                number += len(column)
        except Broken as error:
            counter.bad(number, error)
        return counter.finish()

    def _columns(self, wanted: str) -> Iterator[tuple[Any, _Texts]]:
        """The rows' column, a few at a time, in Arrow's form: Python's numbers would take ten times the memory."""
        builder, split = _builder(self.source)
        if builder.name == "parquet":  # `datasets` unpacks a row group whole, whatever batches it is asked for
            for file in list(map(str, builder.config.data_files[split]))[self.index :: self.shards]:
                yield from _remote_parquet(file, wanted)
            return
        rows = builder.as_streaming_dataset(split=split).with_format("arrow")
        if self.shards > 1:
            rows = rows.shard(num_shards=self.shards, index=self.index)
        texts = _Texts(self.key, None)
        try:
            for table in rows.iter(batch_size=_TEXT_ROWS):
                yield from ((part, texts) for part in table.column(_column(table.schema, wanted, self.source)).chunks)
        except _NoColumn:
            raise
        except (ValueError, OSError, _datasets().exceptions.DatasetsError) as error:  # Arrow's are ValueErrors
            raise Broken(f"the data set cannot be read on ({error})") from error


def _remote_parquet(path: str, wanted: str) -> Iterator[tuple[Any, _Texts]]:
    """The column of a Parquet file at a path or an address that fsspec knows, a few rows at a time."""
    import fsspec  # type: ignore[import-untyped]

    with _readable(path), fsspec.open(path, "rb") as source:
        texts = _Texts(Path(path).name, source.seek(0, os.SEEK_END))
        file = _parquet_file(source)
        for column in _parquet_column(file, range(file.num_row_groups), wanted, path):
            yield column, texts


@dataclass
class _Texts:
    """The bytes of text that came out of a file so far, and the file's own where they are known."""

    name: str
    held: int | None
    read: int = 0

    def of(self, column: Any) -> Iterator[bytes | None]:
        """Each row's bytes; one at a time, since a dictionary's entry may stand in any number of rows."""
        import pyarrow as pa
        import pyarrow.types as kind
        from pyarrow import compute

        for number in range(len(column)):
            row = column.slice(number, 1)
            if kind.is_dictionary(row.type):
                row = row.dictionary_decode()
            self.read += compute.binary_length(row)[0].as_py() or 0
            if self.held is not None:
                check_text(self.read, self.held, self.name)
            yield row.cast(pa.large_binary())[0].as_py()


def _count_column(counter: DocumentCounter, column: Any, row: int, texts: _Texts) -> None:
    """Counts a batch of a column of text or of lists of integers; `row` is the number of its first row."""
    if _is_ids(column.type):
        for start, part in runs(column):
            _count_lists(counter, part, row + start)
        return
    for number, data in enumerate(texts.of(column), row):
        try:
            if data is None:
                raise BadDocument("the row holds nothing; needed text")
            counter.add_text(data.decode(), number)
        except UnicodeDecodeError as error:
            counter.bad(number, BadDocument(f"byte {error.start} of the text is not UTF-8 ({error.reason})"))
        except BadDocument as error:
            counter.bad(number, error)


def _count_lists(counter: DocumentCounter, column: Any, row: int) -> None:
    import pyarrow as pa

    lengths = row_lengths(column)
    if lengths.max() > MOST_VALUES:  # a row by itself
        counter.bad(row, BadDocument(f"the row has {lengths.max()} ids; at most {MOST_VALUES} are read: split it"))
        return
    values = column.flatten()  # of the rows in this slice, without those that are null
    if column.null_count or values.null_count:
        for number, value in enumerate(column.to_pylist(), row):
            try:
                _count_value(counter, value, number)
            except BadDocument as error:
                counter.bad(number, error)
        return
    ids = values.cast(pa.int64(), safe=False).to_numpy()  # uint64 beyond int64 turns negative, hence is refused
    counter.add_ids(np.split(ids, np.cumsum(lengths)[:-1]), list(range(row, row + len(column))))


def _count_value(counter: DocumentCounter, value: Any, row: int) -> None:
    """Counts one row that is a Python value: text or a list of ints."""
    if isinstance(value, str):
        counter.add_text(value, row)
    elif isinstance(value, list) and all(type(token) is int for token in value):
        try:
            counter.add_ids([np.array(value, dtype=np.int64)], [row])
        except OverflowError as error:
            raise BadDocument(f"an id is beyond int64 ({error})") from error
    else:
        what = "nothing" if value is None else f"a {type(value).__name__} with something else than integers"
        raise BadDocument(f"the row holds {what}; needed text or a list of integers")


def _named(names: list[str], wanted: str, path: str) -> str:
    if wanted in names:
        return wanted
    if wanted == "text" and "input_ids" in names:
        return "input_ids"
    raise _NoColumn(f"{path} has the columns {', '.join(names)}; needed {wanted!r}. Name the one with text or ids.")


def _column(schema: Any, wanted: str, path: str) -> str:
    """The column to count. Raises ValueError where there is none, or where it holds neither text nor ids."""
    import pyarrow.types as kind

    name = _named(schema.names, wanted, path)
    found = schema.field(name).type
    inner = found.value_type if kind.is_dictionary(found) else found
    if not (kind.is_string(inner) or kind.is_large_string(inner) or kind.is_string_view(inner) or _is_ids(found)):
        raise _NoColumn(f"{path}: column {name!r} is {found}; needed text or lists of integers. Name another column.")
    return name


def _batch_rows(schema: Any, column: str) -> int:
    return _ID_ROWS if _is_ids(schema.field(column).type) else _TEXT_ROWS


def _is_ids(found: Any) -> bool:
    import pyarrow.types as kind

    listed = kind.is_list(found) or kind.is_large_list(found) or kind.is_fixed_size_list(found)
    ids: bool = listed and kind.is_integer(found.value_type)
    return ids


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError("counting tables needs pyarrow: pip install 'trainhooks[corpora]'.") from error
    return pyarrow


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Arrow's errors, which are partly ValueErrors, as one of ours."""
    errors = (_pyarrow().ArrowException, OSError)
    try:
        yield
    except errors as error:
        raise Broken(f"{Path(path).name} is damaged or cut short ({error})") from error


def _parquet_column(file: Any, groups: range, wanted: str, path: str) -> Iterator[Any]:
    """The wanted column in batches. Raises ValueError where there is none, Broken for what claims too much."""
    column = _column(file.schema_arrow, wanted, path)
    held = rows_at_once(file.metadata, groups, column, Path(path).name)
    size = min(_batch_rows(file.schema_arrow, column), held)
    rows = file.iter_batches(batch_size=size, row_groups=list(groups), columns=[column])
    return (batch.column(column) for batch in rows)


def _parquet_file(path: Any) -> Any:
    import pyarrow.parquet

    # buffered: a column's pages come one after the other, not a row group at once
    return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)


def _arrow_batches(path: str) -> tuple[Any, Iterator[Any]]:
    """Schema and record batches of an Arrow file in either of its forms, memory-mapped."""
    pa = _pyarrow()
    with open(path, "rb") as file:
        seekable = file.read(6) == b"ARROW1"
    source = pa.memory_map(path)
    if seekable:
        found = pa.ipc.open_file(source)
        return found.schema, (found.get_batch(number) for number in range(found.num_record_batches))
    stream = pa.ipc.open_stream(source)
    return stream.schema, iter(stream)


def _parquet(path: Path, settings: Settings) -> list[CorpusChunk]:
    """Runs of row groups of some `_SPAN` bytes."""
    weight = path.stat().st_size
    try:
        with _readable(str(path)):
            metadata = _parquet_file(str(path)).metadata
    except Broken as error:
        if not settings.skip_bad:
            raise ValueError(f"{path}: {error}. Fetch the file again, or skip what is bad (skip_bad).") from error
        return [_whole(path)]
    sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    content, found, start = checksum(path, 0, weight), list[CorpusChunk](), 0
    for group in range(len(sizes)):
        size = sum(sizes[start : group + 1])
        if group + 1 == len(sizes) or (size >= _SPAN and settings.rule.window is None):
            found.append(TablePiece(str(path), start, group + 1, size, f"{content} {start}-{group + 1}"))
            start = group + 1
    return found


def _whole(path: Path) -> TablePiece:
    size = path.stat().st_size
    return TablePiece(str(path), 0, None, size, checksum(path, 0, size))


def _saved(folder: Path) -> list[Path]:
    """The Arrow files of a data set, or of all splits of one, that `save_to_disk` wrote."""
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            return [file for split in splits for file in _saved(folder / split)]
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [folder / entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no data set of save_to_disk ({error!r}): write it again.") from error
    if state.get("_indices_data_files"):
        raise ValueError(f"{folder} keeps its rows' order or choice apart: save it anew, after flatten_indices().")
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{folder} lacks its files {', '.join(missing)}: copy the whole folder.")
    return files


def _streamed(source: str, settings: Settings) -> list[CorpusChunk]:
    builder, split = _builder(source)
    rows = builder.as_streaming_dataset(split=split)
    shards = rows.num_shards if settings.rule.window is None else 1
    return [StreamPiece(source, index, shards, str(builder.hash)) for index in range(shards)]


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError("streaming a data set needs datasets: pip install 'trainhooks[corpora]'.") from error
    return datasets


def _builder(source: str) -> tuple[Any, str]:
    """The builder and the split's name of "dataset:NAME[:CONFIG]:SPLIT"; loading code along with data is not asked."""
    parts = source.removeprefix(PREFIX).split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise ValueError(f"got {source!r}; needed {PREFIX}NAME:SPLIT or {PREFIX}NAME:CONFIG:SPLIT.")
    builder = _datasets().load_dataset_builder(parts[0], parts[1] if len(parts) == 3 else None)
    known = list(builder.info.splits or ()) or list(builder.config.data_files or ())
    if known and parts[-1] not in known:
        raise ValueError(f"{source} has the splits {', '.join(map(str, known))}; got {parts[-1]!r}.")
    return builder, parts[-1]
