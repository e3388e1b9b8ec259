"""An update's loss from those of its batches, in a loop that tells of batches and not of updates."""

from __future__ import annotations

from torch import Tensor


class BatchLosses:
    """Losses since the last update: what batches returned, of which the mean counts, and what was differentiated.

    What was differentiated counts as a sum, because a loop that accumulates divides it: where batches return nothing,
    and for an update in the middle of a batch, whose own loss is not known yet. Everything stays on the device.
    """

    def __init__(self) -> None:
        self._returned: list[Tensor] = []
        self._differentiated: list[Tensor] = []
        self._share = 1
        self._last: Tensor | None = None  # of the last update in this batch
        self._in_batch = self._any_seen = self._seen_here = False

    def begin_batch(self) -> None:
        """A batch begins."""
        self._in_batch, self._seen_here, self._last = True, False, None

    def differentiated(self, loss: Tensor, *, scale: Tensor | None) -> None:
        """A backward pass begins at this loss, which holds the factor `scale`."""
        self._any_seen = self._seen_here = True
        self._differentiated.append(loss.reshape(()) if scale is None else (loss / scale).reshape(()))

    def end_batch(self, loss: Tensor | None, *, share: int) -> None:
        """The batch returned `loss`, its own divided by `share`; None: nothing."""
        self._in_batch, self._share = False, share
        if loss is not None and loss.numel() == 1 and self._last is None:  # else updates in it have had theirs
            self._returned.append(loss.reshape(()))

    @property
    def was_trained(self) -> bool:
        """Whether this batch was differentiated, as far as is known: a loop may hide its backward passes."""
        return self._seen_here or not self._any_seen

    def take(self) -> Tensor | None:
        """The update's loss; the one before where a batch steps several optimizers after one backward pass."""
        returned, differentiated = self._returned, self._differentiated
        self._returned, self._differentiated = [], []
        if returned and not self._in_batch:
            total = sum(returned[1:], start=returned[0])
            # an accumulation that an epoch's end has cut short is divided by its full length nevertheless
            self._last = total if len(returned) == self._share else total * (self._share / len(returned))
        elif differentiated:
            self._last = sum(differentiated[1:], start=differentiated[0])
        return self._last
