"""The noise ceiling against simulated counts whose rates are known.

    python benchmarks/ceiling.py
    python benchmarks/ceiling.py --vocab 8192 --seeds 3

For each Zipf exponent and total: the share of tokens counted once or twice, the R^2 of the true log rates on the log
counts, the printed ceiling, and what 1 - mean(1/c)/var(y) would say. Ends with an error where the true rates pass a
ceiling by more than 2 %.
"""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser

import numpy as np

from trainhooks.probe import noise_ceiling, small_share

EXPONENTS = (0.8, 1.0, 1.2, 1.5)
TOTALS = (1e4, 1e5, 1e6, 1e7, 1e8, 1e9)


def main(argv: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--vocab", type=int, nargs="+", default=[2048, 50304])
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args(argv)
    print("| vocab | exponent | tokens | once or twice | true rates | ceiling | 1 - mean(1/c)/var |")
    print("|---|---|---|---|---|---|---|")
    passed = [
        _row(vocab, exponent, total, seed=seed)
        for vocab in arguments.vocab
        for exponent in EXPONENTS
        for total in TOTALS
        for seed in range(arguments.seeds)
    ]
    defined = [share for share in passed if share is not None]
    worst = max(defined, default=0.0)
    print(
        f"\nthe true rates pass the ceiling by {max(worst, 0):.2%} at most, in {len(defined)} of {len(passed)} draws;"
    )
    print("the others have none: more than half of the tokens were counted once or twice")
    if worst > 0.02:
        raise SystemExit("that is more than 2 %")


def _row(vocab: int, exponent: float, total: float, *, seed: int) -> float | None:
    """Prints a setting; the share of the ceiling by which the true rates pass it, None where there is no ceiling."""
    rates = 1 / np.arange(1, vocab + 1) ** exponent
    rates *= total / rates.sum()
    counts = np.random.default_rng(seed).poisson(rates)
    seen = counts > 0
    logs = np.log(counts[seen])
    reached = np.corrcoef(np.log(rates[seen]), logs)[0, 1] ** 2
    ceiling, by_delta = noise_ceiling(counts), 1 - np.mean(1 / counts[seen]) / np.var(logs)
    shown = "none" if np.isnan(ceiling) else f"{ceiling:.3f}"
    small = small_share(counts)
    print(f"| {vocab} | {exponent} | {total:.0e} | {small:.0%} | {reached:.3f} | {shown} | {by_delta:.3f} |")
    return None if np.isnan(ceiling) else float(reached / ceiling - 1)


if __name__ == "__main__":
    main()
