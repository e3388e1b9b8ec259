"""A checkpoint's whole model and its tokenizer: where they are, and loading them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.places import hub_place
from trainhooks.checkpoints.suite import Suite


def check_models(suite: Suite) -> None:
    """Refuse a suite without a model that a text could be read by, from names alone.

    Raises CheckpointError where no checkpoint is a model; ImportError without transformers or tokenizers.
    """
    if absent := [name for name in ("transformers", "tokenizers") if find_spec(name) is None]:
        raise ImportError(f"a text needs {' and '.join(absent)}: pip install 'trainhooks[transformers]'.")
    if suite.kind == "store":
        raise CheckpointError(f"{suite.name} is a store of matrices; a text needs models: give their checkpoints.")
    for entry in reversed(suite.entries):
        try:
            model_source(entry.location)
        except CheckpointError as error:
            reason = error
        else:
            return
    raise reason


def load_model(place: str | os.PathLike[str]) -> nn.Module:
    """The causal LM at `place`, in float32 and evaluation mode."""
    source, revision, folder = model_source(place)
    within = {"subfolder": folder} if folder else {}
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise ImportError("loading models needs transformers: pip install 'trainhooks[transformers]'.") from error
    try:
        with _no_progress_bar():
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                revision=revision,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
                **within,
            )
    except ImportError:
        raise
    except Exception as error:  # readers of weights raise types of their own, some plain Exception
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{place}: no causal language model can be loaded from it: {told[0]}") from error
    lost = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if lost:
        raise CheckpointError(
            f"{place} lacks {len(lost)} of the model's tensors, which would be random: {', '.join(lost[:5])}. Its "
            "weights and its config.json belong to two models, or the file is not complete."
        )
    loaded: nn.Module = model.eval()
    return loaded


def model_source(place: str | os.PathLike[str]) -> tuple[str, str | None, str]:
    """What `from_pretrained` takes: a folder, or a repository, its revision and a folder in it ("" for none)."""
    path = Path(place)
    if path.is_dir() and (path / "config.json").is_file():
        return str(path), None, ""
    hub = None if os.path.lexists(path) else hub_place(os.fspath(place))
    if hub is None:
        found = "a folder without config.json" if path.is_dir() else "a file" if path.exists() else "not there"
        raise CheckpointError(
            f"{place} is {found}; a text needs a whole model, which a state dict (Lightning, torch.save, DCP) does not "
            "describe. Save it with `save_pretrained`, or leave the text out."
        )
    return hub.repo, hub.revision or None, hub.folder


def tokenizer_file(place: str | os.PathLike[str]) -> Path:
    """The tokenizer.json at a file, in a folder or in a hub repository's revision."""
    path = Path(place)
    if path.is_file() and path.suffix == ".json":
        return path
    advice = "Pass the path of a tokenizer.json (--tokenizer)."
    if os.path.lexists(path):
        if not (path / "tokenizer.json").is_file():
            raise CheckpointError(f"{place} holds no tokenizer.json. {advice}")
        return path / "tokenizer.json"
    hub = hub_place(os.fspath(place))
    if hub is None:
        raise CheckpointError(f"{place} is neither here nor a hub repository, org/name[@revision]. {advice}")
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(hub.repo, "tokenizer.json", revision=hub.revision or None, subfolder=hub.folder or None)
        )
    except Exception as error:  # the HTTP client's types depend on its version
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{place}: its tokenizer.json cannot be fetched: {told[0]} {advice}") from error


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """No bar for every checkpoint's weights; the setting comes back after."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
