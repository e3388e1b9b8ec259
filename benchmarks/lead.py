"""How often the lead is found where there is none, where there is one, and what the analysis of a run costs.

    python benchmarks/lead.py --trials 100          # random walks, permuted targets, planted leads
    python benchmarks/lead.py --cost --records 301  # 8192 x 256 matrices, made as they are read

Prints the share of trials with p < 0.05 against matched labellings (0.04 is expected by chance with 99 draws) and
the seconds that one `analyze_run` takes. Needs nothing but the package; about a minute for 100 trials.
"""

import argparse
import time

import numpy as np

from trainhooks.convergence import ArrayTrajectory, analyze_run, random_walk
from trainhooks.convergence.lead import MATCHED


def leading_run(seed, *, frequency_power, rows=60, dims=8, last=40):
    """Two strong directions; the targets' part moves as (t/T)^power, everything else as t/T."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(np.column_stack([np.ones(rows), rng.standard_normal((rows, 2))]))[0][:, 1:]
    y = left @ [0.8, 0.6]
    final = left * [10.0, 6.0] @ rng.standard_normal((2, dims)) + 0.02 * rng.standard_normal((rows, dims))
    part, clock = np.outer(y, final.T @ y), np.linspace(0.0, 1.0, last + 1)[:, None, None]
    moved = clock**frequency_power * part + clock * (final - part)
    moved = moved + np.cumsum(0.002 * rng.standard_normal(moved.shape), axis=0)
    return ArrayTrajectory(moved.astype(np.float32), steps=np.arange(last + 1)), y


def cases(seed):
    """The trials of one seed: name, trajectory, targets."""
    rng = np.random.default_rng([seed, 1])
    run, y = leading_run(seed, frequency_power=0.5)
    straight, straight_y = leading_run(seed, frequency_power=1.0)
    yield "random walk", random_walk(np.arange(41), rows=60, dims=8, seed=seed), rng.standard_normal(60)
    yield "permuted targets of a run with a lead", run, rng.permutation(y)
    yield "straight line with noise", straight, straight_y
    yield "planted lead of 2", run, y


def calibration(trials):
    """Trials with p below 0.05; one whose frequency part is not above noise has no lead, hence no p."""
    hits = {}
    for seed in range(trials):
        for name, run, y in cases(seed):
            lead = analyze_run(run, y, q=(0.5,), draws=99, seed=seed, resamples=0).leads[0]
            hits.setdefault(name, []).append((lead.nulls[MATCHED].p < 0.05, lead.lead))
    for name, found in hits.items():
        leads = np.array([lead for _, lead in found])
        median = f"{np.nanmedian(leads):.3f}" if np.isfinite(leads).any() else "undefined"
        print(
            f"{name}: p < 0.05 in {sum(hit for hit, _ in found)} of {trials}, "
            f"lead defined in {np.isfinite(leads).sum()}, median {median}"
        )


class MadeAsRead:
    """A run of any length whose matrices are made when they are read, from three that stay in memory."""

    def __init__(self, records, *, rows, dims):
        self.steps = np.arange(records)
        rng = np.random.default_rng(0)
        self.y = rng.standard_normal(rows)
        self.first, self.rest = rng.standard_normal((2, rows, dims), dtype=np.float32)
        self.part = np.outer(self.y, rng.standard_normal(dims)).astype(np.float32)

    def __len__(self):
        return len(self.steps)

    def __getitem__(self, index):
        clock = np.float32(self.steps[index] / self.steps[-1])
        return self.first + np.sqrt(clock) * self.part + clock * self.rest


def cost(records, rows, dims):
    """Seconds for one run of that size, matched labellings and all the rest of it."""
    run = MadeAsRead(records, rows=rows, dims=dims)
    start = time.perf_counter()
    for index in range(records):
        run[index]
    making = time.perf_counter() - start
    start, start_cpu = time.perf_counter(), time.process_time()
    analyze_run(run, run.y)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    print(
        f"{records} records of {rows} x {dims}: {seconds:.1f} s ({cpu:.1f} s of processor), "
        f"of which {making:.1f} s make the matrices"
    )


def main():
    """Parse the command line and run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--cost", action="store_true", help="measure the time of one large run instead")
    parser.add_argument("--records", type=int, default=301)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--dims", type=int, default=256)
    args = parser.parse_args()
    if args.cost:
        cost(args.records, args.rows, args.dims)
    else:
        calibration(args.trials)


if __name__ == "__main__":
    main()
