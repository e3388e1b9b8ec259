import csv
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainhooks.core.token_counts import TokenCounts


def counts(*values: int, **fields: object) -> TokenCounts:
    return TokenCounts(np.array(values), **fields)


class TestConstruction:
    def test_it_keeps_a_read_only_copy(self) -> None:
        array = np.array([1, 0, 5], dtype=np.int32)
        kept = TokenCounts(array)
        array[0] = 99
        assert kept.counts.tolist() == [1, 0, 5]
        assert kept.counts.dtype == np.int64
        assert (kept.vocab_size, kept.n_tokens) == (3, 6)
        with pytest.raises(ValueError, match="read-only"):
            kept.counts[0] = 2

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.array([1.0, 2.0]), r"dtype float64; .* pass counts.astype\(numpy.int64\)"),
            (np.array([3.0, 6e-312, 2.0]), r"1 of 3 entries are no counts \(first: id 1 = 6e-312\)"),
            (np.array([3.0, np.nan, np.inf]), r"2 of 3 entries are no counts \(first: id 1 = nan\)"),
            (np.array([True, False]), "dtype bool; needed an integer dtype"),
            (np.array(["1"]), "needed an integer dtype"),
            (np.array([1, -2, -3]), r"2 of 3 token counts are negative \(first: id 1 = -2\)"),
            (np.array([[1, 2]]), r"shape \(1, 2\); needed one dimension"),
            (np.array(3), r"shape \(\); needed one dimension"),
            (np.array([], dtype=np.int64), "empty"),
            (np.array([0, 0]), "all 2 token counts are zero"),
            (np.array([2**63], dtype=np.uint64), "1 of 1 token counts are beyond int64"),
            (np.array([2**62, 2**62]), f"sum to {2**63}, more than int64 holds"),
        ],
    )
    def test_what_is_no_counts_is_refused(self, array: np.ndarray, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TokenCounts(array)

    def test_the_largest_sum_that_fits_is_taken(self) -> None:
        assert counts(2**62, 2**62 - 1).n_tokens == 2**63 - 1

    def test_negative_documents_are_refused(self) -> None:
        with pytest.raises(ValueError, match="documents is -1"):
            counts(1, documents=-1)

    def test_no_more_can_be_counted_than_was_read(self) -> None:
        assert counts(2, 3, tokens_read=5).tokens_read == 5
        with pytest.raises(ValueError, match="tokens_read is 4, but 5 were counted"):
            counts(2, 3, tokens_read=4)


class TestCount:
    @given(st.lists(st.lists(st.integers(0, 6)), min_size=1).filter(any))
    def test_it_agrees_with_a_counter(self, arrays: list[list[int]]) -> None:
        slow = Counter(token for array in arrays for token in array)
        found = TokenCounts.count((np.array(a, dtype=np.int16) for a in arrays), vocab_size=7)
        assert found.counts.tolist() == [slow[token] for token in range(7)]
        assert found.documents == len(arrays)

    def test_blocks_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ids = np.random.default_rng(0).integers(0, 50, size=(7, 11)).astype(np.uint16)
        whole = TokenCounts.count(ids, vocab_size=50)
        monkeypatch.setattr("trainhooks.core.token_counts._BLOCK", 10)
        assert np.array_equal(TokenCounts.count(ids, vocab_size=50).counts, whole.counts)
        assert whole.documents is None

    @pytest.mark.parametrize("ids", [[1, 1, 2], (1, 1, 2), torch.tensor([[1, 1, 2]]), np.array([1, 1, 2], np.uint64)])
    def test_one_array_may_be_a_list_or_a_tensor(self, ids: object) -> None:
        assert TokenCounts.count(ids, vocab_size=4).counts.tolist() == [0, 2, 1, 0]

    def test_it_keeps_what_it_is_told(self) -> None:
        found = TokenCounts.count([0], vocab_size=1, tokenizer_hash="t", corpus_hash="c", rule="labels only")
        assert (found.tokenizer_hash, found.corpus_hash, found.rule) == ("t", "c", "labels only")

    def test_an_id_out_of_range_is_named_with_its_position(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("trainhooks.core.token_counts._BLOCK", 2)
        with pytest.raises(ValueError, match=r"token id 9 at position 3 of array 1 is outside 0 ... 4"):
            TokenCounts.count([[0], [1, 2, 3, 9]], vocab_size=5)
        with pytest.raises(ValueError, match="token id -1 at position 0 is outside"):
            TokenCounts.count(np.array([-1]), vocab_size=5)

    @pytest.mark.parametrize("ids", [np.array([1.0]), np.array([True])])
    def test_ids_that_are_not_whole_numbers_are_refused(self, ids: np.ndarray) -> None:
        with pytest.raises(ValueError, match="needed whole numbers"):
            TokenCounts.count(ids, vocab_size=5)

    @pytest.mark.parametrize("ids", [[], [[]], np.array([], dtype=np.int64)])
    def test_nothing_to_count_is_refused(self, ids: object) -> None:
        with pytest.raises(ValueError, match="nothing to count"):
            TokenCounts.count(ids, vocab_size=5)

    def test_a_vocabulary_of_none_is_refused(self) -> None:
        with pytest.raises(ValueError, match="vocab_size is 0"):
            TokenCounts.count([0], vocab_size=0)


class TestMerge:
    def test_it_adds_and_commutes(self) -> None:
        a = counts(1, 2, documents=3, tokenizer_hash="t", corpus_hash="a", rule="r")
        b = counts(10, 0, documents=4, tokenizer_hash="t", corpus_hash="b", rule="r")
        for merged in (a + b, b + a):
            assert merged.counts.tolist() == [11, 2]
            assert (merged.documents, merged.tokenizer_hash, merged.corpus_hash) == (7, "t", None)
            assert merged.rule == "r"

    def test_halves_add_up_to_the_whole(self) -> None:
        ids = np.random.default_rng(1).integers(0, 20, size=1000)
        halves = TokenCounts.count(ids[:400], vocab_size=20) + TokenCounts.count(ids[400:], vocab_size=20)
        assert np.array_equal(halves.counts, TokenCounts.count(ids, vocab_size=20).counts)

    def test_what_one_side_does_not_know(self) -> None:
        merged = counts(1, documents=3) + counts(2, tokenizer_hash="t")
        assert (merged.documents, merged.tokenizer_hash) == (None, "t")

    def test_tokens_read_add_up_where_both_are_known(self) -> None:
        assert (counts(1, tokens_read=3) + counts(2, tokens_read=2)).tokens_read == 5
        assert (counts(1, tokens_read=3) + counts(2)).tokens_read is None

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (counts(1, 2, 3), "2 and 3 entries"),
            (counts(1, 2, tokenizer_hash="u"), "tokenizer_hash differ"),
            (counts(1, 2, rule="labels only"), "rule differ"),
            (counts(2**63 - 4, 0), "more than int64 holds"),
        ],
    )
    def test_what_does_not_belong_together_is_refused(self, other: TokenCounts, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            counts(1, 3, tokenizer_hash="t", rule="all") + other

    def test_only_counts_can_be_added(self) -> None:
        with pytest.raises(TypeError):
            counts(1) + 1  # type: ignore[operator]


class TestForRows:
    def test_equal_lengths_pass(self) -> None:
        assert counts(1, 2).for_rows(2).tolist() == [1, 2]
        assert counts(1, 2).for_rows(2, vocab_size=2).tolist() == [1, 2]

    def test_padding_must_be_owned_to(self) -> None:
        pythia = TokenCounts(np.ones(50277, dtype=np.int64))
        with pytest.raises(ValueError, match="token counts") as raised:
            pythia.for_rows(50304)
        assert str(raised.value) == (
            "token counts have 50277 entries; the output embedding has 50304 rows. The extra 27 rows (50277-50303) "
            "are padding: pass `vocab_size=50277`, or counts of length 50304."
        )
        padded = pythia.for_rows(50304, vocab_size=50277)
        assert padded.dtype == np.int64
        assert (padded.size, padded.sum(), padded[50277:].any()) == (50304, 50277, False)

    def test_one_extra_row_reads_well(self) -> None:
        with pytest.raises(ValueError, match=r"The extra 1 row \(2\) is padding: pass `vocab_size=2`"):
            counts(1, 2).for_rows(3)

    def test_more_counts_than_rows_are_refused(self) -> None:
        with pytest.raises(ValueError, match="have 3 entries; the output embedding has 2 rows"):
            counts(1, 2, 3).for_rows(2)

    @pytest.mark.parametrize("vocab_size", [0, 4])
    def test_a_vocab_size_that_does_not_fit_is_refused(self, vocab_size: int) -> None:
        with pytest.raises(ValueError, match=f"vocab_size={vocab_size} does not fit"):
            counts(1, 2, 3).for_rows(6, vocab_size=vocab_size)

    def test_counts_that_reach_into_the_padding(self) -> None:
        assert counts(1, 2, 0).for_rows(3, vocab_size=2).tolist() == [1, 2, 0]
        with pytest.raises(ValueError, match="calls id 2 padding, but its count is 7"):
            counts(1, 2, 7).for_rows(4, vocab_size=2)


class TestFiles:
    full = counts(
        4, 0, 2**40, documents=12, tokenizer_hash="té", corpus_hash="c", rule="all, of them", tokens_read=2**40 + 5
    )

    def test_npz_keeps_every_field(self, tmp_path: Path) -> None:
        self.full.save(tmp_path / "counts.npz")
        back = TokenCounts.load(tmp_path / "counts.npz")
        assert np.array_equal(back.counts, self.full.counts)
        assert (back.documents, back.tokenizer_hash, back.corpus_hash, back.rule) == (12, "té", "c", "all, of them")
        assert back.tokens_read == 2**40 + 5

    def test_npz_keeps_what_is_not_known(self, tmp_path: Path) -> None:
        counts(1).save(tmp_path / "counts.npz")
        back = TokenCounts.load(str(tmp_path / "counts.npz"))
        assert (back.documents, back.tokenizer_hash, back.corpus_hash, back.rule) == (None, None, None, "")

    @pytest.mark.parametrize("name", ["counts.npy", "counts.csv", "COUNTS.CSV"])
    def test_the_others_keep_the_counts(self, tmp_path: Path, name: str) -> None:
        self.full.save(tmp_path / name)
        assert np.array_equal(TokenCounts.load(tmp_path / name).counts, self.full.counts)
        assert [file.name for file in tmp_path.iterdir()] == [name]

    def test_a_csv_is_what_any_reader_expects(self, tmp_path: Path) -> None:
        self.full.save(tmp_path / "counts.csv")
        with (tmp_path / "counts.csv").open(newline="") as file:
            assert list(csv.reader(file)) == [["id", "count"], ["0", "4"], ["1", "0"], ["2", str(2**40)]]

    def test_csv_rows_may_come_in_any_order(self, tmp_path: Path) -> None:
        (tmp_path / "counts.csv").write_text("\ufeffid, count\r\n1,5\r\n0,3\r\n", encoding="utf-8")
        assert TokenCounts.load(tmp_path / "counts.csv").counts.tolist() == [3, 5]

    def test_every_bad_csv_line_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "counts.csv").write_text("id,count\n0,1\n0,2\nx,3\n1,-4\n7,1\n1,2,3\n")
        with pytest.raises(ValueError, match=r"counts\.csv holds no token counts") as raised:
            TokenCounts.load(tmp_path / "counts.csv")
        for problem in (
            "line 3: id 0 stands twice",
            "line 4: ['x', '3'] is not two whole numbers",
            "line 5: count -4 is not in 0",
            "line 7: ['1', '2', '3'] is not",
            "id 2 is missing",
        ):
            assert problem in str(raised.value)

    def test_many_problems_are_cut_short(self, tmp_path: Path) -> None:
        (tmp_path / "counts.csv").write_text("id,count\n" + "x,1\n" * 30)
        with pytest.raises(ValueError, match="and 22 more"):
            TokenCounts.load(tmp_path / "counts.csv")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("counts.csv", b"", "needed the header id,count"),
            ("counts.csv", b"id,count\n", "empty"),
            ("counts.csv", b"\xff\xfe\x00", "counts.csv holds no token counts"),
            ("counts.npy", b"", "counts.npy holds no token counts"),
            ("counts.npy", b"\x93NUMPY", "counts.npy holds no token counts"),
            ("counts.npy", pickle.dumps([1, 2]), "neither an .npy nor an .npz"),
            ("counts.npz", b"PK\x03\x04 and nothing", "counts.npz holds no token counts"),
        ],
    )
    def test_files_that_hold_no_counts(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            TokenCounts.load(tmp_path / name)

    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        np.save(tmp_path / "counts.npy", np.array([Counter()], dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match="Python objects"):
            TokenCounts.load(tmp_path / "counts.npy")

    def test_an_archive_without_counts(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "counts.npz", freq=np.ones(3))
        with pytest.raises(ValueError, match="needed an array named counts"):
            TokenCounts.load(tmp_path / "counts.npz")

    def test_an_unknown_suffix(self, tmp_path: Path) -> None:
        for act in (counts(1).save, TokenCounts.load):
            with pytest.raises(ValueError, match=r"ends in \.pkl; needed \.npz"):
                act(tmp_path / "counts.pkl")

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            TokenCounts.load(tmp_path / "counts.npz")

    def test_a_failed_save_leaves_what_was_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        counts(1, 2).save(tmp_path / "counts.npy")

        def full_disk(*_: object, **__: object) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(np, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            counts(3, 4).save(tmp_path / "counts.npy")
        assert [file.name for file in tmp_path.iterdir()] == ["counts.npy"]
        assert TokenCounts.load(tmp_path / "counts.npy").counts.tolist() == [1, 2]


def test_a_row_or_a_column_of_a_table_is_counts(tmp_path):
    for shape in ((1, 5), (5, 1)):
        np.save(tmp_path / "counts.npy", np.array([4, 0, 2, 1, 9]).reshape(shape))
        assert TokenCounts.load(tmp_path / "counts.npy").counts.tolist() == [4, 0, 2, 1, 9]
    np.save(tmp_path / "counts.npy", np.ones((2, 5), dtype=np.int64))
    with pytest.raises(ValueError, match=r"shape \(2, 5\).*sum over several"):
        TokenCounts.load(tmp_path / "counts.npy")
