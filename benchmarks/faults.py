"""Runs that are hit by signals at random moments: nothing durable is lost, no resume refused, and none hangs.

    python benchmarks/faults.py --signals 1000 --interrupts 200 --exits 50

Three parts. **Signals**: a recorder's run is killed (SIGKILL, SIGTERM) at a random moment, and goes on from its own
last checkpoint, again and again; some are stopped (SIGSTOP) for a moment before. **Interrupts**: KeyboardInterrupt is
raised at a random moment of the loop, the recorder and its `close()`; the process ends within `LONGEST_SECONDS`, and
its store is sound, and complete only where it fits its checksums. **Exits**: runs end without `close()`: by an
exception, at the end of the script, by `sys.exit` in the loop; none hangs.

Children are forked by a process that has imported everything, so that a run is milliseconds old when it is hit.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # an optional part of torch that a first step would import, in each child anew
from torch import nn

import trainhooks as th
import trainhooks.recording.recorder  # `th` itself imports what is asked for, and each child would
from trainhooks.store import StoreError, open_store
from trainhooks.store.maintenance.verify import verify

VOCAB, DIM, CHECKPOINT_EVERY, STEPS = 96, 8, 7, 400
LONGEST_SECONDS = 10.0
RUN_SIGNALS = 20  # then the next run begins


class Model(nn.Module):
    """An output embedding whose content follows from the step alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, DIM)
        self.lm_head = nn.Linear(DIM, VOCAB, bias=False)
        self.set(0)

    def set(self, step: int) -> None:
        """The state after `step` updates."""
        with torch.no_grad():
            self.lm_head.weight.copy_(torch.from_numpy(matrix(step)))


def matrix(step: int) -> np.ndarray:
    """The matrix of a step, float32 [vocab, dim]; no two are alike."""
    return np.random.default_rng(step).standard_normal((VOCAB, DIM)).astype(np.float32)


def train(folder: Path, *, steps: int = STEPS, close: bool = True) -> None:
    """Train from the last checkpoint on, or from the start; says in a file which checkpoints it has saved."""
    checkpoint, model = folder / "checkpoint", Model()
    state = pickle.loads(checkpoint.read_bytes()) if checkpoint.exists() else None  # our own file
    recorder = th.Recorder(
        model, store=folder / "run.zarr", metrics=[], sketch_size=61, mode="overwrite" if state is None else "resume"
    )
    if state is not None:
        recorder.load_state_dict(state)
        model.set(state["step"])
    try:
        for step in range(recorder.step + 1, steps + 1):
            recorder.begin_step()
            model.set(step)
            recorder.after_update(loss=float(step))
            if step % CHECKPOINT_EVERY == 0:
                save(recorder.state_dict(), checkpoint)
    finally:
        if close:
            recorder.close()


def save(state: object, path: Path) -> None:
    """Replace a checkpoint at once."""
    temporary = path.with_suffix(".partial")
    temporary.write_bytes(pickle.dumps(state))
    temporary.replace(path)


def child(work: Callable[[], None], *, log: Path) -> int:
    """Fork a child that does the work as a script of its own would, its exit handlers included; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 1
    try:
        work()
        code = 0
    except SystemExit:
        code = 0
    except BaseException:
        traceback.print_exc()
    # as the interpreter ends: threads that are no daemons, then the exit handlers, ours among them
    vars(threading)["_shutdown"]()
    vars(atexit)["_run_exitfuncs"]()
    os._exit(code)


def ended(pid: int, *, seconds: float) -> int | None:
    """How a child ended, as `os.waitstatus_to_exitcode` says it; None where it had to be killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def check(folder: Path) -> bool:
    """Compare a run's store with what was recorded, up to its checkpoint at least; whether it is complete.

    Raises AssertionError where something is lost or damaged.
    """
    path, checkpoint = folder / "run.zarr", folder / "checkpoint"
    state = pickle.loads(checkpoint.read_bytes()) if checkpoint.exists() else None
    try:
        store = open_store(path)
    except StoreError:
        assert state is None, "a store that a checkpoint belongs to cannot be opened"
        return False  # hit before it was made
    found = verify(path)
    assert found.sound, found.problems
    steps = store.steps.tolist()
    assert steps == list(range(len(steps))), f"steps are missing, or double: {steps}, {store.gaps}"
    assert state is None or len(steps) > state["step"], f"checkpoint of {state['step']}, {len(steps)} records"
    for step in range(0, len(steps), 5):
        np.testing.assert_array_equal(store.snapshots[step], matrix(step))
    return bool(store.complete)


def signals(folder: Path, count: int, rng: random.Random) -> Counter[str]:
    """Runs that are hit and go on from their checkpoints."""
    said: Counter[str] = Counter()
    for number in range(count):
        run = folder / f"signals{number // RUN_SIGNALS}"
        run.mkdir(exist_ok=True)
        pid = child(lambda run=run: train(run, steps=10**9), log=run / "log")
        time.sleep(rng.uniform(0.0, 0.25))
        if rng.random() < 0.2:
            for one in (signal.SIGSTOP, signal.SIGCONT):
                os.kill(pid, one)
                time.sleep(rng.uniform(0.0, 0.05))
        how = rng.choice([signal.SIGKILL, signal.SIGTERM])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
        code = ended(pid, seconds=LONGEST_SECONDS)
        assert code is not None, f"hangs: {run}"
        assert code == -how, f"ended by itself with {code}:\n{(run / 'log').read_text()[-3000:]}"
        check(run)
        said[how.name] += 1
    return said


def interrupts(folder: Path, count: int, rng: random.Random) -> Counter[str]:
    """Runs into which an interrupt falls at a random bytecode of trainhooks, `close()` included."""
    said: Counter[str] = Counter()
    for number in range(count):
        run = folder / f"interrupt{number}"
        run.mkdir()
        # every other at a bytecode, in the recorder or in its close(): rare moments
        at = rng.uniform(0.0, 3.0) if number % 2 else rng.choice([rng.randrange(1, 9_000), -rng.randrange(1, 900)])
        pid = child(lambda run=run, at=at: interrupted(run, at), log=run / "log")
        code = ended(pid, seconds=60)
        assert code is not None, f"an interrupt at {at} hangs: {run}"
        took = (run / "took").read_text().split() if (run / "took").exists() else []
        assert took, f"an interrupt at {at}: the loop did not end:\n{(run / 'log').read_text()[-3000:]}"
        assert float(took[0]) < LONGEST_SECONDS, f"an interrupt at {at}: {took[0]} s"
        said["complete" if check(run) else "not complete"] += 1
        said["interrupted" if took[1] == "True" else "ended before it"] += 1
    return said


def interrupted(folder: Path, at: float) -> None:
    """A short run and KeyboardInterrupt in it: after `at` seconds, or, a whole number, at that bytecode of this package
    (negative: counted from `close()` on)."""
    fell = [0.0]

    def interrupt(*_: object) -> None:
        fell[0] = time.monotonic()
        raise KeyboardInterrupt

    if isinstance(at, int):
        sys.settrace(tracer(at, interrupt))
    else:
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, at + 1e-4)
    try:
        train(folder, steps=20 if isinstance(at, int) else 150)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        took = time.monotonic() - fell[0] if fell[0] else 0.0
        (folder / "took").write_text(f"{took} {bool(fell[0])}")


def tracer(at: int, interrupt: Callable[[], None]) -> Callable[..., Any]:
    """A trace function that interrupts at a bytecode."""
    left, armed = [abs(at)], [at > 0]

    def trace(frame: Any, event: str, _argument: object) -> Any:
        file = frame.f_code.co_filename
        if "trainhooks" not in file and not file.endswith("threading.py"):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        armed[0] = armed[0] or (frame.f_code.co_name == "close" and file.endswith("recorder.py"))
        if armed[0] and event == "opcode":
            left[0] -= 1
            if left[0] == 0:
                armed[0] = False
                interrupt()
        return trace

    return trace


def exits(folder: Path, count: int, rng: random.Random) -> Counter[str]:
    """Runs that end without `close()` at a random step."""
    said: Counter[str] = Counter()
    for number in range(count):
        run = folder / f"exit{number}"
        run.mkdir()
        steps, how = rng.randrange(1, 40), rng.choice(["exception", "end", "sys.exit"])
        pid = child(lambda run=run, steps=steps, how=how: left_open(run, steps, how), log=run / "log")
        code = ended(pid, seconds=60)
        assert code is not None, f"{how} after {steps} steps hangs: {run}"
        store = open_store(run / "run.zarr")
        assert store.steps.tolist() == list(range(steps + 1)), f"{how}: {store.steps.tolist()} of {steps}"
        check(run)
        said[how] += 1
    return said


def left_open(folder: Path, steps: int, how: str) -> None:
    """A run whose recorder nobody closes."""
    train(folder, steps=steps, close=False)
    if how == "exception":
        raise ZeroDivisionError
    if how == "sys.exit":
        sys.exit()


PARTS = {"signals": signals, "interrupts": interrupts, "exits": exits}


def main() -> None:
    """The parts, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("signals", 1000), ("interrupts", 200), ("exits", 50), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())  # kept where something is wrong; no finalizer, which children would run
    for name, part in PARTS.items():
        begin, count = time.monotonic(), getattr(given, name)
        said = part(folder, count, random.Random(given.seed))
        seconds = time.monotonic() - begin
        print(f"{name}: {count} runs, {dict(said)}, {seconds:.0f} s; nothing lost, none hangs", flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
