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
    """Shows what a Trainer keeps to itself: its batches and its losses.

    `note_batch` gets each batch that a loss is computed of, before the loss takes its labels out, and None after;
    `note_loss` what `training_step` returns, of which the Trainer logs the sum over an update. It stands before two
    methods of the Trainer until `remove`, changes nothing, and is not pickled with it.
    """

    def __init__(self, trainer: Any, *, note_batch: Callable[[Any], None], note_loss: Callable[[Any], None]) -> None:
        compute, train = trainer.compute_loss, trainer.training_step

        def compute_loss(model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            note_batch(dict(inputs) if isinstance(inputs, Mapping) else inputs)
            try:
                return compute(model, inputs, *args, **kwargs)
            finally:
                note_batch(None)

        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = train(*args, **kwargs)
            note_loss(loss)
            return loss

        methods = {"compute_loss": compute_loss, "training_step": training_step}
        self._trainer, self._before = trainer, {name: vars(trainer).get(name) for name in methods}
        vars(trainer).update(methods)

    def remove(self) -> None:
        """Take it away again."""
        for name, before in self._before.items():
            if before is None:
                vars(self._trainer).pop(name, None)
            else:
                setattr(self._trainer, name, before)


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
