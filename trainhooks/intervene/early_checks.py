"""Where a model is, looked at before it is loaded: a folder, or a name that a hub knows; and names asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

HUB_SECONDS = 10.0
"""How long a hub may take to say whether it has a model."""
_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


def check_model(name: str | Path) -> None:
    """Raises ValueError where `name` is no folder with a model, and no model of a hub that answers within seconds.

    A model that a hub has given before is taken from the cache, without asking.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"{name} cannot be loaded as a causal LM: the folder has no config.json. Give a model's folder."
            )
    elif path.exists() or not _HUB_NAME.fullmatch(str(name)):
        raise ValueError(f"{name} cannot be loaded as a causal LM: it is no folder. Give a folder or a hub id.")
    else:
        _check_hub(str(name))


def _check_hub(name: str) -> None:
    try:
        from huggingface_hub import HfApi, try_to_load_from_cache
    except ImportError as error:
        raise ImportError("interventions need transformers: pip install 'trainhooks[transformers]'.") from error
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except Exception as error:  # whichever HTTP library is under it
        told = next((line for line in str(error).splitlines() if line), type(error).__name__)
        raise ValueError(
            f"{name} cannot be loaded as a causal LM: there is no such folder, and the hub does not give it ({told}). "
            "Give a folder or a hub id."
        ) from error


def check_names(what: str, given: Sequence[str], *, known: Sequence[str]) -> None:
    """Raises ValueError for a `given` name of a `what` that is not among the `known`."""
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"there is no {what} {unknown[0]!r}: take some of {', '.join(known)}.")
