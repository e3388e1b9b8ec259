"""The names under which models and files keep their output embedding, and how they say that it is tied.

One list for live models, checkpoints and single files. Names are endings of module paths, wrappers' parts taken off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

HEADS = (
    "lm_head",
    "embed_out",  # GPT-NeoX
    "output_embedding",
    "unembed",
    "output",  # Meta's Llama, RWKV's head is "head"
    "head",
    "decoder",  # BERT and its kin: cls.predictions.decoder
    "to_logits",
    "ff_out",  # OLMo as it was first published, DataDecide, LLaDA; its blocks have an ff_out each
    "output_layer",  # Megatron
    "final_linear",  # GPT-NeoX as a pipeline
    "output_projection",  # fairseq
    "w_out",  # OLMo-core: lm_head.w_out
    "de_embedding_proj",  # pico
    "lm_logits",
    "logits_dense",  # T5X, MaxText
    "word_embeddings_for_head",  # Megatron-LM's copy on the last pipeline stage
    "logits_linear",
    "generator.proj",
    "vocab_projector",  # DistilBERT
    "generator_lm_head",  # Electra
    "pred_layer.proj",  # XLM
    "lm_loss",  # XLNet
    "proj_out",  # Whisper
)
INPUTS = (
    "wte",
    "transformer.w",  # CTRL
    "embed_tokens",
    "embed_in",
    "embed",
    "word_embeddings",
    "tok_embeddings",
    "tok_emb",
    "token_embedding",
    "embedding",
    "embeddings",
    "emb",
    "shared",  # T5
    "embedding_proj",  # pico
    "token_embedding_table",
    "token_embedder",  # T5X, MaxText
    "token_embeddings",  # Levanter
    "token_embd",  # GGUF
)
INNER = (
    "mlp", "attn", "attention", "att_proj", "ffn", "feed_forward", "ff_proj", "moe", "expert", "conv", "mixer", "norm",
    "rotary", "router", "gate", "fc1", "fc2", "fc_in", "fc_out", "q_proj", "k_proj", "v_proj", "o_proj",
)  # fmt: skip
"""What parts of a block are called: a matrix under such a name is no head, whatever its shape."""
BESIDE = (
    "position", "wpe", "pos_emb", "token_type", "segment", "exp_avg", "momentum", "optim", "ema.", "lora_", "rotary",
    "max_exp_avg", "master_param", "opt_state", "param_states", "ema_params",
)  # fmt: skip
"""What stands beside a model's own matrices: positions, an optimizer's moments, averages, adapters."""
TIED_WORDS = (
    "tie_word_embeddings",
    "weight_tying",
    "tie_embeddings",
    "tied_embeddings",
    "tie_weights",
    "weight_tie",
    "share_embeddings_and_output_weights",
    "share_input_output_embeddings",
    "share_input_output_embed",
    "share_decoder_input_output_embed",
    "tie_lm_head",
)
UNTIED_WORDS = ("untie_embeddings_and_output_weights", "no_weight_tying", "untie_embeddings", "untied_embeddings")
NESTED = ("text_config", "llm_config", "language_config", "decoder", "model", "model_config", "args")


def is_named(path: str, names: Iterable[str]) -> bool:
    """Whether a module's path ends in one of the names, whole parts only."""
    return f".{path}".endswith(tuple("." + name for name in names))


def says_tied(config: Mapping[str, Any]) -> bool | None:
    """Whether a configuration says that the output embedding is the input embedding; None where it says nothing.

    Looked for at its top, then in the parts that hold a language model's own settings (`text_config`, ...); dashes are
    underscores. What is no boolean says nothing.
    """
    fields = {str(name).replace("-", "_"): value for name, value in config.items()}
    for name in TIED_WORDS:
        if isinstance(fields.get(name), bool):
            return bool(fields[name])
    for name in UNTIED_WORDS:
        if isinstance(fields.get(name), bool):
            return not fields[name]
    inside = (fields[name] for name in NESTED if isinstance(fields.get(name), Mapping))
    return next((said for said in map(says_tied, inside) if said is not None), None)


def vocabulary_of(config: Mapping[str, Any]) -> int | None:
    """The number of ids that a configuration announces, at its top or in a nested part; None where it does not."""
    sizes = [config[name] for name in ("vocab_size", "padded_vocab_size") if isinstance(config.get(name), int)]
    if sizes:
        return int(min(sizes))
    inside = (config[name] for name in NESTED if isinstance(config.get(name), Mapping))
    return next((size for size in map(vocabulary_of, inside) if size is not None), None)
