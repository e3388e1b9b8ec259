"""How alike two embeddings of the same tokens are, up to rotation and scale: CKA, Procrustes, leading subspaces."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainhooks.numerics.gram import CrossGrams, GramSums, cross_grams
from trainhooks.numerics.spectrum import eigenvalue_tolerance


def linear_cka(
    x: Float[Tensor, "vocab_x dim_x"],
    y: Float[Tensor, "vocab_y dim_y"],
    *,
    mask: Bool[Tensor, "mask"] | None = None,
    debiased: bool = True,
) -> Float[Tensor, ""]:
    """Linear CKA of two embeddings of the same tokens, float64: 1 for equal up to rotation, scale and shift.

    `debiased` takes the unbiased HSIC (Song et al. 2012, JMLR 13, eq. 4; as Nguyen, Raghu and Kornblith 2021,
    arXiv 2010.15327, eq. 3): 0 on average for unrelated embeddings, and so sometimes below 0. The biased one
    (Kornblith et al. 2019, arXiv 1905.00414, eq. 2), in [0, 1], is 0.56 for unrelated Gaussians of 97 x 128.
    Both come from d x d products, never from V x V. NaN where either embedding is zero once centred (debiased: where
    its own unbiased HSIC is not positive), with fewer than 4 rows (debiased), and where an element is not finite.

    Raises ValueError where the numbers of rows differ.
    """
    return cka_from_grams(cross_grams(x, y, mask=mask), debiased=debiased)


def cka_from_grams(grams: CrossGrams, *, debiased: bool = True) -> Float[Tensor, ""]:
    """Linear CKA from products; see `linear_cka`."""
    return cka_from_sums(GramSums.of(grams), debiased=debiased)


def cka_from_sums(grams: GramSums, *, debiased: bool = True) -> Float[Tensor, ""]:
    """Linear CKA from sums; see `linear_cka`."""
    energies = grams.energies
    if debiased:
        traces = [(grams.k, grams.l, grams.kl), (grams.k, grams.k, grams.kk), (grams.l, grams.l, grams.ll)]
        k, l, kl = map(torch.stack, zip(*traces, strict=True))  # noqa: E741
        energies = _unbiased(energies, k, l, kl, grams.count)
    cross, self_x, self_y = energies
    defined = (self_x > 0) & (self_y > 0) & ((grams.count >= 4) | (not debiased))
    cka = cross / (self_x.clamp(min=0).sqrt() * self_y.clamp(min=0).sqrt())
    return torch.where(defined, cka, torch.full_like(cka, float("nan")))


def procrustes_distance(
    x: Float[Tensor, "vocab_x dim_x"], y: Float[Tensor, "vocab_y dim_y"], *, mask: Bool[Tensor, "mask"] | None = None
) -> Float[Tensor, ""]:
    """Orthogonal Procrustes distance in [0, sqrt 2], float64: 0 for equal up to rotation, scale and shift.

    Both are centred and divided by their Frobenius norm; d^2 = 2 - 2 |X'Y|_* (nuclear norm), the least |X - YQ|_F^2
    over orthogonal Q (Schoenemann 1966; Ding, Denain and Steinhardt 2021, arXiv 2108.01661). From float32 input
    distances below 1e-3 are rounding. NaN where either is zero once centred or not finite.

    Raises ValueError where the numbers of rows differ.
    """
    return procrustes_from_grams(cross_grams(x, y, mask=mask))


def procrustes_from_grams(grams: CrossGrams) -> Float[Tensor, ""]:
    """Procrustes distance from sums; see `procrustes_distance`."""
    scale = (grams.xx.trace() * grams.yy.trace()).sqrt()
    defined = torch.isfinite(scale) & (scale > 0)
    safe = torch.where(defined, grams.xy / scale, torch.zeros_like(grams.xy))
    squared = 2 - 2 * torch.linalg.svdvals(safe).sum()
    return torch.where(defined, squared.clamp(min=0).sqrt(), torch.full_like(scale, float("nan")))


def subspace_overlap(
    gram_x: Float[Tensor, "dim dim"], gram_y: Float[Tensor, "dim dim"], *, k: int, tolerance: float | None = None
) -> Float[Tensor, ""]:
    """Overlap in [0, 1] of the k leading right-singular directions of two embeddings, from their Grams.

    |V_x' V_y|_F^2 / k, the mean squared cosine of the principal angles (Bjoerck and Golub 1973); unrelated directions
    give k/dim. The chordal Grassmann distance over sqrt k is sqrt(1 - overlap). Where sigma_k = sigma_k+1 the subspace
    is arbitrary, and so is the answer. NaN where a rank is below k (`tolerance` as in `spectrum_from_gram`) or an
    element is not finite.

    Raises ValueError where k is outside 1 ... dim.
    """
    if not 1 <= k <= len(gram_x):
        raise ValueError(
            f"k = {k} leading directions of a {len(gram_x)}-dimensional embedding: pass 1 ... its dimension."
        )
    top_x, known_x = _leading(gram_x, k, tolerance)
    top_y, known_y = _leading(gram_y, k, tolerance)
    overlap = (top_x.T @ top_y).square().sum() / k
    return torch.where(known_x & known_y, overlap.clamp(max=1), torch.full_like(overlap, float("nan")))


def _unbiased(
    energy: Float[Tensor, "pair"],
    k: Float[Tensor, "pair"],
    l: Float[Tensor, "pair"],  # noqa: E741
    kl: Float[Tensor, "pair"],
    n: Float[Tensor, ""],
) -> Float[Tensor, "pair"]:
    """n (n - 3) times the unbiased HSIC of two centred linear kernels, whose diagonals are k and l.

    Song's three terms with the diagonals removed. Centring does not change it (a shift of all rows adds a_i + a_j to
    the kernel, which it ignores) and makes every row of a kernel sum to 0, so that the off-diagonal sums are -k_i.
    """
    return energy - n / (n - 2) * kl + k * l / ((n - 1) * (n - 2))


def _leading(
    gram: Float[Tensor, "dim dim"], k: int, tolerance: float | None
) -> tuple[Float[Tensor, "dim k"], Bool[Tensor, ""]]:
    wide = gram.double()
    finite = torch.isfinite(wide).all()
    values, vectors = torch.linalg.eigh(torch.where(finite, wide, torch.zeros_like(wide)))
    floor = (eigenvalue_tolerance(len(gram)) if tolerance is None else tolerance) * values[-1]
    return vectors[:, -k:], finite & (values[-k] > floor)
