"""The benchmark of the probe follows a head in training, and its figures are those of a probe without past."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_head_in_training_needs_few_grams():
    """At the width from which it is done by itself; figures are looked at after 5 updates."""
    asked = ["--vocab", "2200", "--dim", "512", "--threads", "1", "--moving", "1e-4", "--steps", "5"]
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "probe.py"), *asked], check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    warm = re.search(r"^(\d) of 5 records after the first without a Gram", run.stdout, flags=re.MULTILINE)
    apart = re.search(r"slopes (\S+) of themselves, other figures (\S+), at most", run.stdout)
    assert int(warm[1]) >= 3, run.stdout
    assert 0 < float(apart[1]) < 1e-4
    assert 0 < float(apart[2]) < 1e-5
