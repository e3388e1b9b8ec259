import pickle
import shutil

import numpy as np
import pytest
import torch

from trainhooks.analyze.average_probability import average_probability
from trainhooks.analyze.text import TextProbe, measure_text, unigram_kl
from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.suite import CheckpointRef, Suite, list_suite
from trainhooks.core.formatting import human

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = [f"w{i}" for i in range(40)]
VOCAB = 48  # 40 words, 8 rows of padding
CONTEXT = 16
COUNTS = np.array([*(1000 // (i + 1) for i in range(36)), 0, 0, 0, 0])


def save(folder, model, *, tokenizer=True):
    model.save_pretrained(folder)
    if tokenizer:
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="w0"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        made.save(str(folder / "tokenizer.json"))
    return folder


def neox(seed=0, **settings):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCAB, max_position_embeddings=32, initializer_range=0.5, **sizes | settings
    )
    return transformers.GPTNeoXForCausalLM(config).eval()


def llama(seed=0):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).eval()


def with_bias(bias):
    """A model whose logits are this bias whatever it reads."""
    torch.manual_seed(0)
    config = transformers.GPTJConfig(
        vocab_size=VOCAB, n_positions=32, n_embd=12, n_layer=1, n_head=2, rotary_dim=4, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPTJForCausalLM(config)
    model.lm_head.weight.data.zero_()
    model.lm_head.bias.data.copy_(bias)
    return model


@pytest.fixture(scope="module")
def ids():
    shares = COUNTS / COUNTS.sum()
    return np.random.default_rng(0).choice(len(WORDS), size=700, p=shares)


@pytest.fixture(scope="module")
def text(tmp_path_factory, ids):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(WORDS[i] for i in ids))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("suite") / "step1", neox())


def probe(text, **settings):
    return TextProbe(
        text, counts=COUNTS, **{"max_positions": 320, "context_length": CONTEXT, "vocab_size": 40} | settings
    )


def slow_figures(model, windows):
    """Loss and log alpha, position by position in float64."""
    model, total, loss = model.double(), torch.zeros(VOCAB, dtype=torch.float64), []
    with torch.no_grad():
        for window in torch.from_numpy(windows):
            for position, scores in enumerate(model(input_ids=window[None, :-1]).logits[0].double()):
                chances = (scores - scores.max()).exp() / (scores - scores.max()).exp().sum()
                total += chances
                loss.append(-float(chances[window[position + 1]].log()))
    return np.mean(loss), (total / len(loss)).log().numpy()


class TestFigures:
    @pytest.mark.parametrize("make", [neox, llama])
    def test_loss_probability_and_kl_agree_with_a_slow_twin(self, tmp_path, text, make):
        ready = probe(text).prepared(save(tmp_path / "m", make()))
        found = ready.measure(tmp_path / "m")
        loss, log_alpha = slow_figures(make(), ready.windows)
        assert found["text.loss"] == pytest.approx(loss, rel=1e-5)
        np.testing.assert_allclose(found["text.log_probability"], log_alpha, rtol=1e-4, atol=1e-4)
        alpha, q = np.exp(log_alpha[:36]), COUNTS[:36] / COUNTS.sum()
        p = alpha / alpha.sum()
        assert found["text.kl_to_unigram"] == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-4)
        assert found["text.kl_from_unigram"] == pytest.approx(float((q * np.log(q / p)).sum()), rel=1e-4)
        assert found["text.unseen_probability"] == pytest.approx(1 - alpha.sum(), rel=1e-4)
        assert (found["text.positions"], found["text.excluded_positions"]) == (320, 0)

    def test_the_probe_is_that_of_the_average_probability(self, folder, text):
        ready = probe(text).prepared(folder)
        found = ready.measure(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        average = average_probability(model, torch.from_numpy(ready.windows[:, :-1]).split(4))
        np.testing.assert_allclose(found["text.log_probability"], average.log_alpha.numpy(), rtol=1e-4, atol=1e-5)
        y = -average.log_alpha.numpy()[:36]
        design = np.column_stack([model.get_output_embeddings().weight.detach().double().numpy()[:36], np.ones(36)])
        solution = np.linalg.lstsq(design, y, rcond=None)[0]
        np.testing.assert_allclose(found["probability.slope"], solution[:-1], rtol=1e-3, atol=1e-4)
        residual = y - design @ solution
        assert found["probability.r2"] == pytest.approx(1 - residual.var() / y.var(), rel=1e-4)
        assert found["probability.positions"] == average.positions == 320
        assert found["probability.sequences"] == average.sequences == 20

    def test_a_uniform_model(self, tmp_path, text):
        model = neox()
        model.get_output_embeddings().weight.data.zero_()
        found = probe(text).measure(save(tmp_path / "m", model))
        assert found["text.loss"] == pytest.approx(np.log(VOCAB), rel=1e-6)
        np.testing.assert_allclose(found["text.log_probability"], -np.log(VOCAB), rtol=1e-6)
        q = COUNTS[:36] / COUNTS.sum()
        assert found["text.kl_from_unigram"] == pytest.approx(np.log(36) + (q * np.log(q)).sum(), rel=1e-5)
        assert found["text.kl_to_unigram"] == pytest.approx(-np.log(36) - np.log(q).mean(), rel=1e-5)
        assert found["text.unseen_probability"] == pytest.approx(12 / VOCAB)
        assert np.isnan(found["probability.r2"])

    def test_a_bias_of_log_unigrams_has_no_distance_to_them(self, tmp_path, text):
        shares = COUNTS[:36] / COUNTS.sum()
        bias = torch.full((VOCAB,), -torch.inf)
        bias[:36] = torch.from_numpy(np.log(shares))
        ready = probe(text).prepared(save(tmp_path / "m", with_bias(bias)))
        found = ready.measure(tmp_path / "m")
        assert found["text.kl_to_unigram"] == pytest.approx(0, abs=1e-6)
        assert found["text.kl_from_unigram"] == pytest.approx(0, abs=1e-6)
        assert found["text.unseen_probability"] == 0
        assert found["text.loss"] == pytest.approx(-np.log(shares)[ready.windows[:, 1:]].mean(), rel=1e-5)
        assert found["channel.head_bias"] == pytest.approx(1)
        assert np.isneginf(found["text.log_probability"][36:]).all()

    def test_a_vector_added_to_all_rows_changes_no_figure_of_the_text(self, tmp_path, text):
        plain = probe(text).measure(save(tmp_path / "plain", neox()))
        model = neox()
        model.get_output_embeddings().weight.data += torch.linspace(-1, 1, 12)
        moved = probe(text).measure(save(tmp_path / "moved", model))
        for name in ("text.loss", "text.kl_to_unigram", "text.kl_from_unigram", "probability.variance"):
            assert moved[name] == pytest.approx(plain[name], rel=1e-4), name

    def test_a_logit_scale_is_in_the_loss(self, tmp_path, text):
        torch.manual_seed(0)
        sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.CohereConfig(vocab_size=VOCAB, logit_scale=5.0, pad_token_id=0, **sizes)
        model = transformers.CohereForCausalLM(config).eval()
        ready = probe(text).prepared(save(tmp_path / "m", model))
        loss, _ = slow_figures(model, ready.windows)
        assert ready.measure(tmp_path / "m")["text.loss"] == pytest.approx(loss, rel=1e-5)

    def test_values_are_as_declared_and_come_out_twice_the_same(self, folder, text):
        measured = probe(text)
        first, again = measured.measure(folder), measured.measure(folder)
        declared = {v.name: v.dims for v in measured.variables}
        assert set(first) <= set(declared)
        # a GPT-NeoX head has no bias
        assert set(declared) - set(first) == {"channel.head_bias", "channel.head_bias_r2", "channel.joint_r2"}
        sizes = {"token": VOCAB, "dim": 12, "fold": 5}
        for name, value in first.items():
            assert np.shape(value) == tuple(sizes[dim] for dim in declared[name]), name
            np.testing.assert_array_equal(value, again[name])
        assert {"probability.step", "probability.transfer_r2", "probability.untrained_r2"}.isdisjoint(declared)

    def test_the_short_form_is_the_same(self, folder, text):
        short = measure_text(folder, text=text, counts=COUNTS, max_positions=320, context_length=CONTEXT, vocab_size=40)
        assert short["text.loss"] == probe(text).measure(folder)["text.loss"]


class TestDivergence:
    def test_degenerate_answers(self):
        counts = torch.tensor([3, 1, 0])
        none = torch.tensor([-torch.inf, -torch.inf, 0.0], dtype=torch.float64)
        assert all(value.isnan() for value in unigram_kl(none, counts=counts))
        one = torch.tensor([0.0, -torch.inf, -torch.inf], dtype=torch.float64)
        to, from_ = unigram_kl(one, counts=counts)
        assert float(to) == pytest.approx(np.log(4 / 3))
        assert float(from_) == np.inf

    def test_the_unseen_mass_gives_the_divergence_over_all_rows(self):
        alpha = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
        counts = torch.tensor([3, 1, 0])
        q = counts[:2].double() / 4
        whole = float((q * (q / alpha[:2]).log()).sum())
        assert float(unigram_kl(alpha.log(), counts=counts)[1]) - np.log(1 - 0.2) == pytest.approx(whole)


class TestWindows:
    def test_they_are_pieces_of_the_text_spread_over_it(self, folder, text, ids):
        windows = probe(text, max_positions=64).prepared(folder).windows
        assert windows.shape == (4, CONTEXT + 1)
        starts = [next(s for s in range(len(ids)) if (ids[s : s + 17] == window).all()) for window in windows]
        assert starts[0] == 0
        assert all(start % CONTEXT == 0 for start in starts)
        assert starts[-1] > len(ids) / 2

    def test_a_short_text_is_one_window(self, tmp_path, folder):
        (tmp_path / "short.txt").write_text("w1 w2 w3 w4")
        found = probe(tmp_path / "short.txt")
        assert found.prepared(folder).windows.tolist() == [[1, 2, 3, 4]]
        assert found.measure(folder)["text.positions"] == 3
        assert probe(tmp_path / "short.txt", max_positions=2).prepared(folder).windows.tolist() == [[1, 2, 3]]

    def test_what_is_prepared_needs_no_text_and_no_tokenizer(self, tmp_path, folder, text):
        moved = shutil.copy(text, tmp_path / "text.txt")
        sent = pickle.dumps(probe(moved).prepared(folder))
        (tmp_path / "text.txt").unlink()
        bare = save(tmp_path / "bare", neox(), tokenizer=False)
        assert pickle.loads(sent).measure(bare)["text.loss"] == probe(text).measure(folder)["text.loss"]

    def test_a_tokenizer_of_its_own(self, tmp_path, folder, text):
        bare = save(tmp_path / "bare", neox(), tokenizer=False)
        for tokenizer in (folder, folder / "tokenizer.json"):
            given = TextProbe(text, tokenizer, counts=COUNTS, context_length=CONTEXT, vocab_size=40)
            assert given.measure(bare)["text.positions"] == 43 * CONTEXT
        with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
            probe(text).measure(bare)


class TestErrors:
    def test_a_text_that_is_none(self, tmp_path, folder):
        path = tmp_path / "text.txt"
        path.write_bytes(b"\xff\xfe\x00w1")
        with pytest.raises(ValueError, match="no UTF-8"):
            probe(path).prepared(folder)
        path.write_text("w1")
        with pytest.raises(ValueError, match="has 1 tokens"):
            probe(path).prepared(folder)
        with path.open("wb") as file:
            file.truncate(65 << 20)
        with pytest.raises(ValueError, match="at most"):
            probe(path).prepared(folder)

    def test_what_is_no_model(self, tmp_path, folder, text):
        ready = probe(text).prepared(folder)
        torch.save(neox().state_dict(), tmp_path / "step1.pt")
        with pytest.raises(CheckpointError, match="is a file; a text needs a whole model"):
            ready.measure(tmp_path / "step1.pt")
        with pytest.raises(CheckpointError, match=r"without config\.json"):
            ready.measure(tmp_path)
        with pytest.raises(CheckpointError, match="not there"):
            ready.measure(tmp_path / "nowhere")

    def test_weights_that_are_missing_cut_or_nan(self, tmp_path, folder, text):
        ready = probe(text).prepared(folder)
        deeper = save(tmp_path / "deeper", neox())
        neox(num_hidden_layers=2).config.save_pretrained(deeper)
        with pytest.raises(CheckpointError, match="would be random"):
            ready.measure(deeper)
        cut = save(tmp_path / "cut", neox())
        weights = cut / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match="can be loaded"):
            ready.measure(cut)
        model = neox()
        model.get_output_embeddings().weight.data[3] = torch.nan
        with pytest.raises(CheckpointError, match="no position of the text has a finite softmax"):
            ready.measure(save(tmp_path / "nan", model))

    def test_what_does_not_fit(self, folder, text):
        with pytest.raises(CheckpointError, match="takes 32 positions; the windows have 33"):
            probe(text, context_length=33).measure(folder)
        with pytest.raises(ValueError, match="vocab_size=40"):
            probe(text, vocab_size=None).measure(folder)
        windows = np.full((2, 5), VOCAB)
        with pytest.raises(CheckpointError, match=f"has id {VOCAB}"):
            probe(text, windows=windows).measure(folder)
        for name in ("max_positions", "context_length"):
            with pytest.raises(ValueError, match=f"{name} is 0"):
                probe(text, **{name: 0})


class TestAnnounce:
    def test_it_says_positions_bytes_and_work(self, tmp_path, text):
        for step in (0, 1, 2):
            save(tmp_path / f"step{step}", neox(seed=step))
        parameters = sum(p.numel() for p in neox().parameters())
        said = probe(text).announce(list_suite(tmp_path))
        assert "320 positions in 20 sequences of 16 tokens" in said
        assert "the slope is unsteady" in said
        assert "3 checkpoints to read" in said
        assert f"{human(parameters * 4)} of memory" in said
        assert "GFLOP" in said

    def test_a_store_has_no_models(self, tmp_path, text):
        with pytest.raises(CheckpointError, match="is a store of matrices"):
            probe(text).announce(Suite("run.zarr", (CheckpointRef(0, "run.zarr"),), kind="store"))
