"""Megatron pairs: every dtype code, both rules against a plain Counter, and every way a pair can be broken."""

import struct
from itertools import pairwise

import numpy as np
import pytest
from test_arrays import ids, plain, settings

from trainhooks.corpora import arrays
from trainhooks.corpora.counting import tally_pieces
from trainhooks.corpora.megatron import megatron_pieces

CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
DOCUMENTS = [40, 0, 1, 700, 0, 0, 1300, 3, 611, 0]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(arrays, "PIECE_BYTES", 1000)
    monkeypatch.setattr(arrays, "_BLOCK", 101)


def write(folder, lengths, *, code=8, starts=None, name="a", modes=False):
    """A pair as Megatron writes it; `starts` is the document index, by default a document a sequence."""
    stream = ids(sum(lengths), dtype=CODES[code])
    stream.tofile(folder / f"{name}.bin")
    sizes = np.array(lengths, dtype="<i4")
    pointers = (np.cumsum(lengths) - lengths).astype("<i8") * stream.itemsize
    starts = np.arange(len(lengths) + 1) if starts is None else np.array(starts)
    head = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, code, len(lengths), len(starts))
    tables = sizes.tobytes() + pointers.tobytes() + starts.astype("<i8").tobytes()
    (folder / f"{name}.idx").write_bytes(head + tables + b"\0" * (len(lengths) if modes else 0))
    return stream, folder / f"{name}.bin"


def documents(stream, lengths, starts=None):
    ends = np.concatenate([[0], np.cumsum(lengths)])
    starts = range(len(lengths) + 1) if starts is None else starts
    return [stream[ends[a] : ends[b]].tolist() for a, b in pairwise(starts)]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("rule", [{}, {"window": 129}, {"skip_first": True}])
def test_every_dtype_and_rule_equals_a_counter(tmp_path, code, rule):
    stream, path = write(tmp_path, DOCUMENTS, code=code)
    tally = tally_pieces(megatron_pieces(path), settings(**rule))
    assert tally.counts.tolist() == plain(documents(stream, DOCUMENTS), **rule)
    assert (tally.documents, tally.tokens) == (len(DOCUMENTS), sum(DOCUMENTS))


def test_documents_may_have_several_sequences(tmp_path):
    starts = [0, 2, 3, 7, 7, 10]
    stream, path = write(tmp_path, DOCUMENTS, starts=starts, modes=True)
    tally = tally_pieces(megatron_pieces(path.with_suffix(".idx")), settings(skip_first=True))
    assert tally.counts.tolist() == plain(documents(stream, DOCUMENTS, starts), skip_first=True)
    assert tally.documents == 5


def test_windows_of_one_length_are_documents_without_their_first(tmp_path):
    _, path = write(tmp_path, [65] * 30)
    by_window, by_document = (
        tally_pieces(megatron_pieces(path), settings(**rule)) for rule in ({"window": 65}, {"skip_first": True})
    )
    assert np.array_equal(by_window.counts, by_document.counts)
    assert by_window.counts.sum() == 64 * 30


def test_a_pair_that_does_not_belong_together_is_refused(tmp_path):
    _, path = write(tmp_path, [100, 200])
    _, other = write(tmp_path, [100, 201], name="b")
    other.with_suffix(".idx").replace(path.with_suffix(".idx"))
    with pytest.raises(ValueError, match=r"600 bytes; .*a.idx says 301 ids of uint16, 602 bytes: it is cut short"):
        megatron_pieces(path)
    write(tmp_path, [100, 200])
    path.write_bytes(path.read_bytes() + b"\0\0")
    with pytest.raises(ValueError, match="not the file the index was made for"):
        megatron_pieces(path)
    path.unlink()
    with pytest.raises(ValueError, match=r"a.bin is missing"):
        megatron_pieces(path)


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        (0, b"TNTIDX\0\0", "legacy format"),
        (0, b"PARQUET", "no Megatron index"),
        (9, struct.pack("<Q", 2), "version 2; needed 1"),
        (17, b"\6", "code 6, floating-point"),
        (17, b"\x63", "code 99, an unknown type"),
        (18, struct.pack("<Q", 3), "cut short"),
        (26, struct.pack("<Q", 0), "empty document index"),
        (34, struct.pack("<i", -1), "sequence 0 has a negative size"),
        (34, struct.pack("<i", 99), "sequence 1 is said to begin at byte 200; the sizes before it sum to 198"),
        (58, struct.pack("<q", 1), "entry 0 of the document index"),
        (66, struct.pack("<q", 5), "entry 2 of the document index"),
        (74, struct.pack("<q", 4), "ends at sequence 4; needed 2"),
    ],
)
def test_a_damaged_index_is_placed(tmp_path, place, new, message):
    _, path = write(tmp_path, [100, 200])
    index = path.with_suffix(".idx")
    whole = index.read_bytes()
    index.write_bytes(whole[:place] + new + whole[place + len(new) :])
    with pytest.raises(ValueError, match=message):
        megatron_pieces(path)


@pytest.mark.parametrize("length", [0, 8, 30, 60])
def test_an_index_cut_short_is_refused(tmp_path, length):
    _, path = write(tmp_path, [100, 200])
    index = path.with_suffix(".idx")
    index.write_bytes(index.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"a\.idx"):
        megatron_pieces(path)


def test_an_id_beyond_the_vocabulary_is_placed(tmp_path):
    stream, path = write(tmp_path, [100, 2000])
    stream[1234] = 77
    stream.tofile(path)
    with pytest.raises(ValueError, match=r"a.bin, position 1234: token id 77"):
        tally_pieces(megatron_pieces(path), settings())
