"""What looking at a run costs: report and figures of a long store, and TensorBoard's pictures while a run trains.

    python benchmarks/looking.py            # a store of 1,000 steps at 8,192 x 256 is made first: minutes
    python benchmarks/looking.py --small    # a small one, for a look at this program

Report and figures are each made in a process of their own, in turns. "CPU s" is that process' processor time, imports
included, and is what counts where the machine is shared; "wall s" beside it is as noisy as the machine is busy; "peak
MB" its largest resident memory. The median of the rounds.

Drawing: two arms of the demo's loop on the same batches, in blocks that take turns, each with a store, every metric and
a `TensorBoardSink`; the one draws pictures at steps 0, 1, 4, 16, 64 ..., the other none. "thread ms" is the processor
time of the training thread a step, "process ms" that of all threads, "sink ms" what the sink's own thread took of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from live_arms import Clock, Recorded, Setting

import trainhooks as th

LOOK = """
import json, resource, sys, time
begun = time.monotonic()
import trainhooks as th
what, store, out = sys.argv[1:]
if what == "report":
    th.write_report(store, out=out + "/report.html")
else:
    th.figures(store, out=out)
print(json.dumps({"cpu": time.process_time(), "wall": time.monotonic() - begun,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)}))
"""
LEARNING = 0.02


def make_store(path: Path, *, steps: int, vocab: int, dim: int) -> None:
    """A run whose rows move along frequency, then to places of their own; metrics at log-spaced records."""
    generator = torch.Generator().manual_seed(0)
    counts = np.maximum(1, 1e7 / np.arange(1, vocab + 1) ** 1.05).astype(np.int64)
    logs = torch.log(torch.from_numpy(counts).float())
    along = (logs - logs.mean())[:, None] / logs.std() * torch.randn(dim, generator=generator) / dim**0.5
    places = torch.randn(vocab, dim, generator=generator) * 0.05
    model = torch.nn.Sequential()
    model.add_module("embed", torch.nn.Embedding(vocab, dim))
    model.add_module("lm_head", torch.nn.Linear(dim, vocab, bias=False))
    metrics = th.default_metrics(counts)
    for metric in metrics:
        metric.schedule = th.LogSpaced()
    with th.Recorder(model, store=path, counts=counts, metrics=metrics, precision="bfloat16") as recorder:
        for step in range(steps):
            recorder.begin_step()
            with torch.no_grad():
                weight = model.lm_head.weight
                weight += LEARNING * (along - 0.5 * weight) + LEARNING * min(1.0, step / steps) * (places - weight)
                weight[step % 8 :: 8] += 0.001 * torch.randn(len(weight[step % 8 :: 8]), dim, generator=generator)
            recorder.after_update(loss=9.0 - 6.0 * (1 - np.exp(-step / 100)))


def look(what: str, store: Path) -> dict[str, float]:
    """One report, or all figures, in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-c", LOOK, what, str(store), out]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def looking(store: Path, *, rounds: int) -> None:
    """Report and figures in turns."""
    found: dict[str, list[dict[str, float]]] = {"report": [], "figures": []}
    for number in range(rounds):
        for what in sorted(found, reverse=bool(number % 2)):
            found[what].append(look(what, store))
    print("| what | CPU s | wall s | peak MB |\n|---|---|---|---|")
    for what, all_of in found.items():
        cpu, wall, peak = (statistics.median(one[key] for one in all_of) for key in ("cpu", "wall", "peak"))
        print(f"| {what} | {cpu:.1f} | {wall:.1f} | {peak:.0f} |")


class Drawn(Recorded):
    """With a store, every metric and TensorBoard; pictures or none."""

    def __init__(self, name: str, *, pictures: bool, folder: Path, setting: Setting) -> None:
        counts = np.maximum(1, 1e6 / np.arange(1, setting.vocab + 1)).astype(np.int64)
        sink = th.TensorBoardSink(folder / f"{name}-events", **({} if pictures else {"pictures": None}))
        self.sink, self.seconds = sink, {"thread": 0.0, "process": 0.0}
        super().__init__(name, settings={"counts": counts, "sinks": [sink]}, folder=folder, setting=setting)

    def timed(self, work: Callable[[], object]) -> None:
        """Do the work; what it waits for at the end, the sink's queue, is part of it."""
        thread, process = time.thread_time(), time.process_time()
        work()
        self.seconds["thread"] += time.thread_time() - thread
        self.sink.settle(seconds=600.0)
        self.seconds["process"] += time.process_time() - process


def drawing(setting: Setting) -> None:
    """Both arms, block by block."""
    with tempfile.TemporaryDirectory() as folder:
        arms = [Drawn(n, pictures=p, folder=Path(folder), setting=setting) for n, p in (("plain", 0), ("pictures", 1))]
        for number, batches in enumerate(setting.ids()):
            for arm in arms if number % 2 else arms[::-1]:
                arm.timed(lambda arm=arm, batches=batches: arm.block(batches, Clock(on_gpu=False)))
        for arm in arms:
            arm.timed(arm.close)
    steps = setting.rounds * setting.block
    print("| arm | thread ms a step | process ms a step | sink ms a step |\n|---|---|---|---|")
    for arm in arms:
        thread, process = (1000 * arm.seconds[key] / steps for key in ("thread", "process"))
        print(f"| {arm.name} | {thread:.1f} | {process:.1f} | {1000 * arm.sink.cpu_seconds / steps:.1f} |")
    assert all(torch.equal(a, b) for a, b in zip(arms[0].losses, arms[1].losses, strict=True))


def main() -> None:
    """Everything, as tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--store", type=Path, help="a store that is there, instead of one made for this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of the loop that is drawn")
    parser.add_argument("--only", choices=("look", "draw"))
    asked = parser.parse_args()
    steps, vocab, dim = (40, 256, 16) if asked.small else (1000, 8192, 256)
    with tempfile.TemporaryDirectory() as folder:
        if asked.only != "draw":
            store = asked.store or Path(folder) / "run.zarr"
            if asked.store is None:
                make_store(store, steps=steps, vocab=vocab, dim=dim)
            looking(store, rounds=1 if asked.small else asked.rounds)
        if asked.only != "look":
            context, windows, block = (16, 2, 3) if asked.small else (128, 8, 10)
            rounds = 2 if asked.small else asked.steps // block
            sizes = {"vocab": vocab, "context": context, "windows": windows, "block": block, "rounds": rounds}
            drawing(Setting(size="tiny", device="cpu", **sizes))


if __name__ == "__main__":
    main()
