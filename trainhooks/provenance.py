"""Where a run came from: versions, configuration and hashes, as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from trainhooks.model import core_model
from trainhooks.tokens import TokenCounts

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
        "tokenizer_hash": None if counts is None else counts.tokenizer_hash,
    }
    config: Any = getattr(core, "config", None)
    if callable(getattr(config, "to_diff_dict", None)):
        found["model_config"] = json.loads(json.dumps(config.to_diff_dict(), default=str))
    try:
        return found | json.loads(json.dumps(dict(given or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance must be JSON (text, numbers, lists, dicts): {error}.") from error


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
