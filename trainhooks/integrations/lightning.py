"""A Lightning callback that records: `Trainer(callbacks=[TrainHooks(store="run.zarr")])`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trainhooks.integrations.host import HostedRecorder, LabelFunction, causal_labels
from trainhooks.recorder import Recorder


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

    An update is a step of any optimizer, as `trainer.global_step` counts them, in automatic and in manual
    optimization. Records go to the sinks and the store that were asked for, their scalars to all of the trainer's
    loggers as well. Checkpoints hold the recorder's state; `fit(ckpt_path=...)` goes on in the same store.
    `total_steps` comes from the trainer. Sanity checks and validation are not seen.

    - `labels`: a function of the batch that returns the ids which the loss sees, after the shift. The default,
      `causal_labels`, knows the batches of causal models of `transformers`.

    Metrics of the moment `before_update` see gradients that are complete, and not clipped yet.

    Raises TypeError for an unknown argument; what `Recorder` raises comes when training begins.
    """

    def __init__(self, *, labels: LabelFunction = causal_labels, **recorder_settings: Any) -> None:
        super().__init__()
        self._host = HostedRecorder(recorder_settings, labels=labels)
        self._saved: Mapping[str, Any] | None = None
        self._pending = False
        self._learning_rate: float | None = None
        self._scale: float | None = None
        self._losses: list[Tensor] = []

    @property
    def recorder(self) -> Recorder:
        """The recorder. Raises RuntimeError before training has begun."""
        return self._host.recorder

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """After the sanity check and after every kind of restore, before the first forward pass."""
        expected = trainer.estimated_stepping_batches
        self._host.start(
            trainer.model,  # as the strategy has wrapped it
            step=trainer.global_step,
            total_steps=int(expected) if expected != float("inf") else None,
            saved=self._saved,
        )
        self._saved, self._pending, self._losses = None, False, []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Before each micro-batch's forward pass."""
        self._host.begin_step(batch)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Gradients are complete, unscaled, not clipped; it runs inside the optimizer's closure."""
        if self._pending:  # manual optimization: an earlier step in this batch has moved the parameters by now
            self._updated(trainer, loss=None)
        self._host.recorder.before_update()
        # now, because schedulers step before on_train_batch_end
        self._learning_rate = float(optimizer.param_groups[0]["lr"])
        self._scale = _loss_scale(trainer)
        self._pending = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Parameters have moved where this batch ended an accumulation; checkpoints are written after this."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())
        if self._pending:
            # Lightning has divided each micro-batch's loss by the accumulation's length
            self._updated(trainer, loss=sum(self._losses[1:], start=self._losses[0]) if self._losses else None)
            self._losses = []

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """After the last checkpoint, before the loggers are finalized."""
        self._close(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """What was recorded until here is kept."""
        self._close(trainer, failed=True)

    def state_dict(self) -> dict[str, Any]:
        """The recorder's state, for the trainer's checkpoint."""
        try:
            recorder = self._host.recorder
        except RuntimeError:
            return dict(self._saved or {})
        return recorder.state_dict()  # outside: what it raises must not leave a checkpoint without a state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training begins: Lightning restores some strategies before and some after `on_fit_start`."""
        self._saved = state_dict

    def _updated(self, trainer: Any, *, loss: Tensor | None) -> None:
        scale = _loss_scale(trainer)
        skipped = self._scale is not None and scale is not None and scale < self._scale
        self._host.recorder.after_update(loss=loss, learning_rate=self._learning_rate, skipped=skipped)
        self._pending = False
        self._drain(trainer)

    def _drain(self, trainer: Any) -> None:
        def log(scalars: dict[str, float], step: int) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(scalars, step=step)

        self._host.drain(log)

    def _close(self, trainer: Any, *, failed: bool = False) -> None:
        try:
            self._host.close(failed=failed)
        finally:
            self._drain(trainer)


def _loss_scale(trainer: Any) -> float | None:
    """The loss scale of float16 training, which falls when an update was skipped; None where there is no scaler."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else float(scaler.get_scale())
