"""What a report on one output embedding holds: plain numbers, NaN where a figure is not defined."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainhooks.core.formatting import plain
from trainhooks.probe import ProbeFit, Sparsity


def shows_frequency(r2: float, permuted_r2: float) -> bool:
    """Whether a probe's held-out R^2 is above the training mean's, 0, and above the permuted target's."""
    return r2 > max(0.0, 0.0 if math.isnan(permuted_r2) else permuted_r2)


@dataclass(frozen=True)
class Figures:
    """Of one regression on the target: in-sample and held-out, as `ProbeFit` defines them; MSE in nat^2."""

    r2: float
    adjusted_r2: float
    heldout_r2: float
    heldout_mse: float
    heldout_pearson: float
    heldout_spearman: float

    @classmethod
    def of(cls, fit: ProbeFit) -> Figures:
        """The figures of a fit of one target."""
        return cls(**{name: float(getattr(fit, name)) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class FoldFigures:
    """The probe on one fold's held-out rows; R^2 against the training folds' mean. NaN for fewer than two rows."""

    rows: int
    heldout_r2: float
    heldout_spearman: float


@dataclass(frozen=True)
class NeverLabelFigures:
    """The control: rows never counted, their mean predicted target (nats) and mean pairwise cosine."""

    rows: int
    prediction: float
    cosine: float


@dataclass(frozen=True)
class RankFigures:
    """Channels (see `trainhooks.probe.Channels`): rank correlations with -y and held-out R^2; None where not given."""

    embedding_r2: float
    norm_bias: float | None
    mean_hidden: float | None
    rest: float | None
    head_bias: float | None
    head_bias_r2: float | None
    joint_r2: float | None


@dataclass(frozen=True)
class Drift:
    """The probe against another step's: cosine of the slopes in [-1, 1], and the slopes' R^2 on the other matrix.

    `permuted_slope_cosine` is the same cosine for the permuted target: what a slope that means nothing keeps, since
    both matrices share their rows. `transfer_r2` stands against `own_heldout_r2`, the other matrix's own probe.
    """

    other: str
    slope_cosine: float
    permuted_slope_cosine: float
    transfer_r2: float
    own_heldout_r2: float


@dataclass(frozen=True)
class Recorded:
    """A scalar that the run wrote at this step, with the convention that the store keeps for it."""

    value: float
    unit: str
    description: str


@dataclass(frozen=True)
class MatrixFigures:
    """Everything that stands beside the frequency probe of one output embedding [vocab, dim].

    `rows` in the fit and their `rank`; `tokens` N; `mean` (nats) and `variance` (nat^2) of y = -log(c/N); the
    `noise_ceiling` of its R^2, NaN where there is none for the reason in `no_ceiling`. `null_r2` = k/(n - 1) is what
    noise reaches in-sample. `probe` by `folds`; nulls and
    references: `permuted` (the target shuffled over rows), `random_directions` (one feature E.u each); baselines:
    `row_norm`, `folded_row_norm` (of E diag(gamma)), `covariates`, with `joint` for E beside them; `smoothed` is the
    sensitivity variant over `smoothed_rows`. `name` and what follows it say where the matrix comes
    from. What does not apply is None or empty.
    """

    vocab: int
    dim: int
    vocab_size: int | None
    min_count: int
    excluded: tuple[int, ...]
    tokens: int
    rows: int
    rank: int
    mean: float
    variance: float
    noise_ceiling: float
    null_r2: float
    probe: Figures
    folds: tuple[FoldFigures, ...]
    permuted: Figures
    random_directions: tuple[Figures, ...]
    row_norm: Figures
    folded_row_norm: Figures | None
    covariates: Figures | None
    joint: Figures | None
    smoothed: Figures
    smoothed_rows: int
    never_labels: NeverLabelFigures | None
    channels: RankFigures | None
    sparsity: Sparsity | None
    drift: tuple[Drift, ...]
    slope: tuple[float, ...]
    intercept: float
    name: str = "a matrix"
    step: int | None = None
    key: str | None = None
    counts_from: str = "from the counts given"
    recorded: Mapping[str, Recorded] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    no_ceiling: str = ""

    @property
    def shows_frequency(self) -> bool:
        """Whether the rows explain held-out targets better than the training mean and than the permuted target does."""
        return shows_frequency(self.probe.heldout_r2, self.permuted.heldout_r2)

    @property
    def covariate_gain(self) -> float:
        """Held-out R^2[E, covariates] - R^2[covariates]; NaN where no token texts were given."""
        if self.covariates is None or self.joint is None:
            return float("nan")
        return self.joint.heldout_r2 - self.covariates.heldout_r2

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain dicts, lists, numbers and strings, ready for JSON; NaN and infinity become None."""
        found: dict[str, Any] = plain(self)
        return found | {"covariate_gain": plain(self.covariate_gain)}
