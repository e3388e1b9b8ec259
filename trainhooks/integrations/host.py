"""What the integrations share: a recorder whose loop, batches and loggers belong to somebody else."""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trainhooks.recorder import WAIT_SECONDS, Recorder
from trainhooks.sinks import Record, Sink

LabelFunction = Callable[[Any], Tensor | None]
ScalarLog = Callable[[dict[str, float], int], None]

AFTER_FAILURE_SECONDS = 1.0  # for other ranks' last pieces: whoever writes them may be gone


def causal_labels(batch: Any) -> Tensor | None:
    """The ids that a causal language model of `transformers` is trained on, given its batch.

    `shift_labels` as they are, else `labels` without position 0, which the model's own shift drops. Negative ids
    (-100) stay in and count as no label. None where the batch is no mapping or holds neither.
    """
    if not isinstance(batch, Mapping):
        return None
    if batch.get("shift_labels") is not None:
        return batch["shift_labels"]
    labels = batch.get("labels")
    return None if labels is None else labels[..., 1:]


class HostLog(Sink):
    """Holds each record's scalars until the host's own thread fetches them: its loggers know no other thread."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[dict[str, float], int]] = deque()

    def write(self, record: Record) -> None:
        """Queue the record's scalars with its step."""
        self._waiting.append((record.scalars, record.step))

    def drain(self, log: ScalarLog) -> None:
        """Hand over what has arrived, in order of steps."""
        while self._waiting:
            scalars, step = self._waiting.popleft()
            log(scalars, step)


class HostedRecorder:
    """A `Recorder` that is built once its host has a model, goes on where the host goes on, and ends with it.

    `settings` are the keyword arguments of `Recorder`; `labels` gives the trained-on ids of the host's batch.

    Raises TypeError for a setting that `Recorder` does not have, before training.
    """

    def __init__(self, settings: Mapping[str, Any], *, labels: LabelFunction) -> None:
        inspect.signature(Recorder).bind(None, **settings)
        self._settings = dict(settings)
        self._labels = labels
        self._recorder: Recorder | None = None
        self._log = HostLog()
        self._warned = False

    @property
    def recorder(self) -> Recorder:
        """The recorder. Raises RuntimeError before training has begun."""
        if self._recorder is None:
            raise RuntimeError("there is no recorder yet: it is built when the trainer begins to train.")
        return self._recorder

    def start(self, model: nn.Module, *, step: int, total_steps: int | None, saved: Mapping[str, Any] | None) -> None:
        """Build the recorder for a host that has made `step` updates.

        `saved` is the recorder's state in the checkpoint that the host resumes. A store that exists is then
        continued, whatever `mode` says. Without it records are numbered from `step` on, with one warning.
        """
        self.close()
        settings = {"total_steps": total_steps, **self._settings}
        if saved is None and step > 0:
            warnings.warn(
                f"training resumes at step {step}, and its checkpoint holds no recorder state: records are numbered "
                f"from {step}, label counts begin at zero there, and nothing is known of the first record.",
                RuntimeWarning,
                stacklevel=2,
            )
            saved = {"step": step, "label_counts": None, "learning_rate_sum": None, "references": {}}
        store = settings.get("store")
        if saved is not None and store is not None and Path(store).exists():
            settings["mode"] = "resume"
        recorder = Recorder(model, **settings)
        if saved is not None:
            recorder.load_state_dict(saved)
        self._log = HostLog()
        recorder.add_sink(self._log)
        # a host that fails without telling leaves a readable store nevertheless: at the latest when Python ends
        weakref.finalize(self, recorder.close, wait_seconds=AFTER_FAILURE_SECONDS)
        self._recorder = recorder

    def begin_step(self, batch: Any) -> None:
        """Before a forward pass on `batch`."""
        labels = self._labels(batch)
        if labels is None and not self._warned:
            self._warned = True
            keys = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
            warnings.warn(
                f"step {self.recorder.step}: no labels in the batch ({keys}), so label counts are not recorded. Pass "
                "labels=FUNCTION, which takes the batch and returns the ids that the loss sees.",
                RuntimeWarning,
                stacklevel=2,
            )
        self.recorder.begin_step(labels)

    def drain(self, log: ScalarLog) -> None:
        """Give the host's loggers the scalars that have arrived."""
        self._log.drain(log)

    def close(self, *, failed: bool = False) -> None:
        """End the run; nothing happens where none is open. After a failure other ranks are hardly waited for."""
        if self._recorder is not None:
            self._recorder.close(wait_seconds=AFTER_FAILURE_SECONDS if failed else WAIT_SECONDS)
