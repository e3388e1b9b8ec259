import json

import pytest
import torch
from synthetic_lm import llama, neox, target, word_tokenizer

from trainhooks.corpora.tokenizers import load_tokenizer
from trainhooks.intervene.target import load_target


def test_another_head_leaves_the_model_as_it_was():
    one = target(llama())
    other = one.with_head(one.weight + 1)
    ids = torch.arange(8)[None]
    old, new = one.model(ids).logits, other.model(ids).logits
    assert not torch.allclose(old, new)
    assert torch.equal(one.head.weight, one.weight)
    assert torch.equal(other.head.weight, one.weight + 1)
    assert other.model.model is one.model.model


@pytest.mark.parametrize("untie", [True, False])
def test_a_tied_input_embedding_keeps_its_rows_or_takes_the_new_ones(untie):
    one = target(llama(tied=True))
    other = one.with_head(one.weight * 2, untie=untie)
    rows = other.model.get_input_embeddings().weight
    assert torch.equal(rows, one.weight if untie else one.weight * 2)
    assert torch.equal(one.model.get_input_embeddings().weight, one.weight)
    assert other.tied is not untie


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("untie", [False, True])
def test_what_is_saved_loads_with_the_same_logits(tmp_path, tied, untie):
    one = target(llama(tied=tied))
    edited = one.with_head(one.weight + 0.5, untie=untie)
    edited.save(tmp_path)
    loaded = load_target(tmp_path)
    ids = torch.arange(8)[None]
    assert torch.allclose(loaded.model(ids).logits, edited.model(ids).logits, atol=1e-5)
    assert torch.equal(loaded.weight, one.weight + 0.5)
    assert loaded.tied == (tied and not untie)


def test_a_bias_the_class_does_not_know_is_not_lost_in_silence(tmp_path):
    one = target(neox())
    with pytest.raises(ValueError, match="no bias in its head"):
        one.with_head(one.weight, bias=torch.ones(40)).save(tmp_path)


def test_wrong_shapes_and_places_are_refused(tmp_path):
    with pytest.raises(ValueError, match="of a run of this model"):
        target(llama()).with_head(torch.zeros(3, 16))
    with pytest.raises(ValueError, match="pass store="):
        load_target(tmp_path, step=3)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_target(tmp_path)


def test_a_token_is_one_id():
    words = word_tokenizer()
    assert words.token_id("w3") == words.token_id(3) == 3
    with pytest.raises(ValueError, match=r"2: 'w1' \(1\), 'w2' \(2\)"):
        words.token_id("w1 w2")
    with pytest.raises(ValueError, match="ids 0 to 39"):
        words.token_id(40)


def test_scored_pieces_merge_by_score(tmp_path):
    pieces = [["<unk>", 0], *[[f"<0x{i:02X}>", 0] for i in range(256)], [" a", -1], ["ab", 0], [" ab", -2]]
    pieces += [[c, -9] for c in (" ", "a", "b")]
    path = tmp_path / "tok9.json"
    path.write_text(json.dumps(pieces))
    found = load_tokenizer(tmp_path)
    assert [found.piece(i) for i in found.encode(["ab"])[0]] == ["▁ab"]
    assert found.encode(["é"])[0][1:] == [1 + 0xC3, 1 + 0xA9]
    path.write_text("{")
    with pytest.raises(ValueError, match="no list of"):
        load_tokenizer(path)


def test_a_head_that_is_not_finite_is_refused_by_row(tmp_path):
    model = llama()
    model.lm_head.weight[5, 3] = torch.nan
    target(model).save(tmp_path)
    with pytest.raises(ValueError, match=r"not finite \(row 5 first\)"):
        load_target(tmp_path)
