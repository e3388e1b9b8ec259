"""Sums over the rows of centred matrices: Gram and cross-Gram, d x d, from one pass in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from trainhooks.core.errors import SettingsError
from trainhooks.numerics.norms import accumulator
from trainhooks.numerics.products import exact_products, mirrored, upper_strips
from trainhooks.numerics.row_blocks import even_slices, rows_read, shifted_blocks

HOST_BLOCK = 1024  # rows that stay in a core's cache: 1,024 took a quarter of the time of 8,192
DEVICE_BLOCK = 16384  # rows in one product
DEVICE_ELEMENTS = 1 << 24  # more rows at once where they are short: what counts is the number of operations
HOSTS = ("cpu",)
FLUSH_ROWS = 4096
"""Rows whose products are added up in float32 before they join the float64 sum: a d x d addition costs time too."""


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

    @classmethod
    def of(
        cls,
        *,
        xx: Float[Tensor, "dim_x dim_x"],
        xy: Float[Tensor, "dim_x dim_y"],
        yy: Float[Tensor, "dim_y dim_y"],
        x_norms: Float[Tensor, "row"],
        y_norms: Float[Tensor, "row"],
    ) -> CrossGrams:
        """The sums from the three products and the row norms of both."""
        k, l = x_norms.to(xx.dtype).square(), y_norms.to(xx.dtype).square()  # noqa: E741
        count = torch.full((), float(len(k)), dtype=xx.dtype, device=xx.device)
        return cls(count, xx, xy, yy, k.sum(), l.sum(), (k * k).sum(), (k * l).sum(), (l * l).sum())


@dataclass(frozen=True)
class GramSums:
    """What CKA needs of `CrossGrams`: `energies`, the sums of squares of X'Y, X'X and Y'Y, and sums over rows."""

    energies: Float[Tensor, "3"]
    count: Float[Tensor, ""]
    k: Float[Tensor, ""]
    l: Float[Tensor, ""]  # noqa: E741
    kk: Float[Tensor, ""]
    kl: Float[Tensor, ""]
    ll: Float[Tensor, ""]

    @classmethod
    def of(cls, grams: CrossGrams) -> GramSums:
        """Those of three products."""
        energies = torch.stack([square_sum(product) for product in (grams.xy, grams.xx, grams.yy)])
        return cls(energies, grams.count, grams.k, grams.l, grams.kk, grams.kl, grams.ll)


def square_sum(matrix: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The sum of the squares of all elements, in one operation."""
    flat = matrix.reshape(-1)
    return torch.dot(flat, flat)


class ProductSum:
    """A sum of products A'B of blocks of rows: products in the blocks' dtype, added up in float64."""

    def __init__(self, dim_a: int, dim_b: int, *, like: Tensor) -> None:
        self._at_once = like.device.type not in HOSTS
        self._part = torch.zeros(0 if self._at_once else dim_a, dim_b, dtype=like.dtype, device=like.device)
        self._sum = torch.zeros(dim_a, dim_b, dtype=accumulator(like.device), device=like.device)
        self._rows = 0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add A'B of one block."""
        if self._at_once:
            self._add_chunks(a, b)
            return
        for part in even_slices(0, len(a), limit=DEVICE_BLOCK):
            self._part.addmm_(a[part].T, b[part])
            self._count(part)

    def add_square(self, a: Tensor) -> None:
        """Add A'A of one block, the upper triangle alone: use `square_total`."""
        if self._at_once:
            self._add_chunks(a, a)
            return
        for part in even_slices(0, len(a), limit=DEVICE_BLOCK):
            for strip in upper_strips(a.shape[1]):
                self._part[strip, strip.start :].addmm_(a[part, strip].T, a[part, strip.start :])
            self._count(part)

    def _add_chunks(self, a: Tensor, b: Tensor) -> None:
        """On a device: products of up to DEVICE_BLOCK rows as one batch, and the few rows that are left beside it."""
        chunks = -(-len(a) // DEVICE_BLOCK)
        rows = len(a) // max(1, chunks)
        whole = chunks * rows
        if whole:
            parts = a[:whole].view(chunks, rows, -1).mT @ b[:whole].view(chunks, rows, -1)
            self._sum += parts.sum(0, dtype=self._sum.dtype)
        if whole < len(a):
            self._sum.addmm_(a[whole:].T.to(self._sum.dtype), b[whole:].to(self._sum.dtype))

    def _count(self, part: slice) -> None:
        self._rows += part.stop - part.start
        if self._rows >= FLUSH_ROWS:
            self._flush()

    def total(self) -> Tensor:
        """The sum so far, float64."""
        self._flush()
        return self._sum

    def square_total(self) -> Tensor:
        """The sum so far of products A'A, float64 and exactly symmetric."""
        return mirrored(self.total())

    def energy_total(self) -> Tensor:
        """`square_total`, symmetric up to rounding alone on a device, where making it so takes operations."""
        return self.total() if self._at_once else self.square_total()

    def _flush(self) -> None:
        if self._rows == 0:
            return
        self._sum += self._part
        self._part.zero_()
        self._rows = 0


def check_rows(rows: Tensor, *, mask: Tensor | None, what: str = "the matrix") -> None:
    """Raise SettingsError where a row mask has another length than the matrix has rows."""
    if mask is not None and len(mask) != len(rows):
        raise SettingsError(
            f"the row mask has {len(mask)} entries; {what} has {len(rows)} rows. "
            f"Pass one boolean for each row; False leaves out padding."
        )


def kept_ids(
    rows: Float[Tensor, "vocab dim"], *, mask: Bool[Tensor, "mask"] | None = None
) -> Int64[Tensor, "row"] | None:
    """The ids that the mask keeps, on the rows' device; None where that is all of them.

    Waits for the device where the mask lies on one. Raises ValueError where the mask has another length.
    """
    check_rows(rows, mask=mask)
    if mask is None or bool(mask.all()):
        return None
    return mask.nonzero().flatten().to(rows.device)


def row_slices(rows: Tensor, *, ids: Tensor | None) -> list[slice]:
    """The blocks of rows, or of `ids`, that are worked on at once."""
    on_device = max(DEVICE_BLOCK, DEVICE_ELEMENTS // max(1, rows.shape[1]))
    limit = HOST_BLOCK if rows.device.type in HOSTS else on_device
    return even_slices(0, len(rows) if ids is None else len(ids), limit=limit)


def working_dtype(rows: Tensor) -> torch.dtype:
    """float64 for float64 rows, float32 for all others."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def row_mean(rows: Float[Tensor, "vocab dim"], *, mask: Bool[Tensor, "mask"] | None = None) -> Float[Tensor, "dim"]:
    """The mean over the rows of the mask, summed in float64 by blocks; 0 where there is none.

    Raises ValueError where the mask has another length.
    """
    return mean_of_ids(rows, kept_ids(rows, mask=mask))


def mean_of_ids(rows: Float[Tensor, "vocab dim"], ids: Int64[Tensor, "row"] | None) -> Float[Tensor, "dim"]:
    """`row_mean` over rows that are known by id (None: all): no wait for the device."""
    rows = rows.detach()
    total = torch.zeros(rows.shape[1], dtype=accumulator(rows.device), device=rows.device)
    for where in row_slices(rows, ids=ids):
        block = rows[where] if ids is None else rows.index_select(0, ids[where])
        total += block.sum(dim=0, dtype=working_dtype(rows))
        rows_read(rows, ids, where)
    return total / max(len(rows) if ids is None else len(ids), 1)


def row_count(rows: Float[Tensor, "vocab dim"], *, mask: Bool[Tensor, "mask"] | None = None) -> Float[Tensor, ""]:
    """How many rows the mask keeps, on the rows' device."""
    wide = accumulator(rows.device)
    if mask is None:
        return torch.full((), float(len(rows)), dtype=wide, device=rows.device)
    return mask.to(rows.device).sum().to(wide)


def centred_blocks(
    *matrices: Tensor, ids: Tensor | None, means: Sequence[Tensor] | None = None
) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Blocks of the rows of `ids` of each matrix less its mean row, see `shifted_blocks`. `means` where known.

    Raises ValueError where lengths differ.
    """
    for matrix in matrices:
        if len(matrix) != len(matrices[0]):
            raise ValueError(
                f"the matrices have {len(matrices[0])} and {len(matrix)} rows: row w must be the same token in both."
            )
    means = [mean_of_ids(matrix, ids) for matrix in matrices] if means is None else means
    shifts = [mean.to(working_dtype(matrix)) for matrix, mean in zip(matrices, means, strict=True)]
    slices = row_slices(matrices[0], ids=ids)
    return shifted_blocks(*(matrix.detach() for matrix in matrices), shifts=shifts, ids=ids, slices=slices)


def centred_gram(
    rows: Float[Tensor, "vocab dim"], *, mask: Bool[Tensor, "mask"] | None = None
) -> Float[Tensor, "dim dim"]:
    """(E - mean)'(E - mean) over the rows of the mask, float64, from products in `working_dtype`.

    Exactly 0 where all rows are equal, up to their rounding. Not finite where a row of the mask is not. The extra
    memory is one block of rows. Raises ValueError where the mask has another length.
    """
    ids = kept_ids(rows, mask=mask)
    return gram_of_ids(rows, ids, mean=mean_of_ids(rows, ids))


def gram_of_ids(
    rows: Float[Tensor, "vocab dim"], ids: Int64[Tensor, "row"] | None, *, mean: Float[Tensor, "dim"]
) -> Float[Tensor, "dim dim"]:
    """`centred_gram` over rows that are known by id (None: all), about their mean row."""
    gram = ProductSum(rows.shape[1], rows.shape[1], like=rows.new_empty(0, dtype=working_dtype(rows)))
    with exact_products(rows.device.type):
        for _, (block,) in centred_blocks(rows, ids=ids, means=[mean]):
            gram.add_square(block)
    count = len(rows) if ids is None else len(ids)
    return without_rounding(gram.square_total(), mean=mean, count=count, eps=torch.finfo(working_dtype(rows)).eps)


def without_rounding(
    gram: Float[Tensor, "dim dim"], *, mean: Float[Tensor, "dim"], count: int, eps: float
) -> Float[Tensor, "dim dim"]:
    """The Gram, or 0 where it is no more than what rounding the mean row in `eps` leaves."""
    rounding = torch.dot(mean, mean) * ((4 * eps) ** 2 * count)
    return gram.masked_fill(gram.trace() <= rounding, 0)


def cross_grams(
    x: Float[Tensor, "vocab_x dim_x"], y: Float[Tensor, "vocab_y dim_y"], *, mask: Bool[Tensor, "mask"] | None = None
) -> CrossGrams:
    """The sums that CKA and Procrustes need, float64, from one pass over both matrices, each centred.

    Raises ValueError where the numbers of rows differ.
    """
    like = x.new_empty(0, dtype=torch.promote_types(working_dtype(x), working_dtype(y)))
    widths = ((x, x), (x, y), (y, y))
    products = [ProductSum(a.shape[1], b.shape[1], like=like) for a, b in widths]
    norms: list[tuple[Tensor, Tensor]] = []
    with exact_products(x.device.type):
        for _, blocks in centred_blocks(x, y.to(x.device), ids=kept_ids(x, mask=mask)):
            a, b = (block.to(like.dtype) for block in blocks)
            for product, (left, right) in zip(products, ((a, a), (a, b), (b, b)), strict=True):
                product.add(left, right)
            norms.append((torch.linalg.vector_norm(a, dim=1), torch.linalg.vector_norm(b, dim=1)))
    x_norms, y_norms = (torch.cat([like, *pieces]) for pieces in zip((like, like), *norms, strict=True))
    xx, xy, yy = (product.total() for product in products)
    return CrossGrams.of(xx=xx, xy=xy, yy=yy, x_norms=x_norms, y_norms=y_norms)
