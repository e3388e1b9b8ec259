"""Worker processes: kept busy in order, lost, interrupted, and ended with the process that they work for."""

import os
import signal
import subprocess
import sys
from concurrent.futures import BrokenExecutor, Future
from threading import Event

import pytest

from trainhooks.core.workers import WorkerPool, given_pool, is_lost_worker, local_pool


def interrupted():
    """What Ctrl-C does to a worker."""
    os.kill(os.getpid(), signal.SIGINT)
    return "still here"


def killed():
    """What the system does to one when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def refused():
    """A task that fails by itself."""
    raise ValueError("no such thing")


def never(note):
    """A task without an end; its worker's id is in the pipe `note`."""
    with open(note, "w", encoding="utf-8") as file:
        file.write(str(os.getpid()))
    Event().wait()


class ByHand:
    """An executor whose tasks are done when the test says so."""

    def __init__(self):
        self.futures = []

    def submit(self, function, *args):
        self.futures.append(Future())
        return self.futures[-1]


def test_tasks_come_in_order_and_so_many_are_under_way():
    hands = ByHand()
    pool = given_pool(hands, count=1, under_way=2)
    found = pool.finished("abc", lambda task: pool.submit(str, task), in_order=True)
    hands.submit = lambda *args, submit=hands.submit: done_second(hands, submit(*args))
    assert [(task, future.result()) for task, future in found] == [("a", 1), ("b", 2), ("c", 3)]


def done_second(hands, future):
    """Let the second task be done before the first, and the last at once."""
    number = len(hands.futures)
    if number == 2:
        hands.futures[1].set_result(2)
        hands.futures[0].set_result(1)
    if number == 3:
        future.set_result(3)
    return future


def test_as_they_come_the_first_done_is_first():
    hands = ByHand()
    pool = given_pool(hands, count=1, under_way=2)
    found = pool.finished("abc", lambda task: pool.submit(str, task), in_order=False)
    submit = hands.submit

    def second_at_once(*args):
        future = submit(*args)
        if len(hands.futures) == 2:
            future.set_result("second")
        return future

    hands.submit = second_at_once
    assert next(found)[0] == "b"
    found.close()
    assert hands.futures[0].cancelled()
    assert len(hands.futures) == 2


def test_a_broken_executor_is_renewed():
    class Broken:
        def submit(self, *args):
            raise BrokenExecutor("gone")

    hands = ByHand()
    pool = WorkerPool(Broken(), lambda: hands, count=1, under_way=2)
    assert pool.submit(str) is hands.futures[0]


def test_a_local_pool_through_all_that_can_happen(tmp_path):
    note = tmp_path / "pid"
    os.mkfifo(note)

    def use(pool):
        assert pool.submit(interrupted).result() == "still here"
        with pytest.raises(ValueError, match="no such thing"):
            pool.submit(refused).result()
        lost = pool.submit(killed).exception()
        assert is_lost_worker(lost)
        assert not is_lost_worker(ValueError("killed"))
        pool.submit(never, str(note))
        workers.append(int(note.read_text()))
        raise KeyboardInterrupt

    workers = []
    with pytest.raises(KeyboardInterrupt), local_pool(1) as pool:
        use(pool)
    assert workers[0] != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(workers[0], 0)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {folder!r})
from test_workers import never
from trainhooks.core.workers import local_pool
if __name__ == "__main__":
    with local_pool(1) as pool:
        pool.submit(never, {note!r})
        open({note!r}).read()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script, note = tmp_path / "main.py", tmp_path / "pid"
    os.mkfifo(note)
    script.write_text(SCRIPT.format(folder=os.path.dirname(__file__), note=str(note)))
    # returns when the last process that holds its output is gone
    done = subprocess.run(
        [sys.executable, script], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stdout


def test_a_script_without_a_guard_is_told(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "from trainhooks.core.workers import local_pool\nwith local_pool(1) as pool:\n    print('started')\n"
    )
    done = subprocess.run([sys.executable, script], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "worker processes cannot start. In a script, make this call under `if __name__" in done.stderr
