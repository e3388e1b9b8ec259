"""What one or several analysed runs allow to be said about frequency and the rest, and no more than that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainhooks.core.formatting import plain
from trainhooks.core.html import card
from trainhooks.core.printable import page
from trainhooks.lead import Onset, RunAnalysis
from trainhooks.lead.claims import SEEDS_FOR_A_MODEL, OverSeeds, judge, over_seeds, sentence, spoken
from trainhooks.lead.draws import NULLS
from trainhooks.lead.lead import Check, Interval, Lead, NullSummary
from trainhooks.lead.learning_rate import Placement

USUAL_DRAWS = 99
MOST_FINDINGS = 8

Outcome = Literal["lead", "no lead"]


@dataclass(frozen=True)
class Summary:
    """One quantity over the runs in which it is defined: how many, mean, lowest, highest (NaN where in none)."""

    runs: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ShareSummary:
    """Over the runs at one q: lead, excess lead, the two onsets (steps), and each run's largest p over the nulls.

    `over_seeds` is the inference over two runs or more, all of which have a lead; None elsewhere.
    """

    q: float
    lead: Summary
    excess: Summary
    frequency_onset: Summary
    rest_onset: Summary
    p: tuple[float, ...]
    over_seeds: OverSeeds | None


@dataclass(frozen=True)
class Verdict:
    """The outcome, the sentence that may be quoted, what limits it, and the numbers behind it.

    `level` is "shown (n seeds)", "suggested by one run", "not shown" or "cannot be tested here", at the first q asked
    for (see `trainhooks.speech`); the other q are shown, not chosen among. `outcome` is "lead" for the first two.
    `about_model` says whether there are three runs (one a seed), the least for a statement on a model.
    """

    outcome: Outcome
    level: str
    about_model: bool
    seeds: int
    sentence: str
    notes: tuple[str, ...]
    shares: tuple[ShareSummary, ...]
    runs: tuple[RunAnalysis, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, numbers and strings, ready for JSON; NaN and infinity become None."""
        found: dict[str, Any] = plain(self)
        return found

    def __repr__(self) -> str:
        first = self.runs[0].leads[0]
        return f"Verdict({self.level!r}, seeds={self.seeds}, q={first.q:g}, lead={first.lead:.4g}, p={first.p:.2g})"

    def _repr_html_(self) -> str:
        rows = [
            (
                f"run {number}, q = {lead.q:g}",
                f"lead {_number(lead.lead)}, 95% {_range(lead.interval)}, p = {lead.p:.2g}",
            )
            for number, run in enumerate(self.runs, start=1)
            for lead in run.leads
        ]
        return card(self.sentence, rows, lines=self.notes)

    def render(self) -> str:
        """The verdict as text, for a terminal."""
        blocks = [self.sentence, *(f"- {note}" for note in self.notes)]
        if self.seeds > 1:
            blocks += ["", f"Over {self.seeds} runs (mean, range)"]
            blocks += [_share_line(share) for share in self.shares]
        for number, run in enumerate(self.runs, start=1):
            blocks += ["", *_run_lines(run, title=f"Run {number}" if self.seeds > 1 else "Run")]
        return page(blocks)


def verdict(runs: Sequence[RunAnalysis]) -> Verdict:
    """The verdict on runs of one model that differ in their seed alone (the caller vouches for that).

    Raises ValueError for no run, for runs analysed at different q, for runs whose output embeddings differ in shape
    (they are no seeds of one model), and for one run given twice.
    """
    _check(runs)
    judgement = judge(runs)
    return Verdict(
        outcome="lead" if judgement.level in ("shown", "suggested") else "no lead",
        level=spoken(judgement, len(runs)),
        about_model=len(runs) >= SEEDS_FOR_A_MODEL,
        seeds=len(runs),
        sentence=sentence(runs),
        notes=_notes(runs),
        shares=tuple(_share_summary(runs, index) for index in range(len(runs[0].leads))),
        runs=tuple(runs),
    )


def _check(runs: Sequence[RunAnalysis]) -> None:
    if not runs:
        raise ValueError("got no run; give at least one result of analyze_run.")
    asked = [tuple(lead.q for lead in run.leads) for run in runs]
    if len(set(asked)) > 1:
        raise ValueError(f"the runs were analysed at different shares q, {asked}; analyse all at the same.")
    shapes = list(dict.fromkeys((run.vocab, run.dims) for run in runs))
    if len(shapes) > 1:
        raise ValueError(
            f"the runs have output embeddings of {' and '.join(f'{vocab} x {dims}' for vocab, dims in shapes)}: they "
            "are not seeds of one model. Ask for a verdict on each by itself."
        )
    ends = [(run.curves.frequency.tobytes(), run.curves.rest.tobytes()) for run in runs]
    if len(set(ends)) < len(ends):
        raise ValueError("one run was given twice; give each seed's analysis once, since seeds are what counts.")


def _notes(runs: Sequence[RunAnalysis]) -> tuple[str, ...]:
    """What limits the reading, each said once for all runs that it concerns."""
    firsts = [run.leads[0] for run in runs]
    concerns = {
        "the token-sampling interval of the lead contains 1": [lead.interval.low <= 1.0 for lead in firsts],
        "both onsets lie between the same two records, so the lead's size rests on interpolation": [
            lead.same_bracket for lead in firsts
        ],
        "the records start after step 0: all change is counted from the first record on": [
            run.first_step > 0 for run in runs
        ],
        f"fewer than {USUAL_DRAWS} draws: p is coarse": [run.draws < USUAL_DRAWS for run in runs],
    }
    notes = [f"{note} ({_which(hit)})." for note, hit in concerns.items() if any(hit)]
    for run in runs:
        notes += [f"the audit of the checkpoints found: {finding}." for finding in run.findings[:MOST_FINDINGS]]
        if run.records_used < run.records_total:
            notes.append(f"{run.records_used} of {run.records_total} records were used, evenly in log(1 + step).")
    if len(runs) < SEEDS_FOR_A_MODEL:
        known = "one run" if len(runs) == 1 else "two runs"
        notes.append(f"{known}: seeds are the larger uncertainty, and a verdict on a model needs three.")
    return tuple(dict.fromkeys(notes))


def _which(hit: list[bool]) -> str:
    return "this run" if len(hit) == 1 else "run " + ", ".join(str(i) for i, one in enumerate(hit, 1) if one)


def _summarise(values: list[float]) -> Summary:
    defined = [value for value in values if not math.isnan(value)]
    if not defined:
        return Summary(0, math.nan, math.nan, math.nan)
    return Summary(len(defined), math.fsum(defined) / len(defined), min(defined), max(defined))


def _share_summary(runs: Sequence[RunAnalysis], index: int) -> ShareSummary:
    leads = [run.leads[index] for run in runs]
    return ShareSummary(
        q=leads[0].q,
        lead=_summarise([lead.lead for lead in leads]),
        excess=_summarise([lead.excess.value for lead in leads]),
        frequency_onset=_summarise([lead.frequency.step for lead in leads]),
        rest_onset=_summarise([lead.rest.step for lead in leads]),
        p=tuple(lead.p for lead in leads),
        over_seeds=over_seeds(leads) if len(leads) > 1 and all(math.isfinite(lead.lead) for lead in leads) else None,
    )


def _share_line(share: ShareSummary) -> str:
    parts = [
        f"{name} {one.mean:.4g} ({one.low:.4g}-{one.high:.4g}, {one.runs} runs)"
        for name, one in (
            ("lead", share.lead),
            ("excess lead", share.excess),
            ("frequency", share.frequency_onset),
            ("rest", share.rest_onset),
        )
        if one.runs
    ]
    return f"  q = {share.q:g}: " + ("; ".join(parts) or "no lead defined in any run")


def _run_lines(run: RunAnalysis, *, title: str) -> list[str]:
    head = (
        f"{title}: steps {run.first_step}-{run.last_step}, {run.records_used} records, {run.rows} rows x {run.dims}; "
        f"correlation of the targets with the main direction of change {run.correlation:.2f}; their part of the "
        f"change is {run.change_over_noise:.1f} standard deviations above permuted targets"
    )
    lines = [head]
    for lead in run.leads:
        lines += _lead_lines(run, lead)
    turned = run.direction
    lines.append(
        f"  direction: cosine to its final direction above {turned.threshold:g} from step {_number(turned.step)} on; "
        + "; ".join(f"{name} {_null(null)}" for name, null in turned.nulls.items())
    )
    for name, onsets in run.series_onsets.items():
        lines.append(f"  {name}: " + ", ".join(f"q = {q:g} at {_onset(one)}" for q, one in onsets.items()))
    return lines


def _lead_lines(run: RunAnalysis, lead: Lead) -> list[str]:
    placed = run.placements.get(lead.q, {})
    walk, excess = run.random_walk[lead.q], lead.excess
    lines = [
        f"  q = {lead.q:g}: lead {_number(lead.lead)}, 95% {_range(lead.interval)} (token sampling, one run)",
        f"    excess {_number(excess.value)} over {excess.null}, 95% {_range(excess.interval)} (over its draws)",
        f"    frequency at {_onset(lead.frequency)}{_place(placed.get('frequency'))}",
        f"    rest at {_onset(lead.rest)}{_place(placed.get('rest'))}",
    ]
    lines += [f"    {name}{_seen(name)}: {_null(null)}" for name, null in lead.nulls.items()]
    lines += [
        f"    with the targets' ranks: {_measured(lead.rank)}",
        f"    cut at step {_number(lead.cut_step)}: {_measured(lead.cut)}",
    ]
    if lead.coarse_to_fine:
        curve = ", ".join(f"{one.bins}: {_number(one.median)}" for one in lead.coarse_to_fine)
        lines.append(f"    targets permuted within bins of id (no null), median lead by number of bins: {curve}")
    lines += [
        f"    references: straight line {_number(run.straight_line[lead.q])}; random walk {_number(walk.median)} "
        f"({_number(walk.low)}-{_number(walk.high)}), its distance covered at {_onset(walk.distance)}",
    ]
    if run.picture is not None:
        drawn = run.picture.onsets[lead.q]
        lines.append(
            f"    probe correlation against distance (no evidence): run {_number(drawn.ratio)}, "
            f"straight line {_number(drawn.line_ratio)}"
        )
    return lines


def _seen(name: str) -> str:
    return "" if name in NULLS else " (weak: shown, not counted)"


def _measured(check: Check) -> str:
    return f"lead {_number(check.lead)}, largest p = {_number(check.p)}"


def _null(null: NullSummary) -> str:
    undefined = f", {null.undefined} undefined" if null.undefined else ""
    span = f"{_number(null.low)} - {_number(null.median)} - {_number(null.high)}"
    return f"{span} (5, 50, 95% of {null.draws} draws{undefined}), p = {_number(null.p)}"


def _onset(one: Onset) -> str:
    if one.status == "found":
        return f"step {one.step:.4g} (between records {one.low:g} and {one.high:g})"
    return "no step (no change above noise)" if one.status == "none" else f"or before step {one.high:g}"


def _place(placement: Placement | None) -> str:
    return "" if placement is None else f", {placement.phase}, {placement.share_of_peak:.0%} of the peak rate"


def _range(interval: Interval) -> str:
    return "unknown" if math.isnan(interval.low) else f"{interval.low:.4g}-{interval.high:.4g}"


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.4g}"
