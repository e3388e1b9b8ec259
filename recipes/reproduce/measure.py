"""What is kept of one trained cell: a few kilobytes of figures, each from a command or from the store's own series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bins import by_bin
from commands import silent, trainhooks
from grid import SIZES, Cell
from trajectory import grown_or_rotated, rows_that_move, seen_beside_corpus

import trainhooks as th
from trainhooks.lead.onset import onset

ALONG_MAIN = (0, 8, 32, 128)
MAX_RECORDS = 60
PROBE = ("heldout_spearman", "heldout_r2", "r2", "permuted_heldout_r2", "permuted_heldout_spearman", "row_norm_r2")
CHANNELS = ("norm_bias", "rest", "mean_hidden", "embedding_r2")


def measure(cell: Cell, folder: Path, *, text: Sequence[Path], along: bool) -> dict[str, Any]:
    """Every figure of the cell. `along`: steering and deletion at several steps, else at the first and the last."""
    store, last = th.open_store(folder / "run.zarr"), SIZES[cell.size].steps
    steps = sorted({step for step in ALONG_MAIN if step < last} | {last}) if along else [0, last]
    return {
        "cell": cell.name,
        "family": cell.family,
        "series": series(store),
        "onsets": onsets(store),
        "probe": {str(step): matrix(folder, step) for step in (0, last)},
        "seen": matrix(folder, last, "--seen")["probe"],
        "bins": by_bin(store),
        "verdict": lead(trainhooks("verdict", folder / "run.zarr", "--max-records", MAX_RECORDS)),
        "steering": steering(folder, steps, text),
        "deletion": deletion(folder, steps, text),
        "suite": suite(folder, store, text),
        "direction": grown_or_rotated(store),
        "rows": rows_that_move(store),
        "seen_counts": seen_beside_corpus(store, other_seed(folder, cell)),
    }


def other_seed(folder: Path, cell: Cell) -> th.Store | None:
    """The store of the next seed of the same cell, whose seen counts are the control; None where there is none."""
    siblings = sorted(folder.parent.glob(f"{cell.family}-*/trained.json"))
    names = [path.parent.name for path in siblings]
    place = names.index(folder.name)
    other = names[(place + 1) % len(names)]
    return None if other == folder.name else th.open_store(folder.parent / other / "run.zarr")


def log_spaced(steps: np.ndarray, number: int = 41) -> np.ndarray:
    """Indices of `number` records or fewer, even in log(1 + step), both ends among them."""
    wanted = np.expm1(np.linspace(0, math.log1p(float(steps[-1])), number))
    return np.unique(np.abs(steps[:, None] - wanted).argmin(0))


def series(store: th.Store) -> dict[str, Any]:
    """The live series at log-spaced steps."""
    metrics = store.metrics()
    chosen = log_spaced(store.steps)
    taken = metrics.isel(step=chosen)
    found: dict[str, Any] = {"step": store.steps[chosen].tolist(), "loss": rounded(taken["loss"].values)}
    found |= {name: rounded(taken[f"probe.{name}"].values) for name in PROBE}
    distance = taken["convergence.distance_to_final"]
    found["distance"] = {str(group): rounded(distance.sel(group=group).values) for group in distance.group.values}
    return found


def onsets(store: th.Store) -> dict[str, dict[str, float]]:
    """Where the held-out correlation has made half and nine tenths of its way, and where each group's distance has."""
    metrics = store.metrics()
    distance = metrics["convergence.distance_to_final"]
    every = {"held-out Spearman": metrics["probe.heldout_spearman"].values}
    every |= {str(group): distance.sel(group=group).values for group in distance.group.values}
    steps = store.steps
    return {
        name: {f"{q:g}": rounded(onset(steps, values, q=q).step) for q in (0.5, 0.9)} for name, values in every.items()
    }


def matrix(folder: Path, step: int, *more: str) -> dict[str, Any]:
    """`trainhooks probe RUN --step N`: the fit, its null and baselines, and sparsity beside its rotations."""
    found = trainhooks("probe", folder / "run.zarr", "--step", step, *more)
    kept = {
        name: {key: rounded(found[name][key]) for key in ("r2", "heldout_r2", "heldout_spearman")}
        for name in ("probe", "permuted", "row_norm", "covariates", "joint")
        if found[name] is not None
    }
    never = found["never_labels"]
    kept |= {"null_r2": rounded(found["null_r2"]), "ceiling": found["noise_ceiling"], "rows": found["rows"]}
    kept["never_labels"] = None if never is None else {key: rounded(never[key]) for key in never}
    return kept | {"sparsity": sparsity(found["sparsity"], dim=found["dim"])}


def sparsity(found: Mapping[str, Any] | None, *, dim: int) -> dict[str, Any] | None:
    """How concentrated the slope's share is, and how many of the rotations are; None where nothing shows held out."""
    if found is None:
        return None
    own = found["as_is"]
    rotated = {key: np.array([draw[key] for draw in found["rotated"]], dtype=float) for key in own}
    draws = len(found["rotated"])
    at_least = {key: int((rotated[key] >= own[key]).sum()) for key in ("gini", "hoyer")}
    at_least["dimensions"] = int((rotated["dimensions"] <= own["dimensions"]).sum())
    return {
        "dim": dim,
        **{key: rounded(value) for key, value in own.items()},
        "rotated": {key: rounded(np.median(rotated[key])) for key in at_least},
        "p": {key: rounded((1 + number) / (1 + draws)) for key, number in at_least.items()},
        "random_order": rounded(np.median(found["random_order"])),
    }


def lead(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of a verdict on one run: its sentence, the lead, its nulls, and the curves."""
    run = found["runs"][0]
    each = run["leads"][0]
    return {
        "level": found["level"],
        "sentence": found["sentence"],
        "lead": rounded(each["lead"]),
        "interval": [rounded(each["interval"][end]) for end in ("low", "high")],
        "p": rounded(each["p"]),
        "nulls": {name: {key: rounded(null[key]) for key in ("median", "p")} for name, null in each["nulls"].items()},
        "frequency": rounded(each["frequency"]["step"]),
        "rest": rounded(each["rest"]["step"]),
        "direction": {
            "step": rounded(run["direction"]["step"]),
            "nulls": {name: rounded(null["median"]) for name, null in run["direction"]["nulls"].items()},
        },
    }


def steering(folder: Path, steps: Sequence[int], text: Sequence[Path]) -> list[dict[str, float]]:
    """`trainhooks steer` along the suite: median |log(achieved / ratio)| of each direction."""
    ways = ("saliency", "least_norm", "logit_bias", "random_norm", "random_shift")
    found = trainhooks(
        *("steer", folder / "checkpoints", "--over", ",".join(map(str, steps)), "--text", *text),
        *("--positions", 2048, "--pick", 12, "--ratios", 2, 5, "--direction", *ways),
    )
    return [{key: rounded(value) for key, value in row.items()} for row in found["rows"]]


def deletion(folder: Path, steps: Sequence[int], text: Sequence[Path]) -> list[dict[str, float]]:
    """`trainhooks prune` along the suite: the largest share of dimensions that each order may delete."""
    found = trainhooks(
        *("prune", folder / "checkpoints", "--over", ",".join(map(str, steps)), "--text", *text),
        *("--positions", 1024, "--variant", "zero", "compensated", "--random", 5),
    )
    return [{key.replace("/", " "): rounded(value) for key, value in row.items()} for row in found["rows"]]


def suite(folder: Path, store: th.Store, text: Sequence[Path]) -> dict[str, Any]:
    """`trainhooks analyze` of the whole models: the same numbers as live, and the probe of the model's own output."""
    out, tokens = folder / "suite.zarr", th.TokenCounts.load(folder / "counts.npz").vocab_size
    silent(
        *("analyze", folder / "checkpoints", "--counts", folder / "counts.npz", "--out", out, "--overwrite"),
        *("--text", joined(text, folder / "text.txt"), "--positions", 2048, "--workers", 1),
        *("--vocab-size", tokens),
    )
    again = th.open_store(out)
    live, late = store.metrics(), again.metrics()
    names = [name for name in late if str(name).startswith("probe.") and name in live and "drift" not in str(name)]
    difference = 0.0
    for name in names:
        one, two = live[name].sel(step=again.steps).values, late[name].values
        both = np.isfinite(one) & np.isfinite(two)
        if both.any():
            size = max(1e-3, float(np.abs(one[both]).max()))
            difference = max(difference, float(np.abs(one[both] - two[both]).max()) / size)
    wanted = ["heldout_r2", "heldout_spearman", "variance", "r2_mean_hidden", "frequency_slope_cosine"]
    output = {name: rounded(late[f"probability.{name}"].values) for name in wanted if f"probability.{name}" in late}
    channels = {name: rounded(late[f"channel.{name}"].values) for name in CHANNELS if f"channel.{name}" in late}
    kept = {"step": again.steps.tolist(), "variables": len(names), "difference": difference}
    return kept | {"output": output, "channels": channels}


def joined(text: Sequence[Path], out: Path, characters: int = 400_000) -> Path:
    """One file of the first text found, for a command that takes a file."""
    files = [file for place in text for file in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    large = (file for file in files if file.suffix in (".txt", ".py") and file.stat().st_size > 50_000)
    kept = next(large)
    out.write_text(kept.read_text(encoding="utf-8", errors="replace")[:characters], encoding="utf-8")
    return out


def rounded(value: Any, digits: int = 5) -> Any:
    """Numbers with `digits` significant digits, NaN as None, arrays as lists: small files that compare."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return [rounded(each, digits) for each in np.asarray(value).tolist()]
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")
