"""A writer that obeys orders on its standard input, with a clock and a process-id namespace of its own.

    python second_writer.py NAME CLOCK_OFFSET NAMESPACE

An order is a line of JSON, `[action, arguments]`; each is answered by one line of JSON: what the action gave, or the
error's text as `{"error": ...}`. What a record holds says who wrote it.
"""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from trainhooks.core.variable import Variable
from trainhooks.store import Layout, StoreError, StoreWriter
from trainhooks.store.storage import base as storage
from trainhooks.store.storage import lock

VOCAB, DIM = 6, 3
OWNERS = {"first": 0.0, "second": 1000.0}
LAYOUT = Layout(
    vocab=VOCAB, dim=DIM, groups=(), sketch_size=0, variables=(Variable("loss"),), precision="float32", block=4
)


def content(owner: str, step: int) -> float:
    """The number that a writer records at a step, as its loss and all over its matrix."""
    return OWNERS[owner] + step


class Obeying:
    """What the orders do."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._writer: StoreWriter

    def open(self, path: str, mode: str, watch: float) -> int | None:
        """Open a store, watching another's holder for so many seconds; its last step."""
        vars(lock)["WATCH_SECONDS"] = watch
        self._writer = StoreWriter(path, LAYOUT, mode=mode)
        return self._writer.last_step

    def append(self, count: int) -> int:
        """Add so many records; the last step."""
        for _ in range(count):
            last = self._writer.last_step
            step = 0 if last is None else last + 1
            value = content(self._owner, step)
            self._writer.append(step, {"loss": value}, snapshot=np.full((VOCAB, DIM), value, np.float32))
        return step

    def close(self) -> None:
        """Close the store."""
        self._writer.close()


def main(owner: str, offset: str, namespace: str) -> None:
    """Obey until the input ends."""
    shift = float(offset)
    own = SimpleNamespace(
        time=lambda: time.time() + shift, monotonic=lambda: time.monotonic() - 7 * shift, sleep=time.sleep
    )
    vars(lock).update(time=own, HEARTBEAT_SECONDS=0.05, _LOOK_SECONDS=0.02, _namespace=lambda: namespace)
    vars(storage).update(ALONE_SECONDS=1.0)
    obeying = Obeying(owner)
    for line in sys.stdin:
        action, arguments = json.loads(line)
        answer: Any
        try:
            answer = getattr(obeying, action)(*arguments)
        except (StoreError, OSError) as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
