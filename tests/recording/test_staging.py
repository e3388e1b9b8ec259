"""The stager: order, slots taken again, waiting where the ring is full, nothing lost at the end."""

from dataclasses import replace

import pytest
import torch
from delayed_streams import DelayedEvent, DelayedStreams

from trainhooks.recording.plan import StagingPlan, reference_limit
from trainhooks.recording.staging import RECORDS_AT_ONCE, SLOTS, BlockingStager, PinnedStager

MATRIX = torch.arange(12.0).view(4, 3)


def stager(*, lag=None, slots=2, together=1, keeps_on_device=False):
    streams = DelayedStreams(lag=lag)
    options = {"slots": slots, "records_at_once": together, "keeps_on_device": keeps_on_device}
    return streams, PinnedStager(streams, slot_bytes=256, **options)


def stage(stager, *numbers, at_once=False):
    for number in numbers:
        stager.stage([(torch.tensor([float(number)]), torch.float64)], note=number, at_once=at_once)


def received(stager, *, wait=False):
    return [(note, [tensor.tolist() for tensor in tensors]) for note, tensors in stager.completed(wait=wait)]


def test_what_arrives_is_what_was_sent_in_its_dtype_and_nobody_elses():
    staged = [
        (MATRIX.clone(), torch.bfloat16),
        (torch.tensor(2**40 + 1), torch.int64),
        (MATRIX.bool(), torch.bool),
        (MATRIX.bfloat16()[:, 1:], torch.bfloat16),
        (torch.zeros(0, 5), torch.float32),
    ]
    for one in (BlockingStager(), stager()[1]):
        one.stage(staged, note="here", at_once=True)
        [(note, tensors)] = one.completed(wait=True)
        assert note == "here"
        for (given, dtype), tensor in zip(staged, tensors, strict=True):
            assert tensor.dtype == dtype
            assert torch.equal(tensor, given.to(dtype))
        one.stage(staged, note="again", at_once=True)
        assert torch.equal(tensors[0], MATRIX.bfloat16()), "a slot that is taken again is not the receiver's memory"


def test_looking_does_not_wait():
    streams, pinned = stager()
    stage(pinned, 1)
    assert received(pinned) == []
    assert streams.host_waits == 0
    streams.run(1)
    assert received(pinned) == [(1, [[1.0]])]
    assert streams.host_waits == 0 == pinned.waits


def test_records_come_in_order_and_once():
    for lag in (None, 0, 1):
        _, pinned = stager(lag=lag)
        got = []
        for number in range(7):
            stage(pinned, number)
            got += received(pinned)
        got += received(pinned, wait=True)
        assert got == [(number, [[float(number)]]) for number in range(7)]
        assert received(pinned, wait=True) == []


def test_a_full_ring_waits_for_the_oldest_alone():
    streams, pinned = stager(slots=2)
    stage(pinned, 1, 2)
    assert (streams.host_waits, pinned.waits) == (0, 0)
    stage(pinned, 3)
    assert (streams.host_waits, pinned.waits, streams.done) == (1, 1, 1)
    assert received(pinned) == [(1, [[1.0]])]
    stage(pinned, 4)
    assert (streams.host_waits, pinned.waits, streams.done) == (2, 2, 2)
    assert [note for note, _ in received(pinned, wait=True)] == [2, 3, 4]
    assert len(streams.pinned_bytes) == 2, "no slot but the first ones"


def test_a_slot_that_is_done_is_taken_without_waiting():
    streams, pinned = stager(slots=1, lag=0)
    stage(pinned, *range(5))
    assert (streams.host_waits, pinned.waits) == (0, 0)
    assert [note for note, _ in received(pinned)] == list(range(5))


def test_records_travel_together_unless_one_is_urgent():
    streams, pinned = stager(together=3, lag=0)
    stage(pinned, 1, 2)
    assert streams.done == 0
    stage(pinned, 3)
    assert streams.done == 1
    stage(pinned, 4)
    stage(pinned, 5, at_once=True)
    assert streams.done == 2
    stage(pinned, 6)
    assert [note for note, _ in received(pinned)] == [1, 2, 3, 4, 5]
    assert received(pinned, wait=True) == [(6, [[6.0]])]


def test_a_load_larger_than_a_slot_gets_a_larger_one_that_stays():
    streams, pinned = stager(slots=1, lag=0)
    large = torch.ones(1000)
    for note in "ab":
        pinned.stage([(large, torch.float32)], note=note, at_once=True)
    assert [torch.equal(tensors[0], large) for _, tensors in pinned.completed()] == [True, True]
    assert streams.pinned_bytes == [256, 4000]


def test_a_copy_is_a_point_in_time_and_its_place_is_taken_again_only_when_it_has_left():
    streams, pinned = stager()
    weight = torch.nn.Parameter(MATRIX.clone())
    for number in (1, 2):
        copy = pinned.copy(weight, dtype=torch.bfloat16)
        pinned.stage([(copy, torch.bfloat16)], note=number, at_once=True)
        with torch.no_grad():
            weight.add_(1)
    assert streams.host_waits == 0
    assert streams.holds == 1
    first, second = (tensors[0] for _, tensors in pinned.completed(wait=True))
    assert torch.equal(first, MATRIX.bfloat16())
    assert torch.equal(second, (MATRIX + 1).bfloat16())
    assert len(pinned._places) == 1


def test_an_interrupt_while_the_ring_is_full_loses_neither_a_record_nor_a_slot(monkeypatch):
    streams, pinned = stager(slots=2)
    stage(pinned, 1, 2)
    with monkeypatch.context() as patched:

        def interrupted(event):
            raise KeyboardInterrupt

        patched.setattr(DelayedEvent, "synchronize", interrupted)
        for number in (3, 4):
            with pytest.raises(KeyboardInterrupt):
                stage(pinned, number)
    assert [note for note, _ in received(pinned, wait=True)] == [1, 2, 3, 4]
    stage(pinned, 5, 6)
    assert [note for note, _ in received(pinned, wait=True)] == [5, 6]
    assert len(streams.pinned_bytes) == 2


def test_what_has_landed_is_given_out_before_a_device_that_failed_is_asked(monkeypatch):
    _, pinned = stager(slots=1)
    stage(pinned, 1, 2)

    def failed(event):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(DelayedEvent, "synchronize", failed)
    arriving = pinned.completed(wait=True)
    assert next(arriving)[0] == 1
    with pytest.raises(RuntimeError, match="device-side assert"):
        next(arriving)


@pytest.mark.parametrize("kind", ["host", "pinned", "on the device"])
def test_what_is_kept_is_read_as_it_was(kind):
    streams, one = (None, BlockingStager()) if kind == "host" else stager(keeps_on_device=kind == "on the device")
    initial = one.offload(one.copy(MATRIX, dtype=torch.float32))
    previous = one.offload(one.copy(MATRIX + 1, dtype=torch.float32))
    assert torch.equal(one.to_device(initial), MATRIX)
    brought = one.to_device(previous)
    previous = one.offload(one.copy(MATRIX + 2, dtype=torch.float32), over=previous)
    assert torch.equal(brought, MATRIX + 1), "a record's metrics go on reading while the next is kept"
    assert torch.equal(one.to_host(previous), MATRIX + 2)
    assert torch.equal(one.to_host(initial), MATRIX)
    if kind == "pinned":
        assert streams.pinned_bytes == [256, 256, MATRIX.nbytes, MATRIX.nbytes]


def test_what_stays_on_the_device_never_moves_and_takes_no_more_places():
    streams, one = stager(keeps_on_device=True)
    initial = previous = None
    places = set()
    for record in range(5):
        now = one.copy(MATRIX + record, dtype=torch.float32)
        if previous is not None:
            assert torch.equal(one.to_device(previous), MATRIX + record - 1)
        one.stage([(now, now.dtype)], note=record, at_once=True)
        initial = one.offload(now) if initial is None else initial
        previous = one.offload(now, over=previous)
        places.add(previous.data_ptr())
    assert torch.equal(one.to_host(initial), MATRIX)
    assert len(places) == 2, "the copy's place and the kept one, in turn"
    assert [int((matrix - MATRIX)[0, 0]) for _, (matrix,) in one.completed(wait=True)] == [0, 1, 2, 3, 4]
    assert streams.moved_bytes == 5 * [MATRIX.nbytes]


def test_what_is_compared_with_stays_on_a_gpu_that_has_room(monkeypatch):
    gpu = StagingPlan(
        device=torch.device("cuda", 0), vocab=100, dim=8, stored=torch.float32, kept_copies=2, record=1000
    )  # fmt: skip
    roomy = replace(gpu, reference_limit=6400)
    assert roomy.keeps_on_device
    assert roomy.device_bytes == gpu.device_bytes, "brought for a record they take the same"
    assert gpu.pinned_bytes - roomy.pinned_bytes == roomy.reference_bytes == 6400
    assert not replace(gpu, reference_limit=6399).keeps_on_device
    assert not replace(roomy, device=torch.device("cpu")).keeps_on_device
    assert reference_limit(torch.device("cpu")) == 0
    monkeypatch.setenv("TRAINHOOKS_REFERENCE_BYTES", "123")
    assert reference_limit(torch.device("cuda", 0)) == 123
    monkeypatch.setenv("TRAINHOOKS_REFERENCE_BYTES", "1 GB")
    with pytest.raises(ValueError, match="'1 GB': give bytes as a whole number"):
        reference_limit(torch.device("cuda", 0))


def test_the_plan_of_a_gpu_holds_what_the_stager_allocates():
    staging_plan = StagingPlan(
        device=torch.device("cuda", 0), vocab=100, dim=8, stored=torch.bfloat16, kept_copies=0, record=1000
    )  # fmt: skip
    assert staging_plan.copy_dtype == torch.bfloat16
    assert staging_plan.device_bytes == 2 * 800 + RECORDS_AT_ONCE * 1000
    assert staging_plan.pinned_bytes == SLOTS * staging_plan.slot_bytes
    assert staging_plan.slot_bytes >= 2 * 800 + RECORDS_AT_ONCE * 1000
    with_gram = replace(staging_plan, unbatched_bytes=512)
    assert with_gram.slot_bytes == staging_plan.slot_bytes + 512
    assert with_gram.device_bytes == staging_plan.device_bytes + 512
    host = StagingPlan(device=torch.device("cpu"), vocab=100, dim=8, stored=torch.float32, kept_copies=2, record=1000)
    assert (host.device_bytes, host.pinned_bytes) == (3 * 4 * 800, 0)
