"""Which lines would make a GPU's host wait in each record: found on a fake device, without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_no_hook_waits():
    path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, str(TESTS / "support" / "fake_device.py")],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found.pop("probability"), "the probability probe refuses bad input, for which it waits: the device notes it"
    assert {"defaults", "bfloat16", "lead", "exact", "before the update"} <= set(found)
    assert not any(found.values()), json.dumps(found, indent=1)
