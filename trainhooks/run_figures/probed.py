"""What one output embedding says of token frequency, in the numbers that are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from trainhooks.lead.trajectory import thinned
from trainhooks.numerics.binning import count_bins, mean_by_bin
from trainhooks.probe import (
    fit_probe,
    frequency_target,
    gini,
    participation_ratio,
    permutation,
    row_norm_probe,
)
from trainhooks.probe.sparsity import haar_rotation
from trainhooks.run_figures.taken import TakenMatrices

SHOWN = 1500
"""Tokens that are drawn as points, evenly over the ranks of frequency."""
MOST_STATES = 12
ROTATIONS = 20
MOST_ROTATED = 512
"""Columns up to which every state is rotated; wider ones at the last alone, since a rotation costs dim^3."""


@dataclass(frozen=True)
class CountedTokens:
    """The tokens that enter: corpus `counts` [vocab], `mask`, y = -log(c/N) in nats, and the `shown` ids."""

    counts: Int64[Tensor, "vocab"]
    mask: Bool[Tensor, "vocab"]
    y: Float[Tensor, "vocab"]
    shown: Int64[Tensor, "shown"]
    bins: Int64[Tensor, "vocab"]

    @staticmethod
    def of(counts: Tensor, mask: Tensor) -> CountedTokens:
        """Of the tokens of the mask; points are spread over their ranks, the most and the least frequent among them."""
        ids = mask.nonzero().flatten()
        ranked = ids[counts[ids].argsort(descending=True, stable=True)]
        places = torch.linspace(0, len(ranked) - 1, min(SHOWN, len(ranked))).round().long()
        bins = count_bins(counts).masked_fill(~mask, -1)
        return CountedTokens(counts, mask, frequency_target(counts, mask=mask), ranked[places], bins)

    @property
    def bin_labels(self) -> tuple[str, ...]:
        """Each bin's counts."""
        return tuple(f"{10**b:,}-{10 ** (b + 1) - 1:,}" for b in range(int(self.bins.max()) + 1))


@dataclass(frozen=True)
class ProbedState:
    """One step's matrix against the frequency target; `shown` tokens as points, in the order of `CountedTokens.shown`.

    Held-out figures as `ProbeFit`. `saliency` |A_i| sd(E_i) [dim], `rotated` the same in Haar rotations of the axes
    (None where it was not asked for). `components` are the first two principal ones, the sign such that they rise with
    frequency; `component_shares` of the variance; `component_r2` of log frequency on both, in-sample.
    """

    step: int
    true: Float[np.ndarray, "shown"]
    predicted: Float[np.ndarray, "shown"]
    spearman: float
    permuted_spearman: float
    norm_spearman: float
    error_by_bin: Float[np.ndarray, "bin"]
    distance_by_bin: Float[np.ndarray, "bin"]
    saliency: Float[np.ndarray, "dim"]
    rotated: Float[np.ndarray, "draw dim"] | None
    components: Float[np.ndarray, "shown two"]
    component_shares: tuple[float, float]
    component_r2: float
    singular_values: Float[np.ndarray, "dim"]
    rows: int

    @property
    def concentration(self) -> dict[str, tuple[float, np.ndarray]]:
        """Gini and participation ratio / dim of the saliency, each with that of the rotations."""
        own, size = torch.from_numpy(self.saliency), len(self.saliency)
        rotated = [] if self.rotated is None else [torch.from_numpy(one) for one in self.rotated]
        return {
            "Gini": (float(gini(own)), np.array([float(gini(one)) for one in rotated])),
            "participation ratio / dim": (
                float(participation_ratio(own)) / size,
                np.array([float(participation_ratio(one)) / size for one in rotated]),
            ),
        }


def probed_states(taken: TakenMatrices, tokens: CountedTokens) -> tuple[ProbedState, ...]:
    """The numbers of up to 12 of the matrices, log-spaced; a row that is not finite is left out of that one.

    Draws come from an own generator.
    """
    if not len(taken):
        return ()
    dim = taken[0].shape[1]
    generator = torch.Generator().manual_seed(0)
    rotations = [haar_rotation(dim, generator=generator) for _ in range(ROTATIONS)]
    final = torch.from_numpy(taken[len(taken) - 1])
    last = len(taken) - 1
    places = thinned(taken.steps, limit=MOST_STATES)
    return tuple(
        _probed(
            int(taken.steps[place]),
            torch.from_numpy(taken[place]),
            tokens=tokens,
            final=final,
            rotations=rotations if place == last or dim <= MOST_ROTATED else [],
        )
        for place in map(int, places)
    )


@torch.no_grad()
def _probed(
    step: int, matrix: Tensor, *, tokens: CountedTokens, final: Tensor, rotations: Sequence[Tensor]
) -> ProbedState:
    mask = tokens.mask & torch.linalg.vector_norm(matrix, dim=1).isfinite()
    ids = mask.nonzero().flatten()
    permuted = torch.full_like(tokens.y, torch.nan)
    permuted[ids] = tokens.y[ids[permutation(ids)]]
    fit = fit_probe(matrix, torch.stack([tokens.y, permuted], 1), mask=mask)
    predicted = _held_out(matrix, fit.fold_slope[:, 0], fit.fold_intercept[:, 0])
    rows = matrix[ids].double()
    mean = rows.mean(0)
    covariance = (rows.T @ rows) / len(rows) - torch.outer(mean, mean)
    bins = int(tokens.bins.max()) + 1
    squared = (predicted - tokens.y).square()
    moved, size = (matrix - final).square().sum(1).double(), final.square().sum(1).double()
    parts = [mean_by_bin(values.masked_fill(~mask, torch.nan), tokens.bins, count=bins) for values in (moved, size)]
    components, shares, r2, spectrum = _components(rows, mean, covariance, y=tokens.y[ids])
    place = torch.full((len(matrix),), -1).scatter(0, ids, torch.arange(len(ids)))[tokens.shown]
    at_shown = components[place].masked_fill((place < 0)[:, None], torch.nan)
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    slope = fit.slope[0]
    return ProbedState(
        step=step,
        true=tokens.y[tokens.shown].numpy(),
        predicted=predicted[tokens.shown].numpy(),
        spearman=float(fit.heldout_spearman[0]),
        permuted_spearman=float(fit.heldout_spearman[1]),
        norm_spearman=float(row_norm_probe(matrix, tokens.y, mask=mask).heldout_spearman),
        error_by_bin=mean_by_bin(squared.masked_fill(~mask, torch.nan), tokens.bins, count=bins).sqrt().numpy(),
        distance_by_bin=(parts[0] / parts[1]).sqrt().numpy(),
        saliency=(slope.abs() * deviation).numpy(),
        rotated=_rotated(slope, covariance, rotations),
        components=at_shown.numpy(),
        component_shares=shares,
        component_r2=r2,
        singular_values=spectrum.numpy(),
        rows=len(ids),
    )


def _held_out(matrix: Tensor, slopes: Tensor, intercepts: Tensor) -> Tensor:
    """Each row's prediction by the slope that was fitted without its fold (id mod folds), float64."""
    folds = torch.arange(len(matrix)) % len(slopes)
    every = matrix.double() @ slopes.T + intercepts
    return every.gather(1, folds[:, None])[:, 0]


def _components(
    rows: Tensor, mean: Tensor, covariance: Tensor, *, y: Tensor
) -> tuple[Tensor, tuple[float, float], float, Tensor]:
    """The first two principal components of each row, their shares, R^2 of y on them, and all singular values."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0).flip(0)
    first = vectors.flip(1)[:, :2]
    found = (rows - mean) @ first
    centred = y - y.mean()
    found = found * torch.where(centred @ found > 0, -1.0, 1.0)
    spread = found.square().sum(0)
    explained = (centred @ found).square() / spread.where(spread > 0, 1)
    total, all_y = float(values.sum()), float(centred.square().sum())
    if found.shape[1] < 2:
        found = torch.cat([found, torch.zeros_like(found)], 1)
    shares = [float(value) / total if total > 0 else float("nan") for value in values[:2]]
    r2 = float(explained.sum()) / all_y if all_y > 0 else float("nan")
    return found, (shares[0], shares[1] if len(shares) > 1 else 0.0), r2, (values * len(rows)).sqrt()


def _rotated(slope: Tensor, covariance: Tensor, rotations: Sequence[Tensor]) -> np.ndarray | None:
    if not rotations:
        return None
    found = []
    for rotation in rotations:
        deviation = (rotation * (covariance @ rotation)).sum(0).clamp_min(0).sqrt()
        found.append(((rotation.T @ slope).abs() * deviation).numpy())
    return np.stack(found)
