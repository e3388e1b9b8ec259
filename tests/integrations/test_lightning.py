from __future__ import annotations

import importlib
from itertools import pairwise

import pytest
import torch
from conftest import seen_labels
from torch.utils.data import DataLoader

from trainhooks.core.schedule import Every
from trainhooks.integrations.lightning import TrainHooks
from trainhooks.sinks import MemorySink
from trainhooks.store import open_store

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def as_batch(rows):
    ids = torch.stack(rows)
    return {"input_ids": ids, "labels": ids}


def module_of(model, *, package="lightning.pytorch", manual=0, fail_at=None):
    """A LightningModule: SGD with a learning rate of 1, 1/2, 1/3 ...; `manual` steps a batch where not 0."""
    pl = importlib.import_module(package)

    class Language(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = model
            self.automatic_optimization = not manual

        def training_step(self, batch, batch_idx):
            if fail_at is not None and batch_idx == fail_at:
                raise FloatingPointError("the loop broke")
            if not manual:
                return self.model(**batch).loss
            for _ in range(manual):
                self.optimizers().zero_grad()
                self.manual_backward(self.model(**batch).loss)
                self.optimizers().step()
            return None

        def validation_step(self, batch, batch_idx):
            self.log("validation", self.model(**batch).loss)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    return Language()


def fit(module, hooks, windows, *, package="lightning.pytorch", validate=False, ckpt_path=None, **settings):
    pl = importlib.import_module(package)
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(callbacks=[hooks], **{**quiet, **settings})
    loader = DataLoader(windows, batch_size=2, collate_fn=as_batch)
    trainer.fit(module, loader, loader if validate else None, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("package", PACKAGES)
def test_moments_with_accumulation_in_either_package(package, spy, build_tiny, make_windows):
    hooks = TrainHooks(metrics=[])
    trainer = fit(
        module_of(build_tiny(), package=package), hooks, make_windows(12), package=package,
        max_steps=2, accumulate_grad_batches=3,
    )  # fmt: skip
    update = ["begin_step"] * 3 + ["before_update", "after_update"]
    assert hooks.recorder.moments()[:10] == update * 2
    assert set(hooks.recorder.moments()[10:]) == {"close"}
    assert hooks.recorder.step == trainer.global_step == 2


def test_gradients_are_complete_before_and_parameters_have_moved_after(spy, build_tiny, make_windows):
    hooks = TrainHooks(metrics=[])
    fit(module_of(build_tiny()), hooks, make_windows(4), max_steps=2, gradient_clip_val=1e-3)
    for before, after, rate in zip(
        hooks.recorder.of("before_update"), hooks.recorder.of("after_update"), (1.0, 0.5), strict=True
    ):
        assert after.arguments["learning_rate"] == rate
        # clipped between the two moments
        assert before.gradient.norm() > 1e-2
        assert after.gradient.norm() <= 1e-3
        torch.testing.assert_close(after.weight, before.weight - rate * after.gradient)
        assert not torch.equal(after.weight, before.weight)


def test_record_0_is_the_untrained_model_and_labels_are_those_of_training(build_tiny, make_windows):
    memory, model, windows = MemorySink(), build_tiny(), make_windows(12)
    start = model.get_output_embeddings().weight.detach().clone()
    hooks = TrainHooks(metrics=[], sinks=[memory])
    trainer = fit(
        module_of(model), hooks, windows, validate=True,
        max_steps=3, accumulate_grad_batches=2, num_sanity_val_steps=2, val_check_interval=2,
    )  # fmt: skip
    assert "validation" in trainer.callback_metrics
    assert [record.step for record in memory.records] == [0, 1, 2, 3]
    assert torch.equal(torch.tensor(memory.records[0].snapshot), start)
    for record in memory.records:
        assert torch.equal(torch.tensor(record.label_counts), seen_labels(windows[: 4 * record.step]))
    end = model.get_output_embeddings().weight
    assert torch.equal(torch.tensor(memory.records[-1].snapshot), end)


def test_loss_is_the_mean_over_the_update(build_tiny, make_windows):
    memory, model, windows = MemorySink(), build_tiny(), make_windows(6)
    with torch.no_grad():
        expected = model(input_ids=windows, labels=windows).loss.item()
    fit(module_of(model), TrainHooks(metrics=[], sinks=[memory]), windows, max_steps=1, accumulate_grad_batches=3)
    assert memory.records[1].values["loss"] == pytest.approx(expected, rel=1e-6)


def test_total_steps_come_from_the_trainer(build_tiny, make_windows):
    hooks = TrainHooks(metrics=[])
    fit(module_of(build_tiny()), hooks, make_windows(8), max_epochs=2, accumulate_grad_batches=2)
    assert hooks.recorder.total_steps == hooks.recorder.step == 4


def test_manual_optimization_counts_every_step_of_an_optimizer(spy, build_tiny, make_windows):
    memory = MemorySink()
    hooks = TrainHooks(metrics=[], sinks=[memory])
    trainer = fit(module_of(build_tiny(), manual=2), hooks, make_windows(4), max_steps=4)
    assert hooks.recorder.step == trainer.global_step == 4
    assert hooks.recorder.moments()[:5] == ["begin_step", *["before_update", "after_update"] * 2]
    snapshots = [torch.tensor(record.snapshot) for record in memory.records]
    assert not any(torch.equal(a, b) for a, b in pairwise(snapshots))


def test_update_that_the_scaler_skips(build_tiny, make_windows):
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    memory = MemorySink()
    fit(
        module_of(build_tiny()), TrainHooks(metrics=[], sinks=[memory]), make_windows(6),
        max_steps=3, plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
    )  # fmt: skip
    first, skipped = memory.records[0], memory.records[1]
    assert skipped.values["skipped"] == 1
    assert torch.equal(torch.tensor(first.snapshot), torch.tensor(skipped.snapshot))
    for record, before in zip(memory.records[1:], memory.records[:-1], strict=True):
        assert (record.snapshot == before.snapshot).all() == bool(record.values["skipped"])


def test_scalars_reach_every_logger(build_tiny, make_windows, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    loggers = [CSVLogger(tmp_path / name) for name in ("a", "b")]
    fit(
        module_of(build_tiny()), TrainHooks(metrics=[], schedule=Every(2)), make_windows(8), max_steps=4, logger=loggers
    )
    for logger in loggers:
        lines = logger.experiment.metrics_file_path
        with open(lines) as file:
            header, *rows = [line.strip().split(",") for line in file]
        steps = [row[header.index("step")] for row in rows if row[header.index("trainhooks/skipped")]]
        assert steps == ["0", "2", "4"]


def test_failure_closes_the_run_and_is_not_hidden(build_tiny, make_windows, tmp_path):
    hooks = TrainHooks(metrics=[], store=tmp_path / "run.zarr")
    with pytest.raises(FloatingPointError, match="the loop broke"):
        fit(module_of(build_tiny(), fail_at=2), hooks, make_windows(8), max_steps=4)
    assert open_store(tmp_path / "run.zarr").steps.tolist() == [0, 1, 2]


def test_resumed_run_is_the_run_that_never_stopped(build_tiny, make_windows, tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    windows = make_windows(4)  # an epoch is two updates: a plain DataLoader resumes at an epoch's beginning

    def run(name, *, upto, ckpt_path=None):
        keep = ModelCheckpoint(tmp_path, filename=f"{name}-{{step}}", every_n_train_steps=2, save_top_k=-1)
        hooks = TrainHooks(store=tmp_path / name)
        pl = importlib.import_module("lightning.pytorch")
        trainer = pl.Trainer(
            callbacks=[keep, hooks], accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, max_steps=upto,
        )  # fmt: skip
        loader = DataLoader(windows, batch_size=2, collate_fn=as_batch)
        trainer.fit(module_of(build_tiny()), loader, ckpt_path=ckpt_path, weights_only=True)

    run("whole", upto=4)
    run("parts", upto=3)  # record 3 lies beyond the checkpoint: it is cut, and written again
    run("parts", upto=4, ckpt_path=tmp_path / "parts-step=2.ckpt")
    whole, parts = open_store(tmp_path / "whole"), open_store(tmp_path / "parts")
    assert parts.steps.tolist() == [0, 1, 2, 3, 4]
    different = {"recorder.milliseconds"}
    for name, values in whole.metrics().data_vars.items():
        assert name in different or values.equals(parts.metrics()[name]), name


def test_setting_that_no_recorder_has():
    with pytest.raises(TypeError, match="snapshots"):
        TrainHooks(snapshots=2)
