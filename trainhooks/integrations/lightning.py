"""A Lightning callback that records: `Trainer(callbacks=[TrainHooks(store="run.zarr")])`."""

from __future__ import annotations

import importlib
import math
import sys
import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainhooks.integrations.batch_losses import BatchLosses
from trainhooks.integrations.host import HostedRecorder
from trainhooks.integrations.trained_labels import LabelFunction
from trainhooks.model.movement_check import Mark
from trainhooks.recording.recorder import Recorder


def _callback_class() -> Any:
    """`Callback` of `lightning.pytorch` or of `pytorch_lightning`; the trainers of both call either by hook name."""
    packages = ["lightning.pytorch", "pytorch_lightning"]
    packages.sort(key=lambda name: name not in sys.modules)  # the one in use: importing the other takes seconds
    for package in packages:
        try:
            return importlib.import_module(package).Callback
        except ModuleNotFoundError as error:
            missing = error
    raise ImportError(
        "trainhooks.integrations.lightning needs Lightning: pip install 'trainhooks[lightning]'"
    ) from missing


Callback: Any = _callback_class()


class TrainHooks(Callback):
    """Records a Lightning run: takes the keyword arguments of `trainhooks.Recorder`, without the model.

    An update is a completed step of any optimizer, as `trainer.global_step` counts them, in automatic and in manual
    optimization, however often the optimizer calls its closure. Records go to the sinks and the store that were asked
    for, their scalars to all of the trainer's loggers as well, as `trainhooks/...`. Checkpoints hold the recorder's
    state; `fit(ckpt_path=...)` goes on in the same store, and so does a second `fit`. `total_steps` comes from the
    trainer where it counts updates. Sanity checks and validation are not seen.

    - `labels`: a function of the batch that returns the ids which the loss sees, after the shift. The default knows
      the batches of `transformers`: of causal models, and of those whose loss does not shift (encoder-decoder, masked).

    `loss` is the mean over the update's batches of what `training_step` returns; in manual optimization, where it
    returns nothing, the sum of what was given to `manual_backward`, by a closure at its first call. Metrics of the
    moment `before_update` see gradients that are complete, and not clipped yet: those of the closure's first call.

    Raises TypeError for an unknown argument; what `Recorder` raises comes when training begins.
    """

    def __init__(self, *, labels: LabelFunction | None = None, **recorder_settings: Any) -> None:
        super().__init__()
        self._host = HostedRecorder(recorder_settings, labels=labels)
        self._saved: Mapping[str, Any] | None = None
        self._trainer: Any = None
        self._begin_run()

    def _begin_run(self) -> None:
        self._pending = self._in_batch = self._stepped = self._warned = False
        self._learning_rate: float | None = None
        self._scale: float | None = None
        self._losses = BatchLosses()
        self._mark: Mark | None = None
        self._moved: Tensor | None = None  # on the device, not read yet
        self._logged_at: dict[int, int] = {}

    @property
    def recorder(self) -> Recorder:
        """The recorder. Raises RuntimeError before training has begun."""
        return self._host.recorder

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Come first: what another callback saves at the end of a batch then holds a state of that batch."""
        trainer.callbacks = [self, *(callback for callback in trainer.callbacks if callback is not self)]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """After the sanity check and after every kind of restore, before the first forward pass."""
        self._trainer = weakref.proxy(trainer)
        self._host.start(
            trainer.model,  # as the strategy has wrapped it
            step=trainer.global_step,
            total_steps=_total_updates(trainer, pl_module),
            saved=self._saved,
        )
        self._saved = None
        self._begin_run()
        self._logged_at[trainer.global_step] = _logging_step(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Before each micro-batch's forward pass."""
        self._drain(trainer, upto=_logging_step(trainer))
        if self._in_batch:  # the module gave the batch before back: it has not been trained on
            self.recorder.discard_step(last_pass=True)
        self._in_batch, self._stepped = True, False
        self._host.begin_step(batch)
        self._losses.begin_batch()
        self._mark = None if self._warned or trainer.world_size > 1 else Mark.of(self.recorder.head)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """A loss is about to be differentiated; with float16 it is scaled."""
        if self._pending and trainer.global_step == self.recorder.step:
            return  # the closure once more: of the update the first loss counts
        self._catch_up(trainer)  # manual optimization: an earlier step in this batch has had its loss
        scaler, one = _scaler(trainer), torch.ones((), device=loss.device)
        self._losses.differentiated(loss.detach(), scale=None if scaler is None else scaler.scale(one))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Gradients are complete, unscaled, not clipped; it runs inside the optimizer's closure, at each call."""
        if self._pending:
            if trainer.global_step == self.recorder.step:
                return  # the closure once more: the update is the same, and its parameters are on their way
            self._updated(trainer)  # manual optimization: an earlier step in this batch has moved the parameters
        self.recorder.before_update()
        # now, because schedulers step before on_train_batch_end
        self._learning_rate = float(optimizer.param_groups[0]["lr"])
        self._scale = _loss_scale(trainer)
        self._pending = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Parameters have moved where this batch ended an accumulation; checkpoints are written after this."""
        self._in_batch = False
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        automatic = pl_module.automatic_optimization
        # Lightning has divided each micro-batch's loss by the accumulation's length
        share = trainer.accumulate_grad_batches if automatic else 1
        self._losses.end_batch(loss.detach() if isinstance(loss, Tensor) else None, share=share)
        if not (loss is not None if automatic else self._losses.was_trained or self._stepped or self._pending):
            self.recorder.discard_step(last_pass=True)
        if self._pending and trainer.global_step > self.recorder.step:
            self._updated(trainer)
        self._pending = False  # else a strategy that accumulates by itself has let the step pass
        logs = (_logging_step(trainer) + 1) % trainer.log_every_n_steps == 0
        self._note_moves(batch_idx, waits=logs)
        if logs:
            self.recorder.flush()  # before the trainer logs: steps in its files never go backwards
        self._drain(trainer, upto=_logging_step(trainer))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """After the last checkpoint, before the loggers are finalized."""
        self._close(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """What was recorded until here is kept, and a checkpoint that is saved now holds it."""
        try:
            self._catch_up(trainer)
        finally:
            self._close(trainer, failed=True)

    def state_dict(self) -> dict[str, Any]:
        """The recorder's state, for the trainer's checkpoint."""
        try:
            recorder = self._host.recorder
        except RuntimeError:
            return dict(self._saved or {})
        if self._trainer is not None:
            self._catch_up(self._trainer)
        return recorder.state_dict()  # outside: what it raises must not leave a checkpoint without a state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training begins: Lightning restores some strategies before and some after `on_fit_start`."""
        self._saved = state_dict or None

    def _catch_up(self, trainer: Any) -> None:
        """See the update that the trainer has counted and not told of, so that a checkpoint is of one step."""
        if self._pending and trainer.global_step > self.recorder.step:
            self._updated(trainer)

    def _updated(self, trainer: Any) -> None:
        scale = _loss_scale(trainer)
        skipped = self._scale is not None and scale is not None and scale < self._scale
        self._pending, self._stepped = False, True
        self._logged_at[self.recorder.step + 1] = _logging_step(trainer) + 1
        self.recorder.after_update(loss=self._losses.take(), learning_rate=self._learning_rate, skipped=skipped)

    def _note_moves(self, batch_idx: int, *, waits: bool) -> None:
        """Say it where the matrix moved in a batch without a step; a GPU is asked only where the trainer `waits`."""
        if self._mark is not None and not self._stepped:
            moved = self._mark.moved()
            self._moved = moved if self._moved is None else self._moved | moved
        if self._warned or self._moved is None or not (waits or self._moved.device.type == "cpu") or not self._moved:
            return
        self._warned = True
        warnings.warn(
            f"step {self.recorder.step}: the output embedding moved in batch {batch_idx} or before, and Lightning "
            "counted no step of an optimizer: such updates are not recorded. Step through `self.optimizers()`, not "
            "through the optimizer behind it or inside the backward pass; or call a th.Recorder in training_step.",
            RuntimeWarning,
            stacklevel=2,
        )

    def _drain(self, trainer: Any, *, upto: float = math.inf) -> None:
        def log(scalars: dict[str, float], step: int) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=step)

        self._host.drain(log, upto=upto, at=self._logged_at)

    def _close(self, trainer: Any, *, failed: bool = False) -> None:
        try:
            self._host.close(failed=failed)
        finally:
            self._drain(trainer)


def _total_updates(trainer: Any, pl_module: Any) -> int | None:
    """The run's updates, None where the trainer does not know: it counts batches, and these may step as they like."""
    if not pl_module.automatic_optimization:
        return trainer.max_steps if trainer.max_steps > 0 and trainer.max_epochs in (-1, None) else None
    if any(type(callback).__name__ == "GradientAccumulationScheduler" for callback in trainer.callbacks):
        return None
    expected = trainer.estimated_stepping_batches  # -1 for a data set of unknown length
    return int(expected) if 0 < expected < math.inf else None


def _logging_step(trainer: Any) -> int:
    """The step at which Lightning logs: batches that ended an accumulation, the one that runs not among them."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def _loss_scale(trainer: Any) -> float | None:
    """The loss scale of float16 training, which falls when an update was skipped; None where there is no scaler."""
    scaler = _scaler(trainer)
    return None if scaler is None else float(scaler.get_scale())


def _scaler(trainer: Any) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)
