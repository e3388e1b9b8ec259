import pytest
import torch
from synthetic_lm import llama, target, texts

from trainhooks.intervene.contexts import blocks, collect_contexts, read_documents, split_documents
from trainhooks.intervene.frequency_bins import frequency_bins


def test_head_times_hidden_is_the_models_own_output():
    one = target(llama())
    found = collect_contexts(one, texts(3, 30), context_length=30, max_positions=1000)
    ids = torch.tensor(one.tokenizer.encode([texts(3, 30)[0]]))
    logits = one.model(ids).logits[0, :-1]
    own = found.document == 0
    assert torch.allclose(found.hidden[own] @ one.weight.T, logits, atol=1e-4)
    assert torch.equal(found.labels[own], ids[0, 1:])


def test_short_windows_are_padded_without_effect():
    one = target(llama())
    docs = texts(4, 30)
    together = collect_contexts(one, docs, context_length=20, batch=16)
    alone = collect_contexts(one, docs, context_length=20, batch=1)
    assert torch.allclose(together.hidden, alone.hidden, atol=1e-5)
    assert together.documents == 4
    assert len(together) == 4 * (19 + 9)


def test_each_document_has_its_turn():
    found = collect_contexts(target(llama()), texts(10), context_length=21, max_positions=200)
    assert found.documents == 10
    assert len(found) == 200


def test_bos_makes_the_first_token_a_label():
    found = collect_contexts(target(llama()), texts(1, 20), context_length=21, bos=7)
    assert len(found) == 20


def test_texts_that_do_not_do_are_refused(tmp_path):
    one = target(llama())
    with pytest.raises(ValueError, match="shorter than one context"):
        collect_contexts(one, ["w1 w2"], context_length=32)
    with pytest.raises(ValueError, match="64 tokens at most"):
        collect_contexts(one, texts(), context_length=65)
    with pytest.raises(ValueError, match="needed 2 or more"):
        split_documents(["one"])
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match="without text"):
        read_documents(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_documents(tmp_path / "none")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"no": 1}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2"):
        read_documents(tmp_path / "bad.jsonl")


def test_documents_are_files_lines_or_paragraphs(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n \nthree\n")
    (tmp_path / "b.jsonl").write_text('{"text": "four"}\n\n{"text": "five"}\n')
    assert read_documents(tmp_path) == ["one\ntwo", "three", "four", "five"]
    assert len(read_documents(tmp_path, documents="file")) == 3
    for number in range(8):
        (tmp_path / f"c{number}.txt").write_text("x\n\ny")
    assert len(read_documents(tmp_path)) == 11


def test_split_is_whole_and_repeatable():
    docs = [str(i) for i in range(9)]
    first, second = split_documents(docs)
    assert sorted(first + second) == docs
    assert (first, second) == split_documents(docs)
    assert split_documents(docs, seed=1)[0] != first


def test_blocks_cover_and_stay_small():
    cut = blocks(10, 3, elements=7)
    assert [i for s in cut for i in range(10)[s]] == list(range(10))
    assert max(s.stop - s.start for s in cut) == 2


def test_bins_are_decades_of_rank():
    bins = frequency_bins(torch.arange(250.0).double())
    assert bins.edges == (10, 100, 250)
    assert bins.of(249) == 0
    assert bins.of(0) == 2
    assert bins.label(1) == "rank 11-100"
    picked = bins.pick(9)
    assert picked[0] == 249
    assert len(set(picked)) == 9
    assert [bins.of(token) for token in picked] == [0] * 3 + [1] * 3 + [2] * 3
    with pytest.raises(ValueError, match="positive"):
        frequency_bins(torch.zeros(3).double())
