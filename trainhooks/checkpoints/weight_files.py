"""Which files and folders of a step hold weights, by their names, and which only what resuming needs."""

from __future__ import annotations

import re

METADATA = ".metadata"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
NO_WEIGHTS = (
    "optimizer", "scheduler", "rng_state", "random_states", "training_args", "optim.", "train.pt", "scaler.",
    "sampler", "dl_state_dict", "distrib_optim", "opt_state",
)  # fmt: skip
"""How the files begin that trainers keep for resuming alone."""
OF_AN_OPTIMIZER = re.compile(r".*_optim_states\.pt|optim.*", flags=re.IGNORECASE)


def may_be_weights(name: str) -> bool:
    """Whether a file's name leaves it open that it holds weights: no optimizer's, scheduler's or generator's state."""
    return not name.startswith(NO_WEIGHTS) and not OF_AN_OPTIMIZER.fullmatch(name)
