"""A callback for the HF Trainer that records: `Trainer(..., callbacks=[TrainHooks(store="run.zarr")])`."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainhooks.integrations.host import HostedRecorder
from trainhooks.integrations.trained_labels import LabelFunction
from trainhooks.integrations.trainer_batches import BatchWatch, Tag, calling_trainer, labels_of_trainer
from trainhooks.model.hooks import watch_forward
from trainhooks.recording.recorder import Recorder

try:
    from transformers import TrainerCallback
    from transformers.integrations import INTEGRATION_TO_CALLBACK
except ImportError as error:
    raise ImportError(
        "trainhooks.integrations.transformers needs transformers: pip install 'trainhooks[transformers]'"
    ) from error

STATE_FILE = "trainhooks.pt"


class TrainHooks(TrainerCallback):
    """Records a run of the HF Trainer: takes the keyword arguments of `trainhooks.Recorder`, without the model.

    An update is an optimizer step, as `state.global_step` counts them, whatever the accumulation. Records go to
    the sinks and the store that were asked for, their scalars to what `report_to` names as well, as `trainhooks/...`
    (not to `state.log_history`). Each checkpoint folder gets the recorder's state (`trainhooks.pt`), and a Trainer that
    resumes from it goes on in the same store. `total_steps` is `state.max_steps`. Evaluation is not seen. What
    `auto_find_batch_size` gives up is replaced by the next attempt.

    - `labels`: a function of the Trainer's batch that returns the ids which the loss sees, after the shift. The default
      knows what the model does: causal ones shift, encoder-decoder and masked ones do not; under label smoothing the
      Trainer's own loss decides. Of a loss function of your own (`compute_loss_func`) nothing is known: pass `labels`.

    `loss` is what the Trainer itself logs of the update, as rank 0 has it. The same ids given to two forward passes of
    an update (sharpness-aware training) count once.

    Metrics of the moment `before_update` see gradients that are complete and clipped. The Trainer tells no
    callback that training failed: a `with` statement around `train()` closes the recorder at once, else it is
    closed when the callback goes or Python ends.

    Raises TypeError for an unknown argument; what `Recorder` raises comes when training begins.
    """

    def __init__(self, *, labels: LabelFunction | None = None, **recorder_settings: Any) -> None:
        self._host = HostedRecorder(recorder_settings, labels=labels)
        self._handles: list[Any] = []
        self._reporters: list[TrainerCallback] = []
        self._losses: list[Tensor] = []
        self._counted: list[Tensor] = []  # labels of this update's passes
        self._batch: Mapping[str, Any] = {}
        self._labels_given, self._shows_batch = labels is not None, False

    @property
    def recorder(self) -> Recorder:
        """The recorder. Raises RuntimeError before training has begun."""
        return self._host.recorder

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        """Build the recorder. The model is prepared and restored, and no compiled forward pass has run yet."""
        self._release()
        trainer, resumed = calling_trainer()
        self._host.start(
            model,
            step=state.global_step,
            total_steps=state.max_steps if state.max_steps > 0 else None,
            saved=_saved_state(args, state, resumed=resumed),
            gives_up=bool(getattr(args, "auto_find_batch_size", False)),
            labels=None if trainer is None else labels_of_trainer(trainer, model),
        )
        self._losses, self._counted = [], []
        self._reporters = [] if trainer is None else _reporters(trainer)
        # the Trainer shows its batches to no callback
        self._handles = [watch_forward(model, self._begin_pass)]
        if trainer is not None:
            self._shows_batch = self._labels_given or trainer.label_smoother is not None
            self._handles.append(BatchWatch(trainer, note_batch=self._note_batch, note_loss=self._note_loss))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gradients are complete and clipped; `on_step_end` would find them gone."""
        self._host.recorder.before_update()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any) -> None:
        """Parameters have moved, the scheduler has not, so the learning rate is still that of this update."""
        self._counted = []
        self._host.recorder.after_update(
            loss=self._take_loss(),
            learning_rate=float(optimizer.param_groups[0]["lr"]),
            skipped=bool(getattr(optimizer, "step_was_skipped", False)),
        )
        self._report(args, state, control, optimizer=optimizer, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the Trainer logs: steps in its files never go backwards."""
        if control is not None and control.should_log:
            self._host.recorder.flush()
            self._report(args, state, control, **kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the recorder's state beside the model's."""
        folder = _checkpoint_folder(args, state)
        recorder_state = self._host.recorder.state_dict()  # every rank's labels are in it
        if state.is_world_process_zero and os.path.isdir(folder):
            torch.save(recorder_state, os.path.join(folder, STATE_FILE))

    def on_log(self, args: Any, state: Any, control: Any, *, logs: Mapping[str, Any], **kwargs: Any) -> None:
        """The summary of the whole run is the last thing logged before reporters close, in `on_train_end`."""
        if "train_runtime" in logs:
            self.close()
            self._report(args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the run."""
        self.close()

    def close(self, *, failed: bool = False) -> None:
        """End the run: takes the hooks off the model and closes the recorder. May be called twice.

        After a failure (`failed`) what other ranks have not written yet is hardly waited for.
        """
        self._release()
        self._host.close(failed=failed)

    def __enter__(self) -> TrainHooks:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.close(failed=error is not None)

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _note_batch(self, batch: Any) -> None:
        """What the Trainer is computing a loss of; the model may be shown less."""
        self._batch = batch if isinstance(batch, Mapping) else {}

    def _begin_pass(self, kwargs: dict[str, Any]) -> None:
        # what the Trainer's subclass keeps from the model is for a loss of its own, and nobody knows which
        batch = self._batch if self._shows_batch else {}
        given = {name: value for name, value in kwargs.items() if value is not None}
        self._host.begin_step({**batch, **given}, seen=self._counted)

    def _note_loss(self, loss: Any) -> None:
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses.append(loss.detach().reshape(()))

    def _take_loss(self) -> Tensor | None:
        """The update's loss as the Trainer logs it, of its micro-batches' (on the device); None where it has none."""
        losses, self._losses = self._losses, []
        return sum(losses[1:], start=losses[0]) if losses else None

    def _report(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        def log(scalars: dict[str, float], step: int) -> None:
            at_step = copy.copy(state)  # reporters read the step here; the Trainer's own state stays as it is
            at_step.global_step = step
            for reporter in self._reporters:
                logs = {Tag(name): number for name, number in scalars.items()}
                reporter.on_log(args, at_step, control, logs=logs, **kwargs)

        self._host.drain(log)


def _reporters(trainer: Any) -> list[TrainerCallback]:
    """The reporting callbacks (TensorBoard, W&B, ...) of the Trainer: a second instance would open a second run."""
    kinds = tuple(INTEGRATION_TO_CALLBACK.values())
    return [other for other in trainer.callback_handler.callbacks if isinstance(other, kinds)]


def _checkpoint_folder(args: Any, state: Any) -> str:
    return os.path.join(args.output_dir, f"checkpoint-{state.global_step}")


def _saved_state(args: Any, state: Any, *, resumed: str | None) -> dict[str, Any] | None:
    """The recorder's state in the checkpoint that the Trainer resumed (`resumed`), None where there is none.

    Where that is not known: in the folder that the Trainer itself would have saved it in.
    """
    if state.global_step == 0:
        return None
    path = os.path.join(resumed or _checkpoint_folder(args, state), STATE_FILE)
    return torch.load(path, map_location="cpu", weights_only=True) if os.path.isfile(path) else None
