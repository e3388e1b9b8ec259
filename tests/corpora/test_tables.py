import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bpe import byte_level, nasty, same, total, twin

from trainhooks.corpora import tables
from trainhooks.corpora.base import LabelRule, Settings
from trainhooks.corpora.tables import is_table, table_pieces

RULES = [LabelRule(), LabelRule(skip_first=True), LabelRule(window=7), LabelRule(leave_out=(0, 3, -100))]
TEXTS = [nasty(seed, seed) for seed in range(60)]
ROWS = [np.random.default_rng(seed).integers(0, 60, seed % 9).tolist() for seed in range(60)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Batches of a few rows, pieces of one or two row groups."""
    monkeypatch.setattr(tables, "_TEXT_ROWS", 7)
    monkeypatch.setattr(tables, "_ID_ROWS", 9)
    monkeypatch.setattr(tables, "_SPAN", 300)


@pytest.fixture
def tokenizer(tmp_path):
    return byte_level(tmp_path / "tokenizer.json")


def settings_of(tmp_path, **more):
    return Settings(**({"vocab_size": 400, "tokenizer": str(tmp_path / "tokenizer.json")} | more))


def parquet(path, table):
    pq.write_table(table, path, row_group_size=11)
    return path


def arrow(path, table):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=13)
    return path


def feather(path, table):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=13)
    return path


FORMS = {"a.parquet": parquet, "b.arrow": arrow, "c.arrow": feather}


@pytest.mark.parametrize("rule", RULES, ids=LabelRule.words)
@pytest.mark.parametrize("name", FORMS)
def test_text_and_ids_equal_a_plain_count(tmp_path, tokenizer, name, rule):
    table = pa.table({"body": TEXTS, "input_ids": ROWS, "n": list(range(60))})
    path = FORMS[name](tmp_path / name, table)
    settings = settings_of(tmp_path, rule=rule, text_field="body")
    pieces = table_pieces(path, settings)
    same(total(pieces, settings), twin(tokenizer, TEXTS, settings))
    assert (len(pieces) > 2) == (name == "a.parquet" and rule.window is None)
    assert len({piece.key for piece in pieces}) == len({piece.fingerprint for piece in pieces}) == len(pieces)
    assert pickle.loads(pickle.dumps(pieces)) == pieces
    settings = Settings(vocab_size=60, rule=rule)  # no tokenizer is needed
    same(total(table_pieces(path, settings), settings), twin(None, ROWS, settings))


COLUMNS = {
    "large text": (TEXTS, pa.large_string()),
    "dictionary": (TEXTS, pa.dictionary(pa.int32(), pa.string())),
    "large lists": (ROWS, pa.large_list(pa.uint16())),
    "fixed lists": ([[1, 2, 3], [3, 3, 0]] * 10, pa.list_(pa.int32(), 3)),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_types_of_columns(tmp_path, tokenizer, name):
    values, kind = COLUMNS[name]
    settings = settings_of(tmp_path)
    for file, write in FORMS.items():
        path = write(tmp_path / file, pa.table({"text": pa.array(values, kind)}))
        same(total(table_pieces(path, settings), settings), twin(tokenizer, values, settings))


@pytest.mark.parametrize("name", FORMS)
def test_bad_rows_are_named_or_skipped(tmp_path, tokenizer, name):
    broken = pa.array([b"ok"] * 20 + [b"ab\xff"] + [b"ok"] * 9, pa.binary()).view(pa.string())
    columns = {
        "row 25: the row holds nothing": pa.array(["ok"] * 25 + [None] + ["ok"] * 4),
        "row 20: byte 2 of the text is not UTF-8": broken,
        "row 13: token 1 has id 500": pa.array([[1, 2]] * 13 + [[1, 500]] + [[1, 2]] * 16),
        "row 14: token 0 has id -1": pa.array([[1, 2]] * 14 + [[-1, 1]] + [[1, 2]] * 15),
        "row 15: the row holds .* something else": pa.array([[1, 2]] * 15 + [[1, None]] + [[1, 2]] * 14),
    }
    for words, column in columns.items():
        path = FORMS[name](tmp_path / name, pa.table({"text": column}))
        settings = settings_of(tmp_path)
        with pytest.raises(ValueError, match=words):
            total(table_pieces(path, settings), settings)
        settings = settings_of(tmp_path, skip_bad=True)
        tally = total(table_pieces(path, settings), settings)
        good = ["ok"] * 29 if pa.types.is_string(column.type) else [[1, 2]] * 29
        same(tally, twin(tokenizer, good, settings))
        assert tally.skipped == len(tally.problems) == 1


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("kept", [0.05, 0.6])
def test_a_file_cut_short(tmp_path, tokenizer, name, kept):
    path = FORMS[name](tmp_path / name, pa.table({"text": TEXTS}))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    settings = settings_of(tmp_path)
    with pytest.raises(ValueError, match="damaged or cut short"):
        total(table_pieces(path, settings), settings)
    settings = settings_of(tmp_path, skip_bad=True)
    tally = total(table_pieces(path, settings), settings)
    same(tally, twin(tokenizer, TEXTS[: tally.documents], settings))
    assert tally.skipped == 1


def test_columns_that_cannot_be_counted(tmp_path, tokenizer):
    path = parquet(tmp_path / "a.parquet", pa.table({"input_ids": ROWS, "score": [0.5] * 60}))
    for name, words in (("body", "has the columns input_ids, score; needed 'body'"), ("score", "is double")):
        settings = settings_of(tmp_path, text_field=name)
        with pytest.raises(ValueError, match=words):
            total(table_pieces(path, settings), settings)


def test_saved_data_sets(tmp_path, tokenizer):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"text": TEXTS})
    settings = settings_of(tmp_path)
    whole.save_to_disk(tmp_path / "one", num_shards=3)
    pieces = table_pieces(tmp_path / "one", settings)
    assert is_table(tmp_path / "one")
    assert len(pieces) == 3
    same(total(pieces, settings), twin(tokenizer, TEXTS, settings))
    chosen = whole.select([5, 3, 50])
    datasets.DatasetDict({"train": whole, "test": chosen}).save_to_disk(tmp_path / "two")
    expected = twin(tokenizer, [*TEXTS, TEXTS[5], TEXTS[3], TEXTS[50]], settings)
    same(total(table_pieces(tmp_path / "two", settings), settings), expected)
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(ValueError, match="lacks its files data-0000"):
        table_pieces(tmp_path / "one", settings)
    (tmp_path / "one" / "state.json").write_text("[]")
    with pytest.raises(ValueError, match="no data set of save_to_disk"):
        table_pieces(tmp_path / "one", settings)


def test_streamed_data_sets(tmp_path, tokenizer):
    pytest.importorskip("datasets")
    folder = tmp_path / "corpus"
    folder.mkdir()
    for shard in range(3):
        rows = TEXTS[20 * shard : 20 * shard + 20]
        text = "".join(json.dumps({"text": row}) + "\n" for row in rows)
        (folder / f"train-{shard}.jsonl").write_text(text, encoding="utf-8")
    settings = settings_of(tmp_path)
    source = f"dataset:{folder}:train"
    pieces = table_pieces(source, settings)
    assert is_table(source)
    assert len({piece.key for piece in pieces}) == 3
    same(total(pieces, settings), twin(tokenizer, TEXTS, settings))
    settings = settings_of(tmp_path, rule=LabelRule(window=7))
    same(total(table_pieces(source, settings), settings), twin(tokenizer, TEXTS, settings))
    (folder / "train-1.jsonl").write_text('{"text": "a"}\n{nonsense\n')
    settings = settings_of(tmp_path)
    with pytest.raises(ValueError, match=r"1/3\], row \d: the data set cannot be read on"):
        total(table_pieces(source, settings), settings)
    settings = settings_of(tmp_path, skip_bad=True)
    tally = total(table_pieces(source, settings), settings)
    assert (tally.documents in (40, 41), tally.skipped) == (True, 1)
    with pytest.raises(ValueError, match="has the splits train; got 'test'"):
        table_pieces(f"dataset:{folder}:test", settings)
    with pytest.raises(ValueError, match="needed dataset:NAME:SPLIT"):
        table_pieces("dataset:name", settings)


@pytest.mark.parametrize("rule", RULES, ids=LabelRule.words)
def test_streamed_parquet(tmp_path, tokenizer, rule, monkeypatch):
    pytest.importorskip("datasets")
    folder = tmp_path / "corpus"
    folder.mkdir()
    for shard in range(3):
        parquet(
            folder / f"train-{shard}.parquet", pa.table({"n": range(20), "text": TEXTS[20 * shard : 20 * shard + 20]})
        )
    source, settings = f"dataset:{folder}:train", settings_of(tmp_path, rule=rule)
    pieces = table_pieces(source, settings)
    assert len(pieces) == (3 if rule.window is None else 1)
    same(total(pieces, settings), twin(tokenizer, TEXTS, settings))
    with pytest.raises(ValueError, match=r"train-0.parquet has the columns n, text; needed 'body'"):
        total(pieces, settings_of(tmp_path, text_field="body"))
    monkeypatch.setattr("trainhooks.corpora.table_sizes.MOST_VALUES", 10)
    monkeypatch.setattr("trainhooks.corpora.table_sizes.DENSEST_VALUES", 0)
    with pytest.raises(ValueError, match=r"train-0.parquet claims 11 values"):
        total(pieces, settings)
    (folder / "train-0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="is damaged or cut short"):
        pieces[0].tally(settings)


def test_what_is_no_table(tmp_path):
    assert not is_table(tmp_path)
    with pytest.raises(ValueError, match="is no table"):
        table_pieces(tmp_path, settings_of(tmp_path))
    with pytest.raises(FileNotFoundError):
        table_pieces(tmp_path / "none.parquet", settings_of(tmp_path))


def test_long_rows_are_read_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("trainhooks.corpora.table_sizes.VALUES", 100)
    ids = [list(range(number, number + 40)) for number in range(9)]
    pq.write_table(pa.table({"input_ids": ids}), tmp_path / "a.parquet")
    sizes, real = [], tables._count_column
    monkeypatch.setattr(tables, "_count_column", lambda *of: (sizes.append(len(of[1])), real(*of)))
    (piece,) = table_pieces(tmp_path / "a.parquet", Settings(vocab_size=100))
    assert piece.tally(Settings(vocab_size=100)).tokens == 360
    assert sizes == [2, 2, 2, 2, 1]


def test_a_row_longer_than_is_held_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("trainhooks.corpora.table_sizes.MOST_VALUES", 10)
    pq.write_table(pa.table({"input_ids": [list(range(40))]}), tmp_path / "a.parquet")
    (piece,) = table_pieces(tmp_path / "a.parquet", Settings(vocab_size=100))
    with pytest.raises(ValueError, match="at most 10 are read at once"):
        piece.tally(Settings(vocab_size=100))


@pytest.mark.parametrize("name", FORMS)
def test_ids_are_widened_a_few_rows_at_a_time(tmp_path, monkeypatch, name):
    monkeypatch.setattr("trainhooks.corpora.table_sizes.VALUES", 100)
    lists = [[1], [], [2] * 99, [3] * 150, [4] * 60, None, [5] * 60]
    FORMS[name](tmp_path / name, pa.table({"input_ids": lists}))
    sizes, real = [], tables._count_lists
    monkeypatch.setattr(
        tables, "_count_lists", lambda *of: (sizes.append(sum(map(len, filter(None, of[1].to_pylist())))), real(*of))
    )
    (piece,) = table_pieces(tmp_path / name, Settings(vocab_size=100))
    tally = piece.tally(Settings(vocab_size=100, skip_bad=True))
    assert tally.counts[:6].tolist() == [0, 1, 99, 150, 60, 60]
    assert (tally.documents, tally.skipped) == (6, 1)
    assert max(size for size in sizes if size != 150) <= 100


@pytest.mark.parametrize("name", FORMS)
def test_a_long_row_among_short_ones_is_left_out(tmp_path, monkeypatch, name):
    monkeypatch.setattr("trainhooks.corpora.table_sizes.MOST_VALUES", 50)
    monkeypatch.setattr("trainhooks.corpora.table_sizes.VALUES", 50)
    monkeypatch.setattr("trainhooks.corpora.tables.MOST_VALUES", 50)
    monkeypatch.setattr(tables, "_SPAN", 1 << 20)
    lists = [[1], list(range(60)), *[[2]] * 40]
    FORMS[name](tmp_path / name, pa.table({"input_ids": lists}))
    (piece,) = table_pieces(tmp_path / name, Settings(vocab_size=100))
    tally = piece.tally(Settings(vocab_size=100, skip_bad=True))
    assert (tally.tokens, tally.documents, tally.skipped) == (41, 41, 1)
    with pytest.raises(ValueError, match="row 1: the row has 60 ids; at most 50 are read"):
        piece.tally(Settings(vocab_size=100))


@pytest.mark.parametrize("name", FORMS)
def test_a_text_that_stands_in_any_number_of_rows_is_refused(tmp_path, tokenizer, monkeypatch, name):
    monkeypatch.setattr("trainhooks.corpora.table_sizes.UNQUESTIONED_BYTES", 1 << 14)
    monkeypatch.setattr("trainhooks.corpora.table_sizes.DENSEST_TEXT", 1)
    monkeypatch.setattr(tables, "_SPAN", 1 << 20)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000, pa.int32()), pa.array(["the cat " * 100]))
    FORMS[name](tmp_path / name, pa.table({"text": column}))
    settings = settings_of(tmp_path)
    (piece,) = table_pieces(tmp_path / name, settings)
    with pytest.raises(ValueError, match="of text: it was made so, or is damaged"):
        piece.tally(settings)


def test_a_column_of_more_values_than_its_bytes_can_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("trainhooks.corpora.table_sizes.MOST_VALUES", 1000)
    pq.write_table(pa.table({"input_ids": [[0] * 100] * 1000}), tmp_path / "a.parquet")
    (piece,) = table_pieces(tmp_path / "a.parquet", Settings(vocab_size=100))
    with pytest.raises(ValueError, match=r"claims 100000 values .* more than that can hold"):
        piece.tally(Settings(vocab_size=100))
