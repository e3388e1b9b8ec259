"""Sums over the rows of centred matrices: Gram and cross-Gram, d x d, from one pass in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainhooks.metrics.norms import accumulator

HOST_BLOCK = 1024  # rows that stay in a core's cache: 1,024 took a quarter of the time of 8,192
DEVICE_BLOCK = 16384


@dataclass(frozen=True)
class CrossGrams:
    """What similarity needs of two centred matrices X and Y, `count` rows each.

    `xx` = X'X, `xy` = X'Y, `yy` = Y'Y; with k and l the squared row norms of X and Y, `k` = sum k, `l` = sum l,
    `kk` = sum k^2, `kl` = sum k l, `ll` = sum l^2.
    """

    count: Float[Tensor, ""]
    xx: Float[Tensor, "dim_x dim_x"]
    xy: Float[Tensor, "dim_x dim_y"]
    yy: Float[Tensor, "dim_y dim_y"]
    k: Float[Tensor, ""]
    l: Float[Tensor, ""]  # noqa: E741
    kk: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    ll: Float[Tensor, ""]


def product_dtype(rows: Tensor) -> torch.dtype:
    """The dtype to multiply in: float32 where that is true float32, float64 for float64 input and on accelerators.

    There, and on the host under `torch.set_float32_matmul_precision("medium")`, a float32 product may be done in
    TF32 or bfloat16, with three digits.
    """
    if rows.device.type == "mps":
        return torch.float32
    host = getattr(torch.backends.mkldnn, "matmul", None)  # torch >= 2.9 says it by backend
    lossy = (
        torch.get_float32_matmul_precision() != "highest"
        if host is None
        else host.fp32_precision not in ("none", "ieee")
    )
    return torch.float64 if rows.device.type != "cpu" or rows.dtype == torch.float64 or lossy else torch.float32


def block_rows(rows: Tensor) -> int:
    """How many rows are worked on at once."""
    return HOST_BLOCK if rows.device.type == "cpu" else DEVICE_BLOCK


def check_rows(rows: Tensor, *, mask: Tensor | None, what: str = "the matrix") -> None:
    """Raise ValueError where a row mask has another length than the matrix has rows."""
    if mask is not None and len(mask) != len(rows):
        raise ValueError(
            f"the row mask has {len(mask)} entries; {what} has {len(rows)} rows. "
            f"Pass one boolean for each row; False leaves out padding."
        )


def row_mean(rows: Float[Tensor, "vocab dim"], *, mask: Bool[Tensor, "mask"] | None = None) -> Float[Tensor, "dim"]:
    """The mean over the rows of the mask, summed in float64 by blocks; 0 where there is none.

    Raises ValueError where the mask has another length.
    """
    check_rows(rows, mask=mask)
    wide = accumulator(rows.device)
    total = torch.zeros(rows.shape[1], dtype=wide, device=rows.device)
    for start in range(0, len(rows), block_rows(rows)):
        block = _kept(_wide(rows.detach()[start : start + block_rows(rows)]), mask, start)
        total += block.sum(dim=0).to(wide)
    return total / row_count(rows, mask=mask).clamp(min=1)


def row_count(rows: Float[Tensor, "vocab dim"], *, mask: Bool[Tensor, "mask"] | None = None) -> Float[Tensor, ""]:
    """How many rows the mask keeps, on the rows' device."""
    wide = accumulator(rows.device)
    if mask is None:
        return torch.full((), float(len(rows)), dtype=wide, device=rows.device)
    return mask.to(rows.device).sum().to(wide)


def centred_blocks(*matrices: Tensor, mask: Tensor | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of rows of each matrix, in float32 or wider, with the mean row subtracted; rows outside the mask are 0.

    Rows outside the mask may hold anything, NaN too. Raises ValueError where lengths differ.
    """
    for matrix in matrices:
        check_rows(matrix, mask=mask)
        if len(matrix) != len(matrices[0]):
            raise ValueError(
                f"the matrices have {len(matrices[0])} and {len(matrix)} rows: row w must be the same token in both."
            )
    means = [row_mean(matrix, mask=mask) for matrix in matrices]
    for start in range(0, len(matrices[0]), block_rows(matrices[0])):
        pairs = zip(matrices, means, strict=True)
        yield tuple(_centred_block(matrix, mean, mask=mask, start=start) for matrix, mean in pairs)


def centred_gram(
    rows: Float[Tensor, "vocab dim"], *, mask: Bool[Tensor, "mask"] | None = None
) -> Float[Tensor, "dim dim"]:
    """(E - mean)'(E - mean) over the rows of the mask, float64; products as `product_dtype` says.

    Exactly 0 where all rows are equal, up to their rounding. Not finite where a row of the mask is not. The extra
    memory is one block of rows. Raises ValueError where the mask has another length.
    """
    dtype, wide = product_dtype(rows), accumulator(rows.device)
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=wide, device=rows.device)
    mean = row_mean(rows, mask=mask)
    for start in range(0, len(rows), block_rows(rows)):
        factor = _centred_block(rows, mean, mask=mask, start=start).to(dtype)
        gram += (factor.T @ factor).to(wide)
    scale = row_count(rows, mask=mask) * mean.square().sum()
    rounding = (4 * torch.finfo(_wide(rows[:0]).dtype).eps) ** 2 * scale
    return torch.where(gram.trace() <= rounding, torch.zeros_like(gram), gram)


def cross_grams(
    x: Float[Tensor, "vocab_x dim_x"], y: Float[Tensor, "vocab_y dim_y"], *, mask: Bool[Tensor, "mask"] | None = None
) -> CrossGrams:
    """The sums that CKA and Procrustes need, float64, from one pass over both matrices, each centred.

    Raises ValueError where the numbers of rows differ.
    """
    dtype, wide = product_dtype(x if x.dtype == torch.float64 else y), accumulator(x.device)
    xx = torch.zeros(x.shape[1], x.shape[1], dtype=wide, device=x.device)
    xy = torch.zeros(x.shape[1], y.shape[1], dtype=wide, device=x.device)
    yy = torch.zeros(y.shape[1], y.shape[1], dtype=wide, device=x.device)
    scalars = torch.zeros(5, dtype=wide, device=x.device)
    for block_x, block_y in centred_blocks(x, y, mask=mask):
        a, b = block_x.to(dtype), block_y.to(dtype)
        xx += (a.T @ a).to(wide)
        xy += (a.T @ b).to(wide)
        yy += (b.T @ b).to(wide)
        k, l = a.square().sum(dim=1).to(wide), b.square().sum(dim=1).to(wide)  # noqa: E741
        scalars += torch.stack([k.sum(), l.sum(), (k * k).sum(), (k * l).sum(), (l * l).sum()])
    return CrossGrams(row_count(x, mask=mask), xx, xy, yy, *scalars)


def _wide(block: Tensor) -> Tensor:
    return block if block.dtype == torch.float64 else block.float()


def _centred_block(matrix: Tensor, mean: Tensor, *, mask: Tensor | None, start: int) -> Tensor:
    block = _wide(matrix.detach()[start : start + block_rows(matrix)])
    return _kept(block - mean.to(block.dtype), mask, start)


def _kept(block: Tensor, mask: Tensor | None, start: int) -> Tensor:
    if mask is None:
        return block
    keep = mask[start : start + len(block)].to(block.device).unsqueeze(1)
    return torch.where(keep, block, torch.zeros_like(block))
