"""The probe's second pass: rows times their own fold's columns, once the sums of the first pass are solved."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from trainhooks.probe.rows import HOSTS, Rows, SumsPass, fold_blocks, line_blocks


class Projected(NamedTuple):
    """Rows as `Rows.table` lays them out, about `shift`, times columns; and their norms about the mean row."""

    values: Float64[Tensor, "fold column longest"]
    shift: Float64[Tensor, "dim"]
    norms: Float64[Tensor, "fold longest"]


def project_rows(
    embedding: Shaped[Tensor, "vocab dim"],
    rows: Rows,
    *,
    first: SumsPass,
    by_fold: Float64[Tensor, "fold dim column"],
) -> Projected:
    """Rows times their own fold's columns in one skinny product a block, and the norm of each about the mean.

    What stands for rows that were not finite, and beyond the end of a line, is undefined.
    """
    columns = by_fold.mT.to(first.shift.dtype)
    project = _project_blocks if embedding.device.type in HOSTS else _project_lines
    return project(embedding, rows, first, columns)


def _project_blocks(embedding: Tensor, rows: Rows, first: SumsPass, columns: Tensor) -> Projected:
    mean = first.moments.mean_x[0].to(first.shift.dtype)
    columns = columns.contiguous()
    out = torch.empty(columns.shape[1], len(rows), dtype=first.shift.dtype)
    norms = torch.empty(len(rows), dtype=first.shift.dtype)
    for fold, where, x in fold_blocks(embedding, rows, mean):
        # columns first: three times as fast as x @ columns for so few of them
        torch.mm(columns[fold], x.T, out=out[:, where])
        torch.linalg.vector_norm(x, dim=1, out=norms[where])
    at, _ = rows.table
    return Projected(out.double()[:, at].transpose(0, 1), mean.double(), norms.double()[at])


def _project_lines(embedding: Tensor, rows: Rows, first: SumsPass, columns: Tensor) -> Projected:
    mean = first.moments.mean_x[0].to(first.shift.dtype)
    pieces = [(columns @ x.mT, torch.linalg.vector_norm(x, dim=2)) for _, x in line_blocks(embedding, rows, mean)]
    values, norms = (part[0] if len(part) == 1 else torch.cat(part, -1) for part in zip(*pieces, strict=True))
    return Projected(values.double(), mean.double(), norms.double())
