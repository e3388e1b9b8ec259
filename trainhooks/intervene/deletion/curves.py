"""Curves of deletion: how far the output moves as dimensions go, on contexts that chose none of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from trainhooks.intervene.contexts import blocks
from trainhooks.intervene.deletion.variants import DeletionVariant
from trainhooks.numerics.products import exact_products

FRACTIONS = tuple(number / 20 for number in range(1, 21))
MEASURES = ("kl", "js", "agreement", "loss_change")
CPU_ELEMENTS = 1 << 18
"""Logits a block on the CPU, 1 MB, four of which a thread works on: they stay in the cache of a core."""
DEVICE_ELEMENTS = 1 << 24
CODE_BYTES = 1 << 29
"""Rotated output embeddings held at once; more codes than fit are evaluated in further passes over the positions."""


@dataclass(frozen=True)
class DeletionCurves:
    """Sums over each test document's positions: `sums` [code, fraction, measure, document].

    `evaluated` [code, document] are the positions that each code was evaluated on: those of random orders are thinned.
    `positions` [document] are all of them.

    Measures are `MEASURES`: KL(P || Q) and the Jensen-Shannon divergence in nats (JS in [0, ln 2]), P the unmodified
    and Q the modified output; the share of positions whose most probable token stays (ties count as staying); the
    loss of Q less that of P on the labels, nats. `fractions` rise; `deleted` [fraction] are the dimensions that they
    come to, of `dim`. `loss` [document] is the unmodified model's, summed.
    """

    codes: tuple[DeletionVariant, ...]
    fractions: tuple[float, ...]
    deleted: tuple[int, ...]
    sums: Float64[Tensor, "code fraction measure document"]
    evaluated: Float64[Tensor, "code document"]
    positions: Float64[Tensor, "document"]
    loss: Float64[Tensor, "document"]
    dim: int

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of the dimensions that are deleted: `fractions` once rounded to whole dimensions."""
        return tuple(deleted / self.dim for deleted in self.deleted)

    def mean(
        self, *, weights: Float64[Tensor, "draw document"] | None = None
    ) -> Float64[Tensor, "draw code fraction measure"]:
        """Means over the positions evaluated, with documents weighted (bootstrap draws); one draw of weight 1 without
        weights."""
        weights = torch.ones_like(self.positions)[None] if weights is None else weights.to(self.positions)
        return torch.einsum("bd,cfmd->bcfm", weights, self.sums) / (weights @ self.evaluated.T)[:, :, None, None]


@dataclass(frozen=True)
class _Block:
    """A block's positions, and what the unmodified head says of them."""

    hidden: Tensor
    document: Tensor
    logits: Tensor
    p: Tensor
    normaliser: Tensor
    entropy: Tensor
    loss: Tensor
    top: Tensor
    mean_row: Tensor
    label_row: Tensor

    def at(self, rows: Tensor) -> _Block:
        """Some of the positions."""
        return _Block(**{name: value[rows] for name, value in vars(self).items()})


_Found = tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]
"""Of a block: documents, loss, and each code's documents with its measures."""


@torch.no_grad()
def deletion_curves(
    weight: Float[Tensor, "vocab dim"],
    hidden: Float[Tensor, "position dim"],
    *,
    labels: Int64[Tensor, "position"],
    document: Int64[Tensor, "position"],
    codes: Sequence[DeletionVariant],
    fractions: Sequence[float] = FRACTIONS,
    bias: Float[Tensor, "vocab"] | None = None,
    thin: int = 1,
) -> DeletionCurves:
    """Evaluate every code at every fraction of deleted dimensions (rounded to whole ones) on test contexts.

    Random orders, of which there are many, are evaluated on every `thin`-th position of each document, its first
    included; intervals over documents then hold what that costs.

    Logits are updated by the deleted block of dimensions, not formed anew; KL and loss need only the normaliser,
    since the mean logit under P is linear in what is deleted. What remains is, for each code and fraction, 3.7 ns of
    one core a logit in float32 (1.7 the logarithm of JS, 0.8 the softmax, 0.5 the product), 7 on a busy machine: 46
    codes x 20 fractions x 8,192 positions x 8,192 tokens, the 30 random ones thinned to every second position, are
    150 to 300 core seconds. Blocks of positions share as many threads as torch is set to use (its setting is 1 inside
    and comes back after); results are the same to the bit whatever that number.
    Divergences are good to about 1e-5 nats; sums over positions are float64. Memory is some 550 MB beside the
    arguments at 50304 x 768.

    Raises ValueError for no positions, a `thin` below 1, labels outside the vocabulary, arrays of another length,
    fractions that do not rise within (0, 1], and values that are not finite.
    """
    _check(weight, hidden, labels=labels, document=document, fractions=fractions, bias=bias, thin=thin)
    dim = weight.shape[1]
    deleted = tuple(round(fraction * dim) for fraction in fractions)
    documents = int(document.max()) + 1
    shape = (len(codes), len(deleted), len(MEASURES), documents)
    sums = torch.zeros(shape, dtype=torch.float64, device=weight.device)
    used = thinned(document, thin).to(weight.device)
    ones = torch.ones(len(document), dtype=torch.float64, device=weight.device)
    positions = torch.bincount(document.to(weight.device), weights=ones, minlength=documents)
    few = torch.bincount(document.to(weight.device), weights=ones * used, minlength=documents)
    evaluated = torch.stack([few if _is_random(code) else positions for code in codes] or [positions])[: len(codes)]
    loss = torch.zeros_like(positions)
    together = max(1, CODE_BYTES // (weight.numel() * 4))
    with exact_products(weight.device.type):
        for start in range(0, max(1, len(codes)), together):
            chunk = codes[start : start + together]
            rows = [(code.basis.to(weight).T @ weight.T).contiguous() for code in chunk]

            def evaluate(where: slice, chunk: Sequence[DeletionVariant] = chunk, rows: list[Tensor] = rows) -> _Found:
                block = _block(
                    weight, hidden[where], labels=labels[where], document=document[where].to(weight.device), bias=bias
                )
                thin_block = block if thin == 1 else block.at(used[where])
                seen = [thin_block if _is_random(code) else block for code in chunk]
                # one allocation for all codes: new memory for each would cost more than the sums
                scratch = block.logits.new_empty(3, *block.logits.shape)
                each = [
                    (part.document, _evaluate(part, code, rows=matrix, deleted=deleted, scratch=scratch))
                    for part, code, matrix in zip(seen, chunk, rows, strict=True)
                ]
                return block.document, block.loss, each

            for owner, block_loss, each in _in_threads(evaluate, _slices(weight, len(hidden))):
                if start == 0:
                    loss.index_add_(0, owner, block_loss.double())
                for number, (part_owner, found) in enumerate(each, start):
                    sums[number].index_add_(2, part_owner, found.double())
    kept = (sums.cpu(), evaluated.cpu(), positions.cpu(), loss.cpu())
    return DeletionCurves(tuple(codes), tuple(fractions), deleted, *kept, dim=dim)


def thinned(document: Int64[Tensor, "position"], thin: int) -> Bool[Tensor, "position"]:
    """Every `thin`-th position of each document, its first included."""
    order = document.argsort(stable=True)
    counts = torch.bincount(document)
    rank = torch.empty_like(document)
    rank[order] = torch.arange(len(document), device=document.device) - (counts.cumsum(0) - counts)[document[order]]
    return rank % thin == 0


def _is_random(code: DeletionVariant) -> bool:
    return code.order is not None and code.order.seed is not None


def _slices(weight: Tensor, positions: int) -> list[slice]:
    """Positions cut into blocks; the cut is the same whatever the number of threads."""
    elements = CPU_ELEMENTS if weight.device.type == "cpu" else DEVICE_ELEMENTS
    return blocks(positions, len(weight), elements=elements)


def _in_threads(evaluate: Callable[[slice], _Found], parts: list[slice]) -> Iterator[_Found]:
    """Results in the order of the parts, so that sums do not depend on which thread was first."""
    with single_threaded() as threads:
        if threads == 1:
            yield from map(evaluate, parts)
            return
        # OpenMP's setting is each thread's own, and products go by it: else they would not be the same to the bit
        pool = ThreadPoolExecutor(threads, "deletion-curves", initializer=torch.set_num_threads, initargs=(1,))
        try:
            yield from pool.map(torch.no_grad()(evaluate), parts)  # a new thread has its own grad mode
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def single_threaded() -> Iterator[int]:
    """Inside, an operation of this thread uses one thread; gives the number set before, which comes back after.

    Blocks are small: threads that share one operation wait for each other at its end, thousands of times a second.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _block(weight: Tensor, states: Tensor, *, labels: Tensor, document: Tensor, bias: Tensor | None) -> _Block:
    states, targets = states.to(weight), labels.to(weight.device)
    logits = torch.nn.functional.linear(states, weight, bias)
    logits -= logits.amax(1, keepdim=True)
    p = torch.softmax(logits, 1)
    normaliser = -p.amax(1).log()
    return _Block(
        hidden=states,
        document=document,
        logits=logits,
        p=p.clamp_min_(torch.finfo(p.dtype).tiny),  # so that (p + q) log(p + q) has no 0 log 0
        normaliser=normaliser,
        entropy=normaliser - torch.linalg.vecdot(p, logits),
        loss=normaliser - logits.gather(1, targets[:, None])[:, 0],
        top=logits.argmax(1, keepdim=True),
        mean_row=p @ weight,
        label_row=weight[targets],
    )


def _evaluate(
    block: _Block, code: DeletionVariant, *, rows: Tensor, deleted: tuple[int, ...], scratch: Tensor
) -> Tensor:
    """The measures of one code [fraction, measure, position]."""
    z, q, s = scratch[:, : len(block.hidden)]
    basis, coordinates = code.basis.to(z), code.coordinates.to(z)
    states = block.hidden if code.mean is None else block.hidden - code.mean.to(z)
    u = states @ coordinates.T
    # what the deleted coordinates gave to the mean logit under P, and to the label's
    lost_mean = (u * (block.mean_row @ basis)).flip(1).cumsum(1)
    lost_label = (u * (block.label_row @ basis)).flip(1).cumsum(1)
    z.copy_(block.logits)
    found, kept = [], u.shape[1]
    for number in deleted:
        z.addmm_(u[:, u.shape[1] - number : kept], rows[u.shape[1] - number : kept], alpha=-1)
        kept = u.shape[1] - number
        highest = z.amax(1)
        torch.softmax(z, 1, out=q)
        normaliser = highest - q.amax(1).log()
        cross = torch.linalg.vecdot(q, z)
        torch.add(q, block.p, out=s)
        torch.log(s, out=q)
        js = math.log(2) - (torch.linalg.vecdot(s, q) + block.entropy + normaliser - cross) / 2
        moved = normaliser - block.normaliser
        gone = slice(number - 1, number) if number else slice(0, 0)
        kl = moved + lost_mean[:, gone].sum(1)
        loss = moved + lost_label[:, gone].sum(1)
        stays = z.gather(1, block.top)[:, 0] >= highest
        found.append(torch.stack([kl.clamp_min(0), js.clamp(0, math.log(2)), stays.to(kl), loss]))
    return torch.stack(found)


def _check(
    weight: Tensor,
    hidden: Tensor,
    *,
    labels: Tensor,
    document: Tensor,
    fractions: Sequence[float],
    bias: Tensor | None,
    thin: int,
) -> None:
    if thin < 1:
        raise ValueError(f"thin is {thin}; needed 1 (every position) or more.")
    count = len(hidden)
    if not count or len(labels) != count or len(document) != count:
        raise ValueError(
            f"got {count} hidden states, {len(labels)} labels and {len(document)} document numbers; needed is one of "
            "each for every test position, and at least one position. Give longer text."
        )
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden states are {hidden.shape[1]} wide; the output embedding has {weight.shape[1]} dimensions: they "
            "belong to two models."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= len(weight):
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; the output embedding has {len(weight)} rows. "
            "Leave positions without a label out."
        )
    rising = all(a < b for a, b in zip((0.0, *fractions), fractions, strict=False))
    if not fractions or not rising or fractions[-1] > 1:
        raise ValueError(f"fractions are {list(fractions)}; needed are rising ones above 0 and up to 1.")
    for name, values in (("the output embedding", weight), ("hidden states", hidden), ("the head's bias", bias)):
        if values is not None and not bool(values.isfinite().all()):
            raise ValueError(f"{name} have values that are not finite: nothing can be measured on them.")
