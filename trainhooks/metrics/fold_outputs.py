"""The folds of the live probes, and what they store of each."""

from __future__ import annotations

import torch
from torch import Tensor

from trainhooks.core.variable import Variable
from trainhooks.probe.scored import ProbeFit

FOLDS = 5
HELD_OUT = f"held out, {FOLDS} folds by token id mod {FOLDS}"


def fold_variables(family: str) -> tuple[Variable, ...]:
    """`fold_slope` [fold, dim] and `fold_intercept` [fold] of one family, float32, in nats."""
    said = f"fitted without the tokens whose id mod {FOLDS} is the fold"
    sizes = {"fold": FOLDS}
    return (
        Variable(f"{family}.fold_slope", ("fold", "dim"), "float32", "nat", f"slope A {said}", sizes),
        Variable(f"{family}.fold_intercept", ("fold",), "float32", "nat", f"intercept B {said}", sizes),
    )


def fold_figures(family: str, fit: ProbeFit) -> dict[str, Tensor]:
    """The values of `fold_variables` of a fit of one target."""
    return {
        f"{family}.fold_slope": fit.fold_slope.to(torch.float32),
        f"{family}.fold_intercept": fit.fold_intercept.to(torch.float32),
    }
