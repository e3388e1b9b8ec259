"""The live head metrics against one bare Gram product, and the offline fit against scikit-learn.

    python benchmarks/probe.py --vocab 50304 --dim 768 --repeats 7
    python benchmarks/probe.py --dim 2048 --threads 1 --against v0.1.0   # two versions in turns, by CPU time
    python benchmarks/probe.py --threads 1 --moving 1e-4   # records of a head in training, and what is read a record

Runs are interleaved; medians, and ratios of medians to `E.T @ E`. Memory is what a call adds
to the process' resident set at its peak, read from /proc. All head metrics are those of one
record: probe, spectrum, geometry with CKA to the record before, lead parts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import against
import numpy as np
import torch
from moving_head import trained_heads, zipf_counts
from torch import Tensor, nn

from trainhooks.metrics.base import State
from trainhooks.metrics.frequency_probe import FrequencyProbe
from trainhooks.metrics.geometry import HeadGeometry
from trainhooks.metrics.lead_parts import LeadParts
from trainhooks.metrics.spectrum import Spectrum
from trainhooks.model import OutputEmbedding
from trainhooks.probe import fit_probe, frequency_target, probe_sparsity, probe_sums

try:
    from trainhooks.numerics.spectrum import singular_spectrum
except ImportError:  # versions before the move, run with --against
    from trainhooks.metrics.spectrum import singular_spectrum


def make(vocab: int, dim: int) -> tuple[np.ndarray, Tensor]:
    """Zipf counts and an embedding that holds some of their logarithm."""
    generator = torch.Generator().manual_seed(0)
    counts = zipf_counts(vocab)
    y = frequency_target(counts)
    embedding = torch.randn(vocab, dim, generator=generator)
    embedding += 0.05 * (y - y.mean()).float()[:, None] * torch.randn(dim, generator=generator)
    return counts, embedding


class Run:
    """Records of a moving embedding, shown to the head metrics as a recorder would."""

    def __init__(self, counts: np.ndarray, embedding: Tensor) -> None:
        mask = torch.from_numpy(counts > 0)
        self.metrics = [FrequencyProbe(counts), Spectrum(mask=mask), HeadGeometry(mask=mask), LeadParts(counts)]
        self.heads = [embedding + 0.01 * torch.randn(embedding.shape) for _ in range(2)]
        self.initial = embedding
        self.step = 0

    def record(self) -> None:
        """The next record, the embedding going to and fro between two matrices."""
        now, before = self.heads[self.step % 2], self.heads[(self.step + 1) % 2]
        state = State(
            step=self.step,
            model=nn.Linear(1, 1),
            head=OutputEmbedding(now, "lm_head.weight", nn.Linear(1, 1)),
            groups={},
            initial_head=self.initial if self.step else None,
            previous_head=before if self.step else None,
        )
        for metric in self.metrics:
            metric.compute(state)
        self.step += 1


def peak_growth(call: Callable[[], object]) -> int:
    """Bytes that a call adds to resident memory at its peak (Linux: the kernel's own high-water mark)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """A memory field of this process' status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}: memory is measured on Linux only.")


def scikit_learn(embedding: np.ndarray, y: np.ndarray) -> None:
    """The regression and its five-fold prediction as most would write them."""
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import KFold, cross_val_predict

    model = LinearRegression()
    model.fit(embedding, y).score(embedding, y)
    cross_val_predict(model, embedding, y, cv=KFold(5, shuffle=True, random_state=0))


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def serve_rounds(counts: np.ndarray, embedding: Tensor) -> None:
    """Measure the live metrics whenever `against` asks for it, in processor ms, and beside one product E'E."""
    run, metric = Run(counts, embedding), FrequencyProbe(counts)
    heads = [OutputEmbedding(head, "lm_head.weight", nn.Linear(1, 1)) for head in run.heads]
    steps = iter(range(10**9))

    def probe() -> None:
        step = next(steps)
        metric.compute(State(step=step, model=nn.Linear(1, 1), head=heads[step % 2], groups={}))

    calls = {"E'E": lambda: embedding.T @ embedding, "live probe": probe, "all live head metrics": run.record}

    def measured(_number: int) -> dict[str, float]:
        took = {name: processor_ms(call) for name, call in calls.items()}
        return took | {f"{name} / E'E": ms / took["E'E"] for name, ms in took.items() if name != "E'E"}

    against.serve(measured)


def follow(args: argparse.Namespace) -> None:
    """A probe at every step of a head in training beside one product E'E, and its figures beside a new probe's."""
    from trainhooks.metrics import frequency_probe

    read: list[int] = []
    plain = frequency_probe.refine

    def counted(*given: Any) -> Any:
        found = plain(*given)
        read.append(0 if found is None else found.passes)
        return found

    frequency_probe.refine = counted
    counts = zipf_counts(args.vocab)
    metric, ratios, passes, apart = FrequencyProbe(counts), [], [], {"slope": 0.0, "other": 0.0}
    for step, head in enumerate(trained_heads(counts, dim=args.dim, learning_rate=args.moving, steps=args.steps)):
        state = State(step, nn.Linear(1, 1), OutputEmbedding(head, "lm_head.weight", nn.Linear(1, 1)), groups={})
        bare = processor_ms(lambda head=head: head.T @ head)
        read.clear()
        ratios.append(processor_ms(lambda state=state: metric.compute(state)) / bare)
        passes.append(read[0] if read else 0)
        if passes[-1] and step % 8 == 5:
            difference(metric.compute(state), FrequencyProbe(counts).compute(state), into=apart)
    warm = [ratio for ratio, number in zip(ratios, passes, strict=True) if number]
    print(f"{args.vocab} x {args.dim}, learning rate {args.moving}, processor time, {torch.get_num_threads()} threads")
    print(
        f"{len(warm)} of {len(ratios) - 1} records after the first without a Gram: {statistics.median(warm):.3f} x E'E"
    )
    print(f"all records after the first, on average: {statistics.mean(ratios[1:]):.3f} x E'E")
    print(f"passes over the rows a record (0: a Gram): {passes[1:]}")
    print(
        f"against a new probe: slopes {apart['slope']:.1e} of themselves, other figures {apart['other']:.1e}, at most"
    )


def difference(values: Mapping[str, Any], expected: Mapping[str, Any], *, into: dict[str, float]) -> None:
    """Add to the largest differences; rank's and pivot's age is another matter, and drift needs a past."""
    for name, value in expected.items():
        if name in ("probe.pivot", "probe.drift"):
            continue
        found, wanted = (torch.as_tensor(v).double() for v in (values[name], value))
        what = "slope" if "slope" in name else "other"
        scale = wanted.norm() if what == "slope" else max(1.0, float(wanted.abs().max()))
        into[what] = max(into[what], float(torch.dist(found, wanted) / scale))


def processor_ms(call: Callable[[], object]) -> float:
    """Processor time of one call, all threads together."""
    start = time.process_time()
    call()
    return 1000 * (time.process_time() - start)


def parse() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=50304)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sklearn", action="store_true", help="also run scikit-learn, once")
    parser.add_argument("--svd", action="store_true", help="also run svdvals and a full SVD, once")
    parser.add_argument("--sparsity", action="store_true", help="also run the offline sparsity, once, 20 draws")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--moving", type=float, metavar="RATE", help="follow a head in training at this learning rate")
    parser.add_argument("--steps", type=int, default=24, help="updates of --moving")
    parser.add_argument("--against", metavar="REF", help="a commit, branch or tag to run beside the present tree")
    parser.add_argument(against.SERVE, action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.against and not args.serve:
        rows = against.compare(__file__, sys.argv[1:], ref=args.against, rounds=args.repeats)
        print(f"{args.vocab} x {args.dim} float32, {torch.get_num_threads()} threads; medians of {args.repeats} rounds")
        print(against.table(rows, unit="CPU ms"))
        return
    if args.moving:
        follow(args)
        return
    counts, embedding = make(args.vocab, args.dim)
    if args.serve:
        serve_rounds(counts, embedding)
        return
    y = frequency_target(counts)
    metric = FrequencyProbe(counts)
    torch.manual_seed(0)
    head = OutputEmbedding(embedding, "lm_head.weight", nn.Linear(1, 1))
    state = State(step=0, model=nn.Linear(1, 1), head=head, groups={})
    print(f"{args.vocab} x {args.dim} float32, {torch.get_num_threads()} threads")

    metric.compute(state)  # the first call loads libraries and starts threads
    extra, size = peak_growth(lambda: metric.compute(state)), embedding.nbytes
    print(f"peak extra memory of the live probe: {extra / 2**20:.0f} MiB = {extra / size:.2f} copies of E")
    run = Run(counts, embedding)
    run.record()
    extra = peak_growth(run.record)
    print(f"peak extra memory of all head metrics: {extra / 2**20:.0f} MiB = {extra / size:.2f} copies of E")

    calls: dict[str, Callable[[], object]] = {
        "E.T @ E": lambda: embedding.T @ embedding,
        "live FrequencyProbe": lambda: metric.compute(state),
        "all live head metrics": run.record,
        "effective rank alone": lambda: singular_spectrum(embedding).effective_rank_energy,
        "offline fit_probe": lambda: fit_probe(embedding, y),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    if args.svd:
        times["torch.linalg.svdvals"] = [seconds(lambda: torch.linalg.svdvals(embedding))]
        times["torch.linalg.svd"] = [seconds(lambda: torch.linalg.svd(embedding, full_matrices=False))]
    if args.sklearn:
        times["scikit-learn"] = [seconds(lambda: scikit_learn(embedding.numpy(), y.numpy()))]
    if args.sparsity:
        sums = probe_sums(embedding, y)
        times["probe_sparsity, 20 draws"] = [seconds(lambda: probe_sparsity(sums))]
    bare = statistics.median(times["E.T @ E"])
    for name, each in times.items():
        median = statistics.median(each)
        print(f"{name:26} {1000 * median:9.1f} ms  {median / bare:6.2f} x  (least {1000 * min(each):.1f} ms)")


if __name__ == "__main__":
    main()
