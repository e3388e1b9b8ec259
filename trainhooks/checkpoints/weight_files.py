"""Where in a step's folder the weights lie: beside what only resuming needs, or in the one folder below."""

from __future__ import annotations

import os
import re
from pathlib import Path

from trainhooks.checkpoints.base import CheckpointError

METADATA = ".metadata"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
NO_WEIGHTS = (
    "optimizer", "scheduler", "rng_state", "random_states", "training_args", "optim.", "train.pt", "scaler.",
    "sampler", "dl_state_dict", "distrib_optim",
)  # fmt: skip
"""How the files begin that trainers keep for resuming alone."""
OF_AN_OPTIMIZER = re.compile(r".*_optim_states\.pt|optim.*", flags=re.IGNORECASE)
OF_A_RANK = re.compile(r"mp_rank_\d{2,}(?:_\d{3,})?(?:_\d{3,})?")


def may_be_weights(name: str) -> bool:
    """Whether a file's name leaves it open that it holds weights: no optimizer's, scheduler's or generator's state."""
    return not name.startswith(NO_WEIGHTS) and not OF_AN_OPTIMIZER.fullmatch(name)


def weights_folder(path: Path) -> Path:
    """`path`, or the one folder right below it that holds its weights where `path` itself holds none.

    Looked for: a distributed checkpoint (`model_and_optim/.metadata`, `pytorch_model_fsdp_0/.metadata`), and Megatron's
    `mp_rank_00` where it is the only rank's. Links are not followed. Raises CheckpointError where several could be it.
    """
    with os.scandir(path) as listed:
        entries = list(listed)
    if any(_holds(entry.name) and not os.path.isdir(entry.path) for entry in entries):  # False for links in a loop
        return path
    below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    distributed = [n for n in below if may_be_weights(n) and os.path.isfile(path / n / METADATA)]
    found = sorted(distributed or [name for name in below if OF_A_RANK.fullmatch(name)])
    if len(found) > 1:
        raise CheckpointError(
            f"{path} holds no weights itself; {', '.join(found[:8])} below it do. Give the path of one that holds the "
            "whole model; parts of tensors must be merged first."
        )
    return path / found[0] if found else path


def _holds(name: str) -> bool:
    return name == METADATA or (name.endswith((*WEIGHT_SUFFIXES, ".index.json")) and may_be_weights(name))
