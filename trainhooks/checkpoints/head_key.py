"""Which of a checkpoint's tensors is the output embedding, and which its bias."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trainhooks.checkpoints.base import Checkpoint, CheckpointError, TensorEntry
from trainhooks.checkpoints.declared_head import Declared, declared_by
from trainhooks.checkpoints.formats.quantized import ADAPTERS, refuse_unreadable
from trainhooks.model.head_names import BESIDE, HEADS, INNER, INPUTS, is_named, says_tied, vocabulary_of
from trainhooks.store import SNAPSHOT

WEIGHT = ".weight"
LEAVES = (WEIGHT, ".kernel", ".embedding", ".W_U", ".W_E")  # torch; flax; TransformerLens
BIASES = {".W_U": ".b_U"}
BIASED = (*HEADS, "predictions")  # BERT: cls.predictions.bias
WRAPPERS = ("._fsdp_wrapped_module", "._checkpoint_wrapped_module", "._orig_mod", ".modules_to_save.default")
IN_A_BLOCK = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)[._]\d+\.")
OF_A_LAYER = re.compile(r"(?:.*\.)?layers\.(?P<layer>\d{1,6})\.(?P<name>\w+)\.weight")
ROW_SCALES = ".sz"  # OLMo-core's nGPT


@dataclass(frozen=True)
class HeadKey:
    """`key` of the output embedding [vocab, dim], `bias_key` of the head's bias [vocab] or None, and whether it is
    `tied` to the input embedding (then `key` may be the input embedding's). `why` says in words what decided."""

    key: str
    bias_key: str | None
    tied: bool
    why: str = field(default="", compare=False)

    @property
    def told(self) -> str:
        """Which tensor was taken, and why."""
        return f"{self.key} ({self.why})"


def head_key(checkpoint: Checkpoint, *, key: str | None = None) -> HeadKey:
    """Find the output embedding of a checkpoint by names and shapes; nothing is read.

    In this order: the `key` given; a store's own `output_embedding`; the name that the model class of config.json has
    for it, where transformers is installed and knows the class; the one matrix under a known name (`lm_head.weight`,
    `embed_out.weight`, `output_layer.weight`, ...) that is tall enough; and the one input embedding under a known name,
    but only where the configuration says that the two are tied, or nothing else in the checkpoint could be a head.

    Raises CheckpointError that lists the candidates where there are several or none, and one that says so where a
    tensor under a head's name is there and cannot be read as a matrix of numbers: quantised, sharded, an adapter's.
    """
    tensors = checkpoint.tensors
    if key is not None:
        if key not in tensors or len(tensors[key].shape) != 2:
            raise CheckpointError(f"{checkpoint.name} has no matrix {key!r}. {_matrices(tensors)}")
        refuse_unreadable(checkpoint, _leaves_of(checkpoint, key))
        return _found(key, checkpoint, tied=bool(says_tied(checkpoint.config)), why="the key that was given")
    if SNAPSHOT in tensors:
        return HeadKey(SNAPSHOT, None, False, "the store's own")
    declared, said = declared_by(checkpoint.config), says_tied(checkpoint.config)
    refuse_unreadable(checkpoint, _head_leaves(checkpoint, declared))
    if declared and len(found := _ending_with(declared.head, checkpoint)) == 1:
        why = f"{checkpoint.config['model_type']}'s output embedding"
        return _found(found[0], checkpoint, tied=declared.tied, why=why, declared=declared)
    heads = _under(HEADS, checkpoint) or _in_last_layer(checkpoint)
    if len(heads) == 1:
        tied = declared.tied if declared else bool(said)
        return _found(heads[0], checkpoint, tied=tied, why="known by its name", declared=declared)
    if heads:
        raise _undecided(checkpoint, f"{len(heads)} tensors could be the output embedding: {', '.join(heads)}.")
    return _tied_to_input(checkpoint, declared=declared, said=said)


def _tied_to_input(checkpoint: Checkpoint, *, declared: Declared | None, said: bool | None) -> HeadKey:
    """The input embedding where it is the output embedding as well. Raises CheckpointError where that is not sure."""
    inputs = _ending_with(declared.embedding, checkpoint) if declared and declared.tied else []
    inputs = inputs if len(inputs) == 1 else _under(INPUTS, checkpoint)
    nothing = "no tensor has a name known for an output embedding."
    if said is False or (said is None and declared and not declared.tied):
        raise _undecided(checkpoint, f"{nothing} The configuration says that it is not the input embedding.")
    if len(inputs) != 1:
        several = f" {len(inputs)} could be the input embedding: {', '.join(inputs)}." if inputs else ""
        raise _undecided(checkpoint, nothing + several)
    (key,) = inputs
    refuse_unreadable(checkpoint, _leaves_of(checkpoint, key))
    if said:
        return _found(key, checkpoint, tied=True, why="the configuration says that it is tied", declared=declared)
    if doubt := getattr(checkpoint, "doubt", ""):
        raise _undecided(checkpoint, f"{nothing} {key} would be it if it were tied, which nothing here says: {doubt}.")
    if any(_is_adapter(other) for other in checkpoint.tensors):
        raise _undecided(checkpoint, f"{nothing} It is an adapter: {key} alone does not say what the head is.")
    if others := _could_be_heads(checkpoint, beside=key):
        raise _undecided(checkpoint, f"{nothing} {key} would be it if it were tied, but so could {', '.join(others)}.")
    why = "the input embedding: no other matrix here could be a head"
    return _found(key, checkpoint, tied=True, why=why, declared=declared)


def _undecided(checkpoint: Checkpoint, what: str) -> CheckpointError:
    listed = _matrices(checkpoint.tensors)
    return CheckpointError(
        f"{checkpoint.name}: {what} Name it by its key (--head KEY; of one file --key KEY). {listed}"
    )


def _fits(entry: TensorEntry, checkpoint: Checkpoint) -> bool:
    """Whether a matrix is tall enough: as the configuration says, else about as tall as what is called an embedding."""
    if len(entry.shape) != 2:
        return False
    rows = vocabulary_of(checkpoint.config)
    if rows is None:
        inputs = [e for key, e in checkpoint.tensors.items() if _is_input(key) and len(e.shape) == 2]
        rows = 3 * min((e.shape[0] for e in inputs), default=1) // 4
    return entry.shape[0] >= rows


def _is_input(key: str) -> bool:
    named = key.endswith(LEAVES) and (is_named(_module(key), INPUTS) or key.endswith(".embedding"))
    return named and not _is_beside(key) and not _is_inner(key)


def _under(modules: Iterable[str], checkpoint: Checkpoint) -> list[str]:
    """Fitting weights of modules with these names, the shallowest only: a layer's own `output` is no head."""
    names = tuple(modules)
    found = [
        key
        for key, entry in checkpoint.tensors.items()
        if key.endswith(LEAVES)
        and is_named(_module(key), names)
        and not (_is_inner(key) or _is_beside(key))
        and _fits(entry, checkpoint)
    ]
    depth = min((key.count(".") for key in found), default=0)
    return sorted(key for key in found if key.count(".") == depth)


def named_as_head(checkpoint: Checkpoint) -> list[str]:
    """The keys that could be the head by their names alone; no header is read for it."""
    named = (key for key in checkpoint.tensors if key.endswith(LEAVES) and is_named(_module(key), HEADS))
    return sorted(key for key in named if not (_is_inner(key) or _is_beside(key)))


def _in_last_layer(checkpoint: Checkpoint) -> list[str]:
    """The head of a model that is one list of layers, the embedding its first, the head its last (Phi's first form)."""
    own = [(match, key) for key in checkpoint.tensors if (match := OF_A_LAYER.fullmatch(_unwrapped(key)))]
    if not any(match["layer"] == "0" and match["name"] in INPUTS for match, _ in own):
        return []
    last = max(int(match["layer"]) for match, _ in own)
    heads = [key for match, key in own if int(match["layer"]) == last and match["name"] in ("linear", *HEADS)]
    return [key for key in heads if last and _fits(checkpoint.tensors[key], checkpoint)]


def _could_be_heads(checkpoint: Checkpoint, *, beside: str) -> list[str]:
    """Matrices of about the input embedding's shape, either way round, that no name explains; unreadable ones too."""
    rows, dim = checkpoint.tensors[beside].shape
    found = []
    for key, entry in checkpoint.tensors.items():
        shape = entry.shape if entry.shape[1:] == (dim,) else entry.shape[::-1]
        tall = len(entry.shape) == 2 and shape[1] == dim and shape[0] >= max(3 * rows // 4, 2)
        unknown = bool(entry.unreadable) and not entry.shape and key.endswith(WEIGHT)
        if (tall or unknown) and key != beside and not (_is_inner(key) or _is_beside(key)):
            found.append(key)
    return sorted(found)


def _is_inner(key: str) -> bool:
    """Whether it belongs to a block of the model."""
    return bool(IN_A_BLOCK.search(key)) or any(word in key.lower() for word in INNER)


def _is_beside(key: str) -> bool:
    named = key.lower().replace("token_position_embeddings", "")  # nanotron's folder for both kinds
    return any(word in named for word in BESIDE)


def _is_adapter(key: str) -> bool:
    return "lora_" in key or key.startswith("base_model.model.")


def _head_leaves(checkpoint: Checkpoint, declared: Declared | None) -> dict[str, str]:
    """Keys right under a head's name with what follows it: `lm_head.qweight` as well as `lm_head.weight`."""
    names = (*HEADS, declared.head.removesuffix(WEIGHT)) if declared else HEADS
    found = {}
    for key in checkpoint.tensors:
        parts = _unwrapped(key).split(".")
        ends = [end for end in range(1, len(parts)) if is_named(".".join(parts[:end]), names)]
        own = ends and (ends[-1] == len(parts) - 1 or parts[ends[-1]].startswith(("weight", "kernel", *ADAPTERS)))
        if own and not (_is_inner(key) or _is_beside(key.replace("lora_", ""))):
            found[key] = ".".join(parts[ends[-1] :])
    return found


def _leaves_of(checkpoint: Checkpoint, key: str) -> dict[str, str]:
    """A matrix' key and what lies beside it in its module: `weight_scale`, `SCB`, `weight.absmax`."""
    module = f"{_module(key)}."
    beside = {other: other.removeprefix(module) for other in checkpoint.tensors if other.startswith(module)}
    return {**beside, key: "weight"}


def _ending_with(name: str, checkpoint: Checkpoint) -> list[str]:
    """Fitting tensors with this name, or this name behind a wrapper's prefix (`model.`, `module.`)."""
    tensors = checkpoint.tensors
    if name in tensors:
        return [name] if _fits(tensors[name], checkpoint) else []
    named = [key for key in tensors if f".{_unwrapped(key)}".endswith("." + name) and not _is_beside(key)]
    return [key for key in named if _fits(tensors[key], checkpoint)]


def _unwrapped(key: str) -> str:
    """The name without what FSDP, activation checkpointing and PEFT's trained copies put into it."""
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def _module(key: str) -> str:
    key = _unwrapped(key)
    return next((key.removesuffix(leaf) for leaf in LEAVES if key.endswith(leaf)), key)


def _found(key: str, checkpoint: Checkpoint, *, tied: bool, why: str, declared: Declared | None = None) -> HeadKey:
    tensors = checkpoint.tensors
    leaf = next((leaf for leaf in LEAVES if key.endswith(leaf)), "")
    module = key.removesuffix(leaf)
    own = [module + BIASES.get(leaf, ".bias")] if leaf else []
    biases = [*own, *(bias for name in (declared.biases if declared else ()) for bias in _named_so(name, tensors))]
    fitting = [b for b in biases if b in tensors and tensors[b].shape == tensors[key].shape[:1]]
    elsewhere = _head_biases(checkpoint, rows=tensors[key].shape[0]) if tied else []
    bias = next(iter(fitting or elsewhere), None)
    beside = [(name, entry) for name, entry in tensors.items() if entry.file == tensors[key].file]
    others = {tensors[key].alias_of, *(name for name, entry in beside if entry.alias_of == key)} - {""}
    if tensors[key].note:
        why += f"; {tensors[key].note}"
    if others:
        why += f"; the file says that it is {', '.join(sorted(others))} too"
    if module.rpartition(".")[0] + ROW_SCALES in tensors:
        why += "; its rows are scaled by a trained vector (sz) that is not in it"
    return HeadKey(key, bias, tied or bool(others), why)


def _head_biases(checkpoint: Checkpoint, *, rows: int) -> list[str]:
    """The one bias under a head's name where its weight is the input embedding's, as in BERT and its kin."""
    found = [
        key
        for key, entry in checkpoint.tensors.items()
        if key.endswith(".bias") and is_named(key.removesuffix(".bias"), BIASED) and entry.shape == (rows,)
    ]
    return found if len(found) == 1 else []


def _named_so(name: str, tensors: Mapping[str, TensorEntry]) -> list[str]:
    return [key for key in tensors if f".{_unwrapped(key)}".endswith("." + name)]


def _matrices(tensors: Mapping[str, TensorEntry]) -> str:
    matrices = sorted((entry for entry in tensors.values() if len(entry.shape) == 2), key=lambda e: -e.shape[0])
    return "Its tallest matrices: " + (", ".join(f"{e.key} {e.shape}" for e in matrices[:6]) or "none") + "."
