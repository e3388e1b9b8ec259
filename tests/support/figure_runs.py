"""A small run with a store, events and checkpoints, for tests of what is drawn of runs."""

from dataclasses import dataclass
from pathlib import Path

from loops import COUNTS, VOCAB, TinyLM, batches, train
from safetensors.torch import save_file

import trainhooks as th

STEPS = 40


@dataclass(frozen=True)
class SmallRun:
    store: Path
    events: Path
    checkpoints: Path


class SavedBefore:
    """A recorder's moments, with the model saved at each step that it is told of."""

    def __init__(self, recorder, model, folder):
        self._recorder, self._model, self._folder, self._step = recorder, model, folder, 0
        self.before_update = recorder.before_update

    def _save(self):
        place = self._folder / f"step{self._step}"
        place.mkdir(parents=True)
        save_file(
            {name: tensor.clone() for name, tensor in self._model.state_dict().items()}, place / "model.safetensors"
        )

    def begin_step(self, labels):
        if not self._step:
            self._save()
        self._recorder.begin_step(labels)

    def after_update(self, **values):
        self._recorder.after_update(**values)
        self._step += 1
        self._save()


def record(folder, *, seed=0, steps=STEPS, **options):
    model = TinyLM(seed)
    sink = th.TensorBoardSink(folder / "events")
    texts = [f"t{token}" for token in range(VOCAB)]
    settings = {"counts": COUNTS, "token_texts": texts, "sinks": [sink], **options}
    with th.Recorder(model, store=folder / "run.zarr", **settings) as recorder:
        train(model, batches(steps), SavedBefore(recorder, model, folder / "checkpoints"))
    return SmallRun(folder / "run.zarr", folder / "events", folder / "checkpoints")
