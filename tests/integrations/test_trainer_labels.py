"""Which labels the HF Trainer trains on, whose state it takes, and what it gives up."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from test_transformers import as_batch, build_llama, trainer_of
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration, Trainer, TrainerCallback

from trainhooks.integrations.trained_labels import causal_labels, labels_of, whole_labels
from trainhooks.integrations.transformers import TrainHooks
from trainhooks.sinks import JsonLinesSink, MemorySink
from trainhooks.store import open_store

COUNTS = np.arange(1, 201)


def t5():
    torch.manual_seed(0)
    shape = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return T5ForConditionalGeneration(T5Config(vocab_size=200, **shape))


def bert():
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertForMaskedLM(BertConfig(vocab_size=200, **shape))


def last(memory):
    return torch.tensor(memory.records[-1].label_counts)


LOGGED = {"logging_strategy": "steps", "logging_steps": 1}


def losses_of(memory):
    return pytest.approx([float(record.values["loss"]) for record in memory.records[1:]], rel=1e-5)


def logged(trainer):
    """What the Trainer itself says of each update."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def counted(labels):
    return torch.bincount(labels.flatten(), minlength=200)


# T5 without labels, as label smoothing calls it, needs a collator that makes decoder_input_ids
@pytest.mark.parametrize(
    ("build", "first", "smoothing"),
    [(t5, 0, 0), (bert, 0, 0), (bert, 0, 0.1), (build_llama, 1, 0), (build_llama, 1, 0.1)],
)
def test_labels_are_those_that_the_models_loss_sees(build, first, smoothing, make_windows, tmp_path):
    memory, windows = MemorySink(), make_windows(8)
    settings = {"max_steps": 2, "gradient_accumulation_steps": 2, "label_smoothing_factor": smoothing} | LOGGED
    bare, model = build(), build()
    trainer_of(bare, windows, tmp_path, **settings).train()
    trainer = trainer_of(model, windows, tmp_path, TrainHooks(metrics=[], sinks=[memory]), **settings)
    trainer.train()
    assert torch.equal(last(memory), counted(windows[:, first:]))
    assert losses_of(memory) == logged(trainer)
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), model.parameters(), strict=True))
    assert not {"compute_loss", "training_step"} & set(vars(trainer)), "the Trainer is as it was"


def own_loss(outputs, labels, num_items_in_batch=None):
    return torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())


@pytest.mark.parametrize("how", ["compute_loss_func", "subclass"])
@pytest.mark.parametrize("given", [True, False])
def test_of_a_loss_of_ones_own_labels_are_told_or_absent_and_said(how, given, make_windows, tmp_path):
    memory, windows = MemorySink(), make_windows(4)
    labels = {"labels": lambda batch: batch["labels"]} if given else {}
    trainer = trainer_of(
        build_llama(), windows, tmp_path, TrainHooks(metrics=[], sinks=[memory], **labels), max_steps=2, **LOGGED
    )
    if how == "compute_loss_func":
        trainer.compute_loss_func = own_loss
    else:

        class Own(Trainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                labels = inputs.pop("labels")
                outputs = model(**inputs)
                loss = own_loss(outputs, labels)
                return (loss, outputs) if return_outputs else loss

        trainer.__class__ = Own
    if given:
        trainer.train()
        assert torch.equal(last(memory), counted(windows))
    else:
        with pytest.warns(RuntimeWarning, match=r"label counts are not recorded.*labels=FUNCTION"):
            trainer.train()
        assert all(record.label_counts is None for record in memory.records)
    assert losses_of(memory) == logged(trainer)


def test_a_second_pass_over_the_same_labels_counts_once(make_windows, tmp_path):
    class TwoPasses(Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            super().training_step(model, dict(inputs), num_items_in_batch)
            model.zero_grad()
            return super().training_step(model, inputs, num_items_in_batch)

    memory, windows = MemorySink(), make_windows(8)
    trainer = trainer_of(
        build_llama(), windows, tmp_path, TrainHooks(metrics=[], sinks=[memory]),
        max_steps=2, gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer.__class__ = TwoPasses
    trainer.train()
    assert torch.equal(last(memory), counted(windows[:, 1:]))


def test_rules_by_class(build_tiny):
    assert labels_of(build_tiny()) is labels_of(torch.nn.Linear(1, 1)) is causal_labels
    wrapped = torch.nn.Sequential(torch.nn.Linear(1, 1), t5())
    assert labels_of(wrapped) is labels_of(bert()) is whole_labels


def saving(folder, windows, *, upto, seed_model=build_llama, resume=None, **hooks):
    hooks = TrainHooks(counts=COUNTS, **hooks)
    settings = {"max_steps": upto, "save_strategy": "steps", "save_steps": 2}
    trainer_of(seed_model(), windows, folder, hooks, **settings).train(resume_from_checkpoint=resume)


def test_the_state_is_that_of_the_checkpoint_wherever_it_lies(make_windows, tmp_path):
    windows = make_windows(12)
    saving(tmp_path / "mine", windows, upto=2, store=tmp_path / "mine.zarr")
    saving(tmp_path / "other", windows[:4].flip(0), upto=2, store=tmp_path / "other.zarr")
    # the Trainer writes into another run's folder, and resumes from its own checkpoint elsewhere
    saving(
        tmp_path / "other", windows, upto=4, store=tmp_path / "mine.zarr",
        resume=str(tmp_path / "mine" / "checkpoint-2"),
    )  # fmt: skip
    store = open_store(tmp_path / "mine.zarr")
    assert store.steps.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(store.label_counts(4), counted(windows[:8, 1:]).numpy())
    with pytest.raises(ValueError, match="another run's store"):
        saving(
            tmp_path / "third", windows, upto=4, store=tmp_path / "other.zarr",
            resume=str(tmp_path / "mine" / "checkpoint-2"),
        )  # fmt: skip


def test_a_state_of_another_step_is_refused(make_windows, tmp_path):
    windows, run = make_windows(12), tmp_path / "run"
    saving(run, windows, upto=4, store=tmp_path / "run.zarr")
    shutil.copy(run / "checkpoint-4" / "trainhooks.pt", run / "checkpoint-2" / "trainhooks.pt")
    with pytest.raises(ValueError, match=r"checkpoint is of step 2.*of step 4"):
        saving(run, windows, upto=6, store=tmp_path / "run.zarr", resume=str(run / "checkpoint-2"))


def test_what_auto_find_batch_size_gives_up_is_replaced(make_windows, tmp_path):
    class OutOfMemory(TrainerCallback):
        failed = False

        def on_substep_end(self, args, state, control, **kwargs):
            if state.global_step == 2 and not OutOfMemory.failed:
                OutOfMemory.failed = True
                raise RuntimeError("CUDA out of memory.")

    windows, lines = make_windows(16), JsonLinesSink(tmp_path / "run.jsonl")
    hooks = TrainHooks(store=tmp_path / "run.zarr", counts=COUNTS, sinks=[lines])
    settings = {"max_steps": 4, "auto_find_batch_size": True, "gradient_accumulation_steps": 2}
    trainer_of(build_llama(), windows, tmp_path, hooks, OutOfMemory(), **settings).train()
    store = open_store(tmp_path / "run.zarr")
    assert OutOfMemory.failed
    assert store.steps.tolist() == [0, 1, 2, 3, 4]
    assert store.complete
    assert store.label_counts(4).sum() == 4 * 2 * 16
    assert [json.loads(line)["step"] for line in lines.path.read_text().splitlines()] == [0, 1, 2, 3, 4]


def test_steps_in_the_reporters_files_never_go_backwards(make_windows, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    hooks = TrainHooks(counts=COUNTS)
    settings = {"max_steps": 4, "report_to": "tensorboard", "logging_steps": 1}
    trainer_of(build_llama(), make_windows(8), tmp_path, hooks, **settings).train()
    (file,) = (tmp_path / "events").iterdir()
    found = [(e.step, e.summary.value[0].tag) for e in EventFileLoader(str(file)).Load() if e.summary.value]
    steps = [step for step, tag in found if "text_summary" not in tag]
    assert steps == sorted(steps)
    tags = {tag for _, tag in found}
    assert "trainhooks/nonfinite_rows" in tags
    assert not {tag for tag in tags if tag.startswith("train/trainhooks")}
    assert not tags & {"trainhooks/loss", "trainhooks/learning_rate"}


def test_a_batch_of_the_tests_is_what_the_trainer_sees():
    assert set(as_batch([torch.zeros(2)])) == {"input_ids", "labels"}
