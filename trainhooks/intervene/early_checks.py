"""What can be wrong with a call, looked at before a model is loaded: names, texts, whether there is such a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from trainhooks.intervene.deletion.orders import ORDERS
from trainhooks.intervene.deletion.variants import VARIANTS
from trainhooks.intervene.steering.directions import BASELINES, SOLVED
from trainhooks.intervene.steering.scales import check_ratios

HUB_SECONDS = 10.0
"""How long a hub may take to say whether it has a model."""
_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


def check_steering(*, ratios: Sequence[float], directions: Sequence[str]) -> None:
    """Raises ValueError for a direction that there is not, and for ratios that are not above 0."""
    _check_names("direction", directions, known=(*SOLVED, *BASELINES))
    check_ratios(torch.tensor(ratios, dtype=torch.float64))


def check_pruning(*, orders: Sequence[str], variants: Sequence[str]) -> None:
    """Raises ValueError for an order or a variant that there is not."""
    _check_names("order", orders, known=ORDERS)
    _check_names("variant", variants, known=VARIANTS)


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


def _check_names(what: str, given: Sequence[str], *, known: Sequence[str]) -> None:
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"there is no {what} {unknown[0]!r}: take some of {', '.join(known)}.")
