"""What the HF Trainer keeps from its callbacks: itself, the checkpoint it resumed, the batches, the loss's labels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from trainhooks.integrations.trained_labels import LabelFunction, causal_labels, no_labels, whole_labels


class Tag(str):
    """A name that stays what it is where a reporter puts "train/" before it (transformers 5.23, `rewrite_logs`)."""

    __slots__ = ()

    def __radd__(self, prefix: str) -> str:
        return str(self)


def calling_trainer() -> tuple[Any, str | None]:
    """The Trainer that calls this callback, and the checkpoint folder that it resumes; None where there is none.

    A callback is shown neither (transformers 5.23, `CallbackHandler.call_event`), so: from the calls under way.
    """
    from transformers import Trainer

    frame, trainer = sys._getframe(1), None
    while frame is not None:
        here = frame.f_locals
        if trainer is None and isinstance(here.get("self"), Trainer):
            trainer = here["self"]
        if trainer is not None and here.get("self") is trainer and isinstance(here.get("resume_from_checkpoint"), str):
            return trainer, here["resume_from_checkpoint"]
        frame = frame.f_back  # type: ignore[assignment]
    return trainer, None


class BatchWatch:
    """Shows `note` each batch that a Trainer computes a loss of, before the loss takes its labels out, and None after.

    It stands before the Trainer's `compute_loss` until `remove`, changes nothing, and is not pickled with it.
    """

    def __init__(self, trainer: Any, note: Callable[[Any], None]) -> None:
        compute = trainer.compute_loss

        def compute_loss(model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            note(dict(inputs) if isinstance(inputs, Mapping) else inputs)
            try:
                return compute(model, inputs, *args, **kwargs)
            finally:
                note(None)

        self._trainer, self._before = trainer, vars(trainer).get("compute_loss")
        trainer.compute_loss = compute_loss

    def remove(self) -> None:
        """Take it away again."""
        if self._before is None:
            vars(self._trainer).pop("compute_loss", None)
        else:
            self._trainer.compute_loss = self._before


def labels_of_trainer(trainer: Any, model: nn.Module) -> LabelFunction | None:
    """The function for the labels of the Trainer's own loss; None where the model computes it."""
    if trainer.compute_loss_func is not None:
        return no_labels
    if trainer.label_smoother is None:
        return None
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    inner = trainer.accelerator.unwrap_model(model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return causal_labels if type(inner).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() else whole_labels
