"""Runs that are hit by signals, interrupted, or never closed; the long version is `benchmarks/faults.py`."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"


@pytest.fixture
def run_part():
    """Run a part of the script in a process of its own: its children run the exit handlers of whoever forks them."""

    def run(*counts: str) -> str:
        command = [sys.executable, "-W", "ignore", str(SCRIPT), *counts]
        done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_signals_lose_nothing_and_every_run_goes_on_from_its_checkpoint(run_part):
    assert "nothing lost" in run_part("--signals", "60", "--interrupts", "0", "--exits", "0")


def test_an_interrupt_anywhere_ends_the_run_and_leaves_a_sound_store(run_part):
    assert "none hangs" in run_part("--signals", "0", "--interrupts", "20", "--exits", "0")


def test_fifty_runs_that_nobody_closes_end_by_themselves_with_all_their_records(run_part):
    assert "exits: 50 runs" in run_part("--signals", "0", "--interrupts", "0", "--exits", "50")
