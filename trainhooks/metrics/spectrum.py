"""Singular values of the centred output embedding, and what they say of its rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from trainhooks.core.schedule import Schedule
from trainhooks.core.variable import Variable
from trainhooks.metrics.base import Metric, State
from trainhooks.metrics.shared_sums import RowsOfMask, head_sums
from trainhooks.numerics.spectrum import SingularSpectrum, gram_tolerance, spectrum_from_gram

_GRAM, _GAMMA = " gram", " gamma"  # no variables' names: they travel from a device with a record's values


class Spectrum(Metric):
    """The spectrum of the output embedding, row-centred, and of the norm-folded one, E diag(gamma), beside it.

    `mask` [vocab] keeps the rows that count (None: all; padding should be left out). Folded values are NaN where the
    model has no last norm with a weight. See `SingularSpectrum` for the definitions and for degenerate matrices.
    """

    def __init__(self, *, mask: Bool[Tensor, "mask"] | None = None, schedule: Schedule | None = None) -> None:
        self.mask = mask
        self.schedule = schedule
        self._rows = RowsOfMask(mask)
        self._tolerance: float | None = None
        self.variables = (*_declare("", "of the centred output embedding"), *_declare("folded_", "of E diag(gamma)"))

    def compute(self, state: State) -> Mapping[str, Tensor | float]:
        """Float64 values on the embedding's device."""
        gram = head_sums(state, self._rows.of(state.output_embedding)).gram
        return _spectra(gram, gamma=state.head.norm_scale, tolerance=gram_tolerance(state.output_embedding))

    def enqueue(self, state: State) -> Mapping[str, Tensor | float]:
        """On a device the Gram, since `eigvalsh` would wait for it; 8 bytes x dim^2 travel."""
        return self.compute(state) if state.output_embedding.device.type == "cpu" else self.gram_values(state)

    def takes_gram(self, step: int) -> bool:
        """Always."""
        return True

    def gram_values(self, state: State) -> dict[str, Tensor]:
        """What `conclude` makes the spectrum of."""
        rows, gamma = state.output_embedding, state.head.norm_scale
        self._tolerance = gram_tolerance(rows)
        gram = head_sums(state, self._rows.of(rows)).gram
        return {_GRAM: gram} if gamma is None else {_GRAM: gram, _GAMMA: gamma.detach().to(gram)}

    def conclude(self, values: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The spectrum of a Gram that has travelled."""
        if _GRAM not in values:
            return values
        gram = torch.from_numpy(values.pop(_GRAM))
        gamma = torch.from_numpy(values.pop(_GAMMA)) if _GAMMA in values else None
        found = _spectra(gram, gamma=gamma, tolerance=self._tolerance)
        return values | {name: value.numpy() for name, value in found.items()}

    def sent_bytes(self, weight: Tensor) -> int:
        """The Gram and gamma, from a device."""
        dim = weight.shape[1]
        return 0 if weight.device.type == "cpu" else 8 * dim * (dim + 1)


def _spectra(gram: Tensor, *, gamma: Tensor | None, tolerance: float | None) -> dict[str, Tensor]:
    """All values of a record from the Gram, and from diag(gamma) Gram diag(gamma) where there is a norm's weight."""
    values = _named("", spectrum_from_gram(gram, tolerance=tolerance))
    if gamma is not None:
        gamma = gamma.detach().to(gram.device, gram.dtype)
        values |= _named("folded_", spectrum_from_gram(gamma.unsqueeze(1) * gram * gamma, tolerance=tolerance))
    return values


def _declare(prefix: str, of: str) -> tuple[Variable, ...]:
    said = {
        "singular_values": f"singular values {of}, descending",
        "effective_rank_energy": f"exp(entropy of sigma^2 / sum sigma^2) {of}",
        "effective_rank_amplitude": f"exp(entropy of sigma / sum sigma) {of}",
        "stable_rank": f"|E|_F^2 / sigma_1^2 {of}",
        "top_share": f"sigma_1 / sum sigma {of}",
        "top_ratio": f"sigma_1 / sigma_2 {of}; inf for rank one",
    }
    return tuple(
        Variable(f"spectrum.{prefix}{name}", dims=("dim",) if name == "singular_values" else (), description=text)
        for name, text in said.items()
    )


def _named(prefix: str, spectrum: SingularSpectrum) -> dict[str, Tensor]:
    return {f"spectrum.{prefix}{f.name}": getattr(spectrum, f.name) for f in fields(spectrum)}
