"""Which labels the model has been trained on so far, counted without waiting for the device."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from trainhooks.model.distributed import RankGroup


class LabelCounter:
    """Counts labels [vocab]: an update's labels are pending until it is done, and lost if it was skipped.

    Those of its last forward pass are kept apart, so that this one can be taken back. Bin 0 of the tensors kept here
    is for what is no label, the last one for ids beyond the vocabulary.
    """

    def __init__(self, vocab: int, *, ranks: RankGroup | None = None) -> None:
        self._vocab = vocab
        self._seen: Tensor | None = None
        self._pending: Tensor | None = None  # of the update under way, but for its last pass
        self._last: Tensor | None = None
        self._ranks = ranks
        self._total: Tensor | None = None
        self._total_is_fresh = self._any_given = False

    @property
    def counts(self) -> Int[Tensor, "vocab"] | None:
        """This rank's labels of the updates done so far; None where none were ever given."""
        return None if self._seen is None else self._seen[1:-1]

    @property
    def out_of_vocab(self) -> Int[Tensor, ""] | None:
        """How many of this rank's ids lay beyond the vocabulary, where the counts lie; None without labels."""
        return None if self._seen is None else self._seen[-1]

    def total(self) -> Int[Tensor, "vocab"] | None:
        """`counts` of all ranks together (collective unless nothing was counted since the last time)."""
        total = self._all()
        return None if total is None else total[1:-1]

    def _all(self) -> Tensor | None:
        if self._ranks is not None and self._ranks.misses_labels:
            return None
        if self._ranks is None or self._ranks.is_single:
            return self._seen
        if not self._total_is_fresh:
            # once given they stay: asking the others again would wait for the device at each record
            self._any_given = self._any_given or self._ranks.any(self._seen is not None)
            mine = self._seen if self._seen is not None and self._ranks.is_data_rank else self._nothing()
            self._total = self._ranks.all_reduce_sum(mine) if self._any_given else None
            self._total_is_fresh = True
        return self._total

    def _nothing(self) -> Tensor:
        # made on the device where labels are counted there: on its way to it a tensor of the host would be waited for
        device = "cpu" if self._seen is None else self._seen.device
        return torch.zeros(self._vocab + 2, dtype=torch.int64, device=device)

    def begin(self, labels: object) -> None:
        """Start counting from zero, if this is the first time that labels are given.

        Raises ValueError for what is no dense tensor of whole numbers.
        """
        labels = _checked_ids(labels)
        with torch.inference_mode(False):  # its tensors could not be added to outside
            if self._pending is None:
                self._pending = torch.zeros(self._vocab + 2, dtype=torch.int64, device=labels.device)
                self._last = torch.zeros_like(self._pending)
            if self._seen is None:
                self._seen = torch.zeros_like(self._pending)

    def add(self, labels: Tensor) -> None:
        """Count labels of the update under way: those of one more forward pass."""
        assert self._pending is not None, "begin() comes first"
        assert self._last is not None, "begin() comes first"
        self._pending += self._last
        self._last.zero_()
        add_label_counts(self._last, labels)

    def discard(self, *, last_pass: bool) -> None:
        """Forget the labels of the update under way, or only those of its last forward pass."""
        if self._pending is not None and self._last is not None:
            self._last.zero_()
            if not last_pass:
                self._pending.zero_()

    def update_done(self, *, skipped: bool) -> None:
        """The update's labels count now, or never."""
        self._total_is_fresh = False
        if self._pending is None or self._last is None or self._seen is None:
            return
        seen = self._seen if skipped else self._seen.to(self._pending.device) + self._pending + self._last
        pending, last = torch.zeros_like(self._pending), torch.zeros_like(self._last)
        # no call between these: a checkpoint that a signal's handler saves must not count labels twice
        self._seen, self._pending, self._last = seen, pending, last

    def state_dict(self) -> Tensor | None:
        """The counts of all ranks, on the host; collective as `total` is."""
        total = self._all()
        return None if total is None else total.cpu()

    def load_state_dict(self, state: Tensor | None) -> None:
        """Go on from these counts of all ranks, however many there were.

        Raises ValueError where they are of another vocabulary.
        """
        if state is not None and len(state) != self._vocab + 2:
            raise ValueError(f"the state counts labels of {len(state) - 2} tokens; this model has {self._vocab}.")
        self._total, self._total_is_fresh = state, True
        keeps = self._ranks is None or self._ranks.is_rank0  # the sum over ranks holds them once
        self._seen = state if keeps or state is None else self._nothing()


def _checked_ids(labels: object) -> Tensor:
    if not isinstance(labels, Tensor):
        raise ValueError(
            f"labels are token ids in a tensor, got {type(labels).__name__}; pass those that the loss sees."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels are token ids, got {labels.dtype}; pass the ids that the loss sees, as integers.")
    if labels.layout is not torch.strided or labels.is_nested or labels.is_meta:
        kind = "nested" if labels.is_nested else "on the meta device" if labels.is_meta else f"{labels.layout}"
        raise ValueError(f"labels are {kind}; pass a dense tensor of the ids that the loss sees, such as its values().")
    return labels


def add_label_counts(counts: Int[Tensor, "bins"], labels: Int[Tensor, "..."]) -> None:
    """Add each label's occurrences to `counts` [vocab + 2], in place and without waiting for the device.

    Bin 0 takes what is no label (negative ids: padding, -100), bin w + 1 the token w, the last one what lies beyond
    the vocabulary.
    """
    ids = labels.detach().reshape(-1).to(counts.device, torch.int64).clamp(-1, len(counts) - 2) + 1
    counts.index_add_(0, ids, torch.ones_like(ids))
