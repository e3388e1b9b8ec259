"""What the main thread leaves to another one: it is done there, and an interrupt leaves it done or not begun."""

import signal
import sys
import threading

import pytest

from trainhooks.core import threads
from trainhooks.core.threads import elsewhere, python_ends, start_threads


def test_the_main_thread_waits_for_another_and_others_do_it_themselves():
    main = threading.get_ident()
    other = elsewhere(threading.get_ident)
    assert other != main
    found = []
    thread = threading.Thread(target=lambda: found.append(elsewhere(threading.get_ident) == threading.get_ident()))
    thread.start()
    thread.join()
    assert found == [True]


def test_what_is_raised_there_is_raised_here():
    def fail():
        raise KeyError("there")

    with pytest.raises(KeyError, match="there"):
        elsewhere(fail)


def test_an_interrupt_is_raised_when_the_call_has_ended():
    begun, ended = threading.Event(), []

    def call():
        begun.set()
        signal.raise_signal(signal.SIGINT)
        ended.append(True)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            elsewhere(call)
    finally:
        signal.signal(signal.SIGINT, before)
    assert begun.is_set()
    assert ended == [True]


def test_threads_run_when_they_are_started():
    gate, ran = threading.Event(), []
    several = [threading.Thread(target=lambda: (gate.wait(), ran.append(True))) for _ in range(3)]
    start_threads(*several)
    assert all(thread.is_alive() for thread in several)
    gate.set()
    for thread in several:
        thread.join()
    assert len(ran) == 3
    with pytest.raises(RuntimeError, match="only be started once"):
        start_threads(several[0])


def test_python_goes_on_and_a_python_that_gives_no_thread_ends(monkeypatch):
    assert not python_ends()

    def refuse(text):
        def start(*_):
            raise RuntimeError(text)

        return start

    with monkeypatch.context() as patch:
        patch.setattr(threads._thread, "start_new_thread", refuse("can't create new thread at interpreter shutdown"))
        assert python_ends()
        patch.setattr(threads._thread, "start_new_thread", refuse("can't start new thread"))
        with pytest.raises(RuntimeError, match="can't start new thread"):
            python_ends()
        patch.setattr(sys, "is_finalizing", lambda: True)
        assert python_ends()
