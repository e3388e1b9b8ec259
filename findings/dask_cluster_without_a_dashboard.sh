#!/usr/bin/env bash
# A dask LocalCluster that is told to have no dashboard (`dashboard_address=None`) has one, and holds port 8787.
#
# Guessed: none, as its docstring says. Seen 2026-11-30, distributed 2026.8.0: port 8787 listens as without the argument, so two such clusters
# at once want the same port, which is a warning (an error where warnings are errors, as in tests). Known as dask/distributed#8136.
# What to do: dashboard_address="127.0.0.1:0" takes any free port.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q distributed==2026.8.0
cat > "$folder/run.py" <<'PY'
import socket
import sys

from distributed import LocalCluster


def listens() -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", 8787)) == 0


if __name__ == "__main__":
    if listens():
        sys.exit("something else holds port 8787 here: end it and run this again")
    settings = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "silence_logs": 50}
    for address, expected in ((None, True), ("127.0.0.1:0", False)):
        with LocalCluster(dashboard_address=address, **settings) as cluster:
            print(f"dashboard_address={address!r}: port 8787 listens: {listens()}; the link is {cluster.dashboard_link}")
            assert listens() is expected, "this has changed"
PY
"$folder/venv/bin/python" -W ignore "$folder/run.py"
