from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import seen_labels
from transformers import Trainer, TrainerCallback, TrainingArguments

from trainhooks.core.schedule import Every
from trainhooks.integrations.transformers import TrainHooks
from trainhooks.sinks import MemorySink
from trainhooks.store import open_store


def as_batch(rows):
    ids = torch.stack(rows)
    return {"input_ids": ids, "labels": ids}


def trainer_of(model, windows, folder, *callbacks, **settings):
    """SGD with a learning rate of 1, 1/2, 1/3 ... over windows in their order, two at a time."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    quiet = {
        "per_device_train_batch_size": 2,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
    }
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **{**quiet, **settings}),
        train_dataset=windows,
        eval_dataset=windows[:2],
        data_collator=as_batch,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))),
        callbacks=list(callbacks),
    )


def test_moments_with_accumulation_and_evaluation_in_the_middle(spy, build_tiny, make_windows, tmp_path):
    hooks = TrainHooks(metrics=[])
    trainer = trainer_of(
        build_tiny(), make_windows(12), tmp_path, hooks,
        max_steps=2, gradient_accumulation_steps=3, eval_strategy="steps", eval_steps=1, eval_on_start=True,
    )  # fmt: skip
    trainer.train()
    update = ["begin_step"] * 3 + ["before_update", "after_update"]
    assert hooks.recorder.moments()[:10] == update * 2
    assert set(hooks.recorder.moments()[10:]) == {"close"}
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) == 3
    assert hooks.recorder.step == trainer.state.global_step == hooks.recorder.total_steps == 2


class Witness(TrainerCallback):
    """Notes gradients and weights at the Trainer's events."""

    def __init__(self):
        self.seen = {}

    def _note(self, event, model):
        weight = model.get_output_embeddings().weight
        gradient = None if weight.grad is None else weight.grad.clone()
        self.seen.setdefault(event, []).append((weight.detach().clone(), gradient))

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        self._note("on_pre_optimizer_step", model)

    def on_step_end(self, args, state, control, *, model, **kwargs):
        self._note("on_step_end", model)


def test_gradients_are_complete_before_and_parameters_have_moved_after(spy, build_tiny, make_windows, tmp_path):
    hooks, witness = TrainHooks(metrics=[]), Witness()
    trainer_of(build_tiny(), make_windows(4), tmp_path, hooks, witness, max_steps=2, max_grad_norm=1e-3).train()
    befores, afters = hooks.recorder.of("before_update"), hooks.recorder.of("after_update")
    for before, after, rate in zip(befores, afters, (1.0, 0.5), strict=True):
        assert after.arguments["learning_rate"] == rate
        assert 0 < before.gradient.norm() <= 1e-3  # clipped already
        torch.testing.assert_close(after.weight, before.weight - rate * before.gradient)
        assert not torch.equal(after.weight, before.weight)
    # why not on_step_end: the gradients are gone
    assert all(gradient is None for _, gradient in witness.seen["on_step_end"])
    assert all(gradient is not None for _, gradient in witness.seen["on_pre_optimizer_step"])


def test_record_0_is_the_untrained_model_and_labels_are_those_of_training(build_tiny, make_windows, tmp_path):
    memory, model, windows = MemorySink(), build_tiny(), make_windows(12)
    start = model.get_output_embeddings().weight.detach().clone()
    trainer_of(
        model, windows, tmp_path, TrainHooks(metrics=[], sinks=[memory]),
        max_steps=3, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=1,
    ).train()  # fmt: skip
    assert [record.step for record in memory.records] == [0, 1, 2, 3]
    assert torch.equal(torch.tensor(memory.records[0].snapshot), start)
    for record in memory.records:
        assert torch.equal(torch.tensor(record.label_counts), seen_labels(windows[: 4 * record.step]))
    assert torch.equal(torch.tensor(memory.records[-1].snapshot), model.get_output_embeddings().weight)


def test_masked_positions_are_no_labels(build_tiny, make_windows, tmp_path):
    memory, windows = MemorySink(), make_windows(2)

    def masked(rows):
        batch = as_batch(rows)
        return {**batch, "labels": batch["labels"].clone().index_fill_(1, torch.tensor([4]), -100)}

    trainer = trainer_of(build_tiny(), windows, tmp_path, TrainHooks(metrics=[], sinks=[memory]), max_steps=1)
    trainer.data_collator = masked
    trainer.train()
    kept = [position for position in range(1, 17) if position != 4]
    expected = torch.bincount(windows[:, kept].reshape(-1), minlength=200)
    assert torch.equal(torch.tensor(memory.records[1].label_counts), expected)


@pytest.mark.parametrize("shares", [True, False])
def test_loss_is_the_mean_over_the_update(shares, build_tiny, make_windows, tmp_path):
    memory, model, windows = MemorySink(), build_tiny(), make_windows(6)
    with torch.no_grad():
        expected = model(input_ids=windows, labels=windows).loss.item()
    hooks = TrainHooks(metrics=[], sinks=[memory])
    trainer = trainer_of(model, windows, tmp_path, hooks, max_steps=1, gradient_accumulation_steps=3)
    trainer.model_accepts_loss_kwargs = shares
    trainer.train()
    assert memory.records[1].values["loss"] == pytest.approx(expected, rel=1e-6)


def test_skipped_update_is_what_accelerate_says(spy, build_tiny):
    hooks, model = TrainHooks(metrics=[]), build_tiny()
    args = SimpleNamespace(resume_from_checkpoint=None, output_dir="nowhere")
    state = SimpleNamespace(global_step=0, max_steps=2)
    hooks.on_train_begin(args, state, None, model=model)
    hooks.recorder.begin_step()
    for skipped in (True, False):
        optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}], step_was_skipped=skipped)
        hooks.on_optimizer_step(args, state, None, optimizer=optimizer)
    hooks.close()
    assert [call.arguments["skipped"] for call in hooks.recorder.of("after_update")] == [True, False]


def test_scalars_reach_the_reporters_and_leave_the_log_history_alone(build_tiny, make_windows, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    settings = {"max_steps": 4, "report_to": "tensorboard", "logging_steps": 3}
    hooks = TrainHooks(metrics=[], schedule=Every(2))
    trainer = trainer_of(build_tiny(), make_windows(8), tmp_path, hooks, **settings)
    trainer.train()
    assert len(list((tmp_path / "events").iterdir())) == 1
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [event.step for event in events.Scalars("trainhooks/skipped")] == [0, 2, 4]
    assert [event.step for event in events.Scalars("train/loss")] == [3]  # the Trainer's own alone
    assert [entry["step"] for entry in trainer.state.log_history] == [3, 4]


def test_failure_inside_a_with_statement_closes_the_run_and_is_not_hidden(build_tiny, make_windows, tmp_path):
    class Broken(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise FloatingPointError("the loop broke")

    model = build_tiny()
    with (
        pytest.raises(FloatingPointError, match="the loop broke"),
        TrainHooks(metrics=[], store=tmp_path / "run.zarr") as hooks,
    ):
        trainer_of(model, make_windows(8), tmp_path, hooks, Broken(), max_steps=4).train()
    assert open_store(tmp_path / "run.zarr").steps.tolist() == [0, 1, 2]
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def build_llama():
    """Not GPT-NeoX: transformers 5.23 saves its head as `embed_out.weight` and does not find it when it resumes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        shape = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
        return LlamaForCausalLM(LlamaConfig(num_attention_heads=2, use_cache=False, **shape))


def test_resumed_run_is_the_run_that_never_stopped(make_windows, tmp_path):
    windows = make_windows(8)

    def run(name, *, upto, **resume):
        hooks = TrainHooks(store=tmp_path / f"{name}.zarr")
        settings = {"max_steps": upto, "save_strategy": "steps", "save_steps": 2}
        trainer_of(build_llama(), windows, tmp_path / name, hooks, **settings).train(**resume)

    run("whole", upto=4)
    run("parts", upto=3)  # record 3 lies beyond the checkpoint: it is cut, and written again
    run("parts", upto=4, resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    whole, parts = open_store(tmp_path / "whole.zarr"), open_store(tmp_path / "parts.zarr")
    assert parts.steps.tolist() == [0, 1, 2, 3, 4]
    for name, values in whole.metrics().data_vars.items():
        assert name == "recorder.milliseconds" or values.equals(parts.metrics()[name]), name


def test_a_compiled_model_is_seen_too(spy, build_tiny, make_windows, tmp_path):
    hooks = TrainHooks(metrics=[])
    settings = {"torch_compile": True, "torch_compile_backend": "eager", "gradient_accumulation_steps": 2}
    trainer_of(build_tiny(), make_windows(8), tmp_path, hooks, max_steps=2, **settings).train()
    update = ["begin_step"] * 2 + ["before_update", "after_update"]
    assert hooks.recorder.moments()[:8] == update * 2
    assert all(call.arguments["loss"] > 0 for call in hooks.recorder.of("after_update"))


def test_setting_that_no_recorder_has():
    with pytest.raises(TypeError, match="snapshots"):
        TrainHooks(snapshots=2)
