"""Where a run came from: versions, configuration and hashes, as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from typing import Any

from torch import nn

from trainhooks.core.token_counts import TokenCounts
from trainhooks.model import core_model

PACKAGES = ("trainhooks", "torch", "numpy", "zarr", "transformers", "lightning", "tokenizers")


def provenance_of(
    model: nn.Module, counts: TokenCounts | None, *, given: Mapping[str, object] | None
) -> dict[str, Any]:
    """Versions, the model's class, its configuration where it has one, corpus and tokenizer hash, then `given`.

    Raises ValueError where `given` does not fit into JSON.
    """
    core = core_model(model)
    found: dict[str, Any] = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES if _version(name)},
        "model_class": type(core).__name__,
        "parameters": sum(parameter.numel() for parameter in core.parameters()),
        "corpus_hash": None if counts is None else counts.corpus_hash,
        "counts_hash": None if counts is None else sha256(counts.counts.tobytes()).hexdigest(),
        "tokenizer_hash": None if counts is None else counts.tokenizer_hash,
    }
    config: Any = getattr(core, "config", None)
    if callable(getattr(config, "to_diff_dict", None)):
        found["model_config"] = _plain(config.to_diff_dict())
    try:
        own: dict[str, Any] = json.loads(json.dumps(dict(given or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance must be JSON (text, numbers, lists, dicts): {error}.") from error
    return found | own


def _plain(value: Any) -> Any:
    """A configuration as JSON holds it: what does not fit (inf, classes, keys that are no text) becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    fits = value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and isfinite(value))
    return value if fits else str(value)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
