#!/usr/bin/env bash
# Fabric's CSVLogger, given a row at every tenth step (0, 10, 20, ...), writes no file however long the run is.
#
# Guessed: rows go to disk after each hundred of them (`flush_logs_every_n_steps`), so a run of 1,000 rows has all but the last few. Seen
# 2026-11-30, lightning 2.6.6: it writes when a row arrives whose step is 99, 199, ...; a loop that logs `if step % 10 == 0` never has one, and
# its 1,000 rows are in memory alone until the process ends. Of 250 rows, one a step, the last 50 are lost. Nothing is said; Trainer's
# own CSVLogger is written at the end because Trainer calls `finalize`, which nobody does for Fabric.
# What to do: CSVLogger(..., flush_logs_every_n_steps=1), or logger.finalize("success") after the loop.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 lightning==2.6.6
"$folder/venv/bin/python" -W ignore - "$folder" <<'PY'
import sys
from pathlib import Path

from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger

wanted = {"every tenth of 10,000": (range(0, 10_000, 10), 0), "each of 250": (range(250), 200), "each of 99": (range(99), 0)}
for label, (steps, expected) in wanted.items():
    root = Path(sys.argv[1]) / label.replace(" ", "_")
    logger = CSVLogger(root)
    fabric = Fabric(accelerator="cpu", devices=1, loggers=logger)
    for step in steps:
        fabric.log("loss", 1.0, step=step)

    def rows() -> int:
        return sum(len(path.read_text().splitlines()) - 1 for path in root.rglob("*.csv"))

    before = rows()
    logger.finalize("success")
    print(f"{label} steps: {before} of {len(steps)} rows on disk after the loop, {rows()} after finalize")
    assert before == expected and rows() == len(steps), "this has changed"
PY
