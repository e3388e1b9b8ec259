"""Which lines would make a GPU's host wait in each record: found on a pretended device, without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# one wait a record each; take an entry out when its line is mended
KNOWN = {
    "aten._linalg_eigh.default metrics/spectrum.py": "whether the eigenvalues converged is asked on the host",
    "aten._to_copy.default probe/rows.py": "the folds' sizes go to the device with each record",
}


def test_no_hook_waits_but_where_it_is_known():
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, str(HERE / "pretended_device.py")],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found.pop("probability"), "the probability probe refuses bad input, for which it waits: the device notes it"
    assert {"defaults", "bfloat16", "lead", "exact"} <= set(found)
    unknown = {
        setting: [what for what in waits if not what.startswith(tuple(KNOWN))] for setting, waits in found.items()
    }
    assert not any(unknown.values()), json.dumps(unknown, indent=1)
