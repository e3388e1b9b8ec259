"""How a run ends: by itself, in the wrong order, with an error, or collected; what is queued is not lost."""

import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from trainhooks.sinks import Record, StoreSink
from trainhooks.store import BackgroundWriter, StoreError, StoreWriter, Writing, open_store

EXITING = """
import sys
from kill import layout, matrix
from trainhooks.sinks import Record, StoreSink
from trainhooks.store import Writing
sink = StoreSink(sys.argv[1], writing=Writing(threads=int(sys.argv[2])))
sink.open(layout())
for step in range(30):
    sink.write(Record(step, {}, snapshot=matrix(step)))
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_queued_when_the_interpreter_ends_is_kept(tmp_path, threads):
    scripts = os.path.join(os.path.dirname(__file__), "..", "..", "benchmarks")
    code = f"import sys; sys.path.insert(0, {scripts!r})\n{EXITING}"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s"), str(threads)], check=True, timeout=600)
    assert open_store(tmp_path / "s").steps.tolist() == list(range(30))


def test_a_relative_path_stays_where_it_was(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = StoreWriter("s.zarr", run.layout)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run.append(writer, range(3))
    writer.close()
    assert open_store(tmp_path / "s.zarr").complete
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_copy_that_fails_gives_its_room_back(run, tmp_path, monkeypatch):
    writer = BackgroundWriter(StoreWriter(tmp_path / "s", run.layout), writing=Writing(queue_bytes=1))

    def copy(array):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(writer._room, "copy", copy)
        with pytest.raises(MemoryError):
            run.append(writer, [0])
    thread = threading.Thread(target=lambda: run.append(writer, [0]), daemon=True)
    thread.start()
    thread.join(120)
    assert not thread.is_alive()
    writer.close()
    assert open_store(tmp_path / "s").steps.tolist() == [0]


def test_a_finish_that_is_refused_does_not_hang_what_follows(run, tmp_path):
    writer = BackgroundWriter(StoreWriter(tmp_path / "s", run.layout), writing=Writing())
    run.append(writer, range(3))
    with pytest.raises(ValueError, match="nope"):
        writer.finish({"nope": np.zeros(3)})
    done = threading.Event()

    def go_on():
        try:
            run.append(writer, [3])
            writer.flush()
        except (StoreError, ValueError):
            pass
        writer.close()
        done.set()

    threading.Thread(target=go_on, daemon=True).start()
    assert done.wait(120)
    assert open_store(tmp_path / "s").steps.tolist()[:3] == [0, 1, 2]


def test_a_fold_that_fails_while_closing_is_said(run, tmp_path, monkeypatch):
    core = StoreWriter(tmp_path / "s", run.layout)
    closing = threading.Event()

    def fold(**_):
        assert closing.wait(120)
        raise StoreError("no room")

    monkeypatch.setattr(core, "fold", fold)
    writer = BackgroundWriter(core, writing=Writing())
    end = writer._end_fold
    monkeypatch.setattr(writer, "_end_fold", lambda: (closing.set(), end()))
    run.append(writer, [0])
    with pytest.raises(StoreError, match="no room"):
        writer.close()
    assert not open_store(tmp_path / "s").complete


def test_a_sink_collected_in_its_own_thread_does_not_wait_for_itself(run, tmp_path):
    sink = StoreSink(tmp_path / "s")
    sink.open(run.layout)
    writer = sink._writer
    collected, plain = threading.Event(), writer._writer.journal

    def journal(*args, **kwargs):
        collected.wait(120)
        gc.collect()
        return plain(*args, **kwargs)

    writer._writer.journal = journal
    gc.disable()
    try:
        sink.itself = sink  # a cycle, so that only the collector ends it
        for step in range(3):
            sink.write(Record(step, {}, snapshot=run.matrix(step)))
        del sink
        collected.set()
        writer._threads[0].join(120)
        assert not writer._threads[0].is_alive()
    finally:
        gc.enable()
    assert open_store(tmp_path / "s").steps.tolist() == [0, 1, 2]
