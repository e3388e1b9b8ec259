"""Shape annotations are checked while the tests run."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

# where arrays are computed; arguments that users give are checked by the code itself, and tested for it
METRICS = (path.stem for path in (Path(__file__).parents[1] / "trainhooks" / "metrics").glob("[a-z]*.py"))
NUMERIC = (
    *("analyze", "intervene", "lead", "numerics", "probe", "recording.label_counts", "sinks", "store"),
    *(f"metrics.{name}" for name in METRICS if name != "arguments"),
)
install_import_hook([f"trainhooks.{name}" for name in NUMERIC], "beartype.beartype")

import torch  # noqa: E402 - the hook comes before what it watches
from hypothesis import HealthCheck, settings  # noqa: E402

# what a machine's terminal and proxies would change in what commands print and clients reach
os.environ |= {"COLUMNS": "80", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)

# the same examples everywhere, and no clock decides
settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

torch.set_num_threads(1)
