import hashlib
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from torch.utils.data import DataLoader

from trainhooks.demo import corpus as module
from trainhooks.demo.corpus import SEPARATOR, Corpus, Windows, load_corpus, windows

BYTES = 200_000  # of the standard library: enough for a tokenizer of 512


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def library(cache: Path) -> Corpus:
    return load_corpus(vocab_size=512, max_bytes=BYTES, cache_dir=cache, progress=False)


def small(folder: Path, *paths: Path, vocab_size: int = 300, **settings: object) -> Corpus:
    return load_corpus(paths, vocab_size=vocab_size, cache_dir=folder / "cache", progress=False, **settings)


def write(folder: Path, **texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    return folder


class TestTokenizerThatIsGiven:
    def test_it_is_taken_as_it_is(self, library: Corpus, tmp_path: Path) -> None:
        library.tokenizer.save(str(tmp_path / "tokenizer.json"))
        folder = write(tmp_path / "texts", a="def of(it):", b="return it")
        found = small(tmp_path, folder, tokenizer=tmp_path / "tokenizer.json")
        assert found.token_texts == library.token_texts
        assert found.counts.vocab_size == 512
        text = found.tokenizer.decode(found.ids.tolist(), skip_special_tokens=False)
        assert text == f"def of(it):{SEPARATOR}return it{SEPARATOR}"

    def test_another_one_is_not_taken_from_the_cache(self, library: Corpus, tmp_path: Path) -> None:
        library.tokenizer.save(str(tmp_path / "tokenizer.json"))
        folder = write(tmp_path / "texts", a="some text, and some text, and more of some text")
        trained, given = small(tmp_path, folder), small(tmp_path, folder, tokenizer=tmp_path / "tokenizer.json")
        assert trained.tokenizer_hash != given.tokenizer_hash
        assert small(tmp_path, folder).tokenizer_hash == trained.tokenizer_hash

    @pytest.mark.parametrize("highest", [9, 70_000])
    def test_ids_between_which_some_are_missing(self, tmp_path: Path, highest: int) -> None:
        folder = write(tmp_path / "texts", a="a b a c")
        words = {SEPARATOR: 0, "a": 1, "b": 2, "c": highest}
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=SEPARATOR))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        made.save(str(tmp_path / "tokenizer.json"))
        found = small(tmp_path, folder, tokenizer=tmp_path / "tokenizer.json")
        assert found.ids.tolist() == [1, 2, 1, highest, 0]
        assert found.counts.vocab_size == len(found.token_texts) == highest + 1

    def test_what_cannot_serve_is_refused(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "texts", a="text")
        broken = tmp_path / "broken.json"
        broken.write_text("{}", encoding="utf-8")
        with pytest.raises(ValueError, match=r"broken.json cannot be read as a tokenizer"):
            small(tmp_path, folder, tokenizer=broken)
        plain = tmp_path / "plain.json"
        tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(plain))
        with pytest.raises(ValueError, match=r"plain.json has no token <\|endoftext\|>"):
            small(tmp_path, folder, tokenizer=plain)


class TestStandardLibrary:
    def test_the_parts_agree(self, library: Corpus) -> None:
        slow = Counter(library.ids.tolist())
        assert library.counts.counts.tolist() == [slow[token] for token in range(512)]
        assert library.counts.documents == library.documents == slow[0] > 1
        assert library.ids.dtype == np.uint16
        assert isinstance(library.ids, np.memmap)
        assert len(library.token_texts) == library.counts.vocab_size == library.tokenizer.get_vocab_size() == 512
        assert library.counts.tokenizer_hash == library.tokenizer_hash
        assert library.counts.corpus_hash == library.corpus_hash
        assert SEPARATOR in library.counts.rule

    def test_the_ids_decode_to_the_text(self, library: Corpus) -> None:
        text = library.tokenizer.decode(library.ids.tolist(), skip_special_tokens=False)
        documents = text.split(SEPARATOR)
        assert documents.pop() == ""
        assert len(documents) == library.documents
        sources = {file.read_text("utf-8") for file in Path(hashlib.__file__).parent.glob("*.py")}
        assert len(sources.intersection(documents)) > 1
        assert len(text.encode()) - len(SEPARATOR) * len(documents) >= BYTES

    def test_a_frequent_token_is_what_one_expects(self, library: Corpus) -> None:
        assert library.token_texts[0] == SEPARATOR
        assert " self" in library.token_texts
        assert library.counts.counts.argmax() in {library.token_texts.index(text) for text in ("\n", " ", ".", ",")}

    def test_the_cache_gives_the_same(self, library: Corpus, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_build", lambda *_, **__: pytest.fail("it was built again"))
        again = load_corpus(vocab_size=512, max_bytes=BYTES, cache_dir=cache, progress=False)
        assert np.array_equal(again.ids, library.ids)
        assert again.token_texts == library.token_texts
        assert (again.tokenizer_hash, again.corpus_hash) == (library.tokenizer_hash, library.corpus_hash)

    def test_a_second_build_gives_the_same(self, library: Corpus, tmp_path: Path) -> None:
        again = load_corpus(vocab_size=512, max_bytes=BYTES, cache_dir=tmp_path, progress=False)
        assert again.tokenizer_hash == library.tokenizer_hash
        assert np.array_equal(again.ids, library.ids)

    def test_installed_packages_are_left_out(self) -> None:
        files = module._find(None)
        assert files == sorted(files)
        assert len(files) > 100
        assert not any("site-packages" in str(file) for file in files)

    def test_a_python_without_its_source(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module.sysconfig, "get_path", lambda _: str(tmp_path))
        with pytest.raises(ValueError, match="no source text in"):
            load_corpus(cache_dir=tmp_path, progress=False)


class TestPaths:
    def test_folders_are_read_in_order_and_files_as_given(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "texts", b="second", a="first")
        (folder / "image.png").write_bytes(b"\x89PNG\x00")
        (folder / "empty.txt").touch()
        (folder / "deep").mkdir()
        (folder / "deep" / "note.MD").write_text("third")
        for passed_over in (".git", "site-packages"):
            write(folder / passed_over, a="not this")
        extra = tmp_path / "README"
        extra.write_text("fourth")
        found = small(tmp_path, extra, folder, folder / "a.txt")
        text = found.tokenizer.decode(found.ids.tolist(), skip_special_tokens=False)
        assert text.split(SEPARATOR) == ["fourth", "first", "second", "third", ""]
        assert found.documents == 4

    def test_bytes_that_are_no_utf8_are_replaced(self, tmp_path: Path) -> None:
        file = tmp_path / "latin.txt"
        file.write_bytes("caf\u00e9\r\n".encode("latin-1"))
        found = small(tmp_path, file)
        assert found.tokenizer.decode(found.ids.tolist()) == "caf\ufffd\r\n"

    def test_a_separator_in_the_text_stays_text(self, tmp_path: Path) -> None:
        found = small(tmp_path, write(tmp_path / "texts", a=f"one {SEPARATOR} two"))
        assert found.counts.counts[0] == found.documents == 1
        assert found.tokenizer.decode(found.ids.tolist()) == f"one {SEPARATOR} two"

    def test_a_small_text_gives_a_small_vocabulary(self, tmp_path: Path) -> None:
        found = small(tmp_path, write(tmp_path / "texts", a="ab"), vocab_size=8192)
        assert 257 <= found.counts.vocab_size == len(found.token_texts) < 270

    def test_max_bytes_stops_after_the_document_that_reaches_it(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "texts", a="x" * 10, b="y" * 10, c="z" * 10)
        assert [small(tmp_path, folder, max_bytes=n).documents for n in (1, 10, 11, 20, 21, 99)] == [1, 1, 2, 2, 3, 3]

    def test_the_hash_tells_texts_and_their_borders_apart(self, tmp_path: Path) -> None:
        hashes = {
            small(tmp_path, write(tmp_path / name, **texts)).corpus_hash
            for name, texts in {
                "1": {"a": "ab", "b": "c"},
                "2": {"a": "a", "b": "bc"},
                "3": {"a": "abc"},
            }.items()
        }
        assert len(hashes) == 3
        same = small(tmp_path, write(tmp_path / "4", other="ab", zebra="c"))
        assert same.corpus_hash in hashes  # names do not matter

    def test_pieces_of_a_long_document_make_it_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        document = "".join(f"line {n}\n" for n in range(300)) + "x" * 500
        folder = write(tmp_path / "texts", a=document)
        monkeypatch.setattr(module, "_PIECE", 100)
        text = module._scan(module._find([folder]), None, named=frozenset())
        pieces = list(text.pieces())
        assert "".join(piece for piece, _ in pieces) == document
        assert [last for _, last in pieces] == [False] * (len(pieces) - 1) + [True]
        assert max(len(piece) for piece, _ in pieces) <= 100
        assert pieces[0][0].endswith("\n")
        found = small(tmp_path, folder)
        assert found.tokenizer.decode(found.ids.tolist()) == document
        assert found.counts.counts[0] == 1

    def test_the_tokenizer_is_trained_on_a_sample_of_much_text(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_PIECE", 100)
        monkeypatch.setattr(module, "_TRAIN_CHARACTERS", 500)
        folder = write(tmp_path / "texts", a="abab " * 400)
        found = small(tmp_path, folder)
        assert found.tokenizer.decode(found.ids.tolist()) == "abab " * 400

    @pytest.mark.parametrize("paths", [[], ["empty"]])
    def test_no_text_files(self, tmp_path: Path, paths: list[str]) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="there are no text files in"):
            small(tmp_path, *(tmp_path / path for path in paths))

    def test_a_missing_path(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="nowhere does not exist"):
            small(tmp_path, tmp_path / "nowhere")

    def test_an_empty_corpus(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="the corpus is empty: 2 files"):
            small(tmp_path, write(tmp_path / "texts", a="", b=""))

    def test_a_binary_file_is_refused_by_name_and_passed_over_in_a_folder(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "texts", a="text", b="\0\1")
        with pytest.raises(ValueError, match=r"b\.txt is not UTF-8 text"):
            small(tmp_path, folder / "b.txt")
        assert small(tmp_path, folder).documents == 1

    def test_a_vocabulary_below_the_bytes(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"vocab_size is 256; .* needs 257"):
            load_corpus(vocab_size=256, cache_dir=tmp_path, progress=False)

    def test_the_extra_is_named_where_it_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(ImportError, match=r"pip install 'trainhooks\[transformers\]'"):
            load_corpus(cache_dir=tmp_path, progress=False)


class TestCache:
    def test_it_lies_where_xdg_says(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        load_corpus([write(tmp_path / "texts", a="text")], vocab_size=300, progress=False)
        (entry,) = (tmp_path / "xdg" / "trainhooks" / "corpora").iterdir()
        assert sorted(file.name for file in entry.iterdir()) == ["counts.npz", "ids.npy", "tokenizer.json"]

    def test_each_text_and_vocabulary_has_its_own(self, tmp_path: Path) -> None:
        first = write(tmp_path / "1", a="a text of some length")
        second = write(tmp_path / "2", a="a text of other length")
        for folder, vocab_size in ((first, 300), (first, 260), (second, 300), (first, 300)):
            small(tmp_path, folder, vocab_size=vocab_size)
        assert len(list((tmp_path / "cache" / "corpora").iterdir())) == 3

    @pytest.mark.parametrize("name", ["ids.npy", "tokenizer.json", "counts.npz"])
    @pytest.mark.parametrize("damage", ["gone", "cut", "zeros"])
    def test_what_is_damaged_is_made_again(self, tmp_path: Path, name: str, damage: str) -> None:
        folder = write(tmp_path / "texts", a="some text to be kept")
        first = small(tmp_path, folder)
        expected = first.ids.tolist()
        (entry,) = (tmp_path / "cache" / "corpora").iterdir()
        content = (entry / name).read_bytes()
        (entry / name).unlink()
        if damage != "gone":
            kept = content[: len(content) - 10]
            (entry / name).write_bytes(kept if damage == "cut" else kept + bytes(10))
        again = small(tmp_path, folder)
        assert again.ids.tolist() == expected
        assert (entry / name).read_bytes()[-10:] == content[-10:]
        assert list((tmp_path / "cache" / "corpora").iterdir()) == [entry]

    def test_a_process_that_was_faster_keeps_its_place(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "texts", a="text")
        small(tmp_path, folder)
        (entry,) = (tmp_path / "cache" / "corpora").iterdir()
        first = (entry / "ids.npy").stat().st_ino
        text = module._scan(module._find([folder]), None, named=frozenset())
        module._build(entry, text, vocab_size=300, show=False)
        assert (entry / "ids.npy").stat().st_ino == first
        assert list((tmp_path / "cache" / "corpora").iterdir()) == [entry]

    def test_a_failed_build_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full_disk(*_: object, **__: object) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(np, "save", full_disk)
        with pytest.raises(OSError, match="no space"):
            small(tmp_path, write(tmp_path / "texts", a="text"))
        assert list((tmp_path / "cache" / "corpora").iterdir()) == []

    def test_bars_are_drawn_when_asked(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = write(tmp_path / "texts", a="text")
        small(tmp_path, folder)
        assert capsys.readouterr().out == ""
        load_corpus([folder], vocab_size=301, cache_dir=tmp_path / "cache", progress=True)
        out = capsys.readouterr().out
        assert all(word in out for word in ("reading for the tokenizer", "merging pairs", "encoding", "counting"))


class TestWindows:
    def test_they_cover_the_stream_once(self) -> None:
        ids = np.arange(1003, dtype=np.uint16)
        data = Windows(ids, length=10, seed=0)
        assert len(data) == 100
        rows = torch.stack([data[i] for i in range(100)])
        assert rows.dtype == torch.int64
        assert (rows.diff(dim=1) == 1).all()
        assert rows[:, 0].sort().values.tolist() == list(range(0, 1000, 10))

    def test_the_order_is_shuffled_fixed_and_follows_the_seed(self) -> None:
        ids = np.arange(80, dtype=np.uint32)
        firsts = [[int(row[0]) // 10 for row in Windows(ids, length=10, seed=seed)] for seed in (0, 0, 1, -1)]
        assert firsts[0] == firsts[1] == [2, 7, 3, 4, 0, 1, 5, 6]  # the same on every machine and with every version
        assert len({tuple(first) for first in firsts}) == 3

    def test_the_order_has_no_trend(self) -> None:
        order = module._shuffled(20_000, 5)
        assert sorted(order) == list(range(20_000))
        assert abs(np.corrcoef(order, np.arange(20_000))[0, 1]) < 0.03
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.03

    def test_the_global_generators_are_left_alone(self) -> None:
        before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
        module._shuffled(100, 0)
        assert torch.equal(torch.random.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])

    def test_a_loader_gives_what_reading_in_sequence_gives(self, library: Corpus) -> None:
        data = windows(library, 32, seed=3, minimum=8)
        loaded = torch.cat(list(DataLoader(data, batch_size=8, drop_last=True)))
        assert torch.equal(loaded, torch.stack([data[i] for i in range(len(loaded))]))
        assert len(list(data)) == len(data) == len(library.ids) // 32

    def test_too_little_text_for_a_batch(self, library: Corpus) -> None:
        n = len(library.ids)
        assert len(windows(library, n, seed=0)) == 1
        with pytest.raises(ValueError, match=f"has {n} tokens, 1 windows of {n}; one batch needs 2"):
            windows(library, n, seed=0, minimum=2)
        with pytest.raises(ValueError, match="0 windows"):
            windows(library, n + 1, seed=0)

    def test_a_window_needs_a_label(self, library: Corpus) -> None:
        with pytest.raises(ValueError, match="windows have 1 tokens; needed 2"):
            windows(library, 1, seed=0)


def test_a_cache_that_cannot_be_written_is_named_as_such(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cache of tokenized text.*XDG_CACHE_HOME"):
        load_corpus([__file__], vocab_size=300, cache_dir=tmp_path / "file", progress=False)
