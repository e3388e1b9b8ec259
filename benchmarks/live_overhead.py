"""What following a run costs its loop: the same steps bare, recorded, and with what others do, in turns.

    python benchmarks/live_overhead.py                          # the demo's tiny model on the CPU, 4 minutes
    python benchmarks/live_overhead.py --small                  # a small setting for CI, seconds
    python benchmarks/live_overhead.py --device cuda --size 160m --steps 300
    python benchmarks/live_overhead.py --against v0.1.0 --only scalars everything defaults
    python benchmarks/live_overhead.py --alone --against v0.1.0 --only groups everything demo --threads 1

One process. Each arm has its own copy of the model and its own optimizer, and all take the same batches, in blocks of
`--block` steps that take turns, the order rotating, so that a slow moment of the machine falls on all arms. A step's
time runs from its begin to the next one's (on a GPU between events of its stream: nothing waits); "ms" is the median
over blocks of the block's mean step (a median step would hide what falls on each tenth), "ratio" the median over
rounds of the arm's block to the bare one of the same round. "CPU ms" is the whole process' processor time a step,
background threads included, which a busy machine disturbs less. "kB" are those on disk a step, "host" and "device" how
far peak memory rose within a block above its begin, "own" what the recorder says of itself, its opening included.

- `scalars`: every metric at each tenth step, no snapshot. `snapshot`: the output embedding at each step in bfloat16
  precision, no metric. `everything`: at each step snapshot, probe, convergence of all groups, sketches and label
  counts, and the spectrum when it is due by default (in other versions at each step). `defaults`: what
  `default_metrics` adds to that, geometry with CKA and the covariate baseline.
- `groups`: at each step snapshot, sketches, label counts and convergence of all groups: a record without its probe.
- `demo`: the default metrics as the demo has them: probe and convergence at each step, the others at each tenth.
- `torch.save` of the output embedding a step; `tensorboard`: its histogram a step.
- `lightning`: the same loop in Lightning's Trainer; `checkpoint`: that with `ModelCheckpoint(every_n_train_steps=1)`.

With `--against REF` another version of the library runs beside the present one, in a process of its own, round by
round; "own" is then an arm's processor time above that version's bare loop, and "own, in its thread" what of it falls
to the loop's own thread.

With `--alone` no model is trained: a step adds a fixed change to all parameters, and all records of a block are durable
at its end. What is left beside the bare arm is the recorder, in a tenth of the time.

Losses of all arms of the plain loop must agree to the bit, or the program ends with an error. On a GPU the loop runs
under bfloat16 autocast, and `--check-sync` runs the hooks of the last rounds with
`torch.cuda.set_sync_debug_mode("error")`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import against
import torch
from live_arms import Arm, Clock, Lightning, Recorded, Setting, make_arms
from torch import Tensor

from trainhooks.demo.models import PRESETS


@dataclass
class Measured:
    """What was measured of an arm, one entry a round."""

    ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    host: list[int] = field(default_factory=list)
    device: list[int] = field(default_factory=list)


def measure(arm: Arm, batches: Tensor) -> tuple[float, float, int, int]:
    """One block: mean ms a step, processor ms a step, rise of peak memory on host and device."""
    on_gpu = arm.setting.on_gpu
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    device = torch.cuda.memory_allocated() if on_gpu else 0
    host, cpu = reset_peak(), time.process_time()
    clock = Clock(on_gpu=on_gpu)
    arm.block(batches, clock)
    ms = statistics.fmean(clock.milliseconds())
    cpu = 1000 * (time.process_time() - cpu) / len(batches)
    return ms, cpu, peak() - host, (torch.cuda.max_memory_allocated() if on_gpu else 0) - device


def reset_peak() -> int:
    """Resident bytes now; where the system lets us, the peak starts from here (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak()
    return status("VmRSS")


def peak() -> int:
    """The most resident bytes since the last reset, 0 where the system does not say."""
    return status("VmHWM")


def status(key: str) -> int:
    """A line of the process' status in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), 0)


def run(setting: Setting, arms: list[Arm], *, check_sync: bool) -> dict[str, Measured]:
    """All rounds; the first one warms up and is not counted."""
    found = {arm.name: Measured() for arm in arms}
    for number, batches in enumerate(setting.ids()):
        turn = number % len(arms)
        for arm in [*arms[turn:], *arms[:turn]]:
            if check_sync and isinstance(arm, Recorded) and number >= setting.rounds - 2:
                arm.guarded = True
            values = measure(arm, batches)
            if number > 0:
                for name, value in zip(("ms", "cpu_ms", "host", "device"), values, strict=True):
                    getattr(found[arm.name], name).append(value)
    return found


def check_losses(arms: list[Arm]) -> None:
    """Recording must not change training by a bit."""
    plain = [arm for arm in arms if not isinstance(arm, Lightning)]
    losses = {arm.name: torch.stack(arm.losses).cpu() for arm in plain}
    changed = [name for name, values in losses.items() if not torch.equal(values, losses["bare"])]
    if changed:
        sys.exit(f"losses of {', '.join(changed)} differ from the bare loop's: training was changed")


def table(arms: list[Arm], found: dict[str, Measured], *, steps: int) -> list[dict[str, Any]]:
    """One row an arm."""
    bare = found["bare"]
    rows = []
    for arm in arms:
        own = found[arm.name]
        rows.append(
            {
                "arm": arm.name,
                "ms": statistics.median(own.ms),
                "ratio": statistics.median(a / b for a, b in zip(own.ms, bare.ms, strict=True)),
                "cpu_ms": statistics.median(own.cpu_ms),
                "cpu_ratio": statistics.median(a / b for a, b in zip(own.cpu_ms, bare.cpu_ms, strict=True)),
                "bytes_per_step": arm.bytes() / steps,
                "host_peak_bytes": max(own.host),
                "device_peak_bytes": max(own.device),
                "recorder_ms": arm.recorder.cost.milliseconds_per_step if isinstance(arm, Recorded) else None,
            }
        )
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        "| arm | ms a step | ratio to bare | CPU ms | CPU ratio | kB a step | host, MB | device, MB | own ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        own = "" if row["recorder_ms"] is None else f"{row['recorder_ms']:.1f}"
        lines.append(
            f"| {row['arm']} | {row['ms']:.1f} | {row['ratio']:.3f} | {row['cpu_ms']:.1f} | {row['cpu_ratio']:.3f} | "
            f"{row['bytes_per_step'] / 1000:.0f} | {row['host_peak_bytes'] / 1e6:.0f} | "
            f"{row['device_peak_bytes'] / 1e6:.0f} | {own} |"
        )
    return "\n".join(lines)


def machine(setting: Setting) -> dict[str, Any]:
    """Where this ran, with which versions, how busy it was, and the command."""
    chip = torch.cuda.get_device_name() if setting.on_gpu else f"{os.cpu_count()} cores, {platform.machine()}"
    return {
        "command": " ".join(["python", *sys.argv]),
        "device": chip,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "zarr", "transformers")},
    }


def serve_rounds(setting: Setting, arms: list[Arm]) -> None:
    """Measure a round of each arm whenever `against` asks for it: processor ms a step, and those above the bare one."""
    batches = setting.ids()

    def measured(number: int) -> dict[str, float]:
        turn, cpu, of_thread = number % len(arms), {}, {}
        for arm in [*arms[turn:], *arms[:turn]]:
            begin = time.thread_time()
            cpu[arm.name] = measure(arm, batches[number])[1]
            of_thread[arm.name] = 1000 * (time.thread_time() - begin) / len(batches[number])
        recorded = [arm.name for arm in arms if arm.name != "bare"]
        own = {f"{name}, own": cpu[name] - cpu["bare"] for name in recorded}
        own |= {f"{name}, own, in its thread": of_thread[name] - of_thread["bare"] for name in recorded}
        return {arm.name: cpu[arm.name] for arm in arms} | own

    against.serve(measured)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=sorted(PRESETS), default="tiny", help="the demo's model sizes")
    parser.add_argument("--tokens", type=int, help="tokens a step (default: the size's; 32768 on a GPU)")
    parser.add_argument("--steps", type=int, default=60, help="counted steps of each arm")
    parser.add_argument("--block", type=int, default=10, help="a multiple of 10, for `scalars` to be measured right")
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="these arms beside the bare one")
    parser.add_argument("--alone", action="store_true", help="the recorder without a loop that trains")
    parser.add_argument("--small", action="store_true", help="vocabulary 512, context 32: for CI")
    parser.add_argument("--check-sync", action="store_true", help="the hooks must not wait for the GPU")
    parser.add_argument("--against", metavar="REF", help="a commit, branch or tag to run beside the present tree")
    parser.add_argument(against.SERVE, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="write <out>.json and <out>.md")
    return parser.parse_args()


def main() -> None:
    """Run, print, write."""
    given = parse()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here: run with --device cpu, or on a machine that has one")
    if given.threads:
        torch.set_num_threads(given.threads)
    preset = PRESETS[given.size]
    context = 32 if given.small else preset.context
    tokens = given.tokens or (128 if given.small else 32768 if given.device == "cuda" else preset.batch_tokens)
    setting = Setting(
        size=given.size,
        vocab=512 if given.small else preset.vocab_size,
        context=context,
        windows=max(1, tokens // context),
        block=given.block,
        rounds=1 + -(-given.steps // given.block),
        device=given.device,
        alone=given.alone,
    )
    if given.against and not given.serve:
        rows = against.compare(__file__, sys.argv[1:], ref=given.against, rounds=setting.rounds - 1)
        print(against.table(rows, unit="CPU ms a step"))
        print(json.dumps(machine(setting)))
        return
    folder = Path(tempfile.mkdtemp(prefix="live_overhead"))
    try:
        arms = make_arms(setting, folder, only=given.only)
        if given.serve:
            serve_rounds(setting, arms)
            for arm in arms:
                arm.close()
            check_losses(arms)
            return
        found = run(setting, arms, check_sync=given.check_sync and setting.on_gpu)
        for arm in arms:
            arm.close()
        check_losses(arms)
        rows = table(arms, found, steps=setting.rounds * setting.block)
    finally:
        shutil.rmtree(folder)
    result = {"machine": machine(setting), "setting": vars(setting), "rows": rows}
    print(markdown(rows))
    print(json.dumps(result["machine"]))
    if given.out is not None:
        given.out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
        given.out.with_suffix(".md").write_text(f"`{result['machine']['command']}`\n\n{markdown(rows)}\n")


if __name__ == "__main__":
    main()
