"""Accelerate's and Fabric's own checkpoints take the recorder along, and a run goes on from them."""

import numpy as np
import pytest
import torch
from loops import COUNTS, TinyLM, batches
from torch.nn.functional import cross_entropy

import trainhooks as th

STEPS, SAVED = 5, 2


def train(model, optimizer, backward, recorder, *, first, last):
    for ids in batches(STEPS)[first:last]:
        recorder.begin_step(ids[:, 1:])
        loss = cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        backward(loss)
        recorder.before_update()
        optimizer.step()
        optimizer.zero_grad()
        recorder.after_update(loss=loss)


def accelerated(folder, *, mode="create", first=0, last=STEPS, precision="no"):
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    model = TinyLM()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    with th.Recorder(model, store=folder / "run.zarr", counts=COUNTS, mode=mode) as recorder:
        accelerator.register_for_checkpointing(recorder)
        if mode == "resume":
            accelerator.load_state(folder / "checkpoint")
        train(model, optimizer, accelerator.backward, recorder, first=first, last=last)
        if mode == "create" and last < STEPS:
            accelerator.save_state(folder / "checkpoint")
            train(model, optimizer, accelerator.backward, recorder, first=last, last=last + 1)  # and is lost
    AcceleratorState._reset_state(reset_partial_state=True)
    return accelerator.unwrap_model(model)


def in_fabric(folder, *, mode="create", first=0, last=STEPS, precision="32-true"):
    fabric = pytest.importorskip("lightning.fabric").Fabric(devices=1, accelerator="cpu", precision=precision)
    fabric.launch()
    model = TinyLM()
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    with th.Recorder(model, store=folder / "run.zarr", counts=COUNTS, mode=mode) as recorder:
        state = {"model": model, "optimizer": optimizer, "recorder": recorder}
        if mode == "resume":
            fabric.load(folder / "checkpoint.ckpt", state)
        train(model, optimizer, fabric.backward, recorder, first=first, last=last)
        if mode == "create" and last < STEPS:
            fabric.save(folder / "checkpoint.ckpt", state)
            train(model, optimizer, fabric.backward, recorder, first=last, last=last + 1)  # and is lost
    return model.module


HOSTS = {"accelerate": accelerated, "fabric": in_fabric}


@pytest.mark.parametrize("host", HOSTS)
def test_a_run_goes_on_from_the_hosts_own_checkpoint(host, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    HOSTS[host](whole)
    HOSTS[host](parts, last=SAVED)
    HOSTS[host](parts, mode="resume", first=SAVED)
    expected, found = (th.open_store(folder / "run.zarr") for folder in (whole, parts))
    assert found.complete
    assert found.steps.tolist() == list(range(STEPS + 1))
    for step in range(STEPS + 1):
        assert np.array_equal(found.output_embedding(step), expected.output_embedding(step))
        assert np.array_equal(found.label_counts(step), expected.label_counts(step))


@pytest.mark.parametrize(("host", "precision"), [("accelerate", "bf16"), ("fabric", "bf16-mixed")])
def test_mixed_precision_records_the_float32_weights(host, precision, tmp_path):
    model = HOSTS[host](tmp_path, precision=precision)
    assert model.lm_head.weight.dtype == torch.float32
    assert np.array_equal(th.open_store(tmp_path / "run.zarr").output_embedding(STEPS), model.lm_head.weight.detach())
