"""Has the test of the lead its size, and does it find leads: measured on real runs; and what an analysis costs.

    python benchmarks/lead.py --runs store/runs/lead --english texts/   # size, and power
    python benchmarks/lead.py --cost --records 301                      # 8192 x 256 matrices, made as they are read

**Size.** In each run of `benchmarks/lead_runs.py` (trained first where it is not there), cut at 80, 120 and 160
updates: 200 labellings without meaning of each of four families, made from the run's own token frequency: random signs
on its coefficients in the singular basis of the change, rotations of them within blocks, random directions of the
change with the same tie to the main one, and frequency permuted over the tokens. Printed is the share that would be
claimed: a lead with p <= 0.05 against *every* null made of that labelling itself (q = 0.5, 99 draws), onsets between
different records, and a token-sampling interval that excludes 1. The guard against noise is left out.

**Power.** A labelling without meaning (random signs) whose part of the change is moved ahead, so that its onset comes
1.3 or 2 times earlier. Printed is the share that would be claimed. `within the run`: planted into the run as it is,
where other directions have clocks of their own. `on one clock`: the run with its directions on one clock, and its own
deviations from it, their rows exchanged at random, as noise.

About ten minutes with one thread. Needs `trainhooks[transformers]` for the training.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from lead_runs import make_runs

from trainhooks.lead import analyze_run
from trainhooks.lead.claims import LEVEL
from trainhooks.lead.decomposition import Decomposition, Products
from trainhooks.lead.draws import PERMUTATIONS, TWINS
from trainhooks.lead.labellings import (
    Coordinates,
    permuted_labellings,
    resampling_weights,
    singular_basis,
    unit_labelling,
)
from trainhooks.lead.lead import Onsets, p_value, percentiles
from trainhooks.store import open_store

CUTS, EVERY, Q, DRAWS, BOUND = (80, 120, 160), 4, 0.5, 99, 0.07
GAINS = (1.3, 2.0)
WITHIN, ONE_CLOCK = "within the run", "on one clock"


class Run:
    """The centred change of a store's counted rows at every fourth record, and its products in the singular basis.

    With U the left singular vectors of D(T), `left` is U'D(t) in the right ones [record, rank, rank]; a labelling U a
    then has b(t) = left' a, so that hundreds of them cost no product with the rows.
    """

    def __init__(self, steps, change, y):
        self.steps, self.change, self.y = steps, change, y
        self.final = change[-1]
        self.basis = singular_basis(self.final)
        self.moved = change @ self.basis.right.astype(np.float32)
        vectors = self.basis.combine(self.final, np.eye(len(self.basis.values)))
        self.left = np.einsum("vk,tvl->tkl", vectors.astype(np.float32), self.moved, optimize=True).astype(np.float64)
        self.total = np.einsum("tvl,vl->t", self.moved, self.moved[-1], dtype=np.float64)

    @classmethod
    def read(cls, store, cut):
        """A store's run up to step `cut`, with token frequency as its labelling."""
        steps = np.asarray(store.snapshot_steps)
        kept = np.flatnonzero((steps <= cut) & (steps % EVERY == 0))
        counts = np.asarray(store.token_counts)
        rows = counts > 0
        matrices = np.stack([store.snapshots[int(i)][rows] for i in kept]).astype(np.float32)
        change = matrices - matrices[0]
        change -= change.mean(axis=1, keepdims=True)
        return cls(steps[kept], change, unit_labelling(-np.log(counts[rows])))

    def coordinates(self, labelling):
        """In the final singular basis."""
        return Coordinates.of(labelling, change=self.final, basis=self.basis)

    def leads(self, coefficients, outside):
        """Leads of labellings by their coefficients [rank, labelling] and what the rest adds to b(t), `outside`."""
        parts = np.einsum("kn,tkl->tnl", coefficients, self.left, optimize=True) + outside
        inner = np.einsum("tnl,ln->nt", parts, coefficients * self.basis.values[:, None])
        rest = self.total - inner
        return Onsets(self.steps, inner / inner[:, -1:], rest / rest[:, -1:]).leads(q=Q)


def is_claimed(run, labelling, rng):
    """Whether the labelling's lead would be claimed, the guard against noise left out."""
    at = run.coordinates(labelling)
    beside = np.einsum("v,tvl->tl", at.outside.astype(np.float32), run.moved, optimize=True)[:, None, :]
    observed = float(run.leads(at.coefficients[:, None], beside)[0])
    for draw in TWINS.values():
        drawn = draw(at.coefficients, draws=DRAWS, rng=rng)
        signs = rng.choice(np.array([-1.0, 1.0]), size=DRAWS)
        # whatever the other nulls say
        if not (observed > 1.0 and p_value(observed, run.leads(drawn, beside * signs[:, None])) <= LEVEL):
            return False
    weights = resampling_weights(len(labelling), draws=100, rng=rng)
    parts = Decomposition(run.change[0], run.final, labellings=labelling[:, None], weights=weights)
    products = Products.stacked([parts.measure(change) for change in run.change])
    sampled = Onsets(run.steps, *products.resampled_progress()).leads(q=Q)
    progress = products.progress()
    frequency, rest = Onsets(run.steps, progress.part, progress.rest).of(0, q=Q)
    return percentiles(sampled, (2.5,))[0] > 1.0 and frequency.low != rest.low


def family(run, name, count, rng):
    """Labellings without meaning [row, labelling]."""
    if name == PERMUTATIONS:
        return permuted_labellings(run.y, draws=count, rng=rng)
    at = run.coordinates(run.y)
    within = run.basis.combine(run.final, TWINS[name](at.coefficients, draws=count, rng=rng))
    return within + at.outside[:, None] * rng.choice(np.array([-1.0, 1.0]), size=count)


def passing(run, name, count, seed):
    """The share of a family's labellings whose lead would be claimed."""
    rng = np.random.default_rng(seed)
    return float(np.mean([is_claimed(run, labelling, rng) for labelling in family(run, name, count, rng).T]))


def size(paths, count):
    """The table of shares, a row a run and cut, and their means by cut."""
    names, table = (*TWINS, PERMUTATIONS), []
    print("| run | cut | " + " | ".join(names) + " |\n|---|---|" + "---|" * len(names))
    for path in paths:
        for cut in CUTS:
            run = Run.read(open_store(path), cut)
            shares = [passing(run, name, count, seed=[cut, i]) for i, name in enumerate(names)]
            table.append(shares)
            print(f"| {path.stem} | {cut} | " + " | ".join(f"{share:.3f}" for share in shares) + " |", flush=True)
    shares = np.array(table)
    for index, cut in enumerate(CUTS):
        print(
            f"| all runs | {cut} | "
            + " | ".join(f"{share:.3f}" for share in shares[index :: len(CUTS)].mean(axis=0))
            + " |"
        )
    print(f"\nlargest share {shares.max():.3f}; {np.mean(shares <= BOUND):.3f} of the cells at most {BOUND}")


def ahead(part, steps, gain):
    """A labelling's part of the change [record, dim], its course moved ahead by the factor `gain` in time."""
    moved = np.minimum(steps * gain, steps[-1])
    return np.stack([np.interp(moved, steps, column) for column in part.T], axis=1)


def on_one_clock(run, rng):
    """The run's final change on its own common clock, with its own deviations, rows exchanged, as noise."""
    clock = (run.total / run.total[-1])[:, None, None]
    straight = clock * run.final
    return (straight + (run.change - straight)[:, rng.permutation(len(run.final))]).astype(np.float32)


def planted(run, change, gain, rng):
    """A run in which a labelling without meaning has its part of the change ahead by `gain`; the labelling is its y."""
    labelling = unit_labelling(family(run, next(iter(TWINS)), 1, rng)[:, 0])
    part = np.einsum("v,tvd->td", labelling, change, optimize=True)
    moved = change + labelling[:, None] * (ahead(part, run.steps, gain) - part)[:, None, :]
    return Run(run.steps, moved.astype(np.float32), labelling)


def share_found(run, how, gain, trials):
    """The share of planted leads that would be claimed."""
    hits = []
    for trial in range(trials):
        rng = np.random.default_rng([trial, 7])
        change = run.change if how == WITHIN else on_one_clock(run, rng)
        made = planted(run, change, gain, rng)
        hits.append(is_claimed(made, made.y, rng))
    return float(np.mean(hits))


def power(paths, trials):
    """The table of shares found, a row a run and way of planting, and their means."""
    print("\n| run | planted | " + " | ".join(f"{gain:g}" for gain in GAINS) + " |")
    print("|---|---|" + "---|" * len(GAINS))
    table = {WITHIN: [], ONE_CLOCK: []}
    for path in paths:
        run = Run.read(open_store(path), CUTS[-1])
        for how, rows in table.items():
            rows.append([share_found(run, how, gain, trials) for gain in GAINS])
            print(f"| {path.stem} | {how} | " + " | ".join(f"{share:.2f}" for share in rows[-1]) + " |", flush=True)
    for how, rows in table.items():
        print(f"| all runs | {how} | " + " | ".join(f"{share:.3f}" for share in np.mean(rows, axis=0)) + " |")


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
    """Seconds for one run of that size, every null and all the rest of it."""
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
    parser.add_argument("--runs", type=Path, default=Path("store/runs/lead"), help="where the runs' stores are kept")
    parser.add_argument("--english", type=Path, help="a folder of English text (default: source text alone)")
    parser.add_argument("--labellings", type=int, default=200, help="labellings of each family, run and cut")
    parser.add_argument("--trials", type=int, default=20, help="planted leads of each size, run and way (0: none)")
    parser.add_argument("--cost", action="store_true", help="measure the time of one large run instead")
    parser.add_argument("--records", type=int, default=301)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--dims", type=int, default=256)
    args = parser.parse_args()
    if args.cost:
        cost(args.records, args.rows, args.dims)
        return
    paths = make_runs(args.runs, args.english)
    if args.labellings:
        size(paths, args.labellings)
    if args.trials:
        learning = [path for path in paths if "uniform" not in path.stem]
        power(learning, args.trials)


if __name__ == "__main__":
    main()
