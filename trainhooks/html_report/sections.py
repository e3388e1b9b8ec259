"""What the report says in words and tables: answer, verdict, run and provenance, findings, cost, methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainhooks.core.formatting import human
from trainhooks.core.html import text
from trainhooks.html_report.escape import table
from trainhooks.lead.lead import Interval, Lead
from trainhooks.lead.verdict import Verdict, verdict
from trainhooks.run_figures import RunNumbers

MISSING = "-"
MOST_FINDINGS = 12


def verdicts(runs: Sequence[RunNumbers]) -> list[tuple[str, Verdict]]:
    """One verdict on runs that are seeds of one model, else one on each; those without a lead are left out."""
    having = [(run, run.lead) for run in runs if run.lead is not None]
    if len(having) > 1 and _seeds_of_one_model([run for run, _ in having]):
        return [(", ".join(run.label for run, _ in having), verdict([lead for _, lead in having]))]
    return [(run.label, verdict([lead])) for run, lead in having]


def _seeds_of_one_model(runs: Sequence[RunNumbers]) -> bool:
    """Whether their provenance says so: a seed each, none twice, and one shape, class, number of parameters, corpus."""
    seeds = [str(run.attributes["seed"]) for run in runs if "seed" in run.attributes]
    named = ("model_class", "parameters", "counts_hash")
    models = {(run.vocab, run.dim, *(str(run.attributes.get(name)) for name in named)) for run in runs}
    return len(seeds) == len(set(seeds)) == len(runs) and len(models) == 1


def verdict_section(runs: Sequence[RunNumbers], found: Sequence[tuple[str, Verdict]]) -> str:
    """The sentence, its interval, and what speaks against it."""
    blocks = [_verdict(names, one) for names, one in found]
    for run in runs:
        if run.lead is None:
            reason = run.missing["lead"]
            blocks.append(f'<div class="verdict"><p>No verdict on {text(run.label)}.</p><p>{text(reason)}</p></div>')
    return "".join(blocks)


def _verdict(names: str, found: Verdict) -> str:
    lines = "".join(f"<li>{text(_interval(run.leads[0]))}</li>" for run in found.runs)
    against = "".join(f"<li>{text(note)}</li>" for note in found.notes) or "<li>nothing known</li>"
    return (
        f'<div class="verdict"><p>{text(found.sentence)}</p><p class="soft">{text(names)}: {text(found.level)}</p>'
        f"<ul>{lines}</ul><h3>What limits this, or speaks against it</h3><ul>{against}</ul></div>"
    )


def _interval(lead: Lead) -> str:
    excess = lead.excess
    return (
        f"lead {_number(lead.lead)}, 95% interval {_span(lead.interval)} (token sampling, one run) at q = {lead.q:g}; "
        f"excess over {excess.null} {_number(excess.value)} ({_span(excess.interval)}); largest p {_number(lead.p)}"
    )


def _span(interval: Interval) -> str:
    return f"{_number(interval.low)} to {_number(interval.high)}"


def answer(run: RunNumbers) -> str:
    """Tiles: is frequency there yet, and has the rest converged?"""
    tiles = []
    if now := last_correlations(run):
        said = f"row norm alone {_number(now['norm'])}, permuted {_number(now['permuted'])}"
        tiles.append((_number(now["spearman"]), "held-out Spearman with frequency", said))
    reached = _reached(run)
    if reached is not None:
        step, left = reached
        said = "" if left is None else f"the whole model had {left:.0%} of its way to go"
        tiles.append((f"step {step:,}", "90% of that correlation", said))
    loss = run.series("loss")
    if loss is not None:
        seen = loss[np.isfinite(loss)]
        tiles.append(
            (
                f"{seen[-1]:.3g} nats",
                "training loss",
                f"from {seen[0]:.3g}; a uniform guess has {np.log(run.vocab):.3g}",
            )
        )
    items = "".join(
        f"<li><b>{text(big)}</b>{text(what)}<br><span class='soft'>{text(more)}</span></li>"
        for big, what, more in tiles
    )
    return f"<ul class='tiles'>{items}</ul>" if items else ""


def last_correlations(run: RunNumbers) -> dict[str, float]:
    """The probe's held-out Spearman, the row norm's and the permuted target's, at the last record that has one."""
    names = {"spearman": "heldout_spearman", "norm": "row_norm_spearman", "permuted": "permuted_heldout_spearman"}
    found = {short: run.series(f"probe.{name}") for short, name in names.items()}
    if found["spearman"] is not None:
        last = int(np.flatnonzero(np.isfinite(found["spearman"]))[-1])
        return {short: math.nan if values is None else float(values[last]) for short, values in found.items()}
    if run.states:
        state = run.states[-1]
        return {"spearman": state.spearman, "norm": state.norm_spearman, "permuted": state.permuted_spearman}
    return {}


def _reached(run: RunNumbers) -> tuple[int, float | None] | None:
    """The first step from which the correlation has 0.9 of its last value, and the share of the distance left there."""
    values = run.series("probe.heldout_spearman")
    if values is None or not values[np.isfinite(values)][-1] > 0:
        return None
    place = int(np.flatnonzero(values >= 0.9 * values[np.isfinite(values)][-1])[0])
    whole = run.group("whole")
    left = None if whole is None or not whole[0] > 0 else float(whole[place] / whole[0])
    return int(run.steps[place]), None if left is None or not math.isfinite(left) else left


def comparison(runs: Sequence[RunNumbers]) -> str:
    """Several runs beside each other: seeds, sizes, live runs and analysed suites."""
    head = ("run", "kind", "steps", "vocab x dim", "Spearman", "row norm", "null", "lead", "p", "loss")
    rows = []
    for run in runs:
        now, lead = last_correlations(run), None if run.lead is None else run.lead.leads[0]
        loss = run.series("loss")
        rows.append(
            (
                run.label,
                kind(run),
                f"{run.steps[-1]:,}",
                f"{run.vocab:,} x {run.dim}",
                *(_number(now.get(name, math.nan)) for name in ("spearman", "norm", "permuted")),
                _number(math.nan if lead is None else lead.lead),
                _number(math.nan if lead is None else lead.p),
                _number(math.nan if loss is None else loss[np.isfinite(loss)][-1]),
            )
        )
    return table(head, rows, caption="The runs beside each other, at their last records", numbers=True)


def kind(run: RunNumbers) -> str:
    """Where the store comes from."""
    return "analysed suite" if "suite" in run.attributes else "live run"


def provenance(run: RunNumbers) -> str:
    """The run, its store, and what it says of where it comes from."""
    facts = {
        "kind": kind(run),
        "path": run.facts["path"],
        "records": f"{run.facts['records']:,}, steps {run.steps[0]:,} to {run.steps[-1]:,}",
        "output embeddings": f"{run.facts['snapshots']:,} of {run.vocab:,} x {run.dim}, as {run.facts['precision']}",
        "complete": "yes" if run.complete else "no: the run has not closed its store",
        "groups": ", ".join(run.groups),
    }
    given = {key: value for key, value in run.attributes.items() if key != "audit"}
    return table((), [*facts.items(), *_flat(given)], caption=f"{run.label}: run and provenance")


def _flat(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in given.items():
        if isinstance(value, Mapping):
            rows.append((str(key), ", ".join(f"{inner} {one}" for inner, one in value.items())))
        else:
            told = str(value)
            rows.append((str(key), told if len(told) <= 600 else told[:600] + " ..."))
    return rows


def findings(run: RunNumbers) -> str:
    """What an audit found, what the store says of losses and restarts, and what could not be drawn."""
    said = []
    audit = run.attributes.get("audit")
    if isinstance(audit, Sequence) and not isinstance(audit, str):
        rows = [one for one in audit if isinstance(one, Mapping)]
        said += [f"audit, {one.get('kind')}: {one.get('message')}" for one in rows[:MOST_FINDINGS]]
        if len(rows) > MOST_FINDINGS:
            said.append(f"audit: {len(rows) - MOST_FINDINGS} more")
    for name, what in (
        ("skipped", "updates were skipped"),
        ("nonfinite_rows", "rows of the output embedding were not finite at the worst record"),
        ("probe.excluded_rows", "rows were left out of the probe at the worst record"),
    ):
        values = run.series(name)
        if values is not None:
            seen = values[np.isfinite(values) & (values > 0)]
            if len(seen):
                said.append(f"{int(seen.sum() if name == 'skipped' else seen.max()):,} {what}")
    for name, what in (("restarts", "resumptions"), ("gaps", "gaps"), ("dropped", "records dropped by a full queue")):
        if run.facts[name]:
            said.append(f"{run.facts[name]} {what} (`trainhooks inspect` has each)")
    said += [f"not drawn, {subject}: {reason}" for subject, reason in run.missing.items() if subject != "lead"]
    items = "".join(f"<li>{text(one)}</li>" for one in said)
    return f"<ul>{items}</ul>" if items else "<p>Nothing was found.</p>"


def cost(run: RunNumbers) -> str:
    """What recording took."""
    rows = [("store on disk", human(run.facts["disk_bytes"]))]
    spent = run.series("recorder.milliseconds")
    if spent is not None:
        seen = spent[np.isfinite(spent)]
        rows.append(("recording, median of a record", f"{np.median(seen):.3g} ms"))
        rows.append(("recording, all records", f"{seen.sum() / 1000:.3g} s"))
    raw = 4 * run.facts["snapshots"] * run.vocab * run.dim
    if raw:
        rows.append(("its output embeddings in float32", human(raw)))
    return table((), rows, caption=f"{run.label}: what it cost")


def _number(value: float) -> str:
    return MISSING if not math.isfinite(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
