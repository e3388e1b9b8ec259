"""What a record holds once it is on the host, and what a matrix is in 16 bits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from loops import VOCAB, TinyLM, batches, train

import trainhooks as th
from trainhooks.numerics.host import pack
from trainhooks.recording.staging import BlockingStager
from trainhooks.store.format.precision import round_and_pack

COUNTS = np.bincount(batches(200).numpy().ravel(), minlength=VOCAB)


def odd_numbers() -> torch.Tensor:
    """Ties, carries into the exponent, subnormal numbers, infinities and zeros among ordinary ones."""
    bits = torch.randint(-(2**31), 2**31 - 1, (64, 1024), generator=torch.Generator().manual_seed(0), dtype=torch.int64)
    values = bits.to(torch.int32).view(torch.float32).nan_to_num(0.0)
    ties = (torch.arange(1024, dtype=torch.int32) << 15).view(torch.float32)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 3.4e38, 1e-45, -1e-39, 1.0 + 2**-8] * 128)
    return torch.cat([values, ties.nan_to_num(0.0)[None], special[None]])


def test_the_devices_cast_is_the_stores_rounding():
    values = odd_numbers()
    stager = BlockingStager()
    stager.stage([(stager.copy(values, dtype=torch.bfloat16), torch.bfloat16)], note=None, at_once=True)
    [(_, [packed])] = stager.completed()
    np.testing.assert_array_equal(packed.view(torch.uint16).numpy(), round_and_pack(values.numpy(), kept_bits=7))


def test_a_nan_stays_one():
    memory, model = th.MemorySink(), TinyLM()
    with torch.no_grad():
        model.lm_head.weight[3, 1] = torch.nan
    with pytest.warns(RuntimeWarning, match="step 0: weights are not finite: 1 rows"):
        th.Recorder(model, metrics=[], precision="bfloat16", sinks=[memory]).begin_step()
    assert np.argwhere(np.isnan(memory.records[0].matrix)).tolist() == [[3, 1]]


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", np.uint16), (7, np.uint16), ("float32", np.float32)])
def test_a_record_has_the_matrix_as_it_is_stored_and_as_float32(precision, dtype):
    model, memory = TinyLM(), th.MemorySink()
    th.Recorder(model, precision=precision, sinks=[memory]).begin_step()
    [record] = memory.records
    assert record.snapshot.dtype == dtype
    assert record.matrix.dtype == np.float32
    head = model.lm_head.weight.detach()
    expected = head.bfloat16().float() if dtype == np.uint16 else head
    np.testing.assert_array_equal(record.matrix, expected.numpy())


def test_a_record_without_a_matrix_has_none():
    memory, model = th.MemorySink(), TinyLM()
    recorder = th.Recorder(model, snapshot_schedule=th.Steps([1]), sinks=[memory])
    recorder.begin_step()
    recorder.close()
    assert memory.records[0].snapshot is memory.records[0].matrix is None
    assert memory.records[0].label_counts is None


def test_a_rank_whose_records_nobody_takes_moves_none():
    recorder = th.Recorder(TinyLM(), counts=COUNTS)
    recorder._ranks.is_rank0 = False
    train(recorder._model, batches(3), recorder)
    assert recorder._sink_group._last is None, "nothing was sent"
    assert recorder.state_dict()["recorded"] == 3
    assert recorder.state_dict()["references"]["previous_head"].shape == recorder._model.lm_head.weight.shape


def test_what_later_records_compare_with_is_not_rounded(tmp_path):
    def run(**settings):
        model, memory = TinyLM(), th.MemorySink()
        with th.Recorder(model, counts=COUNTS, sinks=[memory], **settings) as recorder:
            train(model, batches(4), recorder)
        return [record.values["geometry.relative_step"] for record in memory.records[1:]]

    assert run(precision="bfloat16", store=tmp_path / "run.zarr") == run()


def test_a_plan_says_what_is_pinned():
    plan = th.Recorder(TinyLM()).plan()
    assert "pinned" not in str(plan)
    assert "2 kB of host memory (1 kB of it pinned)" in str(replace(plan, host_bytes=2000, pinned_bytes=1000))


def test_results_of_two_devices_stay_apart_until_they_are_on_the_host():
    given = {"host": torch.tensor([1.0, 2.0]).bfloat16(), "device": torch.ones(2, 2, device="meta"), "known": 3.0}
    packed = pack(given)
    assert packed.flat.device.type == "meta"
    values = packed.unpack(torch.tensor([5.0, 6.0, 7.0, 8.0]))
    assert list(values) == ["host", "device", "known"]
    assert values["host"].tolist() == [1.0, 2.0]
    assert values["device"].tolist() == [[5.0, 6.0], [7.0, 8.0]]
    assert values["known"] == 3.0
