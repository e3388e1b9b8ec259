"""Singular values from a Gram matrix, and the ranks that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainhooks.numerics.gram import centred_gram

FLOAT32_TOLERANCE = 4 * torch.finfo(torch.float32).eps  # one eps is passed by rounding on some processors


@dataclass(frozen=True)
class SingularSpectrum:
    """A matrix' singular values sigma, descending, and its ranks in the soft sense.

    - `effective_rank_energy`: exp(H(p)), p = sigma^2 / sum sigma^2 (what *Learning to Read Out* calls effective rank).
    - `effective_rank_amplitude`: exp(H(p)), p = sigma / sum sigma (Roy and Vetterli 2007, eq. 4; pico-analyze's PER is
      this divided by the dimension).
    - `stable_rank`: |E|_F^2 / sigma_1^2; its inverse is the leading direction's share of the energy.
    - `top_share`: sigma_1 / sum sigma. `top_ratio`: sigma_1 / sigma_2.

    The ranks lie in [1, dim], `top_share` in (0, 1], `top_ratio` in [1, inf]; rank one gives 1, 1, 1, 1, inf. A zero
    matrix (all rows equal, once centred) has ranks 0 and NaN for share and ratio. All are NaN where an element is NaN
    or inf.
    """

    singular_values: Float[Tensor, "dim"]
    effective_rank_energy: Float[Tensor, ""]
    effective_rank_amplitude: Float[Tensor, ""]
    stable_rank: Float[Tensor, ""]
    top_share: Float[Tensor, ""]
    top_ratio: Float[Tensor, ""]


def spectrum_from_gram(gram: Float[Tensor, "dim dim"], *, tolerance: float | None = None) -> SingularSpectrum:
    """The spectrum of a matrix whose Gram E'E this is, by `eigvalsh` in float64.

    An eigenvalue (sigma^2) below `tolerance` times the largest is rounding and counts as 0; None takes 16 dim eps of
    float64. For a Gram summed from float32 products pass `FLOAT32_TOLERANCE`: singular values below 7e-4 of the
    first drown there. On CUDA `eigvalsh` waits for the device. See `SingularSpectrum` for degenerate matrices.
    """
    wide = gram.double()
    finite = torch.isfinite(wide).all()
    # LAPACK refuses NaN, and asking first would wait for the device
    safe = torch.where(finite, wide, torch.zeros_like(wide))
    floor = eigenvalue_tolerance(len(gram)) if tolerance is None else tolerance
    energy = torch.linalg.eigvalsh(safe).flip(0).clamp(min=0)
    energy = torch.where(energy > floor * energy[0], energy, torch.zeros_like(energy))
    summary = _summary(energy.sqrt())
    nan = torch.full((), float("nan"), dtype=wide.dtype, device=wide.device)
    return SingularSpectrum(*(torch.where(finite, getattr(summary, f.name), nan) for f in fields(summary)))


def singular_spectrum(
    rows: Float[Tensor, "vocab dim"], *, mask: Bool[Tensor, "mask"] | None = None
) -> SingularSpectrum:
    """The spectrum of the rows of the mask, their mean subtracted; from the d x d Gram, never an SVD of V x d.

    Raises ValueError where the mask has another length.
    """
    return spectrum_from_gram(centred_gram(rows, mask=mask), tolerance=gram_tolerance(rows))


def eigenvalue_tolerance(dim: int) -> float:
    """Share of the largest eigenvalue below which a float64 Gram's eigenvalue is rounding: 16 dim eps."""
    return 16 * dim * torch.finfo(torch.float64).eps


def gram_tolerance(rows: Tensor) -> float | None:
    """The tolerance of `spectrum_from_gram` that suits the precision of `rows`."""
    return None if rows.dtype == torch.float64 else FLOAT32_TOLERANCE


def _summary(sigma: Float[Tensor, "dim"]) -> SingularSpectrum:
    top = sigma[0]
    is_zero = top == 0
    relative = sigma / torch.where(is_zero, torch.ones_like(top), top)  # no overflow of squares
    second = sigma[1] if len(sigma) > 1 else torch.zeros_like(top)
    return SingularSpectrum(
        singular_values=sigma,
        effective_rank_energy=_entropy_rank(relative.square(), is_zero),
        effective_rank_amplitude=_entropy_rank(relative, is_zero),
        stable_rank=relative.square().sum(),
        top_share=top / sigma.sum(),
        top_ratio=top / second,
    )


def _entropy_rank(weights: Float[Tensor, "dim"], is_zero: Bool[Tensor, ""]) -> Float[Tensor, ""]:
    p = weights / torch.where(is_zero, torch.ones_like(weights[0]), weights.sum())
    return torch.where(is_zero, torch.zeros_like(weights[0]), torch.special.entr(p).sum().exp())
