import dataclasses
import json
import math
import os
import re
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainhooks.core.token_counts import TokenCounts
from trainhooks.corpora.describe import describe_counts, entropy, ids_for_share, kl_divergence, top_shares, zipf
from trainhooks.corpora.tokenizer_match import AGREEMENT_NEEDED, belonging_warnings, spelling_agreement

DATA = Path(os.environ.get("TRAINHOOKS_DATA", Path(__file__).parents[3] / "shared" / "data"))
PYTHIA = DATA / "counts" / "pythia-unigrams.npy"
NEOX = DATA / "tokenizers" / "gpt-neox-20b.json"
needs_data = pytest.mark.skipif(not (PYTHIA.exists() and NEOX.exists()), reason=f"no counts and tokenizer in {DATA}")

small_counts = st.lists(st.integers(0, 1000), min_size=3, max_size=30).filter(any)


def counts(*values: int, **fields: object) -> TokenCounts:
    return TokenCounts(np.array(values, dtype=np.int64), **fields)


def power_law(exponent: float, *, size: int = 2000, scale: float = 1e13) -> TokenCounts:
    return TokenCounts(np.rint(scale * np.arange(1, size + 1) ** -exponent).astype(np.int64))


class TestEntropyAndCoverage:
    def test_known_answers(self) -> None:
        assert entropy(counts(5, 5, 5, 5)) == pytest.approx(math.log(4))
        assert entropy(counts(7, 0, 0)) == 0
        assert entropy(counts(2, 1, 1)) == pytest.approx(1.5 * math.log(2))
        spread = counts(*[1] * 90, *[11] * 10)
        assert top_shares(spread) == {10: pytest.approx(0.55), 100: 1.0}
        assert ids_for_share(spread, share=0.55) == 10
        assert ids_for_share(spread, share=0.56) == 12
        assert ids_for_share(spread, share=1.0) == 100
        assert top_shares(counts(3, 2, 1)) == {}

    @given(small_counts)
    def test_they_agree_with_slow_twins(self, values: list[int]) -> None:
        total = sum(values)
        slow = -math.fsum(v / total * math.log(v / total) for v in values if v)
        assert entropy(counts(*values)) == pytest.approx(slow, abs=1e-12)
        order = [v for _, v in sorted(enumerate(values), key=lambda pair: -pair[1])]
        needed = next(k for k in range(1, len(order) + 1) if 2 * sum(order[:k]) >= total)
        assert ids_for_share(counts(*values), share=0.5) == needed

    @given(small_counts, st.randoms(use_true_random=False))
    def test_the_order_of_ids_changes_nothing(self, values: list[int], random: object) -> None:
        shuffled = list(values)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        assert describe_counts(counts(*values)) == describe_counts(counts(*shuffled))

    @pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
    def test_a_share_that_is_none(self, share: float) -> None:
        with pytest.raises(ValueError, match="needed more than 0"):
            ids_for_share(counts(1, 2), share=share)


class TestZipf:
    @pytest.mark.parametrize("exponent", [0.5, 1.0, 1.7])
    def test_a_planted_exponent_is_found(self, exponent: float) -> None:
        found = zipf(power_law(exponent))
        assert (found.first, found.last) == (10, 1000)
        assert found.least_squares == pytest.approx(exponent, abs=1e-4)
        assert found.likelihood == pytest.approx(exponent, abs=1e-4)
        assert found.r_squared == pytest.approx(1.0)

    def test_the_likelihood_agrees_with_a_grid(self) -> None:
        rng = np.random.default_rng(3)
        ranked = np.sort(rng.multinomial(20_000, np.arange(1, 201) ** -1.2 / (np.arange(1, 201) ** -1.2).sum()))[::-1]
        found = zipf(TokenCounts(ranked), ranks=(1, 100))
        kept, rank = ranked[:100], np.arange(1, 101.0)
        grid = np.arange(0.5, 2.0, 0.001)
        likelihood = [float((kept * (-s * np.log(rank) - np.log((rank**-s).sum()))).sum()) for s in grid]
        assert found.likelihood == pytest.approx(grid[int(np.argmax(likelihood))], abs=0.001)
        slope, _ = np.polyfit(np.log(rank), np.log(kept), 1)
        assert found.least_squares == pytest.approx(-slope, abs=1e-9)

    def test_scale_changes_nothing(self) -> None:
        values = np.random.default_rng(0).integers(1, 10_000, size=300)
        one, many = zipf(TokenCounts(values)), zipf(TokenCounts(values * 1000))
        assert many.least_squares == pytest.approx(one.least_squares, abs=1e-9)
        assert many.likelihood == pytest.approx(one.likelihood, abs=1e-9)

    def test_degenerate_counts(self) -> None:
        flat = zipf(counts(*[5] * 50))
        assert (flat.least_squares, flat.likelihood, flat.r_squared) == (0.0, 0.0, 0.0)
        assert zipf(counts(*[5] * 18)) is None
        assert zipf(counts(*[5] * 19)).last == 19
        assert zipf(counts(*range(1, 19), *[0] * 500)) is None
        steep = zipf(counts(10**17, *[1] * 20), ranks=(1, 20))
        assert steep.likelihood == 50.0

    @pytest.mark.parametrize("ranks", [(0, 5), (7, 7), (9, 3)])
    def test_ranks_out_of_order(self, ranks: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match="1 <= first < last"):
            zipf(counts(1, 2), ranks=ranks)


class TestKL:
    def test_known_answers(self) -> None:
        p, q = counts(1, 1), counts(3, 1)
        assert kl_divergence(p, other=q, smoothing=0) == pytest.approx(0.5 * math.log(4 / 3))
        assert kl_divergence(q, other=p, smoothing=0) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
        assert kl_divergence(p, other=counts(5, 5), smoothing=0) == 0
        assert kl_divergence(counts(1, 1), other=counts(1, 0), smoothing=0) == math.inf
        assert kl_divergence(counts(1, 0), other=counts(1, 1), smoothing=0) == pytest.approx(math.log(2))
        assert kl_divergence(counts(1, 0), other=counts(0, 1)) == pytest.approx(0.5 * math.log(3))

    @given(small_counts, st.integers(0, 10**6))
    def test_it_agrees_with_a_slow_twin(self, values: list[int], seed: int) -> None:
        others = np.random.default_rng(seed).integers(0, 50, size=len(values)).tolist()
        others[0] += 1
        p = [(v + 0.5) / (sum(values) + 0.5 * len(values)) for v in values]
        q = [(v + 0.5) / (sum(others) + 0.5 * len(values)) for v in others]
        slow = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        found = kl_divergence(counts(*values), other=counts(*others))
        assert found == pytest.approx(slow, abs=1e-12)
        assert found >= 0

    def test_what_cannot_be_compared(self) -> None:
        with pytest.raises(ValueError, match="2 and 3 entries"):
            kl_divergence(counts(1, 2), other=counts(1, 2, 3))
        for smoothing in (-1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="smoothing is"):
                kl_divergence(counts(1, 2), other=counts(1, 2), smoothing=smoothing)


def test_a_description_is_json() -> None:
    found = describe_counts(counts(*range(40), documents=3, rule="r", tokens_read=1000))
    plain = json.loads(json.dumps(found.to_dict()))
    assert (plain["vocab_size"], plain["tokens"], plain["zero_counts"]) == (40, 780, 1)
    assert (plain["documents"], plain["tokens_read"], plain["rule"]) == (3, 1000, "r")
    assert plain["zipf"]["last"] == 39


class TestSpellingAgreement:
    """A vocabulary of 400 words, each with and without a space, whose counts share a part."""

    def planted(self) -> tuple[np.ndarray, list[str]]:
        texts = [f"{' ' * (token % 2)}{chr(97 + token // 2 % 26)}{chr(97 + token // 52)}" for token in range(800)]
        rng = np.random.default_rng(0)
        word = np.repeat(rng.normal(size=400), 2)
        order = np.random.default_rng(1).permutation(800)  # spellings stand apart, as merges do
        counted = np.exp(8 + word + 0.3 * rng.normal(size=800)).astype(np.int64)
        return counted[order], [texts[token] for token in order]

    def test_it_is_high_for_the_right_texts_only(self) -> None:
        found, texts = self.planted()
        right = spelling_agreement(found, texts=texts)
        assert right > 2 * AGREEMENT_NEEDED
        assert spelling_agreement(found, texts=texts) == right
        for shift in (1, 2, -1, 30):
            assert spelling_agreement(np.roll(found, shift), texts=texts) < AGREEMENT_NEEDED
        wrong = np.random.default_rng(2).permutation(found)
        assert spelling_agreement(wrong, texts=texts) < AGREEMENT_NEEDED

    def test_what_cannot_be_judged(self) -> None:
        assert spelling_agreement(np.arange(5), texts=list("abcde")) is None
        assert spelling_agreement(np.full(800, 3), texts=self.planted()[1]) is None


def word_tokenizer(path: Path, *, words: int) -> Path:
    from tokenizers import AddedToken, Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(words)}, unk_token="w0"))
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    tokenizer.save(str(path))
    return path


class TestBelonging:
    def test_small_ones_that_fit_pass(self, tmp_path: Path) -> None:
        path = word_tokenizer(tmp_path / "tokenizer.json", words=4)
        assert belonging_warnings(counts(4, 3, 2, 1, 0), tokenizer=path) == []
        assert belonging_warnings(counts(4, 3, 2, 1, 0, 0, 0), tokenizer=path) == []

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (counts(4, 3, 2, 1), "4 counts, but the tokenizer has ids up to 4: needed 5 entries"),
            (counts(4, 3, 2, 1, 0, 9), r"1 ids have counts but no token \(first: id 5 with 9\)"),
            (counts(4, 3, 2, 1, 10), r"special token '<pad>' \(id 4\) is 50.0% of all tokens"),
            (counts(4, 3, 2, 1, 0, tokenizer_hash="ab"), "of hash ab, which"),
        ],
    )
    def test_each_misfit_is_named(self, tmp_path: Path, given: TokenCounts, message: str) -> None:
        path = word_tokenizer(tmp_path / "tokenizer.json", words=4)
        (found,) = belonging_warnings(given, tokenizer=path)
        assert re.search(message, found), found

    def test_a_file_that_is_no_tokenizer(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(ValueError, match="is no tokenizer"):
            belonging_warnings(counts(1), tokenizer=tmp_path / "tokenizer.json")
        with pytest.raises(FileNotFoundError):
            belonging_warnings(counts(1), tokenizer=tmp_path / "none.json")

    @needs_data
    def test_the_counts_of_a_pythia_run(self) -> None:
        pythia = TokenCounts.load(PYTHIA)
        assert belonging_warnings(pythia, tokenizer=NEOX) == []
        shuffled = TokenCounts(np.random.default_rng(0).permutation(pythia.counts))
        for wrong in (shuffled, TokenCounts(np.roll(pythia.counts, 1))):
            (found,) = belonging_warnings(wrong, tokenizer=NEOX)
            assert "of another tokenizer, or in another order" in found
        described = describe_counts(pythia)
        assert described.zero_counts == 214
        assert 0.5 < described.zipf.least_squares < 1.5

    @needs_data
    @pytest.mark.skipif(not (DATA / "english").exists(), reason=f"no texts in {DATA}")
    def test_counts_of_another_vocabulary_of_the_same_size(self, tmp_path: Path) -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        novels = sorted((DATA / "english" / "austen").iterdir())
        programs = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:25]
        found = {}
        for name, files in {"novels": novels[:3], "programs": programs}.items():
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
            tokenizer.train([str(file) for file in files], trainer)
            tokenizer.save(str(tmp_path / name))
            ids = Counter(i for e in tokenizer.encode_batch([file.read_text() for file in novels[4:5]]) for i in e.ids)
            found[name] = TokenCounts(np.array([ids[token] for token in range(4000)]))
        for name, right in found.items():
            assert belonging_warnings(right, tokenizer=tmp_path / name) == []
        for name, other in (("novels", "programs"), ("programs", "novels")):
            assert len(belonging_warnings(found[name], tokenizer=tmp_path / other)) == 1


def test_a_description_keeps_hashes() -> None:
    described = describe_counts(dataclasses.replace(counts(1, 2), tokenizer_hash="t", corpus_hash="c"))
    assert (described.tokenizer_hash, described.corpus_hash) == ("t", "c")
