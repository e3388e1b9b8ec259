"""Kill runs at random moments, and look whether every step that was reported durable is in the store, bit for bit.

    python benchmarks/kill.py --kills 100

Each run goes on with the store that the one before it left; every tenth begins anew. Blocks are small, so that folds
are hit often; the child writes down how far it was told that records are durable, in a file of its own. Two of five
kills meet a compaction, or commits of a store that is cut and closed again and again. Children are forked by a process
that has imported everything, so that a run is milliseconds old when it is killed, and not busy with imports.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trainhooks.store import BackgroundWriter, Layout, StoreError, StoreWriter, Writing, open_store
from trainhooks.store.format.profiles import ARCHIVE, LIVE
from trainhooks.store.maintenance.compact import compact
from trainhooks.store.maintenance.verify import verify

BLOCK, VOCAB, DIM = 4, 96, 8
STORE_KILLS = 10  # then the next store


def layout() -> Layout:
    """A small store that folds every fourth record."""
    return Layout(vocab=VOCAB, dim=DIM, groups=("whole",), sketch_size=4, block=BLOCK)


def matrix(step: int) -> np.ndarray:
    """The matrix of a step, float32 [vocab, dim]; no two are alike."""
    return np.random.default_rng(step).standard_normal((VOCAB, DIM)).astype(np.float32)


def record(store: Path) -> None:
    """Go on with the store, or begin it where there is none yet, until killed; says in a file what is durable."""
    try:
        core = StoreWriter(store, layout(), mode="resume")
    except StoreError:  # nothing there, or a creation that was interrupted
        core = StoreWriter(store, layout(), mode="overwrite")
    writer = BackgroundWriter(core, writing=Writing())
    step = -1 if core.last_step is None else core.last_step
    with store.with_suffix(".durable").open("a", encoding="utf-8", buffering=1) as file:
        while True:
            step += 1
            writer.append(step, {}, snapshot=matrix(step), sketch=np.full((1, 4), step, np.float32))
            if (durable := writer.durable_step) is not None:
                file.write(f"{durable}\n")


def compact_again(store: Path) -> None:
    """Compact the store with one profile after the other, until killed."""
    while True:
        for profile in (ARCHIVE, LIVE):
            compact(store, profile=profile)


def close_again(store: Path) -> None:
    """Resume and close the store again and again: cuts, commits and metadata, and hardly a record."""
    while True:
        StoreWriter(store, layout(), mode="resume").close()


WORK: dict[str, Callable[[Path], None]] = {"record": record, "compact": compact_again, "close": close_again}


def serve() -> None:
    """For each line of the input, `work store`: fork a child that does it, say its id, and later how it ended."""
    print("ready", flush=True)
    for line in sys.stdin:
        what, _, store = line.rstrip("\n").partition(" ")
        pid = os.fork()
        if not pid:
            try:
                WORK[what](Path(store))
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


class Children:
    """Starts and kills children one at a time; a context."""

    def __enter__(self) -> Children:
        command = [sys.executable, "-W", "ignore::DeprecationWarning", __file__, "--serve"]
        self._child = 0
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        self._server.stdout.readline()
        return self

    def __exit__(self, *_: object) -> None:
        if self._child:
            os.kill(self._child, signal.SIGKILL)
        self._server.communicate()

    def kill(
        self,
        what: str,
        store: Path,
        *,
        seconds: float,
        number: signal.Signals = signal.SIGKILL,
        after: int | None = None,
    ) -> int | None:
        """Signal a child some seconds after it began, or after it reported a step of at least `after` durable; returns
        the last step that was ever reported durable."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{what} {store}\n")
        self._server.stdin.flush()
        self._child = int(self._server.stdout.readline())
        with contextlib.suppress(ProcessLookupError):
            while after is not None and (reported_durable(store) or 0) < after:
                os.kill(self._child, 0)  # still there
                time.sleep(0.005)
            time.sleep(seconds)
            os.kill(self._child, number)
        ended, self._child = int(self._server.stdout.readline()), 0
        assert ended == -number, f"the child ended by itself: {ended}"
        return reported_durable(store)


def reported_durable(store: Path) -> int | None:
    """The last step that the runs of a store reported durable."""
    side = store.with_suffix(".durable")
    lines = side.read_text(encoding="utf-8").split("\n")[:-1] if side.exists() else []
    return int(lines[-1]) if lines else None


def fail(store: str, records: int) -> None:
    """Record through a recorder's sink, and let an exception end the loop and the process."""
    from trainhooks.sinks import Record, StoreSink

    sink = StoreSink(store)
    sink.open(layout())
    for step in range(records):
        sink.write(Record(step, {}, snapshot=matrix(step)))
    raise ZeroDivisionError


def is_whole(path: Path) -> bool:
    """Whether a store's creation has ended."""
    try:
        open_store(path)
    except StoreError:
        return False
    return True


def check(path: Path, *, durable: int | None) -> int:
    """Compare a store with what its run wrote; returns its records. Raises AssertionError where something is lost."""
    if durable is None and not is_whole(path):
        return 0  # killed before the store was made
    store = open_store(path)
    steps = store.steps
    assert steps.tolist() == list(range(len(steps))), "steps are missing, or double"
    assert durable is None or len(steps) > durable, f"step {durable} was durable, the store has {len(steps)} records"
    assert store.snapshot_steps.tolist() == steps.tolist()
    for step in range(len(steps)):
        np.testing.assert_array_equal(store.snapshots[step], matrix(step))
    np.testing.assert_array_equal(store.sketch[:, 0, 0], steps)
    return len(steps)


def look(path: Path) -> list[str]:
    """What `verify` notes; raises AssertionError where it finds damage."""
    found = verify(path)
    assert found.sound, found.problems
    return [note.what for note in found.notes if "nothing between" not in note.what]


def kill_one(children: Children, path: Path, number: int, *, records: int, seconds: float) -> int:
    """One kill in its turn: of five, three meet a run, one a compaction, one closing; returns the store's records."""
    what = {3: "compact", 4: "close"}.get(number % 5, "record") if records else "record"
    if what != "record":
        StoreWriter(path, layout(), mode="resume").close()
    durable = children.kill(what, path, seconds=seconds)
    found = check(path, durable=durable)
    assert what == "record" or found == records, f"{records} records before the kill, {found} after it"
    return found


def main() -> None:
    """Kill, check, go on; each store is closed in the end and looked at once more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest", type=float, default=0.8, help="seconds that a run lasts at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve()
        return
    rng = random.Random(given.seed)
    said: Counter[str] = Counter()
    total = records = 0
    with tempfile.TemporaryDirectory() as folder, Children() as children:
        for number in range(given.kills):
            if number % STORE_KILLS == 0:
                records = 0
            path = Path(folder) / f"run{number // STORE_KILLS}.zarr"
            seconds = rng.uniform(0, given.longest)
            records = kill_one(children, path, number, records=records, seconds=seconds)
            said.update(look(path) if records else [])
            if (number + 1) % STORE_KILLS == 0 or number + 1 == given.kills:
                StoreWriter(path, layout(), mode="resume" if records else "overwrite").close()
                total += check(path, durable=records - 1 if records else None)
                assert verify(path).sound
    print(f"verify said after the kills: {dict(said) or 'nothing'}")
    print(f"{given.kills} runs killed; {total} records, each as it was written; nothing durable is lost")


if __name__ == "__main__":
    main()
