"""Models to pretrain in the demo: GPT-NeoX in Pythia's shapes with random weights, and settings that train them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import GPTNeoXConfig

_VOCAB_MULTIPLE = 128  # Pythia pads its output embedding so: 50277 ids, 50304 rows


@dataclass(frozen=True)
class Preset:
    """A model's shape and settings that train it, for AdamW with betas (0.9, 0.95) and gradients clipped at norm 1.

    `hidden`, `layers` and `heads` are the transformer's; its MLP is 4 `hidden` wide. `vocab_size` is what to train
    the tokenizer to, `context` the window in tokens, `batch_tokens` the tokens of one update (a multiple of
    `context`), `steps` the updates, `warmup` the updates of linear warm-up to `learning_rate`, from where a cosine
    goes down to a tenth.
    """

    name: str
    hidden: int
    layers: int
    heads: int
    vocab_size: int
    context: int
    batch_tokens: int
    steps: int
    learning_rate: float
    warmup: int
    weight_decay: float


# Shapes, rates and decay of 14m, 70m and 160m are Pythia's (Biderman et al. 2023, arXiv 2304.01373, and
# its published configurations). The batch is not: 2M tokens an update would pass the demo's corpus in four updates, and
# 16,384 tokens keep the logits of 50,304 rows at 3.3 GB in float32.
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset("tiny", 256, 4, 4, 8192, 128, 1024, 300, 2e-3, 20, 0.01),
            Preset("14m", 128, 6, 4, 50277, 2048, 16384, 1000, 1e-3, 50, 0.1),
            Preset("70m", 512, 6, 8, 50277, 2048, 16384, 1000, 1e-3, 50, 0.1),
            Preset("160m", 768, 12, 12, 50277, 2048, 16384, 1000, 6e-4, 50, 0.1),
        )
    }
)


def build_model(size: str, *, vocab_size: int, seed: int, context: int | None = None) -> nn.Module:
    """A `GPTNeoXForCausalLM` of the preset `size` on the CPU: float32, random weights, untied output embedding.

    The output embedding has `vocab_size` rows, the tokenizer's ids, rounded up to a multiple of 128. `context` is
    the longest input in tokens, None for the preset's. The weights follow from `seed` alone (a normal of standard
    deviation 0.02, zero biases); torch's global generators are left as they were.

    Raises ValueError for an unknown size or a size below 1, ImportError where `transformers` is missing.
    """
    if size not in PRESETS:
        raise ValueError(f"there is no model size {size!r}: take one of {', '.join(PRESETS)}.")
    context = PRESETS[size].context if context is None else context
    if vocab_size < 1 or context < 1:
        raise ValueError(f"vocab_size is {vocab_size} and context {context}; needed 1 or more of each.")
    config = _config(PRESETS[size], vocab_size=vocab_size, context=context)
    from transformers import GPTNeoXForCausalLM

    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it would reseed the GPUs as well
        model: nn.Module = GPTNeoXForCausalLM(config)
        return model


def _config(preset: Preset, *, vocab_size: int, context: int) -> GPTNeoXConfig:
    try:
        from transformers import GPTNeoXConfig
    except ImportError as error:
        raise ImportError("the demo's models need transformers: pip install 'trainhooks[transformers]'.") from error
    settings: dict[str, Any] = {
        "vocab_size": -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE,
        "hidden_size": preset.hidden,
        "num_hidden_layers": preset.layers,
        "num_attention_heads": preset.heads,
        "intermediate_size": 4 * preset.hidden,
        "max_position_embeddings": context,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "use_cache": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "attn_implementation": "sdpa",
    }
    return GPTNeoXConfig(**settings)
