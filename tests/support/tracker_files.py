"""What trackers have written on disk, read back without their help."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7  # of LevelDB's log format, in which wandb keeps a run that is offline
WHOLE, LAST = 1, 4


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """Every row of the one offline run below a folder, in the order in which it was logged."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.rglob("run-*.wandb")
    rows = []
    for payload in _payloads(path.read_bytes()):
        record = Record()
        record.ParseFromString(payload)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def _payloads(data: bytes) -> Iterator[bytes]:
    at, parts = HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (WHOLE, LAST):
            yield parts
            parts = b""


def trackio_rows(database: Path) -> list[tuple[int, dict[str, Any]]]:
    """(step, numbers) of every row, in the order in which it was logged."""
    with sqlite3.connect(database) as connection:
        found = connection.execute("select step, metrics from metrics order by id").fetchall()
    connection.close()
    return [(step, json.loads(numbers)) for step, numbers in found]
