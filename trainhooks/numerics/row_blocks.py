"""The rows of a matrix in blocks: shifted, cut evenly, without those that are masked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from trainhooks.core.file_maps import any_let_go, was_read


def shifted_blocks(
    *matrices: Shaped[Tensor, "vocab _"],
    shifts: Sequence[Tensor],
    ids: Tensor | None,
    slices: Sequence[slice],
) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Each slice of the rows of every matrix less its shift, in the shift's dtype, row w the same token in all.

    `ids` are the rows to take, in their order; None takes them as they lie, without a gather. The blocks stand in
    buffers that are used again: take what is needed before the next, or work in them.
    """
    longest = max((where.stop - where.start for where in slices), default=0)
    buffers = [shift.new_empty(longest, len(shift)) for shift in shifts]
    for where in slices:
        blocks = tuple(buffer[: where.stop - where.start] for buffer in buffers)
        for matrix, shift, block in zip(matrices, shifts, blocks, strict=True):
            if ids is None and matrix.dtype == block.dtype:
                torch.sub(matrix[where], shift, out=block)
            else:
                _take(matrix, ids, where, out=block)
                block.sub_(shift)
            rows_read(matrix, ids, where)
        yield where, blocks


def rows_read(matrix: Shaped[Tensor, "vocab ..."], ids: Tensor | None, where: slice) -> None:
    """These rows (of `ids`, ascending) are not looked at again in this pass: a file's pages of them may go."""
    if where.start == where.stop or not any_let_go() or matrix.device.type != "cpu":
        return
    first, last = (where.start, where.stop - 1) if ids is None else (int(ids[where.start]), int(ids[where.stop - 1]))
    size = matrix.stride(0) * matrix.element_size()
    was_read(matrix.data_ptr() + first * size, (last + 1 - first) * size)


def zero_rows(block: Float[Tensor, "row dim"], bad: Bool[Tensor, "row"]) -> None:
    """Set the marked rows of a block to 0, in place and without waiting for a device."""
    # on the bits, since 0 times NaN is NaN and `masked_fill_` takes five times as long on the host
    bits = torch.int64 if block.dtype == torch.float64 else torch.int32
    block.view(bits).bitwise_and_(bad.to(bits).sub_(1)[:, None])


def even_slices(start: int, stop: int, *, limit: int) -> list[slice]:
    """The fewest nearly equal slices of at most `limit` rows that cover start ... stop."""
    size, count = stop - start, -(-(stop - start) // limit)
    return [slice(start + size * i // count, start + size * (i + 1) // count) for i in range(count)]


def _take(matrix: Tensor, ids: Tensor | None, where: slice, *, out: Tensor) -> None:
    if ids is None:
        out.copy_(matrix[where])
    elif matrix.dtype == out.dtype:
        torch.index_select(matrix, 0, ids[where], out=out)
    else:
        out.copy_(matrix.index_select(0, ids[where]))
