"""Arrays of token ids: equal to a plain Counter for every dtype, shape and rule; what is broken is named."""

from collections import Counter

import numpy as np
import pytest

from trainhooks.corpora import arrays
from trainhooks.corpora.arrays import bin_pieces, npy_pieces
from trainhooks.corpora.base import LabelRule, Settings, Tally
from trainhooks.corpora.counting import tally_pieces

VOCAB = 60
DTYPES = ["u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", ">u2", ">i4"]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    # many pieces and several blocks in each
    monkeypatch.setattr(arrays, "PIECE_BYTES", 4000)
    monkeypatch.setattr(arrays, "_BLOCK", 301)


def ids(size, *, dtype="<u2", seed=0):
    return (VOCAB * np.random.default_rng(seed).random(size) ** 2).astype(dtype)


def plain(sequences, *, window=None, skip_first=False, leave_out=()):
    """The slow twin: one id at a time, windows over the stream of all sequences."""
    counter, position = Counter(), 0
    for sequence in sequences:
        for place, token in enumerate(sequence):
            is_first = (window is not None and position % window == 0) or (skip_first and place == 0)
            if not is_first and token not in leave_out:
                counter[int(token)] += 1
            position += 1
    return [counter[token] for token in range(VOCAB)]


def settings(**rule):
    return Settings(vocab_size=VOCAB, rule=LabelRule(**rule))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_integer_dtype_equals_a_counter(tmp_path, dtype):
    stream = ids(7001, dtype=dtype)
    np.save(tmp_path / "a.npy", stream)
    tally = tally_pieces(npy_pieces(tmp_path / "a.npy", settings()), settings())
    assert tally.counts.tolist() == plain([stream.tolist()])
    assert (tally.tokens, tally.documents, tally.skipped) == (7001, None, 0)


@pytest.mark.parametrize("rule", [{}, {"window": 2}, {"window": 129}, {"window": 9000}, {"leave_out": (0, 7, -1)}])
def test_nanogpt_streams_equal_a_counter(tmp_path, rule):
    stream = ids(8011)
    stream.tofile(tmp_path / "a.bin")
    pieces = bin_pieces(tmp_path / "a.bin")
    assert len(pieces) == 5
    assert tally_pieces(pieces, settings(**rule)).counts.tolist() == plain([stream.tolist()], **rule)


@pytest.mark.parametrize("shape", [(), (5,), (1, 1), (37, 129), (3, 5, 61)])
@pytest.mark.parametrize("rule", [{}, {"skip_first": True}, {"window": 17}])
def test_the_last_axis_of_an_array_is_a_sequence(tmp_path, shape, rule):
    array = ids(int(np.prod(shape)), seed=1).reshape(shape)
    np.save(tmp_path / "a.npy", array)
    rows = array.reshape(-1, shape[-1] if shape else 1).tolist()
    found = tally_pieces(npy_pieces(tmp_path / "a.npy", settings(**rule)), settings(**rule))
    assert found.counts.tolist() == plain(rows, **rule)


def test_fortran_order_counts_and_is_refused_where_positions_matter(tmp_path):
    array = np.asfortranarray(ids(600).reshape(20, 30))
    np.save(tmp_path / "a.npy", array)
    found = tally_pieces(npy_pieces(tmp_path / "a.npy", settings()), settings())
    assert found.counts.tolist() == plain(array.tolist())
    with pytest.raises(ValueError, match="Fortran order"):
        npy_pieces(tmp_path / "a.npy", settings(skip_first=True))


@pytest.mark.parametrize("dtype", ["<u2", "<u8"])
def test_an_id_beyond_the_vocabulary_is_placed(tmp_path, dtype):
    stream = ids(6000, dtype=dtype)
    stream[[5003, 5010]] = VOCAB, VOCAB + 9
    stream.tofile(tmp_path / "a.bin")
    pieces = bin_pieces(tmp_path / "a.bin", dtype=dtype)
    with pytest.raises(ValueError, match=rf"a.bin, position 5003: token id {VOCAB} is outside 0 ... {VOCAB - 1}"):
        tally_pieces(pieces, settings())
    skipping = Settings(vocab_size=VOCAB, skip_bad=True)
    tally = tally_pieces(pieces, skipping)
    assert tally.counts.tolist() == plain([stream.tolist()])
    assert tally.skipped == 2
    assert "position 5003" in tally.problems[0]


def test_ids_outside_the_vocabulary_may_be_left_out_by_the_rule(tmp_path):
    stream = ids(4000, dtype="<i4")
    stream[::7], stream[3] = -100, 99
    np.save(tmp_path / "a.npy", stream)
    rule = {"leave_out": (-100, 99), "window": 50}
    tally = tally_pieces(npy_pieces(tmp_path / "a.npy", settings(**rule)), settings(**rule))
    assert tally.counts.tolist() == plain([stream.tolist()], **rule)
    with pytest.raises(ValueError, match="position 0: token id -100"):
        tally_pieces(npy_pieces(tmp_path / "a.npy", settings()), settings())


def test_empty_arrays_have_no_pieces(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 0), dtype=np.int32))
    (tmp_path / "a.bin").write_bytes(b"")
    assert npy_pieces(tmp_path / "a.npy", settings()) == []
    assert bin_pieces(tmp_path / "a.bin") == []


def test_broken_files_are_refused(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"\0" * 1001)
    with pytest.raises(ValueError, match="1001 bytes, no whole number of uint16"):
        bin_pieces(path)
    with pytest.raises(ValueError, match="integer dtype"):
        bin_pieces(path, dtype="float32")
    np.save(tmp_path / "f.npy", np.ones(3))
    with pytest.raises(ValueError, match="dtype float64"):
        npy_pieces(tmp_path / "f.npy", settings())
    np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "cut.npy", ids(5000))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-100])
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "none.npy").write_bytes(b"")
    for name in ("o", "cut", "text", "none"):
        with pytest.raises(ValueError, match=rf"{name}.npy is no .npy file that can be read"):
            npy_pieces(tmp_path / f"{name}.npy", settings())


@pytest.mark.parametrize(
    ("written", "read"), [("<u4", "uint16"), (">u4", ">u2"), ("<i8", "uint32"), ("<u8", "uint16"), ("<u2", "uint8")]
)
def test_a_stream_of_wider_ids_is_refused(tmp_path, written, read):
    path = tmp_path / "a.bin"
    ids(2000, dtype=written).tofile(path)
    with pytest.raises(ValueError, match=r"a\.bin is to be read as .* every second id .*--dtype uint32"):
        bin_pieces(path, dtype=read)
    assert tally_pieces(bin_pieces(path, dtype=written), settings()).tokens == 2000


def test_padding_and_separators_do_not_look_like_wider_ids(tmp_path):
    path, padded = tmp_path / "a.bin", np.zeros((40, 64), dtype="<u2")
    padded[:, 0] = 7  # documents of one id, and an odd number of zeros behind each
    mostly = np.tile(np.array([5, 0], dtype="<u2"), 500)
    mostly[333] = 1
    for stream in (padded.ravel(), np.zeros(500, dtype="<u2"), mostly, np.tile(mostly[:2], 63)):
        stream.tofile(path)
        assert tally_pieces(bin_pieces(path), settings()).tokens == stream.size


def test_a_file_that_shrinks_while_counting_is_named(tmp_path):
    path = tmp_path / "a.bin"
    ids(3000).tofile(path)
    pieces = bin_pieces(path)
    path.write_bytes(path.read_bytes()[:4900])
    with pytest.raises(ValueError, match=r"a.bin ends at token 2450; needed 3000"):
        tally_pieces(pieces, settings())


def test_fingerprints_say_content_and_keys_say_which_file(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ids(9000, seed=seed).tofile(tmp_path / f"{name}.bin")
    a, b, c = ([piece.fingerprint for piece in bin_pieces(tmp_path / f"{name}.bin")] for name in "abc")
    assert a == b
    assert not set(a) & set(c)
    assert len({piece.key for name in "abc" for piece in bin_pieces(tmp_path / f"{name}.bin")}) == 3 * len(a)


def test_tallies_know_documents_only_where_all_do():
    one, two = (Tally(np.ones(3, dtype=np.int64), documents=known, tokens=3) for known in (2, None))
    one.add(Tally(np.ones(3, dtype=np.int64), documents=5, tokens=4, skipped=1, problems=["x"]))
    assert (one.documents, one.tokens, one.skipped, one.problems) == (7, 7, 1, ["x"])
    one.add(two)
    assert one.documents is None
    assert one.counts.tolist() == [3, 3, 3]
