"""What only a GPU can show: the hooks wait for nothing, change nothing, and store what the head was."""

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from loops import VOCAB, TinyLM, batches
from torch import nn

import trainhooks as th
from trainhooks.recording.staging import CudaStreams, PinnedStager

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

COUNTS = np.bincount(batches(200).numpy().ravel(), minlength=VOCAB)
STEPS = 40
PREPARED = 2  # updates after which all that depends on counts alone lies on the device


@contextmanager
def guard():
    """Inside, what makes the host wait for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def train(recorder, model, *, steps=STEPS, guarded=False, deterministic=False, heads=None):
    """Losses, as tensors of the device; `heads` gets the output embedding before each update and after the last."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step, ids in enumerate(batches(steps).cuda()):
        watched = guard if guarded and step >= PREPARED else nullcontext
        if heads is not None:
            heads.append(model.lm_head.weight.detach().clone())
        if recorder is not None:
            with watched():
                recorder.begin_step(ids[:, 1:])
        torch.use_deterministic_algorithms(deterministic)
        loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        if recorder is not None:
            with watched():
                recorder.before_update()
        optimizer.step()
        optimizer.zero_grad()
        torch.use_deterministic_algorithms(False)
        if recorder is not None:
            with watched():
                recorder.after_update(loss=loss.detach(), learning_rate=1e-2)
        losses.append(loss.detach())
    if heads is not None:
        heads.append(model.lm_head.weight.detach().clone())
    return losses


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("snapshots", [th.EveryStep(), th.Every(10)], ids=["each step", "each tenth"])
@pytest.mark.parametrize("probe", [False, True])
def test_the_hooks_wait_for_nothing(tmp_path, precision, snapshots, probe):
    model = TinyLM().cuda()
    recorder = th.Recorder(
        model,
        store=tmp_path / "run.zarr",
        counts=COUNTS,
        metrics=[th.FrequencyProbe(COUNTS), th.GroupConvergence(), th.LeadParts(COUNTS)] if probe else [],
        snapshot_schedule=snapshots,
        precision=precision,
    )
    with recorder:
        train(recorder, model, guarded=True)
    assert th.open_store(tmp_path / "run.zarr").steps.tolist() == list(range(STEPS + 1))


def test_losses_are_those_of_the_bare_loop(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    bare = train(None, TinyLM().cuda(), deterministic=True)
    model = TinyLM().cuda()
    with th.Recorder(model, store=tmp_path / "run.zarr", counts=COUNTS, precision="bfloat16") as recorder:
        recorded = train(recorder, model, deterministic=True)
    assert torch.equal(torch.stack(bare), torch.stack(recorded))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("compared", [False, True])
def test_the_store_has_the_head_of_each_step(tmp_path, precision, compared):
    model, heads = TinyLM().cuda(), []
    metrics = None if compared else []
    with th.Recorder(model, store=tmp_path / "run.zarr", metrics=metrics, precision=precision) as recorder:
        train(recorder, model, heads=heads)
    store = th.open_store(tmp_path / "run.zarr")
    for step, head in enumerate(heads):
        expected = head.to(getattr(torch, precision)).float().cpu().numpy()
        np.testing.assert_array_equal(store.output_embedding(step), expected, err_msg=str(step))


def test_numbers_are_those_of_the_host():
    def values(device):
        model, memory = TinyLM().to(device), th.MemorySink()
        with th.Recorder(model, counts=COUNTS, sinks=[memory]) as recorder:
            recorder.begin_step(torch.arange(10, device=device))
            for scale in (0.9, 1.25):
                with torch.no_grad():
                    for index, parameter in enumerate(model.parameters()):
                        parameter.mul_(scale + index / 64)
                        parameter[0].add_(0.5)
                recorder.after_update(learning_rate=0.5)
        return memory

    host, device = values("cpu"), values("cuda")
    for one, other in zip(host.records, device.records, strict=True):
        assert set(one.values) == set(other.values)
        np.testing.assert_array_equal(one.snapshot, other.snapshot)
        np.testing.assert_array_equal(one.label_counts, other.label_counts)
        np.testing.assert_allclose(one.sketch, other.sketch, rtol=1e-5, atol=1e-5)
        for name, value in one.values.items():
            if not name.startswith(("recorder.", "probe.pivot")):
                np.testing.assert_allclose(value, other.values[name], rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("compared", [False, True])
def test_the_peak_of_device_memory_rises_by_one_copy_of_the_head(tmp_path, compared):
    vocab, dim, staging = 40_000, 512, 64 << 20

    class Wide(nn.Module):
        """A head, and an activation that is larger than three copies of it."""

        def __init__(self):
            super().__init__()
            self.lm_head = nn.Linear(dim, vocab, bias=False)

    def peak(recorder, model):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(8):
            if recorder is not None:
                recorder.begin_step()
                recorder.before_update()
            hidden = torch.ones(2048, dim, device="cuda")
            model.lm_head(hidden).square().mean().backward()
            model.zero_grad()
            if recorder is not None:
                recorder.after_update()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    model = Wide().cuda()
    bare = peak(None, model)
    metrics = [th.HeadGeometry()] if compared else []
    with th.Recorder(model, store=tmp_path / "run.zarr", metrics=metrics) as recorder:
        recorded = peak(recorder, model)
    assert recorded - bare <= 4 * vocab * dim + staging


def test_a_ring_that_is_full_waits_and_loses_nothing():
    stager = PinnedStager(CudaStreams(torch.device("cuda", 0)), slot_bytes=1 << 20)
    source = torch.zeros(1 << 22, device="cuda")
    for number in range(12):
        copy = stager.copy(source, dtype=torch.float32)
        stager.stage([(copy, torch.float32)], note=number, at_once=True)
        source += 1
    completed = list(stager.completed(wait=True))
    assert [note for note, _ in completed] == list(range(12))
    for number, (tensor,) in completed:
        assert tensor.eq(number).all()


def test_the_device_has_a_clock_of_its_own():
    model = TinyLM().cuda()
    with th.Recorder(model, counts=COUNTS) as recorder:
        train(recorder, model, steps=5)
    torch.cuda.synchronize()
    cost = recorder.cost
    assert 0 < cost.device_seconds < cost.wall_seconds
    assert cost.fraction > 0
