"""Disks that refuse: full, limited, read only. One clear message, and nothing durable is lost."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from trainhooks.store import StoreError, check_place, open_store
from trainhooks.store.maintenance.verify import verify

RUN = """
    import resource, signal, sys, warnings
    import numpy as np
    from trainhooks.sinks import Record, StoreSink
    from trainhooks.store import Layout, StoreError, Writing

    path, on_error, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
    # a queue of one record: a record waits for the one before it, so what fails is heard of before the loop ends
    sink = StoreSink(path, writing=Writing(on_error=on_error, queue_bytes=1))
    sink.open(Layout(vocab=500, dim=20, groups=(), sketch_size=0, block=4))
    said, steps = [], 0
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *_: said.append(str(message))
    def write(step, rows=500):
        sink.write(Record(step, {}, snapshot=np.random.default_rng(step).standard_normal((500, 20)).astype("float32")))
    try:
        for step in range(40):
            if limit and step == 6:
                sink.read()
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            write(step)
            steps += 1
        sink.close()
    except StoreError as error:
        said.append(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(steps, len(said), *said, sep="\\n")
"""


def run(path, on_error, *, limit):
    command = [sys.executable, "-c", textwrap.dedent(RUN), str(path), on_error, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    steps, count, *said = done.stdout.splitlines()
    return int(steps), int(count), " ".join(said)


def check(path):
    found = verify(path)
    assert found.sound, found.problems
    store = open_store(path)
    assert len(store.steps) >= 6
    for step in store.snapshot_steps:
        expected = np.random.default_rng(step).standard_normal((500, 20)).astype("float32")
        np.testing.assert_array_equal(store.output_embedding(step), expected)


@pytest.mark.parametrize("on_error", ["continue", "raise"])
def test_a_disk_that_takes_no_more(tmp_path, on_error):
    steps, count, said = run(tmp_path / "s", on_error, limit=20_000)
    assert count == 1, said
    assert "recording has stopped" in said
    assert "everything up to step" in said
    assert (steps == 40) == (on_error == "continue")
    check(tmp_path / "s")


def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here; the size-limited test stands for it")
    try:
        steps, count, said = run(disk / "s", "continue", limit=0)
        assert (steps, count) == (40, 1), said
        assert "No space left" in said
        check(disk / "s")
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # a failed check may still hold its files


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot write the store"):
        check_place(tmp_path / "s", mode="create")
