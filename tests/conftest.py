"""Shape annotations are checked while the tests run."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

install_import_hook("trainhooks", "beartype.beartype")

import torch  # noqa: E402 - the hook comes before what it watches

torch.set_num_threads(1)
