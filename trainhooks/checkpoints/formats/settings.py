"""What files beside the weights state of a model: trainers' saved arguments, and lines of a YAML or JSON text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainhooks.checkpoints.formats.pickled import Inert
from trainhooks.checkpoints.sources.byte_source import ByteSource
from trainhooks.model.head_names import TIED_WORDS, UNTIED_WORDS

VOCABULARY = ("vocab_size", "orig_vocab_size", "padded_vocab_size", "embedding_size")
RANKS = ("tensor_model_parallel_size", "model_parallel_size", "pipeline_model_parallel_size")
KEPT = (*TIED_WORDS, *UNTIED_WORDS, *VOCABULARY, *RANKS, "num_layers", "hidden_size", "make_vocab_size_divisible_by")
MOST_TEXT = 1 << 20  # bytes of a text that is looked through
MOST_NUMBER = 1 << 40
LINE = re.compile(
    r'^[ \t]*["\']?(?P<name>[A-Za-z_-]{3,60})["\']?[ \t]*:[ \t]*(?P<value>true|false|\d{1,12})[ \t]*,?[ \t]*(?:#.*)?$'
)


def saved_settings(arguments: Any) -> dict[str, object]:
    """The settings that matter here, of the arguments that a trainer pickled (a Namespace, a mapping)."""
    fields = arguments.state if isinstance(arguments, Inert) else arguments
    if not isinstance(fields, dict):
        return {}
    named = {str(name).replace("-", "_"): value for name, value in fields.items() if isinstance(name, str)}
    return {name: named[name] for name in KEPT if _is_setting(named.get(name))}


def _is_setting(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, int) and 0 < value < MOST_NUMBER)


def text_settings(source: ByteSource) -> dict[str, object]:
    """The same out of a YAML or JSON text, where a line gives one; a name with two values is left out."""
    text = bytes(source.read(0, min(source.size, MOST_TEXT))).decode("utf-8", errors="replace")
    found: dict[str, set[object]] = {}
    for line in text.splitlines():
        if fits := LINE.match(line[:200].lower()):
            value: object = fits["value"] == "true" if fits["value"] in ("true", "false") else int(fits["value"])
            found.setdefault(fits["name"].replace("-", "_"), set()).add(value)
    return {name: next(iter(values)) for name, values in found.items() if name in KEPT and len(values) == 1}


def padding_note(rows: int, settings: Mapping[str, object]) -> str:
    """Which rows of a vocabulary are padding, where the settings say how many ids there are."""
    ids = [settings[name] for name in ("vocab_size", "orig_vocab_size") if isinstance(settings.get(name), int)]
    fewest = min((size for size in ids if isinstance(size, int)), default=rows)
    if fewest < rows:
        return f"rows {fewest} to {rows - 1} are padding"
    padded = settings.get("padded_vocab_size") == rows and not ids
    return f"{rows} rows, padding among them: how many ids there are is not said" if padded else ""
