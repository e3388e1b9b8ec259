"""Shape annotations are checked while the tests run."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

# where arrays are computed; arguments that users give are checked by the code itself, and tested for it
NUMERIC = ("analyze", "capture", "convergence", "intervene", "labels", "metrics", "probe", "sinks", "sketch", "store")
install_import_hook([f"trainhooks.{name}" for name in NUMERIC], "beartype.beartype")

import torch  # noqa: E402 - the hook comes before what it watches

torch.set_num_threads(1)
