"""Slow float64 twins of the probe, and data to try it on."""

import numpy as np
import torch


def planted(rows=600, dim=12, *, noise=0.5, seed=0, slope=None):
    """Random rows and a log-linear target of known slope: E, y, slope, intercept 7."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(rows, dim, dtype=torch.float64, generator=generator) * torch.linspace(0.3, 2, dim) + 0.7
    if slope is None:
        slope = torch.linspace(-1, 1, dim, dtype=torch.float64)
    y = embedding @ slope + 7 + noise * torch.randn(rows, dtype=torch.float64, generator=generator)
    return embedding, y, slope


def refit(embedding, y, *, ids=None, folds=5, weights=None):
    """Held-out predictions and training means by five explicit least-squares fits (least norm) on centred rows."""
    x, y = np.asarray(embedding, dtype=np.float64), np.asarray(y, dtype=np.float64)
    ids = np.arange(len(y)) if ids is None else np.asarray(ids)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)
    predicted, means = np.full_like(y, np.nan), np.full_like(y, np.nan)
    for fold in range(folds):
        held = ids % folds == fold
        train = ~held
        mean_x = np.average(x[train], axis=0, weights=w[train])
        mean_y = np.average(y[train], weights=w[train])
        root = np.sqrt(w[train])
        slope = np.linalg.lstsq((x[train] - mean_x) * root[:, None], (y[train] - mean_y) * root, rcond=None)[0]
        predicted[held] = mean_y + (x[held] - mean_x) @ slope
        means[held] = mean_y
    return predicted, means


def heldout_r2(y, predicted, means, weights=None):
    y = np.asarray(y)
    w = np.ones(len(y)) if weights is None else np.asarray(weights)
    return 1 - (w * (y - predicted) ** 2).sum() / (w * (y - means) ** 2).sum()


def by_fold(function, y, predicted, *, ids=None, folds=5):
    """The mean over folds of a correlation of scipy."""
    y = np.asarray(y)
    ids = np.arange(len(y)) if ids is None else np.asarray(ids)
    return np.mean([function(y[ids % folds == f], predicted[ids % folds == f])[0] for f in range(folds)])
