"""What an update is in Lightning: closures that are called often, several optimizers, batches that are skipped."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from trainhooks.core.schedule import EveryStep, Steps
from trainhooks.integrations.lightning import TrainHooks
from trainhooks.metrics.probability_probe import ProbabilityProbe
from trainhooks.sinks import MemorySink
from trainhooks.store import open_store

VOCAB, DIM, BATCH = 40, 8, 2
COUNTS = np.arange(1, VOCAB + 1)
PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def language(step, optimizers, *, package="lightning.pytorch", automatic=True, **hooks):
    """A LightningModule of a tiny model; `step(self, batch, batch_idx)` trains it, `hooks` are further methods."""
    pl = importlib.import_module(package)

    class Language(pl.LightningModule):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.embed, self.mid = nn.Embedding(VOCAB, DIM), nn.Linear(DIM, DIM)
                self.lm_head = nn.Linear(DIM, VOCAB)
            self.automatic_optimization = automatic
            self.truth, self.counter, self.losses = [], torch.zeros(VOCAB, dtype=torch.int64), []

        def loss_of(self, batch):
            ids = batch["input_ids"]
            logits = self.lm_head(self.mid(self.embed(ids[:, :-1])))
            return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

        def note(self, loss=None):
            self.truth.append(self.lm_head.weight.detach().clone())
            self.losses.append(None if loss is None else float(torch.as_tensor(loss).detach()))

    methods = {"training_step": step, "configure_optimizers": optimizers, **hooks}
    return type("Module", (Language,), methods)()


def run(module, *callbacks, package="lightning.pytorch", batches=6, data=None, **settings):
    pl = importlib.import_module(package)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        callbacks=list(callbacks), accelerator="cpu", enable_model_summary=False, **{**quiet, **settings}
    )
    ids = torch.randint(0, VOCAB, (batches * BATCH, 7), generator=torch.Generator().manual_seed(3))
    loader = DataLoader(ids if data is None else data(ids), batch_size=BATCH, collate_fn=as_batch)
    trainer.fit(module, loader)
    return trainer, ids.view(batches, BATCH, 7)


def as_batch(rows):
    return {"input_ids": torch.stack(rows), "labels": torch.stack(rows)}


def plain_step(self, batch, batch_idx):
    return self.loss_of(batch)


def noting_step(self, epoch, batch_idx, optimizer, closure):
    """Lightning's hook around an optimizer's step, by which the truth is told."""
    optimizer.step(closure=closure)
    self.note()


@torch.no_grad()
def step_at_once(parameter):
    """An update inside the backward pass."""
    parameter.add_(parameter.grad, alpha=-0.1)
    parameter.grad = None


class ClosureSAM(torch.optim.SGD):
    """Sharpness-aware SGD: the closure is called twice, once of them where the parameters have been moved aside."""

    @torch.no_grad()
    def step(self, closure):
        loss = closure()
        moves = [(p, 0.05 * p.grad / (1e-12 + p.grad.norm())) for g in self.param_groups for p in g["params"]]
        for parameter, move in moves:
            parameter.add_(move)
        closure()
        for parameter, move in moves:
            parameter.sub_(move)
        super().step()
        return loss


OPTIMIZERS = {
    "LBFGS": lambda self: torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=3),
    "SAM": lambda self: ClosureSAM(self.parameters(), lr=0.1),
    "AdamW": lambda self: torch.optim.AdamW(self.parameters(), lr=1e-2),
}


def check(memory, module, trainer, *, labels=None):
    """Records are the weights after each completed step, in their number."""
    assert [record.step for record in memory.records] == list(range(trainer.global_step + 1))
    assert trainer.global_step == len(module.truth)
    for record, weight in zip(memory.records[1:], module.truth, strict=True):
        assert torch.equal(torch.tensor(record.snapshot), weight)
    if labels is not None:
        assert [int(record.label_counts.sum()) for record in memory.records] == labels


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_record_is_a_completed_step_however_often_the_closure_is_called(optimizer, accumulate):
    settings = {"max_epochs": 1, "accumulate_grad_batches": accumulate}
    bare, module = (language(plain_step, OPTIMIZERS[optimizer], optimizer_step=noting_step) for _ in range(2))
    run(bare, **settings)
    memory = MemorySink()
    hooks = TrainHooks(metrics=[ProbabilityProbe(COUNTS)], sinks=[memory])
    trainer, _ = run(module, hooks, **settings)
    assert all(torch.equal(a, b) for a, b in zip(bare.truth, module.truth, strict=True)), "training is unchanged"
    check(memory, module, trainer, labels=[12 * accumulate * step for step in range(6 // accumulate + 1)])
    assert [record.values["probability.step"] for record in memory.records[1:]] == list(range(trainer.global_step))
    assert np.isfinite([record.values["loss"] for record in memory.records[1:]]).all()


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("returns", [True, False])
def test_accumulation_by_hand(package, returns):
    def step(self, batch, batch_idx):
        loss = self.loss_of(batch)
        self.seen = [*getattr(self, "seen", []), loss.item()]
        self.manual_backward(loss / 3)
        if batch_idx % 3 == 2:
            self.optimizers().step()
            self.optimizers().zero_grad()
            self.note(np.mean(self.seen))
            self.seen = []
        return loss if returns else None

    module, memory = language(step, OPTIMIZERS["AdamW"], package=package, automatic=False), MemorySink()
    trainer, _ = run(module, TrainHooks(metrics=[], sinks=[memory]), package=package, max_epochs=1)
    check(memory, module, trainer, labels=[0, 36, 72])
    recorded = [float(record.values["loss"]) for record in memory.records[1:]]
    assert recorded == pytest.approx(module.losses, rel=1e-6)


def test_two_optimizers_in_a_batch_have_a_record_and_a_loss_each():
    def two(self):
        rest = [*self.embed.parameters(), *self.lm_head.parameters()]
        return [torch.optim.SGD(self.mid.parameters(), lr=0.1), torch.optim.AdamW(rest, lr=1e-2)]

    def step(self, batch, batch_idx):
        loss = self.loss_of(batch)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            self.note(loss)
        for optimizer in self.optimizers():
            optimizer.zero_grad()

    module, memory = language(step, two, automatic=False), MemorySink()
    hooks = TrainHooks(metrics=[], sinks=[memory], snapshot_schedule=EveryStep(), schedule=Steps([12]))
    trainer, _ = run(module, hooks, max_epochs=1)  # batches are six: step 12 is none of theirs
    check(memory, module, trainer)
    assert [float(record.values["loss"]) for record in memory.records[1:]] == pytest.approx(module.losses)
    assert [record.values["learning_rate"] for record in memory.records[1:]] == [0.1, 1e-2] * 6


def test_a_closure_by_hand_counts_its_first_loss():
    def step(self, batch, batch_idx):
        seen = []

        def closure():
            self.optimizers().zero_grad()
            loss = self.loss_of(batch)
            seen.append(loss.item())
            self.manual_backward(loss)
            return loss

        self.optimizers().step(closure=closure)
        self.note(seen[0])
        assert len(seen) > 1

    module, memory = language(step, OPTIMIZERS["LBFGS"], automatic=False), MemorySink()
    trainer, _ = run(module, TrainHooks(metrics=[ProbabilityProbe(COUNTS)], sinks=[memory]), max_epochs=1)
    check(memory, module, trainer, labels=[12 * step for step in range(7)])
    assert [float(record.values["loss"]) for record in memory.records[1:]] == pytest.approx(module.losses)
    assert [record.values["probability.step"] for record in memory.records[1:]] == list(range(6))


def test_passes_of_several_optimizers_in_a_batch_have_a_loss_each():
    def two(self):
        rest = [*self.embed.parameters(), *self.lm_head.parameters()]
        return [torch.optim.SGD(self.mid.parameters(), lr=0.1), torch.optim.AdamW(rest, lr=1e-2)]

    def step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            loss = self.loss_of(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.note(loss)
            self.untoggle_optimizer(optimizer)

    module, memory = language(step, two, automatic=False), MemorySink()
    trainer, _ = run(module, TrainHooks(metrics=[], sinks=[memory]), max_epochs=1)
    check(memory, module, trainer)
    assert [float(record.values["loss"]) for record in memory.records[1:]] == pytest.approx(module.losses)


@pytest.mark.parametrize("automatic", [True, False])
def test_labels_of_batches_that_are_not_trained_on_do_not_count(automatic):
    def step(self, batch, batch_idx):
        if batch_idx % 3 == 1:
            return None
        self.counter += torch.bincount(batch["labels"][:, 1:].flatten(), minlength=VOCAB)
        loss = self.loss_of(batch)
        if automatic:
            return loss
        self.manual_backward(loss)
        self.optimizers().step()
        self.optimizers().zero_grad()
        return None

    module, memory = language(step, OPTIMIZERS["AdamW"], automatic=automatic), MemorySink()
    accumulate = {"accumulate_grad_batches": 2} if automatic else {}
    run(module, TrainHooks(metrics=[], sinks=[memory]), max_epochs=1, **accumulate)
    assert np.array_equal(memory.records[-1].label_counts, module.counter.numpy())


def test_a_batch_that_the_module_gives_back_does_not_count():
    def give_back(self, batch, batch_idx):
        return -1 if batch_idx == 2 else None

    module = language(plain_step, OPTIMIZERS["AdamW"], on_train_batch_start=give_back)
    memory = MemorySink()
    run(module, TrainHooks(metrics=[], sinks=[memory]), max_epochs=2)
    assert [int(record.label_counts.sum()) for record in memory.records] == [0, 12, 24, 36, 48]


@torch.no_grad()
def step_past_the_counter(parameter):
    """The same in a way that leaves no trace in the parameter's version."""
    parameter.data.add_(parameter.grad, alpha=-0.1)
    parameter.grad = None


IN_BACKWARD = {"in backward": step_at_once, "in backward, by data": step_past_the_counter}


@pytest.mark.parametrize("how", ["behind", *IN_BACKWARD])
def test_updates_that_lightning_does_not_count_are_said(how):
    def step(self, batch, batch_idx):
        loss = self.loss_of(batch)
        self.manual_backward(loss)
        if how == "behind":
            self.optimizers().optimizer.step()
            self.zero_grad()

    def optimizers(self):
        if how in IN_BACKWARD:
            self.lm_head.weight.register_post_accumulate_grad_hook(IN_BACKWARD[how])
        return torch.optim.SGD(self.parameters(), lr=0.1)

    memory = MemorySink()
    with pytest.warns(RuntimeWarning, match="moved in batch 0 or before, and Lightning counted no step") as said:
        run(language(step, optimizers, automatic=False), TrainHooks(metrics=[], sinks=[memory]), max_epochs=1)
    assert len([warning for warning in said if "counted no step" in str(warning.message)]) == 1
    assert [record.step for record in memory.records] == [0]


def test_a_data_set_of_unknown_length_has_no_total():
    class Stream(IterableDataset):
        def __init__(self, ids):
            self.ids = ids

        def __iter__(self):
            return iter(self.ids)

    hooks = TrainHooks(metrics=[])
    run(language(plain_step, OPTIMIZERS["AdamW"]), hooks, data=Stream, max_epochs=1)
    assert (hooks.recorder.total_steps, hooks.recorder.step) == (None, 6)


def test_an_accumulation_that_the_epoch_cuts_short_has_the_mean_loss():
    seen = []

    def step(self, batch, batch_idx):
        seen.append(loss := self.loss_of(batch))
        return loss

    module, memory = language(step, OPTIMIZERS["AdamW"]), MemorySink()
    run(module, TrainHooks(metrics=[], sinks=[memory]), max_epochs=1, accumulate_grad_batches=4)
    expected = [torch.stack(seen[:4]).mean().item(), torch.stack(seen[4:]).mean().item()]
    assert [float(record.values["loss"]) for record in memory.records[1:]] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("event", ["on_train_batch_end", "exception"])
def test_a_checkpoint_of_another_callback_holds_the_state_of_its_step(event, tmp_path):
    from lightning.pytorch import Callback

    class SavesFirst(Callback):
        def on_train_batch_end(self, trainer, *_):
            if event == "on_train_batch_end":
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")
            elif trainer.global_step == 3:
                raise FloatingPointError("after the update, before any callback behind this one")

        def on_exception(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    hooks = TrainHooks(store=tmp_path / "run.zarr", counts=COUNTS)
    module = language(plain_step, OPTIMIZERS["AdamW"])
    if event == "exception":
        with pytest.raises(FloatingPointError):
            run(module, SavesFirst(), hooks, max_epochs=1)
    else:
        run(module, SavesFirst(), hooks, max_epochs=1)
    saved = torch.load(tmp_path / "3.ckpt", weights_only=True)
    (state,) = [state for name, state in saved["callbacks"].items() if "TrainHooks" in name]
    assert state["step"] == saved["global_step"] == state["recorded"] == 3
    again = TrainHooks(store=tmp_path / "run.zarr", counts=COUNTS)
    pl = importlib.import_module("lightning.pytorch")
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[again], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    ids = torch.randint(0, VOCAB, (6 * BATCH, 7), generator=torch.Generator().manual_seed(3))
    loader = DataLoader(ids, batch_size=BATCH, collate_fn=as_batch)
    trainer.fit(language(plain_step, OPTIMIZERS["AdamW"]), loader, ckpt_path=tmp_path / "3.ckpt", weights_only=True)
    assert open_store(tmp_path / "run.zarr").steps.tolist()[:7] == list(range(7))


def test_a_checkpoint_inside_training_step_holds_the_step_that_was_made(tmp_path):
    def step(self, batch, batch_idx):
        self.manual_backward(self.loss_of(batch))
        self.optimizers().step()
        self.optimizers().zero_grad()
        self.trainer.save_checkpoint(tmp_path / f"{self.trainer.global_step}.ckpt")

    memory = MemorySink()
    module = language(step, OPTIMIZERS["AdamW"], automatic=False)
    run(module, TrainHooks(metrics=[], sinks=[memory]), max_epochs=1, batches=3)
    for at in (1, 2, 3):
        saved = torch.load(tmp_path / f"{at}.ckpt", weights_only=True)
        (state,) = saved["callbacks"].values()
        assert state["step"] == saved["global_step"] == at
    assert np.isfinite([record.values["loss"] for record in memory.records[1:]]).all()
    assert int(memory.records[-1].label_counts.sum()) == 36


def test_steps_in_the_hosts_files_never_go_backwards_and_its_curves_are_its_own(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    def step(self, batch, batch_idx):
        loss = self.loss_of(batch)
        self.log("loss", loss)
        return loss

    logger = TensorBoardLogger(tmp_path, name="", version="")
    module = language(step, OPTIMIZERS["AdamW"])
    run(module, TrainHooks(counts=COUNTS), max_epochs=2, logger=logger, log_every_n_steps=1)
    (file,) = tmp_path.glob("events*")
    scalars = [(e.step, e.summary.value[0].tag) for e in EventFileLoader(str(file)).Load() if e.summary.value]
    steps = [step for step, _ in scalars]
    assert steps == sorted(steps)
    ours = {tag for _, tag in scalars if tag.startswith("trainhooks/")}
    assert "trainhooks/nonfinite_rows" in ours
    assert not ours & {"trainhooks/loss", "trainhooks/learning_rate"}
    assert {tag for _, tag in scalars} - ours == {"loss", "epoch", "hp_metric"} & {tag for _, tag in scalars}
    assert [step for step, tag in scalars if tag == "trainhooks/nonfinite_rows"] == list(range(13))


def test_the_callback_comes_first():
    hooks, other = TrainHooks(metrics=[]), object()
    trainer = SimpleNamespace(callbacks=[other, hooks])
    hooks.setup(trainer, None, "fit")
    assert trainer.callbacks == [hooks, other]
