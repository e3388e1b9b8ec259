"""Pretrain a small language model with the HF Trainer, and record its output embedding at every update.

    python recipes/pretrain_transformers.py --steps 300 --out store/runs/transformers
    tensorboard --logdir store/runs/transformers

About three minutes on two CPU cores. Needs `pip install 'trainhooks[all]'`.
"""

from __future__ import annotations

import torch
from shared_run import Run, as_batch, parse, prepare, report
from transformers import Trainer, TrainingArguments

from trainhooks.integrations.transformers import TrainHooks


def train(run: Run) -> None:
    """The callback is all that the recorder needs; its scalars go where `report_to` says as well."""
    has_gpu = torch.cuda.is_available()
    args = TrainingArguments(
        output_dir=str(run.out),
        max_steps=run.steps,
        per_device_train_batch_size=run.batch,
        gradient_accumulation_steps=run.accumulate,
        max_grad_norm=run.clip,
        train_sampling_strategy="sequential",  # the windows are shuffled already
        use_cpu=not has_gpu,
        dataloader_pin_memory=has_gpu,
        report_to="tensorboard",
        logging_steps=10,
        save_strategy="no",
    )
    # `with`: should training fail, what was recorded is closed at once
    with TrainHooks(**run.recorder) as hooks:
        Trainer(
            model=run.model,
            args=args,
            train_dataset=run.data,
            data_collator=as_batch,
            optimizers=run.optimizer(),
            callbacks=[hooks],
        ).train()


def main(argv: list[str] | None = None) -> None:
    """Run from the command line."""
    run = prepare(parse(__doc__, argv=argv, loop="transformers"))
    train(run)
    report(run)


if __name__ == "__main__":
    main()
