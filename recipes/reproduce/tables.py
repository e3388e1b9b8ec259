"""The page's tables and the few sentences that depend on what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kept import Figures, Kept, number, spread, table, title

Take = Callable[[Figures], Any]


def last(cell: Figures) -> str:
    """The last step, as the probes are named."""
    return max(cell["probe"], key=int)


def pick(cell: Any, path: str) -> Any:
    """A figure by its path, None where it is not there; `last` is the last step, `end` the end of a list."""
    for name in path.split("/"):
        if cell is None:
            return None
        if isinstance(cell, list):
            cell = cell[-1 if name == "end" else int(name)]
        else:
            cell = cell.get(max(cell, key=int) if name == "last" else name)
    return cell


def seeds(cells: Sequence[Figures], path: str, digits: int = 2) -> str:
    """A figure over the seeds."""
    return spread([value for cell in cells if (value := pick(cell, path)) is not None], digits)


def each(cells: Sequence[Figures], path: str) -> str:
    """A figure of every seed."""
    return ", ".join(number(value) for cell in cells if (value := pick(cell, path)) is not None)


def bin_names(figures: Figures) -> list[str]:
    """Bins of counts from rare to frequent."""
    return sorted(figures, key=lambda name: int(name.replace(",", "").partition("-")[0].partition(" ")[0]))


def by_family(kept: Kept, columns: dict[str, str], digits: int = 2) -> str:
    """One row a family: a figure over its seeds under each head."""
    rows = [
        [title(name), *(seeds(cells, path, digits) for path in columns.values())]
        for name, cells in kept.families.items()
    ]
    return table(["cells", *columns], rows)


def frequency(kept: Kept) -> str:
    """Claim 1, the corpus' frequency."""
    columns = {
        "untrained, in-sample": "probe/0/probe/r2",
        "noise gives": "probe/0/null_r2",
        "untrained, held out": "probe/0/probe/heldout_r2",
        "trained, in-sample": "probe/last/probe/r2",
        "trained, held out": "probe/last/probe/heldout_r2",
        "held-out Spearman": "probe/last/probe/heldout_spearman",
    }
    return by_family(kept, columns)


def baselines(kept: Kept) -> str:
    """Claim 1, what it has to beat: held-out R^2."""
    names = {"probe": "probe", "permuted": "permuted", "row norm": "row_norm", "token's text": "covariates"}
    names |= {"probe and text": "joint"}
    return by_family(kept, {head: f"probe/last/{name}/heldout_r2" for head, name in names.items()})


def bins(kept: Kept) -> str:
    """Claim 1, by frequency: the first three families."""
    rows = []
    for family, cells in list(kept.families.items())[:3]:
        never = seeds(cells, "bins/0/predicted")
        for name in (name for name in bin_names(cells[0]["bins"]) if name != "0"):
            figures = [seeds(cells, f"bins/{name}/{key}") for key in ("error", "variance", "bias")]
            rows.append([title(family), name, f"{cells[0]['bins'][name]['tokens']}", *figures, never])
            never = ""
    return table(["cells", "count", "tokens", "error", "variance", "mean error", "for count 0"], rows)


def output(kept: Kept) -> str:
    """Claim 1, the model's own output."""
    columns = {
        "untrained: variance": "suite/output/variance/0",
        "held-out R^2": "suite/output/heldout_r2/0",
        "trained: variance": "suite/output/variance/end",
        "held-out R^2 ": "suite/output/heldout_r2/end",
        "mean state alone": "suite/output/r2_mean_hidden/end",
    }
    return by_family(kept, columns)


def sparsity(kept: Kept) -> str:
    """Claim 2."""
    rows = []
    for family, cells in kept.families.items():
        row = [title(family), f"{pick(cells[0], 'probe/last/sparsity/dim')}"]
        for key in ("hoyer", "dimensions"):
            row += [seeds(cells, f"probe/last/sparsity/{where}{key}") for where in ("", "rotated/")]
            row.append(each(cells, f"probe/last/sparsity/p/{key}"))
        rows.append([*row, seeds(cells, "probe/last/sparsity/random_order")])
    heads = ["cells", "width", "Hoyer", "rotated", "p", "dimensions", "rotated", "p", "random order"]
    return table(heads, rows)


def sparse_verdict(kept: Kept) -> str:
    """How many slopes are more concentrated than their rotations."""
    found = [pick(cell, "probe/last/sparsity/p/hoyer") for cell in kept.cells]
    hits, by_chance = sum(p <= 0.05 for p in found), 0.05 * len(found)
    said = (
        f"Of {len(found)} models {hits} have a slope more concentrated (Hoyer) than 95% of its rotations; "
        f"{by_chance:.1f} would by chance."
    )
    own, rotated = (
        sum(pick(cell, f"probe/last/sparsity/{where}dimensions") for cell in kept.cells) for where in ("", "rotated/")
    )
    if hits <= 2 * by_chance:
        other = "fewer do" if rotated < own else "as few do"
        return f"{said} Few dimensions suffice, and {other} in other axes: sparse in these axes the slopes are not."
    return f"{said} The axes matter in part of the cells, not in all: the claim is supported for those alone."


STEERING = {
    "saliency": "saliency",
    "least norm": "least_norm",
    "logit bias": "logit_bias",
    "random, same norm": "random_norm",
    "random, same shift": "random_shift",
    "paper's scale": "saliency.paper",
}


def steering(kept: Kept) -> str:
    """Claim 3, at the last step."""
    return by_family(kept, {head: f"steering/end/{name}" for head, name in STEERING.items()}, digits=3)


def along(kept: Kept, what: str, names: dict[str, str], digits: int) -> str:
    """A figure over the steps of the families that were followed."""
    followed = {family: cells for family, cells in kept.families.items() if len(cells[0][what]) > 2}
    if not followed:
        return "No cell was followed.\n"
    steps = [int(row["step"]) for row in next(iter(followed.values()))[0][what]]
    rows = []
    for family, cells in followed.items():
        for head, name in names.items():
            figures = [seeds(cells, f"{what}/{place}/{name}", digits) for place in range(len(steps))]
            rows.append([title(family), head, *figures])
    return table(["cells", "", *(f"step {step}" for step in steps)], rows)


def steering_along(kept: Kept) -> str:
    """Claim 3, over time."""
    return along(kept, "steering", {"least norm": "least_norm", "random": "random_norm"}, 3)


def deletion(kept: Kept) -> str:
    """Claim 4, at the last step."""
    rows = []
    for family, cells in kept.families.items():
        row = [title(family)]
        for variant in ("zero", "compensated"):
            ends = [cell["deletion"][-1] for cell in cells]
            row += [seeds(ends, f"{variant} {order}") for order in ("ascending", "random")]
            outside = sum(end[f"{variant} low"] > 0 or end[f"{variant} high"] < 0 for end in ends)
            row.append(f"{seeds(ends, f'{variant} gain')} ({outside} of {len(ends)})")
        rows.append(row)
    heads = ["cells", "zero: saliency", "random", "gain", "compensated: saliency", "random", "gain"]
    return table(heads, rows)


def deletion_verdict(kept: Kept) -> str:
    """Whether 30% may go."""
    orders = ("ascending", "descending", "unique", "norm", "logit_variance")
    most = {
        variant: [max(cell["deletion"][-1].get(f"{variant} {order}") or 0 for order in orders) for cell in kept.cells]
        for variant in ("zero", "compensated")
    }
    zero, refitted = (sum(value >= 0.3 for value in most[variant]) for variant in ("zero", "compensated"))
    random = sum((cell["deletion"][-1]["compensated random"] or 0) >= 0.3 for cell in kept.cells)
    return (
        f"30% may be set to zero, in the best of five orders, in {zero} of {len(kept.cells)} models; with what stays "
        f"refitted in {refitted}, where random orders allow it in {random}."
    )


def deletion_along(kept: Kept) -> str:
    """Claim 4, over time."""
    return along(kept, "deletion", {"zero, saliency": "zero ascending", "zero, random": "zero random"}, 2)


def onsets(kept: Kept) -> str:
    """Claim 5, the picture."""
    rows = []
    for family, cells in kept.families.items():
        layers = sorted(name for name in cells[0]["onsets"] if name.startswith("layers."))
        names = ("held-out Spearman", "output_embedding", "embedding", layers[0], layers[-1], "whole")
        rows.append([title(family), *(seeds(cells, f"onsets/{name}/0.5", 0) for name in names)])
    heads = ["cells", "held-out Spearman", "head", "input embedding", "first layer", "last layer", "whole model"]
    return table(heads, rows)


def leads(kept: Kept) -> str:
    """Claim 5, the verdict."""
    rows = []
    for family, cells in kept.families.items():
        medians = [[null["median"] for null in cell["verdict"]["nulls"].values()] for cell in cells]
        nearest = [max(value for value in each if value is not None) for each in medians if any(each)]
        row = [title(family), seeds(cells, "verdict/lead"), spread(nearest), each(cells, "verdict/p")]
        rows.append([*row, kept.verdicts[family]["level"] if family in kept.verdicts else "-"])
    return table(["cells", "lead", "nearest null", "largest p", "verdict over the seeds"], rows)


def sentences(kept: Kept) -> str:
    """What the verdict says of each family, in its own words."""
    return "\n".join(f"- *{title(family)}*: {found['sentence']}" for family, found in in_order(kept))


def in_order(kept: Kept) -> list[tuple[str, Figures]]:
    """The verdicts as the families stand."""
    return [(family, kept.verdicts[family]) for family in kept.families if family in kept.verdicts]


def channels(kept: Kept) -> str:
    """Beside the rows."""
    columns = {
        "norm's bias": "suite/channels/norm_bias/end",
        "rest of the mean state": "suite/channels/rest/end",
        "mean state": "suite/channels/mean_hidden/end",
        "corpus, held-out R^2": "probe/last/probe/heldout_r2",
        "seen, held-out R^2": "seen/heldout_r2",
    }
    return by_family(kept, columns)


def offline(kept: Kept) -> str:
    """How far apart both are."""
    worst = max(cell["suite"]["difference"] for cell in kept.cells)
    compared = sum(len(cell["suite"]["step"]) * cell["suite"]["variables"] for cell in kept.cells)
    said = f"Of {compared:,} values of the probe, live beside offline, none differs"
    return f"{said}." if worst == 0 else f"{said} by more than {worst:.1g} of its variable's largest."


def models(kept: Kept) -> str:
    """Models from elsewhere."""
    if not kept.models:
        return "None was given.\n"
    rows = []
    for name, found in kept.models.items():
        probe, own = found["probe"], found["sparsity"]
        figures = [probe["probe"]["r2"], found["null_r2"]]
        figures += [probe[which]["heldout_r2"] for which in ("probe", "permuted", "row_norm")]
        concentrated = f"{number(own['hoyer'])} ({number(own['rotated']['hoyer'])}, p = {number(own['p']['hoyer'])})"
        edits = [number(found["steering"][way], 3) for way in ("least_norm", "random_norm")]
        gone = [f"{found['positions']:,}"]
        gone += [number(found["deletion"][way]) for way in ("zero", "compensated")]
        row = [name, f"{found['rows']:.0f} x {found['dim']}", *map(number, figures), concentrated, *edits, *gone]
        rows.append(row)
    heads = ["model", "rows x width", "R^2", "noise gives", "held out", "permuted", "row norm", "Hoyer (rotated)"]
    heads += ["steering", "random move", "positions", "deletable: zero", "compensated"]
    return table(heads, rows)


def models_sparse(kept: Kept) -> str:
    """How many slopes of models from elsewhere are more concentrated than their rotations."""
    found = [one["sparsity"]["p"]["hoyer"] for one in kept.models.values()]
    hits = sum(p <= 0.05 for p in found)
    have = "has" if hits == 1 else "have"
    return f"Of the {len(found)} heads that were trained elsewhere (below) {hits} {have} such a slope." if found else ""


def models_deletable(kept: Kept) -> str:
    """How many of them may lose 30%."""
    shares = [one["deletion"] for one in kept.models.values()]
    zero, refitted = (sum(share[way] >= 0.3 for share in shares) for way in ("zero", "compensated"))
    if not shares:
        return ""
    return f"30% may be set to zero in {zero} of {len(shares)}, with what stays refitted in {refitted}."


def direction(kept: Kept) -> str:
    """Finding 1."""
    columns = {
        "cosine 0.9 at step": "direction/direction_at",
        "permuted labels": "direction/null_direction_at",
        "labels that load as much": "verdict/direction/nulls/sign flips",
    }
    rows = [
        [title(family), *(seeds(cells, path, 0) for path in columns.values()), seeds(cells, "direction/size_then")]
        for family, cells in kept.families.items()
    ]
    return table(["cells", *columns, "length then, of the last"], rows)


def direction_against(kept: Kept) -> str:
    """Runs that refute finding 1."""
    late = sum(cell["direction"]["size_then"] >= 0.5 for cell in kept.cells)
    return f"{late} of {len(kept.cells)}"


def rows(kept: Kept) -> str:
    """Finding 2."""
    lines = []
    for family, cells in kept.families.items():
        for name in bin_names(cells[0]["rows"]["bins"]):
            whole, control = f"rows/bins/{name}", f"rows/random/{name}"
            halves = [seeds(cells, f"{where}/half", 0) for where in (whole, control)]
            common = [seeds(cells, f"{where}/common") for where in (whole, control)]
            lines.append([title(family), name, *common, *halves, seeds(cells, f"rows/first/{name}")])
    return table(["cells", "count", "common", "random bin", "half (step)", "random bin", "early"], lines)


def rows_against(kept: Kept) -> str:
    """Runs that refute finding 2."""
    both = [cell["rows"] for cell in kept.cells if "0" in cell["rows"]["bins"]]
    against = sum(one["bins"]["0"]["common"] <= one["random"]["0"]["common"] for one in both)
    return f"{against} of {len(both)}"


def seen(kept: Kept) -> str:
    """Finding 3."""
    every = max((cell["seen_counts"]["step"] for cell in kept.cells), key=len)
    places = [place for place, step in enumerate(every) if step in (2, 4, 8, 16, 32, 64, 100, 200, 300)]
    lines = []
    for family, cells in kept.families.items():
        for which, name in (("own", "this run's"), ("other", "another's")):
            there = [cell for cell in cells if len(cell["seen_counts"]["step"]) == len(every)]
            lines.append([title(family), name, *(seeds(there, f"seen_counts/{which}/{place}") for place in places)])
    return table(["cells", "labels", *(f"step {every[place]}" for place in places)], lines)


def seen_against(kept: Kept) -> str:
    """Runs that refute finding 3."""
    peaks = [
        (max(own), max(other))
        for cell in kept.cells
        if (own := [value for value in cell["seen_counts"]["own"] if value is not None])
        and (other := [value for value in cell["seen_counts"]["other"] if value is not None])
    ]
    against = sum(other >= own for own, other in peaks)
    if not peaks:
        return "no cell has a second seed"
    most = number(max(other for _, other in peaks))
    return f"{against} of {len(peaks)} at their peak, and the most that another's labels reach is {most}"


TABLES: dict[str, Callable[[Kept], str]] = {
    make.__name__: make
    for make in (
        *(frequency, baselines, bins, output, sparsity, sparse_verdict, steering, steering_along, deletion),
        *(deletion_verdict, deletion_along, onsets, leads, sentences, channels, offline, models),
        *(models_sparse, models_deletable),
        *(direction, direction_against, rows, rows_against, seen, seen_against),
    )
}
