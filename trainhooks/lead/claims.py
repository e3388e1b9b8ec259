"""What may be said of a lead, and how loudly: the levels of speech, decided and worded in one place.

"Suggested by one run" needs all of this at the first q: the lead's p holds against every null, its token-sampling
interval excludes 1, the onsets lie between different records, and the records begin early enough to have seen them.
"Shown" is inferred over three seeds or more, and one run never comes that far. Where the question has no answer in
these records, whatever the model did, it "cannot be tested here". What contradicts a claim stands in the sentence that
makes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from trainhooks.lead.draws import NULLS
from trainhooks.lead.lead import Check, Lead
from trainhooks.lead.run_analysis import RunAnalysis

LEVEL = 0.05
SEEDS_FOR_A_MODEL = 3
EARLY = 4.0
"""The onset has to lie this many times later than the first record, or the change before it may have been half."""
WIDE = 1.1
"""Two records further apart than this factor could hide a lead between them."""

Level = Literal["shown", "suggested", "not shown", "cannot be tested here"]
CLAIM = "frequency came before the rest"


@dataclass(frozen=True)
class Judgement:
    """What one run, or all of them, allow: the level, why it is no higher (or "" for a claim), and its limits."""

    level: Level
    why: str
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class OverSeeds:
    """Inference over runs: geometric means with t-intervals over their logarithms, and one p.

    `p` is twice the mean of the runs' p, at most 1: valid however they depend on each other, as runs of one corpus do
    (Rueschendorf 1982; Vovk and Wang 2020, doi:10.1093/biomet/asaa027).
    """

    excess: tuple[float, float, float]
    lead: tuple[float, float, float]
    p: float


def over_seeds(leads: Sequence[Lead]) -> OverSeeds:
    """Mean, low and high of excess lead and lead over two runs or more, all of which have one."""
    excess, lead = (_mean_and_interval([math.log(value) for value in values]) for values in _effects(leads))
    return OverSeeds(excess, lead, combined_p([one.p for one in leads]))


def _effects(leads: Sequence[Lead]) -> tuple[list[float], list[float]]:
    return [one.excess.value for one in leads], [one.lead for one in leads]


def _mean_and_interval(logs: list[float]) -> tuple[float, float, float]:
    mean, count = float(np.mean(logs)), len(logs)
    half = float(stdtrit(count - 1, 0.975) * np.std(logs, ddof=1) / math.sqrt(count))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def combined_p(values: Sequence[float]) -> float:
    """Twice the mean, at most 1; NaN where one is."""
    return min(1.0, 2.0 * math.fsum(values) / len(values)) if not any(map(math.isnan, values)) else math.nan


def judge_run(run: RunAnalysis) -> Judgement:
    """What one run allows to be said, at its first q."""
    lead = run.leads[0]
    for against in (_in_doubt(run), _unseen(run, lead), _together(lead), _too_small(lead), _beaten(lead)):
        if against is not None:
            return against
    return Judgement("suggested", "", tuple(_limits(lead.rank, lead.cut, cut_at=f"at step {lead.cut_step:g}")))


def _in_doubt(run: RunAnalysis) -> Judgement | None:
    """Against checkpoints that may not be one run."""
    if not run.doubts:
        return None
    more = f", and {len(run.doubts) - 1} more" if len(run.doubts) > 1 else ""
    return Judgement(
        "cannot be tested here", f"the checkpoints may not be one run in this order: {run.doubts[0]}{more}"
    )


def _unseen(run: RunAnalysis, lead: Lead) -> Judgement | None:
    """Against runs without the two onsets, or whose records cannot have seen them."""
    if lead.frequency.status == "none":
        above = f"{run.change_over_noise:.1f} standard deviations, 3 needed"
        return Judgement("not shown", f"the change along frequency is not above that of permuted targets ({above})")
    hidden = _out_of_view(run, lead)
    return None if hidden is None else Judgement("cannot be tested here", hidden)


def _together(lead: Lead) -> Judgement | None:
    """Against onsets that no record comes between."""
    if not lead.same_bracket:
        return None
    low, high = lead.frequency.low, lead.frequency.high
    why = f"both onsets lie between the same two records (steps {low:g} and {high:g})"
    return Judgement("cannot be tested here" if high > WIDE * low else "not shown", why)


def _too_small(lead: Lead) -> Judgement | None:
    """Against leads that are none, or may be none in other tokens."""
    if not lead.lead > 1.0:
        return Judgement("not shown", "the rest came first")
    if math.isnan(lead.interval.low):
        return Judgement("cannot be tested here", "no bootstrap samples of the tokens were drawn (resamples=0)")
    if lead.interval.low <= 1.0:
        return Judgement("not shown", "the token-sampling interval of the lead contains 1")
    return None


def _out_of_view(run: RunAnalysis, lead: Lead) -> str | None:
    """Why the records cannot have seen the onsets; None where they can."""
    late = [
        f"the onset of {name} is not in view, it lies at or before step {one.high:g}"
        for name, one in (("frequency", lead.frequency), ("the rest", lead.rest))
        if one.status == "before the first record"
    ]
    if late:
        return " and ".join(late)
    if math.isnan(lead.lead):
        return "besides the part along frequency nothing moved"
    early = min(lead.frequency.step, lead.rest.step)
    if run.first_step * EARLY > early:
        return (
            f"the records begin at step {run.first_step}, too late to have seen an onset at step {early:.4g} begin "
            f"(needed: a record at step {int(early / EARLY)} or before)"
        )
    return None


def _beaten(lead: Lead) -> Judgement | None:
    """Against leads that labellings without meaning have too."""
    if lead.p <= LEVEL:
        return None
    hardest = max(NULLS, key=lambda name: lead.nulls[name].p)
    return Judgement("not shown", f"labellings without meaning lead as much ({hardest})")


def _limits(rank: Check, cut: Check, *, cut_at: str) -> list[str]:
    """What the claim does not survive."""
    checks = {"with the counts' ranks in place of their logarithms": rank, f"when the run is cut {cut_at}": cut}
    return [
        f"not {how} ("
        + ("undefined there" if math.isnan(check.p) else f"lead {check.lead:.3g}, p = {check.p:.2g}")
        + ")"
        for how, check in checks.items()
        if not (check.p <= LEVEL and check.lead > 1.0)
    ]


def judge(runs: Sequence[RunAnalysis]) -> Judgement:
    """What all runs together allow to be said; the caller vouches that they differ in their seed alone."""
    single = [judge_run(run) for run in runs]
    if len(runs) == 1:
        return single[0]
    for level in ("cannot be tested here", "not shown"):
        # over three seeds the seeds decide, unless a run gives them nothing to decide on
        if any(hit := [one.level == level for one in single]) and (
            len(runs) < SEEDS_FOR_A_MODEL or level == "cannot be tested here" or _undefined(runs)
        ):
            why = next(one.why for one, yes in zip(single, hit, strict=True) if yes)
            return Judgement(level, f"in {sum(hit)} of {len(runs)} runs, {why}")
    if len(runs) < SEEDS_FOR_A_MODEL:
        return Judgement("suggested", "", tuple(dict.fromkeys(limit for one in single for limit in one.limits)))
    return _judge_seeds([run.leads[0] for run in runs])


def _undefined(runs: Sequence[RunAnalysis]) -> bool:
    return any(math.isnan(run.leads[0].lead) for run in runs)


def _judge_seeds(leads: Sequence[Lead]) -> Judgement:
    found = over_seeds(leads)
    if not found.lead[1] > 1.0:
        return Judgement("not shown", "the lead's interval over seeds contains 1, or lies below it")
    if not found.excess[1] > 1.0:
        return Judgement("not shown", "the excess lead's interval over seeds contains 1, or lies below it")
    if not found.p <= LEVEL:
        return Judgement("not shown", "labellings without meaning lead as much too often")
    checks = [_combined([getattr(lead, name) for lead in leads]) for name in ("rank", "cut")]
    limits = _limits(*checks, cut_at="at 3/4")
    if bracketed := sum(lead.same_bracket for lead in leads):
        limits.append(f"both onsets lie between the same two records in {bracketed} of {len(leads)} runs")
    return Judgement("shown", "", tuple(limits))


def _combined(checks: Sequence[Check]) -> Check:
    return Check(float(np.mean([one.lead for one in checks])), combined_p([one.p for one in checks]))


def spoken(judgement: Judgement, runs: int) -> str:
    """The level in words."""
    if judgement.level == "shown":
        return f"shown ({runs} seeds)"
    if judgement.level == "suggested":
        return "suggested by one run" if runs == 1 else f"suggested by {runs} runs"
    return judgement.level


def sentence(runs: Sequence[RunAnalysis]) -> str:
    """The sentence that may be quoted, with its level first and whatever contradicts it inside."""
    judgement = judge(runs)
    said = judgement.why or CLAIM
    if judgement.limits:
        said += ", but " + " and ".join(judgement.limits)
    numbers = _run_numbers(runs[0].leads[0]) if len(runs) == 1 else _runs_numbers([run.leads[0] for run in runs])
    level = spoken(judgement, len(runs))
    return f"{level[0].upper()}{level[1:]}: {said}" + (f" ({numbers})." if numbers else ".")


def _run_numbers(lead: Lead) -> str:
    if math.isnan(lead.lead):
        return "one run"
    excess = lead.excess
    between = "" if math.isnan(excess.interval.low) else f", 95% {excess.interval.low:.3g}-{excess.interval.high:.3g}"
    return (
        f"lead {lead.lead:.4g} at q = {lead.q:g}; excess {excess.value:.3g}{between}, over {excess.null}; "
        f"largest p = {lead.p:.2g} over {len(NULLS)} nulls of {lead.nulls[excess.null].draws} draws; one run"
    )


def _runs_numbers(leads: Sequence[Lead]) -> str:
    defined = [lead for lead in leads if math.isfinite(lead.lead)]
    if len(defined) < len(leads):
        return f"a lead in {len(defined)} of {len(leads)} runs" if defined else ""
    found = over_seeds(leads)
    name, (mean, low, high) = "excess lead", found.excess
    return (
        f"{name} {mean:.3g}, 95% {low:.3g}-{high:.3g} over {len(leads)} seeds; lead {found.lead[0]:.3g}, 95% "
        f"{found.lead[1]:.3g}-{found.lead[2]:.3g}, at q = {leads[0].q:g}; combined p = {found.p:.2g}"
    )
