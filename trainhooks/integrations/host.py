"""What the integrations share: a recorder whose loop, batches and loggers belong to somebody else."""

from __future__ import annotations

import inspect
import math
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from trainhooks.integrations.trained_labels import LabelFunction, labels_of, no_labels
from trainhooks.metrics.base import Metric
from trainhooks.recording.recorder import WAIT_SECONDS, Recorder
from trainhooks.recording.resume import load_metric_states, metric_states
from trainhooks.sinks import Record, Sink
from trainhooks.sinks.host_tags import host_scalars

ScalarLog = Callable[[dict[str, float], int], None]

AFTER_FAILURE_SECONDS = 1.0  # for other ranks' last pieces: whoever writes them may be gone


class HostLog(Sink):
    """Holds each record's scalars until the host's own thread fetches them: its loggers know no other thread."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[dict[str, float], int]] = deque()

    def write(self, record: Record) -> None:
        """Queue the record's scalars with its step."""
        self._waiting.append((host_scalars(record), record.step))

    def drain(self, log: ScalarLog, *, upto: float = math.inf, at: dict[int, int] | None = None) -> None:
        """Hand over what has arrived, in order of steps, up to step `upto` of the host's logs.

        `at` says at which of these a record is logged, where that is not its own step; what is done is taken out.
        """
        at = {} if at is None else at
        while self._waiting and at.get(self._waiting[0][1], self._waiting[0][1]) <= upto:
            scalars, step = self._waiting.popleft()
            log(scalars, at.pop(step, step))


class HostedRecorder:
    """A `Recorder` that is built once its host has a model, goes on where the host goes on, and ends with it.

    `settings` are the keyword arguments of `Recorder`; `labels` gives the trained-on ids of the host's batch, None for
    the function that fits the model (`labels_of`).

    Raises TypeError for a setting that `Recorder` does not have, before training.
    """

    def __init__(self, settings: Mapping[str, Any], *, labels: LabelFunction | None) -> None:
        inspect.signature(Recorder).bind(None, **settings)
        self._settings = dict(settings)
        self._given = self._labels = labels
        self._recorder: Recorder | None = None
        self._ended: bool | None = None  # whether the host's run came to its end; None: it has not ended
        metrics = _given(settings)
        self._untouched = {"step": 0, "metrics": metric_states(metrics)}  # a run that begins again begins with these
        self._log = HostLog()
        self._warned = False

    @property
    def recorder(self) -> Recorder:
        """The recorder. Raises RuntimeError before training has begun."""
        if self._recorder is None:
            raise RuntimeError("there is no recorder yet: it is built when the trainer begins to train.")
        return self._recorder

    def start(
        self,
        model: nn.Module,
        *,
        step: int,
        total_steps: int | None,
        saved: Mapping[str, Any] | None,
        gives_up: bool = False,
        labels: LabelFunction | None = None,
    ) -> None:
        """Build the recorder for a host that has made `step` updates.

        `saved` is the recorder's state in the checkpoint that the host resumes. A store that exists is then
        continued, whatever `mode` says. Without it a host that goes on in this process goes on with the recorder that
        it had, and where there is none, records are numbered from `step` on, with one warning. `gives_up`: a host that
        begins at 0 throws away what it did before; what was recorded of it is then replaced. `labels` is the function
        for a loss that is the host's own, where none was given.

        Raises ValueError where `saved` is the state of another step.
        """
        self.close(failed=True)  # where a run is still open: the host gave it up without a word
        before = self._recorder
        settings = {"total_steps": total_steps, **self._settings}
        if saved is None and step > 0:
            saved = _handed_over(before, model=model, step=step) or _known_nothing(step)
        if saved is not None:
            _check_step(saved, step=step)
            settings["mode"] = "resume"
        elif before is not None:
            load_metric_states(_given(settings), self._untouched)
            if not self._ended and (gives_up or before.step == 0):
                settings["mode"] = "overwrite"
        self._labels = self._given or labels or labels_of(model)
        recorder = Recorder(model, **settings)
        if saved is not None:
            recorder.load_state_dict(saved)
        self._log = HostLog()
        recorder.add_sink(self._log)
        # a host that fails without telling leaves a readable store nevertheless: at the latest when Python ends
        weakref.finalize(self, recorder.close, wait_seconds=AFTER_FAILURE_SECONDS)
        self._recorder, self._ended = recorder, None

    def begin_step(self, batch: Any, *, seen: list[Tensor] | None = None) -> None:
        """Before a forward pass on `batch`; labels that are among those `seen` in this update count no more."""
        assert self._labels is not None, "start() comes first"
        labels = self._labels(batch)
        if labels is None and not self._warned:
            self._warned = True
            keys = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
            why = "a loss function of your own" if self._labels is no_labels else f"no labels in the batch ({keys})"
            warnings.warn(
                f"step {self.recorder.step}: {why}, so label counts are not recorded. Pass labels=FUNCTION, which "
                "takes the batch and returns the ids that the loss sees, after the shift.",
                RuntimeWarning,
                stacklevel=2,
            )
        if labels is not None and seen is not None:
            again = any(_same(labels, other) for other in seen)
            seen.append(labels)
            labels = None if again else labels
        self.recorder.begin_step(labels)

    def drain(self, log: ScalarLog, *, upto: float = math.inf, at: dict[int, int] | None = None) -> None:
        """Give the host's loggers the scalars that have arrived: see `HostLog.drain`."""
        self._log.drain(log, upto=upto, at=at)

    def close(self, *, failed: bool = False) -> None:
        """End the run; nothing happens where none is open. After a failure other ranks are hardly waited for."""
        if self._recorder is not None and self._ended is None:
            self._ended = not failed
            self._recorder.close(wait_seconds=AFTER_FAILURE_SECONDS if failed else WAIT_SECONDS)


def _handed_over(before: Recorder | None, *, model: nn.Module, step: int) -> dict[str, Any] | None:
    """The state of the recorder that this process had of the same model at the same step; None where it had none."""
    if before is None or before.step != step:
        return None
    weight = before.head.weight
    return before.state_dict() if any(parameter is weight for parameter in model.parameters()) else None


def _known_nothing(step: int) -> dict[str, Any]:
    """The state of a run that was not recorded until here; says so."""
    warnings.warn(
        f"training resumes at step {step}, and its checkpoint holds no recorder state: records are numbered "
        f"from {step}, label counts begin at zero there, every metric starts anew, and nothing is known of the first "
        "record.",
        RuntimeWarning,
        stacklevel=3,
    )
    return {"step": step, "label_counts": None, "learning_rate_sum": None, "references": {}, "metrics": None}


def _same(labels: Tensor, other: Tensor) -> bool:
    """Whether both are the same memory, not written into between."""
    places = [(t.data_ptr(), t.shape, t.stride(), t.dtype, t._version) for t in (labels, other)]
    return places[0] == places[1]


def _check_step(saved: Mapping[str, Any], *, step: int) -> None:
    """Raise ValueError where a state is of another step than the host's."""
    if int(saved["step"]) != step:
        raise ValueError(
            f"the checkpoint is of step {step}, and the recorder's state in it of step {saved['step']}: it was saved "
            "before the recorder had seen the update, or by hand. Resume from another checkpoint; or, to go on without "
            "what the state holds (label counts, references), remove it from this one."
        )


def _given(settings: Mapping[str, Any]) -> list[Metric]:
    """The metrics that were passed, as they are used again where a run begins again."""
    return [*(settings.get("metrics") or ()), *(settings.get("extra_metrics") or ())]
