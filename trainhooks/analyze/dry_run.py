"""What an analysis of a suite would ask for: requests, bytes and hours, from listings alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainhooks.checkpoints.base import CheckpointError
from trainhooks.checkpoints.kept_begin import AHEAD
from trainhooks.checkpoints.known_suites import known_suite
from trainhooks.checkpoints.places import hub_place
from trainhooks.checkpoints.sources.hub import HubFolder, list_hub_folder
from trainhooks.checkpoints.suite import Suite
from trainhooks.checkpoints.weight_files import WEIGHT_SUFFIXES, may_be_weights
from trainhooks.core.formatting import human
from trainhooks.core.printable import page

WINDOW_SECONDS = 300
LISTINGS_A_WINDOW, FILES_A_WINDOW = 500, 3000
"""What the hub gives an address without a token in five minutes; with one it is about twice as much."""
BYTES_A_SECOND = 50e6
USUAL_ROWS = 50_304
INDEX = ".index.json"
STORED_BYTES = 2  # of a number, in what is published


@dataclass(frozen=True)
class DryRun:
    """What an analysis of the output embedding asks a hub for: `listings` and `files` are requests of two kinds, which
    are limited apart (of shards at most: a head may come with its file's header); `small_bytes` are settings, indices
    (the same in every revision, so fetched once) and headers, `head_bytes` output embeddings, estimated from the
    weights' size (`rows` x `dim`)."""

    suite: str
    checkpoints: int
    listings: int
    files: int
    small_bytes: int
    head_bytes: int
    rows: int
    dim: int
    asked: int

    @property
    def hours(self) -> float:
        """At the hub's limits without a token, and 50 MB a second: the longer of waiting and fetching."""
        windows = max(self.listings / LISTINGS_A_WINDOW, self.files / FILES_A_WINDOW)
        return max((windows - 1) * WINDOW_SECONDS, (self.small_bytes + self.head_bytes) / BYTES_A_SECOND, 0.0) / 3600

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "hours": self.hours}

    def render(self) -> str:
        """The estimate as text, for a terminal."""
        waits = max(self.listings / LISTINGS_A_WINDOW, self.files / FILES_A_WINDOW) > 1
        lines = [
            f"{self.suite}: {self.checkpoints} checkpoints; nothing was read, {self.asked} listings were asked for",
            f"requests: {self.listings} listings and {self.files} parts of files",
            f"bytes: {human(self.small_bytes)} of settings and headers, about {human(self.head_bytes)} of output "
            f"embeddings (about {self.rows} x {self.dim} at {STORED_BYTES} bytes, estimated from the weights' size); "
            "as much is kept on disk",
            f"time: about {self.hours:.2g} hours at {BYTES_A_SECOND / 1e6:.0f} MB a second"
            + (f", with waits: a hub gives {LISTINGS_A_WINDOW} listings and {FILES_A_WINDOW} parts of files in five "
               "minutes without a token, about twice as many with one" if waits else ""),
            "Stopped, an analysis goes on where it was, and what was fetched is not fetched again.",
        ]  # fmt: skip
        return page(lines)


def dry_run(suite: Suite, *, vocab_size: int | None = None) -> DryRun:
    """Estimate an analysis with `params="head"` of a hub's suite: one listing more, of the last checkpoint.

    Raises ValueError for a suite that is not at a hub, where reading costs no requests.
    """
    last = suite.entries[-1]
    place = hub_place(last.location)
    if suite.kind not in ("hub", "list") or place is None or Path(last.location).exists():
        raise ValueError(
            f"{suite.name} has {len(suite.entries)} checkpoints and is not at a hub: an analysis reads one output "
            "embedding of each, and asks nobody. --dry-run is for hubs."
        )
    commit = suite.commits.get(last.location)
    folder = list_hub_folder(place.repo, revision=place.revision or None, commit=commit, under=place.folder)
    if not isinstance(folder, HubFolder):
        raise ValueError(f"{suite.name} is in the hub's local cache, and offline mode is on: nothing would be fetched.")
    known = known_suite(place.repo)
    rows = vocab_size or (known.rows[0] if known is not None and known.rows else USUAL_ROWS)
    sizes = {name: file.size for name, file in folder.files.items()}
    weights = {name: size for name, size in sizes.items() if name.endswith(WEIGHT_SUFFIXES) and may_be_weights(name)}
    # as they are read: beside safetensors the same weights in pickled files are not
    weights = {name: size for name, size in weights.items() if name.endswith(".safetensors")} or weights
    total = sum(weights.values())
    if not total:
        raise CheckpointError(f"{last.location} lists no weights right in it; it has {', '.join(sorted(sizes)[:8])}.")
    dim = _width(total / STORED_BYTES, rows)
    beside = _beside(sizes)
    number, opened = len(suite.entries), len(weights) if any(name.endswith(INDEX) for name in beside) else 0
    return DryRun(
        suite=suite.name,
        checkpoints=number,
        listings=number + 1,
        files=2 * number + len(beside) + opened,  # of one checkpoint every shard is looked at
        small_bytes=(number + opened) * min(AHEAD, total) + sum(beside.values()),
        head_bytes=number * min(rows * dim * STORED_BYTES, total),
        rows=rows,
        dim=dim,
        asked=2,
    )


def _beside(sizes: Mapping[str, int]) -> dict[str, int]:
    """The small files that opening a checkpoint reads: settings, and the index of shards."""
    index = [name for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json") if name in sizes]
    whole = "model.safetensors" in sizes or "pytorch_model.bin" in sizes
    return {name: sizes[name] for name in (["config.json"] * ("config.json" in sizes)) + ([] if whole else index[:1])}


def _width(parameters: float, rows: int) -> int:
    """The dimension of a transformer of so many parameters: 12 layers dim^2 + 2 rows dim, of about dim / 128 layers."""
    dim = max(1.0, parameters / (2 * rows))
    for _ in range(60):
        blocks = max(parameters - 2 * rows * dim, 0.05 * parameters)
        dim = math.sqrt(dim * (blocks * 128 / 12) ** (1 / 3))
    return max(1, round(dim))
