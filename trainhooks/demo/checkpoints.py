"""The demo's model as folders that `transformers` loads: the last one, and a suite of log-spaced steps."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from trainhooks.core.schedule import LogSpaced, Schedule
from trainhooks.demo.corpus import SEPARATOR

_STEP = re.compile(r"step\d+")


@dataclass(frozen=True)
class CheckpointSuite:
    """Writes `folder`/step{N} where `schedule` fires and at the `last` step: weights, config and tokenizer.

    Call it with the number of updates that the model has had. A suite like this is what `trainhooks analyze`, and
    `steer` and `prune` with --over, take.
    """

    folder: Path
    model: nn.Module
    tokenizer: Any
    last: int
    schedule: Schedule = field(default_factory=LogSpaced)

    def __call__(self, step: int) -> None:
        """Write the model as it is now, if this is a step to write."""
        if step == self.last or self.schedule(step):
            save_model(self.folder / f"step{step}", model=self.model, tokenizer=self.tokenizer)


def save_model(folder: Path, *, model: nn.Module, tokenizer: Any) -> None:
    """Write a `transformers` model and its `tokenizers.Tokenizer` so that both load from `folder` by the Auto classes.

    Raises OSError for a folder that cannot be written.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # one for each file would tear the training's own bar
    try:
        writer: Any = model
        writer.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SEPARATOR).save_pretrained(folder)


def clear_models(out: Path) -> None:
    """Remove the model and the suite that an earlier demo left in `out`: they belong to another run."""
    suite = out / "checkpoints"
    steps = [path for path in suite.iterdir() if _STEP.fullmatch(path.name)] if suite.is_dir() else []
    for folder in [*steps, out / "model"]:
        if (folder / "config.json").is_file():
            shutil.rmtree(folder)
