"""Which of several processes have made a recorder: found out through their store, before any collective.

A collective would be waited for until the group's own timeout, on all ranks, with no word of what is amiss.
"""

from __future__ import annotations

import itertools
import time
import warnings
from datetime import timedelta
from typing import Any

import torch.distributed as dist

WORD_SECONDS = 5.0
"""After so long a rank that waits says for whom."""
LONGEST_SECONDS = 60.0
"""The others are waited for no longer than this, nor than half of the group's own timeout."""
LOOK_SECONDS = 1.0
_MEETINGS = itertools.count()


def meet(*, rank: int, size: int) -> int | None:
    """Wait until every rank has come here; None then. Else, after a while, the one rank that shall go on alone.

    That is the lowest one that came in time. All who come are told the same rank, also those who come late.
    """
    number = next(_MEETINGS)
    store: Any = dist.distributed_c10d._get_default_store()
    came = [f"trainhooks/recorder/{number}/{other}" for other in range(size)]
    decided = f"trainhooks/recorder/{number}/alone"
    store.set(came[rank], "here")
    patience = min(LONGEST_SECONDS, store.timeout.total_seconds() / 2)
    began, said = time.monotonic(), False
    while not store.check([decided]):
        try:
            store.wait(came, timedelta(seconds=min(LOOK_SECONDS, patience)))
        except RuntimeError:  # not all of them yet; of a store that is gone, check() raises
            absent = [other for other in range(size) if not store.check([came[other]])]
        else:
            return None
        waited = time.monotonic() - began
        if absent and waited >= min(WORD_SECONDS, patience / 2) and not said:
            said = True
            _say_who_is_missing(absent, rank=rank, size=size, patience=patience)
        if absent and waited >= patience:
            lowest = min(set(range(size)) - set(absent))
            store.compare_set(decided, "", str(lowest))
    return int(store.get(decided))


def named(ranks: list[int]) -> str:
    """Ranks for a message: the first eight of them."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:8]))}{' ...' if len(ranks) > 8 else ''}"


def _say_who_is_missing(absent: list[int], *, rank: int, size: int, patience: float) -> None:
    warnings.warn(
        f"rank {rank} has made its recorder and waits for {named(absent)} of {size}, at most {patience:.0f} seconds: "
        "every rank makes the same recorder and calls its moments (rank 0 alone has the sinks). Where ranks come here "
        "at very different times, call torch.distributed.barrier() before.",
        RuntimeWarning,
        stacklevel=5,
    )
