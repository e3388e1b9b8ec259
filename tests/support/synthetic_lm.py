"""Contexts and a head whose token probabilities are planted: -log alpha is linear in E."""

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from trainhooks.corpora.tokenizers import Tokenizer
from trainhooks.intervene.contexts import Contexts
from trainhooks.intervene.target import Target

WORDS = [f"w{i}" for i in range(40)]


def word_tokenizer():
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend)


def llama(*, tied=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, initializer_range=0.5,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval().requires_grad_(False)


def neox():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPTNeoXConfig(
            vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.5,
        )  # fmt: skip
        model = GPTNeoXForCausalLM(config).eval().requires_grad_(False)
        model.gpt_neox.final_layer_norm.bias.fill_(0.3)
        return model


def target(model):
    head = model.get_output_embeddings().weight.detach()
    return Target(model, word_tokenizer(), head, None, "tiny", model.config.tie_word_embeddings)


def texts(count=12, words=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [" ".join(WORDS[i] for i in torch.randint(0, 40, (words,), generator=generator)) for _ in range(count)]


def planted(*, seed=0, positions=2000, vocab=40, dim=16):
    """Hidden states near one mean, so that log P(w|x) is nearly the same in every context: the encoding is exact."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.ones(dim) / 2
    hidden = mean + 0.05 * torch.randn(positions, dim, generator=generator)
    labels = torch.randint(0, vocab, (positions,), generator=generator)
    return Contexts(hidden, labels, torch.arange(positions) // 50)
