"""Slow float64 twins of the metrics, straight from the definitions, and matrices to try them on."""

import numpy as np
import torch


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(dim: int, *, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(draw(dim, dim, seed=seed))[0]


def centred(rows: torch.Tensor) -> np.ndarray:
    array = rows.double().numpy()
    return array - array.mean(axis=0)


def singular_values(rows: torch.Tensor) -> np.ndarray:
    return np.linalg.svd(centred(rows), compute_uv=False)


def entropy_rank(weights: np.ndarray) -> float:
    p = weights[weights > 0] / weights.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def unbiased_hsic(x: torch.Tensor, y: torch.Tensor) -> float:
    """Song et al. 2012, eq. 4, with the V x V kernels themselves."""
    n = len(x)
    k, l = (a.double().numpy() @ a.double().numpy().T for a in (x, y))  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    terms = np.trace(k @ l) + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (k @ l).sum() / (n - 2)
    return float(terms / (n * (n - 3)))


def biased_hsic(x: torch.Tensor, y: torch.Tensor) -> float:
    """tr(KHLH) with the V x V kernels themselves."""
    n = len(x)
    h = np.eye(n) - 1 / n
    k, l = (a.double().numpy() @ a.double().numpy().T for a in (x, y))  # noqa: E741
    return float(np.trace(k @ h @ l @ h))


def cka(x: torch.Tensor, y: torch.Tensor, hsic) -> float:
    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
