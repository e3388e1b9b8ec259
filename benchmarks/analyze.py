"""What analyzing checkpoints costs: against a bare product, against loading the model, and in memory.

    python benchmarks/analyze.py                       # 50304 x 768, 6 checkpoints, float32: 1 GB of disk
    python benchmarks/analyze.py --vocab 2000 --dim 64 --checkpoints 3 --repeats 1 --no-model

Prints JSON. `probe_ratio` is the frequency probe with its folds over a bare loop that maps each matrix and takes E'E;
`metrics_ratio` the same for all metrics of the output embedding (needed: 2.2 and 5). `speedup` is
`AutoModelForCausalLM.from_pretrained` with scikit-learn's regression over the probe on the same files (needed: 5).
`peak_copies` is the most memory that an analysis in a process of its own took above what that process held after a
tiny one (libraries), in float32 output embeddings (wanted: 4): the kernel's VmHWM, set back before, in which pages of
mapped files count, once for each place they are mapped at. `anonymous_copies` is the same without mapped files, which
the kernel may take back: RssAnon, looked at every 4 ms. Linux only. Times are medians of interleaved rounds on a warm
cache. `fixed_ratio` and `per_checkpoint_ratio` are the parts of a whole analysis: what it costs once and what each
checkpoint adds, in bare products, from the whole suite and its first half; `ratio_at_154` is that of a suite as long as
Pythia's. `analyze_ratio` is a whole analysis, its audit and store included, over the bare loop (wanted: 3), and
`all_ratio` one of all parameters without its audit over a sum of every stored number (wanted: 1.5), both in processor
time of one thread, the bare loops before and after.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import torch

from trainhooks.analyze import analyze_suite
from trainhooks.checkpoints.opening import open_checkpoint
from trainhooks.metrics.base import State
from trainhooks.metrics.defaults import default_metrics
from trainhooks.metrics.frequency_probe import FrequencyProbe
from trainhooks.model import find_output_embedding

HEAD = "embed_out.weight"
PYTHIA = 154
LEAST_RECORDS = 3


def write_suite(folder: Path, *, vocab: int, dim: int, checkpoints: int) -> np.ndarray:
    """A GPT-NeoX of one layer at several steps, its head drifting; returns token counts."""
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    config = GPTNeoXConfig(
        vocab_size=vocab, hidden_size=dim, num_hidden_layers=1, num_attention_heads=max(dim // 64, 1),
        intermediate_size=4 * dim, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    counts = (1e7 / np.arange(1, vocab + 1)).astype(np.int64) + 1
    frequency = torch.from_numpy(np.log(counts)).float()
    direction = torch.randn(dim) / dim**0.5
    for step in range(checkpoints):
        with torch.no_grad():
            model.lm_head.weight += 0.02 * torch.outer(frequency, direction) + 0.01 * torch.randn(vocab, dim)
        model.save_pretrained(folder / f"step{step}")
    return counts


def bare(place: Path) -> None:
    """Map the matrix and take E'E."""
    matrix = open_checkpoint(place).read(HEAD)
    (matrix.T @ matrix).sum().item()


def head_state(place: Path, *, step: int, initial: torch.Tensor | None, previous: torch.Tensor | None) -> State:
    """What metrics are shown of one checkpoint."""
    matrix = open_checkpoint(place).read(HEAD)
    module = torch.nn.Module()
    module.lm_head = torch.nn.Linear(1, 1, bias=False, device="meta")
    module.lm_head.weight = torch.nn.Parameter(matrix, requires_grad=False)
    return State(
        step=step, model=module, head=find_output_embedding(module), groups={},
        initial_head=initial, previous_head=previous,
    )  # fmt: skip


def load_and_regress(place: Path, counts: np.ndarray) -> None:
    """What is done without this package: load the model, fit, and predict by five folds."""
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import KFold, cross_val_predict
    from transformers import AutoModelForCausalLM

    matrix = AutoModelForCausalLM.from_pretrained(place).get_output_embeddings().weight.detach().numpy()
    target = -np.log(counts / counts.sum())
    LinearRegression().fit(matrix, target)
    cross_val_predict(LinearRegression(), matrix, target, cv=KFold(5, shuffle=True, random_state=0))


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def compare_times(suite: Path, counts: np.ndarray, *, checkpoints: int, repeats: int, model: bool) -> dict[str, float]:
    """Medians a checkpoint, in seconds, and their ratios; every round measures each way once."""
    places = [suite / f"step{step}" for step in range(checkpoints)]
    probe = FrequencyProbe(counts)
    metrics = [metric for metric in default_metrics(counts) if "sketch" not in metric.needs]
    initial = open_checkpoint(places[0]).read(HEAD)
    times: dict[str, list[float]] = {"bare": [], "probe": [], "metrics": [], "model": []}
    for round_ in range(repeats + 1):
        previous = initial
        for step, place in enumerate(places[1:], start=1 + round_ * checkpoints):
            state = head_state(place, step=step, initial=initial, previous=previous)
            own = head_state(place, step=step, initial=None, previous=None)
            took = {
                "bare": seconds(lambda place=place: bare(place)),
                "probe": seconds(lambda own=own: probe.compute(own)),
                "metrics": seconds(lambda state=state: [metric.compute(state) for metric in metrics]),
            }
            previous = state.output_embedding
            if round_:  # the first one warms caches and what metrics prepare once
                for name, value in took.items():
                    times[name].append(value)
        if round_ and model:
            times["model"].append(seconds(lambda: load_and_regress(places[-1], counts)))
    medians = {name: statistics.median(values) for name, values in times.items() if values}
    ratios = {f"{name}_ratio": medians[name] / medians["bare"] for name in ("probe", "metrics")}
    speedup = {"speedup": medians["model"] / medians["probe"]} if model else {}
    return {**{f"{name}_seconds": value for name, value in medians.items()}, **ratios, **speedup}


def peak_copies(suite: Path, counts: Path, *, vocab: int, dim: int) -> dict[str, float]:
    """An analysis in a process of its own: its memory above what imports and a tiny analysis took."""
    command = [sys.executable, __file__, "--memory-of", str(suite), "--memory-counts", str(counts)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    copies = {name: found[name] / (4 * vocab * dim) for name in ("peak_copies", "anonymous_copies")}
    return {
        **copies,
        "analyze_seconds_per_checkpoint": found["seconds"] / found["checkpoints"],
        "analyze_ratio": found["analyze_cpu"] / found["bare_cpu"],
        **length_ratios(found),
        "all_ratio": found["all_cpu"] / found["read_cpu"],
    }


def length_ratios(found: dict[str, float]) -> dict[str, float]:
    """What an analysis costs once, and by checkpoint, in bare products a checkpoint: from two lengths of one suite."""
    bare_cpu, longer = found["bare_cpu"] / found["checkpoints"], found["checkpoints"] - found["half"]
    if longer <= 0:
        return {}
    each = (found["analyze_cpu"] - found["half_cpu"]) / longer / bare_cpu
    once = found["analyze_cpu"] / bare_cpu - each * found["checkpoints"]
    return {"fixed_ratio": once, "per_checkpoint_ratio": each, "ratio_at_154": once / PYTHIA + each}


def measure_memory(suite: Path, counts: Path) -> None:
    """The child of `peak_copies`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = write_suite(folder / "tiny", vocab=128, dim=8, checkpoints=2)
        analyze_suite(folder / "tiny", counts=tiny, out=folder / "tiny.zarr", workers=1)
        torch.set_num_threads(1)
        places = sorted(suite.iterdir())
        before_cpu = processor_seconds(lambda: [bare(place) for place in places])
        # not ru_maxrss: a process begins with that of the one it was started from
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before, anonymous = resident_bytes("VmRSS"), resident_bytes("RssAnon")
        with watched("RssAnon") as peaks:
            began = time.process_time()
            report = analyze_suite(suite, counts=np.load(counts), out=folder / "a.zarr", workers=1)
            cpu = time.process_time() - began
        grown = resident_bytes("VmHWM") - before
        half = max(LEAST_RECORDS, len(places) // 2)
        some: dict[str, Any] = {"counts": np.load(counts), "workers": 1, "steps": list(range(half))}
        half_cpu = processor_seconds(lambda: analyze_suite(suite, out=folder / "half.zarr", **some))
        after_cpu = processor_seconds(lambda: [bare(place) for place in places])
        whole = {"counts": None, "params": "all", "workers": 1, "audit": False}
        all_cpu = processor_seconds(lambda: analyze_suite(suite, out=folder / "all.zarr", **whole))
        read_cpu = processor_seconds(lambda: [read_all(place) for place in places])
    print(
        json.dumps({
            "peak_copies": grown, "anonymous_copies": max(peaks) - anonymous, "seconds": report.seconds,
            "checkpoints": len(report.steps), "analyze_cpu": cpu, "bare_cpu": (before_cpu + after_cpu) / 2,
            "all_cpu": all_cpu, "read_cpu": read_cpu, "half": half, "half_cpu": half_cpu,
        })
    )  # fmt: skip


def read_all(place: Path) -> None:
    """Every number of a checkpoint, once."""
    checkpoint = open_checkpoint(place)
    for key in checkpoint.tensors:
        checkpoint.read(key).sum().item()


def processor_seconds(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    began = time.process_time()
    call()
    return time.process_time() - began


@contextmanager
def watched(field: str) -> Iterator[list[int]]:
    """A field of the process' status, looked at every 4 ms."""
    seen, done = [resident_bytes(field)], Event()

    def look() -> None:
        while not done.wait(0.004):
            seen.append(resident_bytes(field))

    thread = Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def resident_bytes(field: str) -> int:
    """Resident memory now (VmRSS), or its peak since the kernel was told to begin anew (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}: memory is measured on Linux only.")


def main() -> None:
    """Run the comparison that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=50304)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--checkpoints", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-model", action="store_true", help="leave out loading the model and its regression")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory-counts", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of is not None:
        measure_memory(given.memory_of, given.memory_counts)
        return
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "suite"
        counts = write_suite(suite, vocab=given.vocab, dim=given.dim, checkpoints=given.checkpoints)
        np.save(Path(folder) / "counts.npy", counts)
        times = compare_times(
            suite, counts, checkpoints=given.checkpoints, repeats=given.repeats, model=not given.no_model
        )
        memory = peak_copies(suite, Path(folder) / "counts.npy", vocab=given.vocab, dim=given.dim)
    print(json.dumps({"vocab": given.vocab, "dim": given.dim, "threads": given.threads, **times, **memory}, indent=2))


if __name__ == "__main__":
    main()
