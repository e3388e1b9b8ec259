"""Kill runs at random moments, and look whether every step that was reported durable is in the store, bit for bit.

    python benchmarks/kill.py --kills 100

Each run goes on with the store that the one before it left. Blocks are small, so that folds are hit often; the child
writes down how far it was told that records are durable, in a file of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from trainhooks.store import BackgroundWriter, Layout, StoreError, StoreWriter, Writing, open_store
from trainhooks.store.compact import compact
from trainhooks.store.profiles import ARCHIVE, LIVE
from trainhooks.store.verify import verify

BLOCK, VOCAB, DIM = 4, 96, 8


def layout() -> Layout:
    """A small store that folds every fourth record."""
    return Layout(vocab=VOCAB, dim=DIM, groups=("whole",), sketch_size=4, block=BLOCK)


def matrix(step: int) -> np.ndarray:
    """The matrix of a step, float32 [vocab, dim]; no two are alike."""
    return np.random.default_rng(step).standard_normal((VOCAB, DIM)).astype(np.float32)


def child(store: Path, *, side: Path) -> None:
    """Go on with the store, or begin it where there is none yet, until killed; `side` says what is durable."""
    print("ready", flush=True)
    try:
        core = StoreWriter(store, layout(), mode="resume")
    except StoreError:  # nothing there, or a creation that was interrupted
        core = StoreWriter(store, layout(), mode="overwrite")
    writer = BackgroundWriter(core, writing=Writing())
    step = -1 if core.last_step is None else core.last_step
    with side.open("a", encoding="utf-8", buffering=1) as file:
        while True:
            step += 1
            writer.append(step, {}, snapshot=matrix(step), sketch=np.full((1, 4), step, np.float32))
            if (durable := writer.durable_step) is not None:
                file.write(f"{durable}\n")


def compacting_child(store: Path) -> None:
    """Compact the store with one profile after the other, until killed."""
    print("ready", flush=True)
    while True:
        for profile in (ARCHIVE, LIVE):
            compact(store, profile=profile)


def closing_child(store: Path) -> None:
    """Resume and close the store again and again: cuts, commits and metadata, and hardly a record."""
    print("ready", flush=True)
    while True:
        StoreWriter(store, layout(), mode="resume").close()


def kill_beside(store: Path, *, what: str, seconds: float) -> None:
    """Close the store, and kill what works on it without adding records."""
    StoreWriter(store, layout(), mode="resume").close()
    process = subprocess.Popen([sys.executable, __file__, f"--{what}", str(store)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(seconds)
    process.kill()
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL, f"the child ended by itself: {process.returncode}"


def fail(store: str, records: int) -> None:
    """Record through a recorder's sink, and let an exception end the loop and the process."""
    from trainhooks.sinks import Record, StoreSink

    sink = StoreSink(store)
    sink.open(layout())
    for step in range(records):
        sink.write(Record(step, {}, snapshot=matrix(step)))
    raise ZeroDivisionError


def run_once(store: Path, *, seconds: float, number: signal.Signals) -> int | None:
    """Signal a child some seconds after it began to open the store; returns the last step it was told is durable."""
    side = store.with_suffix(".durable")
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", str(store), "--side", str(side)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(number)
    process.wait()
    process.stdout.close()
    assert process.returncode == -number, f"the child ended by itself: {process.returncode}"
    lines = [line for line in side.read_text(encoding="utf-8").split("\n")[:-1] if line] if side.exists() else []
    return int(lines[-1]) if lines else None


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


def main() -> None:
    """Kill, check, go on; then close the last store and look at it once more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest", type=float, default=0.5, help="seconds that a run lasts at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compact", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--close", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, side=given.side)
    if given.compact:
        compacting_child(given.compact)
    if given.close:
        closing_child(given.close)
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        path = Path(folder) / "run.zarr"
        records = 0
        said: Counter[str] = Counter()
        for number in range(given.kills):
            # every fifth kill meets a compaction, and every fifth a closing: what was durable before stays so
            what = {3: "compact", 4: "close"}.get(number % 5)
            if what and records:
                kill_beside(path, what=what, seconds=rng.uniform(0, given.longest))
                assert check(path, durable=records - 1) == records
                said.update(look(path))
                continue
            durable = run_once(path, seconds=rng.uniform(0, given.longest), number=signal.SIGKILL)
            records = check(path, durable=durable)
            said.update(look(path) if records else [])
        writer = StoreWriter(path, layout(), mode="resume")
        writer.close()
        check(path, durable=records - 1)
        assert verify(path).sound
        print(f"verify said after the kills: {dict(said) or 'nothing'}")
        print(f"{given.kills} runs killed; {records} records, each as it was written; nothing durable is lost")


if __name__ == "__main__":
    main()
