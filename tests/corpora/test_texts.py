import gzip
import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import zstandard
from bpe import byte_level, nasty, same, spaces, total, twin
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from trainhooks.corpora import splitting as cutting
from trainhooks.corpora import texts
from trainhooks.corpora.base import LabelRule, Settings
from trainhooks.corpora.documents import DocumentCounter, load_tokenizer
from trainhooks.corpora.texts import is_text, text_pieces

DATA = Path(os.environ.get("TRAINHOOKS_DATA", Path(__file__).parents[3] / "shared" / "data"))
RULES = [LabelRule(), LabelRule(skip_first=True), LabelRule(window=7), LabelRule(leave_out=(0, 40, -100))]
LLAMA3 = next(pattern for pattern in cutting._PATTERNS if "(?i:'s" in pattern and "{1,3}" in pattern)


@pytest.fixture
def tokenizer(tmp_path):
    return byte_level(tmp_path / "tokenizer.json")


@pytest.fixture
def small(monkeypatch):
    """Chunks, blocks and spans so small that a short text has many."""
    monkeypatch.setattr(cutting, "CHUNK", 40)
    monkeypatch.setattr(texts, "_BLOCK", 13)
    monkeypatch.setattr(texts, "_SPAN", 101)
    monkeypatch.setattr("trainhooks.corpora.documents._BATCH", 150)


def settings_of(tmp_path, **more):
    return Settings(**({"vocab_size": 400, "tokenizer": str(tmp_path / "tokenizer.json")} | more))


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)(data)
    path.write_bytes(packed)
    return path


def lines(documents):
    return "".join(json.dumps({"text": document, "id": 1}) + "\n" for document in documents)


@pytest.mark.parametrize("rule", RULES, ids=LabelRule.words)
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.usefixtures("small")
def test_every_form_equals_a_plain_count(tmp_path, tokenizer, suffix, rule):
    settings = settings_of(tmp_path, rule=rule)
    document = nasty(1, 900)
    pieces = text_pieces(write(tmp_path / f"a.txt{suffix}", document), settings)
    same(total(pieces, settings), twin(tokenizer, [document], settings))
    assert (len(pieces) > 10) == (suffix == "" and rule.window is None)
    documents = [nasty(seed, 3 * seed) for seed in range(40)]  # the first is empty, the last have several chunks
    pieces = text_pieces(write(tmp_path / f"b.jsonl{suffix}", lines(documents)), settings)
    same(total(pieces, settings), twin(tokenizer, documents, settings))


@pytest.mark.parametrize("span", [1, 2, 17, 64, 5000])
def test_splitting_anywhere_gives_the_same(tmp_path, tokenizer, monkeypatch, span):
    monkeypatch.setattr(texts, "_SPAN", span)
    settings = settings_of(tmp_path, rule=LabelRule(skip_first=True))
    document = nasty(2, 90)
    same(
        total(text_pieces(write(tmp_path / "a.md", document), settings), settings),
        twin(tokenizer, [document], settings),
    )
    documents = ["one", "", "two cats", nasty(3, 20)]
    text = "\n" + lines(documents).replace("\n", "\r\n \n").rstrip()  # white lines, no newline at the end
    pieces = text_pieces(write(tmp_path / "a.ndjson", text), settings)
    same(total(pieces, settings), twin(tokenizer, documents, settings))


@pytest.mark.parametrize(
    "made",
    [
        {"added": spaces(), "normalizer": normalizers.NFC()},
        {
            "added": spaces(lstrip=True),
            "normalizer": normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
        },
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {
            "pre_tokenizer": pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        },
        {
            "pre_tokenizer": pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        },
        {"added": [AddedToken("Word", single_word=True), AddedToken("q", lstrip=True)]},
    ],
    ids=["neox", "lower", "prefix", "llama3", "digits", "words"],
)
def test_what_is_called_cuttable_can_be_cut_at_every_cut(tmp_path, made):
    tokenizer = byte_level(tmp_path / "tokenizer.json", **made)
    assert load_tokenizer(str(tmp_path / "tokenizer.json"))[1]
    for seed in range(12):
        text = nasty(seed, 120)
        cuts = [match.end() for match in cutting._CUT.finditer(text.encode())]
        assert cuts
        whole = tokenizer.encode(text, add_special_tokens=False).ids
        for cut in cuts:
            sides = [text.encode()[:cut].decode(), text.encode()[cut:].decode()]
            assert [token for side in sides for token in tokenizer.encode(side, add_special_tokens=False).ids] == whole


@pytest.mark.parametrize("block", [1, 2, 3, 39, 40, 41, 5000])
def test_chunks_end_at_the_first_cut_behind_their_size_however_they_are_read(monkeypatch, block):
    monkeypatch.setattr(cutting, "CHUNK", 40)
    text = nasty(4, 600) + "7" * 200 + nasty(5, 200)
    data = text.encode()
    found = list(cutting.chunks((data[at : at + block] for at in range(0, len(data), block)), may_cut=True))
    assert "".join(found) == text
    cuts, ends, at = [match.end() for match in cutting._CUT.finditer(data)], [], 0
    while at := next((cut for cut in cuts if cut >= at + 40), 0):
        ends.append(at)
    assert np.cumsum([len(part.encode()) for part in found]).tolist() == [*ends, len(data)]


def test_documents_of_several_chunks_share_a_call_of_the_tokenizer(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(cutting, "CHUNK", 40)
    encoded, sizes = DocumentCounter._encoded, []
    monkeypatch.setattr(
        DocumentCounter, "_encoded", lambda self, texts: (sizes.append(len(texts)), encoded(self, texts))[1]
    )
    documents = ["", *(nasty(seed, 80) for seed in range(20))]
    settings = settings_of(tmp_path, rule=LabelRule(skip_first=True))
    pieces = text_pieces(write(tmp_path / "a.jsonl", lines(documents)), settings)
    same(total(pieces, settings), twin(tokenizer, documents, settings))
    assert len(sizes) == 1
    assert sizes[0] > 60


@pytest.mark.parametrize(
    "made",
    [
        {"added": [AddedToken("new york", normalized=False)]},
        {"added": [AddedToken("b", rstrip=True)]},
        {"added": [AddedToken(" b", single_word=True)]},
        {"normalizer": normalizers.Replace(" ", "_")},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)},
        {"pre_tokenizer": pre_tokenizers.Split(Regex(r"\w+ \w+"), "isolated")},
    ],
    ids=["spans", "rstrip", "word", "replace", "no-regex", "unknown-regex"],
)
def test_what_is_not_proved_is_read_whole_or_refused(tmp_path, monkeypatch, small, made):
    tokenizer = byte_level(tmp_path / "tokenizer.json", **made)
    settings = settings_of(tmp_path)
    document = "new york a b b c " * 40
    path = write(tmp_path / "a.txt", document)
    assert len(text_pieces(path, settings)) == 1
    same(total(text_pieces(path, settings), settings), twin(tokenizer, [document], settings))
    monkeypatch.setattr(cutting, "LARGEST", 100)
    with pytest.raises(ValueError, match=r"a\.txt: more than .* cannot be cut for this tokenizer"):
        total(text_pieces(path, settings), settings)


def test_the_real_tokenizer_of_pythia_on_a_novel(tmp_path, monkeypatch):
    path, novels = DATA / "tokenizers" / "gpt-neox-20b.json", sorted((DATA / "english" / "austen").glob("*.txt"))
    if not path.is_file() or not novels:
        pytest.skip(f"no data folder at {DATA}: set TRAINHOOKS_DATA")
    monkeypatch.setattr(texts, "_SPAN", 50_001)
    settings = Settings(vocab_size=50277, tokenizer=str(path))
    text = novels[0].read_text(encoding="utf-8")[:250_000]
    pieces = text_pieces(write(tmp_path / "novel.txt", text), settings)
    assert len(pieces) > 4
    same(total(pieces, settings), twin(Tokenizer.from_file(str(path)), [text], settings))


def test_truncation_and_padding_of_the_file_do_not_apply(tmp_path, tokenizer):
    settings = settings_of(tmp_path)
    expected = twin(tokenizer, ["the cat " * 30, "a"], settings)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    tokenizer.save(settings.tokenizer)
    path = write(tmp_path / "a.jsonl", lines(["the cat " * 30, "a"]))
    same(total(text_pieces(path, settings), settings), expected)


BAD = {
    "json": (b"{nonsense", "line 3: not JSON"),
    "field": (b'{"body": "x"}', r"line 3: got fields 'body'; needed an object with the field 'text'"),
    "list": (b"[1]", "line 3: got a list"),
    "type": (b'{"text": 3}', "line 3: the field 'text' holds int"),
    "utf8": (b'{"text": "\xff"}', "line 3: byte 10 of the line is not UTF-8"),
    "surrogate": (rb'{"text": "a\ud800"}', "line 3: character 1 is half a surrogate pair"),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_or_skipped(tmp_path, tokenizer, monkeypatch, name, suffix):
    monkeypatch.setattr(texts, "_SPAN", 30)
    bad, words = BAD[name]
    good = [b'{"text": "the cat"}', b'{"text": "a tail"}', b'{"text": "long"}']
    path = write(tmp_path / f"a.jsonl{suffix}", b"\n".join([*good[:2], bad, good[2]]))
    settings = settings_of(tmp_path)
    with pytest.raises(ValueError, match=words):
        total(text_pieces(path, settings), settings)
    settings = settings_of(tmp_path, skip_bad=True)
    tally = total(text_pieces(path, settings), settings)
    same(tally, twin(tokenizer, ["the cat", "a tail", "long"], settings))
    assert tally.skipped == 1
    assert "line 3" in tally.problems[0]


def test_broken_utf8_in_plain_text_is_placed_and_skips_the_document(tmp_path, tokenizer, small):
    path = write(tmp_path / "a.txt", b"some words here " * 30 + b"\xc3(" + b" and more words" * 30)
    settings = settings_of(tmp_path)
    with pytest.raises(ValueError, match=r"a\.txt: byte 480 is not UTF-8"):
        total(text_pieces(path, settings), settings)
    settings = settings_of(tmp_path, skip_bad=True)
    tally = total(text_pieces(path, settings), settings)
    assert (tally.counts.sum(), tally.documents, tally.tokens, tally.skipped) == (0, 0, 0, 1)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_stream_cut_short(tmp_path, tokenizer, suffix):
    documents = [nasty(seed, 60) for seed in range(40)]
    path = write(tmp_path / f"a.jsonl{suffix}", lines(documents))
    path.write_bytes(path.read_bytes()[:-20])
    settings = settings_of(tmp_path)
    with pytest.raises(ValueError, match=r"line \d+: the .* stream is cut short"):
        total(text_pieces(path, settings), settings)
    settings = settings_of(tmp_path, skip_bad=True)
    tally = total(text_pieces(path, settings), settings)
    assert tally.skipped == 1
    same(tally, twin(tokenizer, documents[: tally.documents], settings))
    plain = write(tmp_path / f"a.txt{suffix}", nasty(1, 500))
    plain.write_bytes(plain.read_bytes()[:-20])
    assert total(text_pieces(plain, settings), settings).counts.sum() == 0


def test_frames_one_after_the_other_are_one_stream(tmp_path, tokenizer):
    path, settings = tmp_path / "a.txt.zst", settings_of(tmp_path)
    path.write_bytes(b"".join(zstandard.ZstdCompressor().compress(part) for part in (b"the ca", b"t's tail")))
    same(total(text_pieces(path, settings), settings), twin(tokenizer, ["the cat's tail"], settings))


def test_ids_beyond_the_vocabulary_name_their_document(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", lines(["!", "zzz", "!"]))
    settings = settings_of(tmp_path, vocab_size=30)
    with pytest.raises(ValueError, match=r"line 2: token 0 has id \d+, and the vocabulary has 30"):
        total(text_pieces(path, settings), settings)
    settings = settings_of(tmp_path, vocab_size=30, skip_bad=True)
    tally = total(text_pieces(path, settings), settings)
    assert (tally.documents, tally.skipped, tally.tokens) == (2, 1, 2)
    leaving = settings_of(tmp_path, vocab_size=30, rule=LabelRule(leave_out=tuple(tokenizer.encode("zzz").ids)))
    same(total(text_pieces(path, leaving), leaving), twin(tokenizer, ["!", "zzz", "!"], leaving))


def test_a_line_that_is_too_long(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(texts, "LONGEST_LINE", 200)
    monkeypatch.setattr(texts, "_BLOCK", 50)
    path = write(tmp_path / "a.jsonl", lines(["a", "b" * 1000, "c"]))
    settings = settings_of(tmp_path, skip_bad=True)
    tally = total(text_pieces(path, settings), settings)
    same(tally, twin(tokenizer, ["a", "c"], settings))
    assert "line 2: the line has more than" in tally.problems[0]


def test_empty_files_have_no_pieces(tmp_path, tokenizer):
    assert text_pieces(write(tmp_path / "a.txt", ""), settings_of(tmp_path)) == []
    settings = settings_of(tmp_path)
    assert total(text_pieces(write(tmp_path / "a.jsonl", "\n\n"), settings), settings).documents == 0


def test_keys_are_unique_and_follow_the_file(tmp_path, tokenizer, small):
    path, settings = write(tmp_path / "a.txt", nasty(1, 300)), settings_of(tmp_path)
    pieces = text_pieces(path, settings)
    assert len({piece.key for piece in pieces}) == len(pieces)
    assert pickle.loads(pickle.dumps(pieces)) == pieces == text_pieces(path, settings)
    assert sum(piece.size for piece in pieces) == path.stat().st_size
    copy = text_pieces(write(tmp_path / "b.txt", nasty(1, 300)), settings)
    assert [piece.fingerprint for piece in copy] == [piece.fingerprint for piece in pieces]
    other = text_pieces(write(tmp_path / "a.txt", nasty(2, 300)), settings)
    assert not {piece.key for piece in pieces} & {piece.key for piece in other}
    assert other[0].fingerprint != pieces[0].fingerprint


def test_a_worker_process_counts_the_same_without_threads_of_its_own(tmp_path, tokenizer):
    settings = settings_of(tmp_path)
    piece = text_pieces(write(tmp_path / "a.txt", nasty(1, 300)), settings)[0]
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        assert np.array_equal(pool.apply(piece.tally, (settings,)).counts, piece.tally(settings).counts)
        assert pool.apply(os.getenv, ("TOKENIZERS_PARALLELISM",)) == "false"


def test_tokenizers_that_cannot_be_used(tmp_path, tokenizer):
    path = write(tmp_path / "a.txt", "x")
    with pytest.raises(ValueError, match="none is given"):
        text_pieces(path, settings_of(tmp_path, tokenizer=None))
    with pytest.raises(ValueError, match=r"is no tokenizer\.json"):
        text_pieces(path, settings_of(tmp_path, tokenizer=str(path)))
    with pytest.raises(ValueError, match="cannot be read"):
        text_pieces(path, settings_of(tmp_path, tokenizer=str(tmp_path / "none.json")))
    Tokenizer(models.BPE(dropout=0.5)).save(str(tmp_path / "lots.json"))
    with pytest.raises(ValueError, match="dropout"):
        text_pieces(path, settings_of(tmp_path, tokenizer=str(tmp_path / "lots.json")))


def test_names(tmp_path):
    assert is_text("a.TXT")
    assert is_text("b.jsonl.zst")
    assert not is_text("a.bin")
    with pytest.raises(ValueError, match="not known as text"):
        text_pieces(tmp_path / "a.gz", settings_of(tmp_path))
