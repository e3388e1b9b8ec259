"""Writing in the background: bounded, in order, and honest about what went wrong."""

import errno
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest

from trainhooks.store import BackgroundWriter, StoreError, StoreWriter, Writing, open_store


@pytest.fixture
def begin(run, tmp_path):
    """A writer on a store of blocks of 4, and the run it records."""

    def begin(**writing):
        core = StoreWriter(tmp_path / "s.zarr", replace(run.layout, block=4))
        return BackgroundWriter(core, writing=Writing(**writing)), core

    return begin


def held(core, monkeypatch):
    """Let the writing thread wait before each record until the event is set."""
    gate, plain = threading.Event(), core.journal
    monkeypatch.setattr(core, "journal", lambda *args, **kwargs: (gate.wait(120), plain(*args, **kwargs))[1])
    return gate


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_records_arrive_in_order_and_whole(run, begin, threads):
    writer, core = begin(threads=threads)
    run.append(writer, range(18))
    writer.flush()
    assert writer.durable_step == 17
    writer.finish({"convergence.cosine_to_final": np.ones((18, 2))})
    writer.close()
    writer.close()
    store = open_store(core.path)
    assert store.complete
    assert store.steps.tolist() == list(range(18))
    np.testing.assert_array_equal(list(store.snapshots), [run.matrix(step) for step in range(18)])
    assert not (core.path / ".lock").exists()
    with pytest.raises(ValueError, match="has ended"):
        writer.append(18, {})


def test_the_caller_may_change_its_buffers_at_once(run, begin, monkeypatch):
    writer, core = begin()
    gate = held(core, monkeypatch)
    matrix, sketch, counts = np.empty((70, 3), np.float32), np.empty((2, 5), np.float32), np.empty(70, np.int64)
    for step in range(6):
        matrix[:], sketch[:], counts[:] = run.matrix(step), run.sketch(step), run.counts(step)
        writer.append(step, {}, snapshot=matrix, sketch=sketch, label_counts=counts)
    gate.set()
    writer.close()
    store = open_store(core.path)
    for step in range(6):
        np.testing.assert_array_equal(store.output_embedding(step), run.matrix(step))
        np.testing.assert_array_equal(store.sketch[step], run.sketch(step))
        np.testing.assert_array_equal(store.label_counts(step), run.counts(step))


def test_a_kept_matrix_is_never_written_into(run, begin):
    writer, _ = begin()
    given = [run.matrix(step) for step in range(8)]
    for step, matrix in enumerate(given):
        writer.append(step, {}, snapshot=matrix, keep=True)
        writer.flush()
        writer.append(100 * (step + 1), {}, snapshot=run.matrix(50)) if step == 7 else None
    writer.close()
    for step, matrix in enumerate(given):
        np.testing.assert_array_equal(matrix, run.matrix(step))


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_error_is_raised_once_and_nothing_durable_is_lost(run, begin, monkeypatch):
    writer, core = begin()
    run.append(writer, range(3))
    writer.flush()
    with monkeypatch.context() as patched:
        patched.setattr("trainhooks.store.storage.base.ChecksumWriter.write", full_disk)
        run.append(writer, [3])
        with pytest.raises(StoreError, match=r"recording has stopped.*No space left.*everything up to step 2"):
            writer.flush()
        run.append(writer, [4])
        writer.close()
    assert open_store(core.path).steps.tolist() == [0, 1, 2]
    again = StoreWriter(core.path, core.layout, mode="resume")
    assert again.last_step == 2


def test_the_run_may_go_on_without_its_store(run, begin, monkeypatch):
    writer, core = begin(on_error="continue")
    run.append(writer, range(3))
    writer.flush()
    with monkeypatch.context() as patched:
        patched.setattr("trainhooks.store.writing.fold.write_shard", full_disk)
        run.append(writer, [3])
        writer._threads[1].join()
        with pytest.warns(RuntimeWarning, match=r"goes on without it") as said:
            run.append(writer, range(4, 8))
        assert len(said) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            writer.close()
    assert open_store(core.path).steps.tolist() == [0, 1, 2, 3]


def test_leaving_makes_the_queue_durable_and_lets_the_store_go(run, begin):
    writer, core = begin()
    run.append(writer, range(6))
    writer.detach()
    assert open_store(core.path).steps.tolist() == list(range(6))
    assert not open_store(core.path).complete
    StoreWriter(core.path, core.layout, mode="resume").close()


def test_what_does_not_fit_is_refused_in_the_callers_thread(run, begin):
    writer, _ = begin()
    run.append(writer, [3])
    with pytest.raises(ValueError, match="the last one is 3"):
        run.append(writer, [3])
    with pytest.raises(ValueError, match="was not declared"):
        writer.append(4, {"loss": 1.0})
    writer.close()


def test_settings():
    with pytest.raises(ValueError, match="backpressure is 'wait'; use one of block, drop"):
        Writing(backpressure="wait")
    with pytest.raises(ValueError, match="threads is 0"):
        Writing(threads=0)


def test_memory_is_known_before_the_run(layout):
    large = replace(layout, vocab=50304, dim=768, token_count=None, token_text=None)
    assert Writing().memory_bytes(large) == 2 * (50304 * 768 * 4 + 50304 * 8)
    assert Writing().memory_bytes(layout) == 256 << 20
    assert Writing(queue_bytes=5).memory_bytes(large) == 5


def test_a_reader_follows_a_running_writer(run, begin):
    writer, core = begin()
    store = open_store(core.path, follow=True)
    moment = open_store(core.path)
    for step in range(10):
        run.append(writer, [step])
        writer.flush()
        assert store.steps.tolist() == list(range(step + 1))
        np.testing.assert_array_equal(store.output_embedding(step), run.matrix(step))
        np.testing.assert_array_equal(store.sketch[step], run.sketch(step))
    assert not store.complete
    writer.close()
    assert store.complete
    assert moment.steps.tolist() == []
    assert moment.refresh()
    assert not moment.refresh()
    assert moment.steps.tolist() == list(range(10))
