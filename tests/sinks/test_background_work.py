"""What a sink leaves to its thread: a forked child, which has no such thread, neither waits for it nor ends it."""

import os
import threading

from trainhooks.sinks import background_work
from trainhooks.sinks.background_work import BackgroundWork


def test_a_forked_child_ends_nothing(monkeypatch):
    gate, handled = threading.Event(), []
    work = BackgroundWork(lambda item: (gate.wait(), handled.append(item)), name="test", most=4)
    work.put(1)
    with monkeypatch.context() as child:
        child.setattr(background_work, "END_SECONDS", 0.0)
        child.setattr(os, "getpid", lambda: -1)
        work.end()
    work.put(2)
    gate.set()
    work.end()
    assert handled == [1, 2]
