"""What the loop hands over at its moments, checked where it is handed over."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

from torch import Tensor

from trainhooks.core.schedule import check_schedule


def check_when(total_steps: int | None, **schedules: object) -> None:
    """Raises ValueError for a length that is no whole number of 1 or more, and for what is no schedule; None is one."""
    if total_steps is not None and (not isinstance(total_steps, int) or total_steps < 1):
        raise ValueError(f"total_steps is {total_steps!r}; needed a whole number of 1 or more, or None.")
    for what, schedule in schedules.items():
        check_schedule(what, schedule)


def check_has_values(weight: Tensor) -> None:
    """Raises ValueError where the output embedding is on the meta device."""
    if weight.is_meta:
        raise ValueError("the model is on the meta device: give it values before the first begin_step().")


def check_loss(loss: object) -> None:
    """Raises ValueError for a loss that is no single number; None is one."""
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ValueError(f"the loss has shape {tuple(loss.shape)}; pass one number, such as loss.mean().")
    elif loss is not None and not isinstance(loss, Real) and getattr(loss, "shape", None) != ():
        raise ValueError(f"the loss is a {type(loss).__name__}; pass a tensor of one number, a float, or None.")


def check_same_shape(shape: Sequence[int], *, before: Sequence[int], step: int) -> None:
    """Raises ValueError where the output embedding has another shape than the run began with."""
    if tuple(shape) != tuple(before):
        raise ValueError(
            f"the output embedding was {tuple(before)} and is {tuple(shape)} at step "
            f"{step}: a store holds one shape. Close this recorder and begin another store."
        )
