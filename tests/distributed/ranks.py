"""Start the processes of a test's run."""

from __future__ import annotations

import multiprocessing
import os
import sys

import pytest
import torch.multiprocessing as mp


def spawn(function, world, *arguments, join=True):
    """Call `function(rank, world, *arguments)` in `world` processes; its module is imported once, not by each."""
    multiprocessing.set_forkserver_preload(
        ["rank_runs", "host_runs", "budget_runs", "flat_runs", "agreement_runs", "missing_runs"]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server that forks them knows no path of ours
        patch.setenv("OMP_NUM_THREADS", "1")
        return mp.start_processes(
            function, args=(world, *arguments), nprocs=world, join=join, start_method="forkserver"
        )
