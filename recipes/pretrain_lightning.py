"""Pretrain a small language model with Lightning, and record its output embedding at every update.

    python recipes/pretrain_lightning.py --steps 300 --out store/runs/lightning
    tensorboard --logdir store/runs/lightning

About three minutes on two CPU cores. Needs `pip install 'trainhooks[all]'`.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from shared_run import Run, parse, prepare, report
from torch import Tensor

from trainhooks.integrations.lightning import TrainHooks


class LanguageModel(pl.LightningModule):
    """A causal language model of `transformers` and its optimizer."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.model = run.model

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """The mean loss of a micro-batch."""
        return self.model(**batch).loss

    def configure_optimizers(self) -> dict[str, Any]:
        """A scheduler that steps with the optimizer."""
        optimizer, scheduler = self.run.optimizer()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train(run: Run) -> None:
    """The callback is all that the recorder needs; its scalars go to the trainer's loggers as well."""
    run.model.train()  # Lightning keeps the mode that it finds, and `from_pretrained` leaves eval mode
    trainer = pl.Trainer(
        max_steps=run.steps,
        accumulate_grad_batches=run.accumulate,
        gradient_clip_val=run.clip,
        devices=1,
        callbacks=[TrainHooks(**run.recorder)],
        logger=TensorBoardLogger(run.out, name="events"),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(LanguageModel(run), run.loader())


def main(argv: list[str] | None = None) -> None:
    """Run from the command line."""
    run = prepare(parse(__doc__, argv=argv, loop="lightning"))
    train(run)
    report(run)


if __name__ == "__main__":
    main()
